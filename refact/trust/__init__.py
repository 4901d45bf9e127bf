"""What makes files safe to write, to read and to pass on: whole or not at all, checked by a schema, signed, locked.

No torch in here. Imported by every room that reads or writes files; imports `errors` alone.
"""
