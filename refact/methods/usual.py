"""Which settings an edit is made with where nobody names any: those with the best evidence for the model's family."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ..edits import Edit
from .refact import ReFACT

if TYPE_CHECKING:
    from ..models.model import Model

CLIP_L = (12, 768)  # layers and width of the encoder of Stable Diffusion 1.x
ROLE, ATTRIBUTE = 7, 9  # the paper's layers for RoAD and TIMED (section 4.1)


def usual_for(model: Model, edits: Sequence[Edit], **changes: Any) -> ReFACT:
    """`ReFACT.published()` on the encoder that the paper edits, at the paper's layer; elsewhere `ReFACT()`.

    changes: settings that are given all the same.

    The space of comparison is the companion CLIP's projected one, as published, where the model has a companion, and
    otherwise that of the encoder's own states. Targets by picture and searches on the conditioning have no published
    settings and take ours.
    """
    ours = changes.get("embedding") == "conditioning" or any(edit.targets_images for edit in edits)
    if ours or not _as_in_the_paper(model):
        return ReFACT(**changes)
    layer = ATTRIBUTE if edits and all(map(is_attribute, edits)) else ROLE
    usual = ReFACT.published(layer=layer, space="" if model.companion is None else "projected")
    return replace(usual, **changes)


def said_of(model: Model, method: ReFACT) -> list[str]:
    """A line that names the settings where they are not ReFACT's own; else none."""
    published = ReFACT.published(layer=method.layer, space=method.space)
    if not _as_in_the_paper(model) or method.layer is None or method.objective != published.objective:
        return []
    ours = [f.name for f in fields(ReFACT) if getattr(method, f.name) != getattr(published, f.name)]
    other = f" but for {', '.join(ours)}" if ours else ""
    line = f"{model.family.title}: the paper's own settings (refact:published){other}, layer {method.layer}"
    bare = "" if method.space else ", compared without the projection of a companion CLIP (--clip FOLDER)"
    return [f"{line}{bare}; --method refact takes this project's"]


def _as_in_the_paper(model: Model) -> bool:
    return model.family.name == "sd1" and [(e.n_layers, e.width) for e in model.encoders.values()] == [CLIP_L]


def is_attribute(edit: Edit) -> bool:
    """Whether the target is the same thing with another attribute: "a rose" -> "a blue rose"."""
    if not isinstance(edit.new, str):
        return False
    thing, new = (re.findall(r"\w+", re.sub(r"^(an?|the) ", "", text.casefold())) for text in (edit.prompt, edit.new))
    return len(new) > len(thing) > 0 and new[-len(thing) :] == thing


def unprotected(method: Any, edits: Sequence[Edit]) -> list[str]:
    """A line that says so where prompts shall stay and the method has no place for them."""
    if getattr(method, "protects", True) or not any(edit.preserve for edit in edits):
        return []
    return [f"{type(method).__name__} cannot hold prompts: those of --preserve are watched, not held"]
