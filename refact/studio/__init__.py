"""The studio: a page in the browser on which facts are made, seen, kept, undone and shared.

Imported by the command line alone. Only `page` and `server` name gradio, which is loaded when the studio starts.
"""
