"""SPEED: a concept's value mapped to another's, in the null space of what the retained concepts use.

Rows are samples. T are the concepts' last content states, A those of what they become, K the rows that are held. With
P the projector on the directions in which the retained rows have an eigenvalue below the threshold and
M = (T^T T P / n + s I)^-1, each projection W changes by (Ouxiang-Li/SPEED, train_erase_null.py)

    W (A - T)^T T / n P (I - M K^T (K P M K^T)^-1 K P) M
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from .. import solve
from ..edits import Edit, distinct
from ..encoders.devices import doubled
from ..errors import EditError
from ..lora import Factors
from ..models.covariance import texts_of
from ..models.model import Model
from ..patch import Patch
from .crossattention import _last, _prompts, _states, _text
from .loop import alone, patch_of

MIDDLES = 3  # of the empty prompt's rows after [BOS]
BATCH = 64  # prompts at once


@dataclass(frozen=True)
class Rows:
    """What an edit's change is made of; all are rows of text states."""

    concepts: Float64[Tensor, "n d"]
    targets: Float64[Tensor, "n d"]
    retained: Float64[Tensor, "r d"]
    held: Float64[Tensor, "h d"]


def speed(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """The change of each projection; its right factor differs from site to site with what is filtered there."""
    alone(method, onto)
    edits = distinct(edits)
    if not (sites := _sites(method, model)):
        raise EditError(f"{model.name} has no cross-attention on text states; {type(method).__name__} needs a UNet's")
    told = [[(prompt, _text(edit)) for prompt in _prompts(method, edit)] for edit in edits]
    rows = _rows(method, model, edits, [pair for pairs in told for pair in pairs])
    moves = rows.targets - rows.concepts
    draw = torch.Generator().manual_seed(method.seed)
    factors: Factors = {}
    for site in sites:
        weight = doubled(model[site].weight.detach())
        factors[site] = ((weight @ moves.T).float(), _right(method, rows, weight, draw).float())
    logs: list[dict] = []
    first = 0
    for pairs in told:
        logs.append({site: {"rows": [first, first + len(pairs)]} for site in factors})
        first += len(pairs)
    return patch_of(method, model, edits, factors, logs, {})


def _sites(method: Any, model: Model) -> list[str]:
    ends = (".to_k", ".to_v") if method.projections == "both" else (".to_v",)
    return [site for site in model.conditioning_sites if site.endswith(ends)]


def _rows(method: Any, model: Model, edits: Sequence[Edit], pairs: Sequence[tuple[str, str]]) -> Rows:
    concepts, targets = (_last(model, list(texts)) for texts in zip(*pairs))
    empty = _states(model, [""])[0]
    texts = retained_texts(method, model, edits, [concept for concept, _ in pairs])
    found = [_last(model, texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
    held = torch.cat([empty[:1], middles(empty[1:], MIDDLES, method.seed)]) if method.hold_empty else empty[:0]
    return Rows(concepts, targets, torch.cat(found) if found else empty[1:], held)


def retained_texts(method: Any, model: Model, edits: Sequence[Edit], concepts: Sequence[str]) -> list[str]:
    """What stays: protected prompts and the texts of `retain`, less those that hold one of the concepts as words."""
    corpus = model.corpus if method.retain == "corpus" else method.retain
    given = list(islice(texts_of(corpus), method.texts)) if corpus else []
    texts = dict.fromkeys([*(prompt for edit in edits for prompt in edit.preserve), *given])
    named = [re.compile(rf"\b{re.escape(concept)}\b", re.IGNORECASE) for concept in concepts]
    return [text for text in texts if not any(pattern.search(text) for pattern in named)]


def _right(method: Any, rows: Rows, weight: Float64[Tensor, "o d"], draw: torch.Generator) -> Float64[Tensor, "n d"]:
    """T / n P (I - M K^T (K P M K^T)^-1 K P) M for one projection."""
    count, width = rows.concepts.shape
    identity = torch.eye(width, dtype=torch.float64, device=weight.device)
    moment = rows.concepts.T @ rows.concepts / count
    kept = _influenced(method, rows, weight, draw)
    seen = kept.T @ kept / len(kept)
    unit = float(rows.retained.square().mean()) if method.relative else 1.0
    basis = solve.null_space(seen, 0.0, method.threshold * unit)
    free = basis @ basis.T
    inverse = torch.linalg.inv(moment @ free + method.scale * unit * identity)
    right = rows.concepts / count @ free
    if len(rows.held):
        held = rows.held @ free
        gram = held @ inverse @ rows.held.T
        if torch.linalg.matrix_rank(gram) < len(gram):
            raise EditError(f"{basis.shape[1]} free directions do not hold the empty prompt: raise the threshold")
        right = right - right @ inverse @ rows.held.T @ torch.linalg.solve(gram, held)
    return right @ inverse


def _influenced(
    method: Any, rows: Rows, weight: Float64[Tensor, "o d"], draw: torch.Generator
) -> Float64[Tensor, "r d"]:
    """The retained rows that a change without regard to them would move more than the mean, and their copies."""
    count = len(rows.concepts)
    moment = rows.concepts.T @ rows.concepts / count
    identity = torch.eye(len(moment), dtype=torch.float64, device=moment.device)
    plain = weight @ (rows.targets - rows.concepts).T @ rows.concepts / count @ torch.linalg.inv(identity + moment)

    def most(some: Tensor) -> Tensor:
        moved = (some @ plain.T).norm(dim=1)
        return some[moved > moved.mean()]

    kept = most(rows.retained) if method.filtered and method.augment and len(rows.retained) > 1 else rows.retained
    if not method.augment:
        return kept
    weakest = torch.linalg.svd(weight, full_matrices=False).Vh[-1]
    sizes = torch.randn(len(kept), method.augment, 1, generator=draw, dtype=torch.float64).to(kept.device)
    copies = (kept[:, None] + sizes * weakest).flatten(0, 1)
    return torch.cat([kept, most(copies)])


def middles(rows: Float64[Tensor, "n d"], count: int, seed: int) -> Float64[Tensor, "c d"]:
    """The centres of k-means (Lloyd's), from rows drawn with the seed, until no row changes its group."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    centres, groups = rows[order[:count].to(rows.device)], None
    while True:
        nearest = torch.cdist(rows, centres).argmin(1)
        if groups is not None and torch.equal(nearest, groups):
            return centres
        groups = nearest
        centres = torch.stack([rows[groups == i].mean(0) if (groups == i).any() else c for i, c in enumerate(centres)])
