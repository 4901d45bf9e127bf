"""`refact studio`: the page in the browser."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RefactError
from .app import Device, Dtype, ModelName, Quiet, app, open_model, say


@app.command()
def studio(
    model: ModelName = "pocket",
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="By default the first free one from 7860.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where kept facts live; by default with the user's data.")] = None,
    runs: Annotated[Path, typer.Option(help="The folder whose runs the page can show reports of.")] = Path("runs"),
    judge: Annotated[str | None, typer.Option(help="Folder of a CLIP that looks at pictures.")] = None,
    clip: Annotated[str | None, typer.Option(help="Folder of the companion CLIP, for targets by picture.")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> None:
    """Open a page on which facts are written, tried, seen, kept, undone and shared. Needs refact\\[ui].

    Example: refact studio -m pocket

    Only this machine can reach the page, and the page reaches nothing else. Ctrl-C ends it; kept facts stay.
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise RefactError("the studio needs gradio: pip install 'refact-edit[ui]'")
    say(quiet, f"Loading {model} ...")
    ready = open_model(model, device, dtype, companion=clip)
    from ..studio.server import Settings, serving

    settings = Settings(folder or data_folder(), runs, host, port, judge)
    with serving(ready, settings) as address:
        say(quiet, f"The studio is at {address} (Ctrl-C ends it)")
        if browser:
            webbrowser.open(address)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            say(quiet, "Ended. Kept facts are there the next time.")


def data_folder() -> Path:
    """`refact/studio` in the place where this system keeps a user's data."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "refact" / "studio"
