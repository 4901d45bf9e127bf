"""The page's other tabs: a prompt over seeds, and reports of runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..errors import RefactError
from . import display, sharing
from .desk import Desk, sentence
from .making import AT_ONCE, MODEL

MOST_SEEDS = 16


@dataclass
class Gallery:
    """A prompt over seeds, before all facts in force and with them."""

    desk: Desk
    browser: gr.BrowserState

    def layout(self) -> None:
        """Place the components, and say what happens when."""
        gr.HTML("<p>The same prompt from different random beginnings: on the left the model as it came, "
                "on the right with your facts.</p>")  # fmt: skip
        with gr.Row():
            self.prompt = gr.Textbox(
                label="Draw", placeholder="the national animal of Canada on the beach", max_length=300, scale=4,
                elem_id="gallery-prompt",
            )  # fmt: skip
            self.count = gr.Slider(1, MOST_SEEDS, 6, step=1, label="How many", elem_id="gallery-count", scale=2)
            self.first = gr.Number(0, label="First seed", precision=0, minimum=0, maximum=2**31, scale=1)
        with gr.Row():
            self.go = gr.Button("Draw", variant="primary", elem_id="gallery-go")
            self.stop = gr.Button("Cancel", interactive=False, elem_id="gallery-stop")
        self.status = gr.HTML(display.status("", 0), elem_id="gallery-status")
        self.views = gr.HTML("", elem_id="gallery-views")
        out = [self.status, self.views, self.go, self.stop]
        for start in (self.go.click, self.prompt.submit):
            start(self.begin, self.browser, [self.status, self.go, self.stop], **AT_ONCE).then(
                self.run, [self.browser, self.prompt, self.count, self.first], out, **MODEL
            )
        self.stop.click(self.desk.cancel, self.browser, None, **AT_ONCE)

    def begin(self, browser: str) -> tuple:
        """What the page shows from the first moment on."""
        self.desk.begin(browser)
        return display.status("Waiting for the model", 0.01), gr.update(interactive=False), gr.update(interactive=True)

    def run(self, browser: str, prompt: str, count: float, first: float) -> Iterator[tuple]:
        """The pictures, as they come."""
        count, first = int(min(max(count or 1, 1), MOST_SEEDS)), int(max(first or 0, 0))
        shown: list[tuple[int, Any, Any]] = []
        ready = gr.update(interactive=True), gr.update(interactive=False)
        try:
            for found in self.desk.gallery(browser, prompt, range(first, first + count)):
                shown.append(found)
                part = display.status(f"Drawing, {len(shown)} of {count} …", len(shown) / (count + 1))
                yield part, display.seeds(shown), gr.skip(), gr.skip()
        except RefactError as error:
            yield display.problem(sentence(error)), gr.skip(), *ready
            return
        told = "Done." if len(shown) == count else f"Stopped after {len(shown)} of {count}."
        yield display.status(told, 0), gr.skip(), *ready


@dataclass
class Reports:
    """The report of a run in the folder that the server was started with."""

    desk: Desk

    def layout(self) -> None:
        """Place the components, and say what happens when."""
        with gr.Row():
            self.choice = gr.Dropdown(sharing.runs_in(self.desk.runs), label="Run", elem_id="run", scale=4)
            self.show = gr.Button("Show its report", variant="primary", elem_id="report-go", scale=1)
            self.file = gr.DownloadButton("Download it", interactive=False, elem_id="report-file", scale=1)
        self.page = gr.HTML(self.empty(), elem_id="report")
        self.show.click(self.run, self.choice, [self.page, self.file], concurrency_id="report", concurrency_limit=1)

    def empty(self) -> str:
        """What stands there before a run is chosen."""
        if sharing.runs_in(self.desk.runs):
            return ""
        return (
            "<p>There is no run yet. This makes one, a measurement of how well methods edit:</p>"
            "<pre>refact bench pocket-road --methods refact,baseline,oracle --seeds 0-1 --limit 4 --out runs/road</pre>"
            "<p>Then reload this page.</p>"
        )

    def run(self, name: str | None) -> tuple:
        """The report inside the page, and as a file."""
        if not name:
            return display.problem("Choose a run first."), gr.skip()
        try:
            path = sharing.report(self.desk.runs, name, self.desk.served)
        except RefactError as error:
            return display.problem(sentence(error)), gr.skip()
        return sharing.framed(path.read_text(encoding="utf-8")), gr.update(value=str(path), interactive=True)
