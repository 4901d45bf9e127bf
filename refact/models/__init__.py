"""The model: a pipeline seen as text encoders, sites and pictures; where it is opened from; statistics of its keys.

Imported by the search and by everything above it; imports the words (edits, patch, families, ...) only.
"""
