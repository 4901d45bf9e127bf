"""The studies: one file each, thin over the evidence.

Imported by the doors; imports the evidence and everything below.
"""
