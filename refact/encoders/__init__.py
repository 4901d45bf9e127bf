"""The text encoders: tokens, keys of their MLPs, states; one file for each kind (CLIP, T5, decoders), and hooks.

Imported by `models` and above; imports the words (families, stash, errors, ...) only.
"""
