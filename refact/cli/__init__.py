"""The command line: one file for each group of subcommands; `main` puts them together.

Imported by nobody but `__main__`; imports everything, most of it only when a command runs.
"""
