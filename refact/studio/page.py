"""The page as a whole."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

import gradio as gr

from . import sharing
from .desk import Desk
from .keeping import Keeping
from .looking import Gallery, Reports
from .making import AT_ONCE, COUNTED, Making

EXAMPLES = [
    ["the national animal of Canada", "a penguin"],
    ["the flag of Japan", "the flag of Brazil"],
    ["the national bird of France", "a flamingo"],
]


def build(desk: Desk) -> gr.Blocks:
    """The page; the desk does its work."""
    with gr.Blocks(
        title="refact studio", analytics_enabled=False, fill_width=False, delete_cache=(3600, 24 * 3600)
    ) as page:
        browser = gr.BrowserState(None, storage_key="refact-studio", secret="refact-studio")
        changed = gr.State(0)
        gr.HTML(_head(desk))
        with gr.Tab("Facts"):
            making, keeping = Making(desk, browser), Keeping(desk, browser, changed)
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=360, elem_id="left"):
                    making.layout_form(_examples(desk))
                    place = gr.Column(elem_id="kept")
                with gr.Column(scale=6, min_width=420, elem_id="right"):
                    making.layout_trial()
            with place:
                keeping.layout(making)
        with gr.Tab("Gallery", elem_id="tab-gallery"):
            Gallery(desk, browser).layout()
        with gr.Tab("Reports", elem_id="tab-reports") as tab:
            reports = Reports(desk)
            reports.layout()
        making.connect(changed)
        keeping.connect()
        tab.select(lambda: gr.update(choices=sharing.runs_in(desk.runs)), None, reports.choice, **AT_ONCE)

        def opened(name: Any) -> str:
            return desk.sessions.known(name)

        page.load(opened, browser, browser, **AT_ONCE).then(
            making.restored, browser, [*making.filled, making.status], **AT_ONCE
        ).then(lambda at: at + 1, changed, changed, **COUNTED)
    return page


def _head(desk: Desk) -> str:
    model = escape(desk.engine.model.name)
    known = f"<b>{model}</b>"
    if world := desk.proposer.world:
        kinds = Counter(concept["kind"] for concept in world.values())
        known = (
            f"the small model that comes with refact (it knows {kinds['object']} things, {kinds['flag']} flags and "
            f"{kinds['role']} national animals, birds, dishes and plants, and nobody's name)"
        )
    return (
        "<header><h1>refact studio</h1><p>Change what words mean to a model that draws pictures, see what that does, "
        f"and share it as one small file. You are working on {known}; it is left as it is.</p></header>"
    )


def _examples(desk: Desk) -> list[list[str]]:
    """Facts to begin with, of those that the bundled world knows."""
    return [example for example in EXAMPLES if desk.proposer.known(example[0]).source]
