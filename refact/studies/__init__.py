"""The studies: one file each. They choose what to vary and leave the measuring to the evidence.

Imported by the doors; imports the evidence and everything below.
"""
