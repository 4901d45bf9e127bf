"""The page's list of the facts in force: on and off, weaker, away, undone, shared."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import RefactError
from ..record import read_record
from . import display
from .desk import Desk, Shared, sentence
from .making import AT_ONCE, COUNTED, MODEL, Making
from .session import Kept, Session


@dataclass
class Keeping:
    """The components of this part, and what they do."""

    desk: Desk
    browser: gr.BrowserState
    changed: gr.State

    def layout(self, making: Making) -> None:
        """Place the components; making: where a fact of the list is looked at again."""
        gr.HTML("<h2>3. Your facts</h2>")
        self._rows(making)
        self.said = gr.HTML("", elem_id="facts-said")
        with gr.Row():
            self.undo = gr.Button("Undo", elem_id="undo", interactive=False, min_width=90, size="md")
            self.redo = gr.Button("Redo", elem_id="redo", interactive=False, min_width=90, size="md")
        self._share()

    def _share(self) -> None:
        gr.HTML("<h2>4. Share them</h2>")
        self.file = gr.DownloadButton("Download as one file", elem_id="download", interactive=False, variant="primary")
        with gr.Row():
            self.listed = gr.DownloadButton("The list (facts.toml)", elem_id="toml", interactive=False, size="md")
            self.load = gr.UploadButton("Load a file …", file_types=[".safetensors"], elem_id="load", size="md")
        with gr.Accordion("How to use the file in other programs", open=False, elem_id="usage"):
            self.usage = gr.HTML(NOTHING_YET)

    def _rows(self, making: Making) -> None:
        @gr.render([self.browser, self.changed], triggers=[self.changed.change], show_progress="hidden")
        def rows(browser: str, changed: int) -> None:
            session = self.desk.sessions.open(browser)
            if not session.facts:
                gr.HTML('<p class="nothing">No fact is kept yet. Try one above, and keep it.</p>')
            for kept in session.facts:
                self._row(session, kept, making)

    def _row(self, session: Session, kept: Kept, making: Making) -> None:
        with gr.Column(elem_classes="fact"):
            with gr.Row(elem_classes="top"):
                on = gr.Checkbox(
                    kept.on, show_label=False, label="in force", container=False, elem_classes="on", interactive=True
                )
                gr.HTML(described(session, kept), elem_classes="said")
                look = gr.Button("Look", size="sm", min_width=60, scale=0, elem_classes="look")
                away = gr.Button("Remove", size="sm", min_width=70, scale=0, elem_classes="away")
            strength = gr.Slider(
                0, 1.5, kept.strength, step=0.05, label="Strength", elem_classes="weaker", buttons=[], interactive=True
            )
        file = kept.file
        here = [self.browser, self.changed]
        out = [self.changed, self.said]

        def change(**how: Any) -> Any:
            return lambda session: session.change(file, **how)

        def switch(browser: str, changed: int, value: bool) -> tuple:
            return self._changed(browser, changed, change(on=bool(value)))

        def weaken(browser: str, changed: int, value: float) -> tuple:
            return self._changed(browser, changed, change(strength=float(value)))

        on.input(switch, [*here, on], out, **COUNTED)
        strength.release(weaken, [*here, strength], out, **COUNTED)
        away.click(lambda b, c: self._changed(b, c, lambda session: session.remove(file)), here, out, **COUNTED)
        busy = [making.go, making.stop, making.status]
        look.click(None, None, None, js=display.TO_THE_FORM)
        look.click(making.begin, self.browser, busy, **AT_ONCE).then(
            lambda browser: making.fill(browser, file), self.browser, making.filled, **AT_ONCE
        ).then(making.looker(file), self.browser, making.shown, **MODEL)

    def connect(self) -> None:
        """Say what happens when."""
        here, out = [self.browser, self.changed], [self.changed, self.said]
        self.undo.click(lambda b, c: self._changed(b, c, Session.undo), here, out, **COUNTED)
        self.redo.click(lambda b, c: self._changed(b, c, Session.redo), here, out, **COUNTED)
        self.load.upload(self.loaded, [*here, self.load], out, **MODEL)
        shown = [self.undo, self.redo, self.file, self.listed, self.usage, self.said]
        self.changed.change(self.refresh, [self.browser], shown, **MODEL)

    def _changed(self, browser: str, changed: int, how: Any) -> tuple:
        try:
            how(self.desk.sessions.open(browser))
        except RefactError as error:
            return gr.skip(), display.problem(sentence(error))
        return changed + 1, gr.skip()

    def loaded(self, browser: str, changed: int, path: str) -> tuple:
        """The facts of an uploaded file are in the list."""
        try:
            self.desk.load(browser, path)
        except RefactError as error:
            return gr.skip(), display.problem(sentence(error))
        return changed + 1, gr.skip()

    def refresh(self, browser: str) -> tuple:
        """Undo, redo, the files and what there is to say, as the list is now."""
        session = self.desk.sessions.open(browser)
        states = gr.update(interactive=session.can_undo), gr.update(interactive=session.can_redo)
        try:
            shared = self.desk.shared(browser)
        except RefactError as error:
            off = gr.update(interactive=False, value=None)
            return (*states, off, off, NOTHING_YET, display.problem(sentence(error)))
        return (*states, _download(shared.file), _download(shared.listed), usage(shared), _said(session, shared))


NOTHING_YET = "<p>Keep a fact first; then this tells how to load the file.</p>"


def _download(path: Path | None) -> dict:
    return gr.update(value=str(path) if path else None, interactive=path is not None)


def usage(shared: Shared) -> str:
    """How other programs load the file."""
    if not shared.usage:
        return NOTHING_YET
    return f"<p>The file is a LoRA of the text encoder.</p><pre>{escape(shared.usage)}</pre>"


def _said(session: Session, shared: Shared) -> str:
    total = len(session.facts)
    if not total:
        return ""
    count = f"{shared.count} of {total} fact{'s' * (total != 1)} in force."
    return display.lines([*(("warn", line) for line in shared.lines), ("plain", count)])


def described(session: Session, kept: Kept) -> str:
    """A fact of the list in words."""
    record = read_record(session.path(kept))
    said = [_fact(form) for form in record["edits"]] or [escape(part["name"]) for part in record.get("imported", [])]
    more = f" and {len(said) - 1} more, which cannot be told apart" if len(said) > 1 else ""
    return f'<div class="what{"" if kept.in_force else " off"}">{said[0]}{more}</div>'


def _fact(form: dict) -> str:
    new = f"“{form['new']}”" if isinstance(form["new"], str) else "your pictures"
    old = f'<div class="was">was “{escape(form["old"])}”</div>' if form.get("old") else ""
    return f"“{escape(form['prompt'])}” → {escape(new)}{old}"
