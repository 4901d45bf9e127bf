"""The `refact` command: all subcommands put together. Each imports what it needs, so that `--help` needs no torch."""

from __future__ import annotations

import os
import sys

import typer

from ..errors import RefactError

# isort: off  the order is that of the help; each file registers its subcommands
from . import about, edit, files, measure, pictures, studio, study  # noqa: F401
from .app import app

# isort: on


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except (RefactError, FileNotFoundError) as error:
        typer.echo(f"refact: {error}", err=True)
        sys.exit(2)
