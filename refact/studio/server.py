"""The server of the page: on this machine only, without a word to any other, until it is interrupted."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RefactError
from ..models.model import Model
from .sharing import UPLOAD

QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
LOCAL = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Settings:
    """Where the server listens and keeps things. folder: of all sessions; runs: of the runs that have reports."""

    folder: Path
    runs: Path
    host: str = "127.0.0.1"
    port: int | None = None
    judge: str | None = None
    method: Any = None


@contextmanager
def serving(model: Model, settings: Settings) -> Iterator[str]:
    """The page's address; the server runs within the block. Raises RefactError where gradio or the port is missing."""
    with tempfile.TemporaryDirectory(prefix="refact-studio-") as served:
        before = {name: os.environ.get(name) for name in (*QUIET, "GRADIO_TEMP_DIR")}
        os.environ.update(QUIET | {"GRADIO_TEMP_DIR": served})  # read when gradio is imported
        try:
            page = _page(model, settings, Path(served))
            try:
                yield _launched(page, settings)
            finally:
                page.close()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _page(model: Model, settings: Settings, served: Path) -> Any:
    try:
        from . import page
    except ModuleNotFoundError as error:
        raise RefactError(f"the studio needs {error.name}: pip install 'refact-edit[ui]'") from None
    from .desk import Desk
    from .engine import Engine
    from .session import Sessions

    prints = "-".join(model.fingerprints().values())[:33]
    engine = Engine(model, settings.method, settings.judge)
    threading.Thread(target=engine.warm, daemon=True).start()
    return page.build(Desk(engine, Sessions(settings.folder / prints), served, settings.runs))


def _launched(page: Any, settings: Settings) -> str:
    import gradio as gr

    from ..pocket import DATA

    font = ("ui-sans-serif", "system-ui", "sans-serif")
    hosts = (*LOCAL, settings.host)
    try:
        _, address, _ = page.queue(max_size=32, api_open=False).launch(
            server_name=settings.host,
            server_port=settings.port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inline=False,
            show_error=True,
            max_file_size=UPLOAD,
            allowed_paths=[],
            enable_monitoring=False,
            strict_cors=True,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            run_history=False,
            footer_links=[],
            theme=gr.themes.Default(font=font, font_mono=("ui-monospace", "monospace")),
            css_paths=[DATA / "studio.css"],
            app_kwargs={"middleware": [_doorman(hosts)]},
        )
    except OSError as error:
        raise RefactError(f"the page cannot be opened at {settings.host}: {error}") from None
    return address


def _doorman(hosts: Sequence[str]) -> Any:
    from starlette.middleware import Middleware

    return Middleware(Doorman, hosts=hosts)


class Doorman:
    """Turns away who asks by another host's name (DNS rebinding), and who asks the server to fetch an address."""

    def __init__(self, app: Callable, hosts: Sequence[str]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """One request."""
        if scope["type"] in ("http", "websocket") and not self._welcome(scope):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Not allowed."})
            return
        await self.app(scope, receive, send)

    def _welcome(self, scope: dict) -> bool:
        named = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        host = named.rpartition(":")[0] if named.rpartition(":")[2].isdigit() else named
        everywhere = "0.0.0.0" in self.hosts or "::" in self.hosts
        _, fetched, what = scope["path"].partition("/file=")
        return (everywhere or host in self.hosts) and not (fetched and "://" in what)
