"""The writing: from what a search found to a patch, by closed forms or by descent; one loop serves all methods.

Imported by `methods` (when one is called) and above; imports the search. It knows no method's class.
"""
