"""MEMIT: the same search as ReFACT's, its change shared by several layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .. import solve
from ..edits import Edit, distinct
from ..errors import EditError
from ..lora import Factors
from ..models.encoders import TextEncoder
from ..models.model import Model
from ..patch import Patch
from ..search import suffix
from ..search.readings import Reading
from ..search.sentences import sentences_of, templates_of
from ..search.wanted import Wanted, search
from .held import prior_of, protect
from .loop import Written, chosen, chosen_layer, entries, patch_of


@torch.inference_mode(False)  # gradients are taken, also where the caller has turned them off
def memit(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """Each of `method.depth` layers writes its share of what is missing at the last of them, by ridge regression."""
    edits = distinct(edits)
    factors: Factors = {}
    used: dict[str, dict] = {}
    logs: list[dict] = [{} for _ in edits]
    for encoder in chosen(model, method.encoders):
        last = chosen_layer(model, encoder, method.layer)
        if not 1 <= method.depth <= last + 1:
            raise EditError(f"depth is 1 to {last + 1}, the layers up to {last}, not {method.depth}")
        _memit_one(method, model, encoder, last, edits, onto, factors, logs, used)
    return patch_of(method, model, edits, factors, logs, used)


def _memit_one(method, model, encoder: TextEncoder, last: int, edits, onto, factors, logs, used) -> None:
    wanted = search(method, model, encoder, last, edits)
    goal = _states(method, encoder, last, edits)[1] + wanted.offsets
    changes: list[tuple[nn.Linear, Tensor]] = []
    for layer in range(last - method.depth + 1, last + 1):
        site = encoder.site(layer)
        with moved(changes):
            keys, reached = _states(method, encoder, layer, edits)
            missing = goal - (reached if layer == last else _states(method, encoder, last, edits)[1])
        prior, used[site] = prior_of(method, model, encoder, layer)
        prior, dropped = protect(method, encoder, layer, edits, onto, [k[None] for k in keys], prior)
        solution = solve.ridge(keys, prior, method.ridge * solve.typical(keys, prior))
        share = Wanted([k[None] for k in keys], missing / (last - layer + 1), wanted.found)
        factors[site] = (share.offsets.T.float().contiguous(), solution.right.float())
        changes.append((encoder.linear(layer), share.offsets.T @ solution.right))
        written = Written(solution, torch.eye(len(keys), dtype=torch.float64), dropped, used[site])
        for log, entry in zip(logs, entries(share, written, layer)):
            log[site] = entry


def _states(method: Any, encoder: TextEncoder, layer: int, edits: Sequence[Edit]) -> tuple[Tensor, Tensor]:
    """Each edit's mean key at the layer, and its mean hidden state after it, over wordings and contexts."""
    plain, keys, states = Reading(encoder, None), [], []
    for edit in edits:
        sentences = sentences_of(encoder, plain, edit, templates_of(method))
        begun = suffix.start(encoder.tower, layer, [sentences], plain.depth)
        keys.append(begun.keys[0].mean(0))
        states.append(begun.suffix.base[0][begun.suffix.edited[0, :, 0] > 0].mean(0))
    return torch.stack(keys).double(), torch.stack(states).double()


@contextmanager
def moved(changes: Sequence[tuple[nn.Linear, Tensor]]) -> Iterator[None]:
    """Within the block the matrices are changed; afterwards they are what they were, bit for bit."""
    stash = [(linear, linear.weight.data) for linear, _ in changes]
    try:
        for linear, change in changes:
            linear.weight.data = (linear.weight.data.double() + change).to(linear.weight.dtype)
        yield
    finally:
        for linear, weight in stash:
            linear.weight.data = weight
