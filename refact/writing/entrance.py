"""The entrance of a transformer: the Linear that takes in the text states, edited in closed form as UCE does it.

What a prompt's last row is projected to becomes what the target's last row was projected to: residual W (t - s) at the
key s. Keys are what the Linear is given: the states that the pipeline sends, after the norm that stands before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import solve
from ..edits import Edit, distinct
from ..encoders.devices import doubled
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from ..models.model import Model
from ..patch import Patch
from .loop import alone, patch_of


def entrance(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """One Linear of the transformer, a row of the right factor a key."""
    alone(method, onto)
    edits = distinct(edits)
    site, encoder = site_of(model), next(iter(model.encoders.values()))
    if method.rows not in ("subject", "all"):
        raise EditError(f"rows is 'subject' or 'all', not {method.rows!r}")
    pairs = [_pair(method, model, encoder, edit) for edit in edits]
    keys = torch.cat([source for source, _ in pairs])
    kept = torch.cat([keys_of(model, encoder, p) for p in ("", *dict.fromkeys(p for e in edits for p in e.preserve))])
    size = torch.cat([keys, kept]).square().mean()
    ridge = method.strength * size * torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
    prior = solve.prior((ridge + method.keep * kept.T @ kept) / method.erase, of_prompts=True)
    right = solve.ridge(keys, prior, 1.0).right
    moves = torch.cat([target - source for source, target in pairs])
    weight = doubled(model[site].weight.detach())
    logs: list[dict] = []
    first = 0
    for source, _ in pairs:
        logs.append({site: {"rows": [first, first + len(source)]}})
        first += len(source)
    return patch_of(method, model, edits, {site: ((weight @ moves.T).float(), right.float())}, logs, {})


def site_of(model: Model) -> str:
    """The entrance of the model's transformer. Raises EditError where its family has none, or several."""
    if not model.family.entrance:
        raise EditError(f"the text of {model.family.title} passes no single projection; Entrance cannot edit it")
    return f"transformer.{model.family.entrance}"


def _pair(method: Any, model: Model, encoder: TextEncoder, edit: Edit) -> tuple[Tensor, Tensor]:
    """The keys of an edit's prompt, and those of its target: as many, from the end backwards."""
    if not isinstance(edit.new, str):
        raise EditError("Entrance takes a target by text")
    after = encoder.part.tail if encoder.frame.after else int(encoder.kind == "t5")  # T5 writes [EOS]
    source, target = (keys_of(model, encoder, text)[-after - 1 :] for text in (edit.prompt, edit.new))
    count = 1 if method.rows == "subject" else after + 1
    return source[:count], target[:count]


@torch.no_grad()
def keys_of(model: Model, encoder: TextEncoder, prompt: str) -> Tensor:
    """What the entrance is given of a prompt's own rows and of those written after it, float64 (rows, d_in)."""
    states, end = encoder.states([prompt])[0], int(encoder.tokenize([prompt]).ends)
    rows = states[encoder.starts([prompt])[0] : end + 1]
    norm = model.family.entrance_norm
    if norm:
        rows = model.pipe.transformer.get_submodule(norm)(rows.to(model.dtype))
    return doubled(rows)
