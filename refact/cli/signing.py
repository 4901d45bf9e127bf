"""`refact sign`: who made a patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import RefactError, shown
from .app import Quiet, app, say


@app.command()
def sign(
    file: Annotated[Path | None, typer.Argument(help="The patch; it gets the signature into its metadata.")] = None,
    key: Annotated[Path | None, typer.Option(help="The private key's file.")] = None,
    new_key: Annotated[
        Path | None, typer.Option("--new-key", help="Make a key: NAME is private, NAME.pub public.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Sign a patch with an Ed25519 key, so that others see from whom it is (refact show --check).

    Example: refact sign --new-key team.key; refact sign canada.safetensors --key team.key
    """
    from ..record import read_record
    from ..trust import disk, signatures

    if new_key:
        public, print_ = signatures.new_key(new_key)
        say(quiet, f"{shown(new_key)}: the private key, which nobody else may have", f"{shown(public)}: {print_}")
    if (file is None and new_key is None) or (file is None) != (key is None):
        raise RefactError("give a patch and --key FILE, or --new-key NAME to make a key")
    if file and key:
        read_record(file)
        disk.write(file, signed := signatures.sign(file.read_bytes(), key))
        say(quiet, f"{shown(file)}: signed, {len(signed) / 1024:.0f} KB")
