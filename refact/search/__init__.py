"""The search: from edits and a text encoder to keys, and to the change of an MLP's output that each edit needs.

Imported by `writing` and above; imports the models, the words and `solve`. It knows no method.
"""
