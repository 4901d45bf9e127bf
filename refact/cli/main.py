"""The `refact` command: all subcommands put together. Each imports what it needs, so that `--help` needs no torch."""

from __future__ import annotations

import os
import sys
import warnings

import typer

from ..errors import LONGEST, RefactError, shown

# isort: off  the order is that of the help; each file registers its subcommands
from . import about, edit, files, measure, pictures, signing, studio, study  # noqa: F401
from .app import app

# isort: on

INTERRUPTED = 130  # with which typer ends, in silence, after Ctrl-C


def main() -> None:
    """Run the command; a user's mistake, and whatever the disk refuses, is one line and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = _warned
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            typer.echo("\nrefact: stopped by Ctrl-C; what was written before is whole", err=True)
        raise
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except RefactError as error:
        _end(error)
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error)
    except MemoryError:
        _end("the memory does not suffice: fewer facts, contexts or pictures at a time need less")


def _end(reason: object) -> None:
    typer.echo(f"refact: {shown(reason, LONGEST)}", err=True)
    sys.exit(2)


def _warned(message: Warning | str, category: type[Warning], filename: str, *_: object, **__: object) -> None:
    """Our own warnings as one line; those of the libraries are theirs, and silent."""
    if os.sep + "refact" + os.sep in filename:
        typer.echo(f"refact: {shown(message, LONGEST)}", err=True)
