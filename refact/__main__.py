"""python -m refact is the same as refact."""

from .cli import main

main()
