"""Pieces of HTML and pictures that the page is made of. All that a person wrote is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image

from .trial import Trial, View
from .verdict import sentences

LARGE, MIDDLE, SMALL = 512, 384, 128  # pixels a side: in the slider, in the gallery, in a thumbnail
GROUPS = {  # the rows of thumbnails, with the kinds of views that each shows
    "The words themselves, in other contexts and in other words": ("fact", "context", "wording"),
    "Near it; these should stay the same": ("near",),
    "The old and the new meaning; these should stay the same": ("end",),
}
OLD = "Proposed where it is known. If you leave it empty, it is what the words mean to the model today."
ALIASES = "They get the very same change."
STAY = "Other prompts whose pictures this fact must not change."


Pair = tuple[str, Any, Any]  # a prompt, its picture before, its picture after


def enlarged(picture: Any, side: int = LARGE) -> Any:
    """The picture, at least so many pixels wide."""
    if picture.width >= side:
        return picture
    return picture.resize((side, round(side * picture.height / picture.width)), Image.Resampling.BICUBIC)


def pairs(trial: Trial) -> list[Pair | None]:
    """All views as the slider shows them; None where the pictures are still to come."""
    return [
        None if view.after is None else (view.prompt, enlarged(view.before), enlarged(view.after))
        for view in trial.views
    ]


def thumbnails(trial: Trial) -> str:
    """The views that are drawn, small, in groups; each is a button with the view's number."""
    parts = []
    for title, kinds in GROUPS.items():
        views = [(at, view) for at, view in enumerate(trial.views) if view.kind in kinds and view.after is not None]
        if views:
            parts.append(f'<h3>{title}</h3><div class="thumbs">{"".join(_thumbnail(*view) for view in views)}</div>')
    return "".join(parts)


def _thumbnail(at: int, view: View) -> str:
    prompt, shown = escape(view.prompt, quote=True), _both(view.before, view.after, SMALL)
    return f'<button type="button" data-at="{at}" title="{prompt}">{shown}<span>{prompt}</span></button>'


def seeds(drawn: Sequence[tuple[int, Any, Any]]) -> str:
    """Pictures of one prompt over seeds: (seed, before, after or None)."""
    figures = [f"<figure>{_both(old, new, MIDDLE)}<span>seed {seed}</span></figure>" for seed, old, new in drawn]
    return f'<div class="thumbs large">{"".join(figures)}</div>' if figures else ""


def _both(before: Any, after: Any, side: int) -> str:
    pictures = {"before": before} | ({} if after is None else {"after": after})
    return "".join(f'<img alt="{when}" src="{_inline(shown, side)}">' for when, shown in pictures.items())


def _inline(picture: Any, side: int) -> str:
    """A picture of at most so many pixels a side, as an address that holds it."""
    small, buffer = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((side, side))
    small.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


CHOOSE = """
element.addEventListener("click", event => {
  const chosen = event.target.closest("[data-at]");
  if (chosen) trigger("select", {index: Number(chosen.dataset.at), value: chosen.title});
});
"""

# the status line and the slider come into view: who pressed a button far down the page sees that something goes on
TO_THE_FORM = """() => {
  document.querySelector("#go").scrollIntoView({behavior: "smooth", block: "center"});
}"""


def status(text: str, part: float) -> str:
    """A line of what is going on, with a bar while something is."""
    bar = f'<div class="bar"><div style="width:{100 * part:.0f}%"></div></div>' if 0 < part < 1 else ""
    return f'<div class="status" role="status" aria-live="polite">{escape(text)}{bar}</div>'


def stage(trial: Trial) -> str:
    """How far a trial has come."""
    if trial.cancelled:
        return status("Stopped. Nothing was changed.", 0)
    if trial.done:
        return status("Done. Below the picture: what became of it, and the button that keeps it.", 0)
    return status(f"{trial.stage} …", trial.part)


def problem(text: str) -> str:
    """A sentence on what went wrong."""
    return f'<div class="status problem" role="alert">{escape(text)}</div>'


def good(text: str) -> str:
    """A sentence on what went well."""
    return f'<div class="status good" role="status">{escape(text)}</div>'


def caption(prompt: str, empty: bool = False) -> str:
    """What stands above the slider."""
    if empty:
        return '<div class="caption">Before and after appear here. Nothing is changed until you keep a fact.</div>'
    return f'<div class="caption"><span>before</span><b>{escape(prompt)}</b><span>after</span></div>'


def verdict(trial: Trial) -> str:
    """The verdict's sentences as a list."""
    return lines(sentences(trial.edit, trial.verdict)) if trial.verdict else ""


def lines(said: Any) -> str:
    """(tone, sentence) as a list."""
    items = "".join(f'<li class="{tone}">{escape(text)}</li>' for tone, text in said)
    return f'<ul class="lines">{items}</ul>' if items else ""
