"""MEMIT, EMCID, and AlphaEdit over several layers: one search, whose change several layers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .. import solve
from ..edits import Edit, distinct
from ..encoders.devices import doubled
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from ..lora import Factors
from ..models.model import Model
from ..patch import Patch
from ..search import suffix
from ..search.keys import Dropped
from ..search.readings import Reading
from ..search.sentences import sentences_of, spoken, templates_of
from ..search.wanted import Places, Wanted, search
from . import noise
from .held import prior_of, protect
from .loop import Written, chosen, chosen_layer, entries, patch_of

Solved = tuple[solve.Solution, list[Dropped], dict]  # what a layer's closed form gives; the dict is for the record
LayerSolver = Callable[[TextEncoder, int, Float[Tensor, "n d_in"]], Solved]


@dataclass(frozen=True)
class Goal:
    """What the search wants: the state after the last layer, and how its course went."""

    states: Float[Tensor, "e d"]
    wanted: Wanted


@torch.inference_mode(False)  # gradients are taken, also where the caller has turned them off
def memit(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """Each of `method.depth` layers writes its share of what is missing at the last of them, by ridge regression."""
    edits = distinct(edits)

    def goal(encoder: TextEncoder, last: int) -> Goal:
        wanted = search(method, model, encoder, last, edits)
        return Goal(_states(method, encoder, last, edits)[1] + wanted.offsets, wanted)

    return shared(method, model, edits, goal, _by_ridge(method, model, edits, onto))


def emcid(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """As `memit`, with EMCID's own search, which looks at the generator's predictions too."""
    edits = distinct(edits)

    def goal(encoder: TextEncoder, last: int) -> Goal:
        wanted, reached = noise.search(method, model, encoder, last, spoken(method, edits))
        return Goal(reached + wanted.offsets, wanted)

    def last(encoder: TextEncoder) -> int:
        return encoder.n_layers - 2

    return shared(method, model, edits, goal, _by_ridge(method, model, edits, onto), last)


def _by_ridge(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch]) -> LayerSolver:
    def solved(encoder: TextEncoder, layer: int, keys: Tensor) -> Solved:
        prior, used = prior_of(method, model, encoder, layer)
        prior, dropped = protect(method, encoder, layer, edits, onto, [k[None] for k in keys], prior)
        scale = method.ridge if method.absolute else method.ridge * solve.typical(keys, prior)
        return solve.ridge(keys, prior, scale), dropped, used

    return solved


def shared(
    method: Any,
    model: Model,
    edits: list[Edit],
    goal: Callable[[TextEncoder, int], Goal],
    solver: LayerSolver,
    deepest: Callable[[TextEncoder], int | None] = lambda _: None,
) -> Patch:
    """In each encoder: what is wanted at the last layer, written by the layers up to it, each its share of the rest.

    deepest: the last layer where the method names none; by default the model's own.
    """
    factors: Factors = {}
    used: dict[str, dict] = {}
    logs: list[dict] = [{} for _ in edits]
    for encoder in chosen(model, method.encoders):
        last = chosen_layer(model, encoder, deepest(encoder) if method.layer is None else method.layer)
        depth = method.depth or last + 1
        if not 1 <= depth <= last + 1:
            raise EditError(f"depth is 1 to {last + 1}, the layers up to {last}, or 0 for all, not {method.depth}")
        aim = goal(encoder, last)
        changes: list[tuple[nn.Linear, Tensor]] = []
        for layer in range(last - depth + 1, last + 1):
            site = encoder.site(layer)
            keys, missing = _missing(method, encoder, layer, last, edits, aim, changes)
            solution, dropped, used[site] = solver(encoder, layer, keys)
            share = Wanted([Places(k[None], k, k) for k in keys], missing / (last - layer + 1), aim.wanted.found)
            factors[site] = (share.offsets.T.float().contiguous(), solution.right.float())
            changes.append((encoder.linear(layer), share.offsets.T @ solution.right))
            written = Written(
                solution, torch.eye(len(keys), dtype=torch.float64, device=keys.device), dropped, used[site]
            )
            for log, entry in zip(logs, entries(share, written, layer)):
                log[site] = entry
    return patch_of(method, model, edits, factors, logs, used)


def _missing(method, encoder, layer: int, last: int, edits, aim: Goal, changes) -> tuple[Tensor, Tensor]:
    """The keys at a layer under the changes so far, and what is missing of the goal.

    MEMIT (equation 20): of the state after the last layer. EMCID's release takes the layer's own MLP output from the
    goal, which is a state: with method.residual "released".
    """
    with moved(changes):
        keys, reached, outputs = _states(method, encoder, layer, edits)
        if method.residual == "released":
            return keys, aim.states - outputs
        return keys, aim.states - (reached if layer == last else _states(method, encoder, last, edits)[1])


def _states(method: Any, encoder: TextEncoder, layer: int, edits: Sequence[Edit]) -> tuple[Tensor, Tensor, Tensor]:
    """Each edit's key at the layer, its state after it and its MLP output, means over wordings and contexts."""
    plain, found = Reading(encoder, None), []
    for edit in spoken(method, edits):
        sentences = sentences_of(encoder, plain, edit, templates_of(method), method.filled)
        begun = suffix.start(encoder.tower, layer, [sentences], plain.depth)
        every = begun.places[0]  # a sentence counts however many have the same key
        states = begun.suffix.base[0][begun.suffix.edited[0, :, 0] > 0]
        found.append([doubled(rows[every].mean(0)) for rows in (begun.keys[0], states, begun.values[0])])
    keys, reached, outputs = (torch.stack(part) for part in zip(*found))
    return keys, reached, outputs


@contextmanager
def moved(changes: Sequence[tuple[nn.Linear, Tensor]]) -> Iterator[None]:
    """Within the block the matrices are changed; afterwards they are what they were, bit for bit."""
    stash = [(linear, linear.weight.data) for linear, _ in changes]
    try:
        for linear, change in changes:
            weight = linear.weight
            coarse = weight.element_size() < 2  # of another program (encoders/widened.py): too coarse to hold a change
            new = doubled(weight.data) + change
            linear.weight.data = new.to(weight.device, torch.float32) if coarse else new.to(weight)
        yield
    finally:
        for linear, weight in stash:
            linear.weight.data = weight
