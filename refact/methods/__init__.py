"""The methods: one file each, frozen settings that are called with a model and edits and give a patch.

Reading a method's settings imports no torch. `registry` finds methods by name, those of other packages included.
Imported by `editing`, `stores`, the evidence, the studies and the doors; imports `writing` when a method is called.
"""
