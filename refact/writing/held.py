"""One matrix an encoder, written exactly or with a ridge, while protected keys are held: how ReFACT writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import solve
from ..edits import Edit, distinct
from ..encoders.devices import exact
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from ..models import covariance
from ..models.model import Model
from ..patch import Patch
from ..search.keys import Dropped, keys_of_patch, keys_with, token_keys
from ..search.wanted import Wanted
from .loop import Searcher, Written, one_layer


@torch.inference_mode(False)  # gradients are taken, also where the caller has turned them off
def refact(
    method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = (), searched: Searcher | None = None
) -> Patch:
    """One matrix an encoder, written for all edits at once, with the protected keys held.

    Several facts whose keys need more than the share `method.fill` of the free directions are written with the ridge
    `method.crowded`, their sources' and targets' own prompts let go: they hold nearly, and the rest stays; exactly
    they would hold at the rest's cost, or not fit. searched: what says what is wanted at a layer, where it is known
    already; by default `search`.
    """
    edits = distinct(edits)

    def written(encoder: TextEncoder, layer: int, wanted: Wanted) -> Written:
        prior, used = prior_of(method, model, encoder, layer, edits)

        def solved(how: Any, crowded: bool = False) -> Written:
            held, dropped = protect(how, encoder, layer, edits, onto, wanted.keys, prior)
            keys, room = written_keys(how, wanted), how.fill * held.free
            may = how.crowded and not how.ridge and len(edits) > 1 and len(keys) > room
            if may and solve.fill(keys, held) > how.fill:
                return solved(replace(how, ridge=how.crowded, keep_ends=False), True)
            return Written(*write(how, wanted, held), dropped, used, crowded)

        return solved(method)

    return one_layer(method, model, edits, written, searched)


def covariance_of(method: Any, model: Model, encoder: TextEncoder, layer: int) -> tuple[Float[Tensor, "d d"], dict]:
    """E[k k^T] at a layer, shrunk (the identity when a method does without), and what to record of it."""
    place = exact(encoder.device)
    if not method.covariance:
        return torch.eye(encoder.linear(layer).in_features, dtype=torch.float64, device=place), {"corpus": None}
    corpus = method.corpus or model.corpus
    how = {"tokens": method.tokens, "padding": method.padding, "rarity": method.rarity, "cut": method.cut}
    seen = covariance.obtain(encoder, layer, corpus=corpus, count=method.texts, **how, progress=model.progress)
    how = {name: getattr(seen, name) for name in ("tokens", "padding", "rarity", "cut")}  # a file brings its own
    record = how | {"texts": method.texts, "hash": seen.hash(), "corpus": seen.corpus}
    return seen.shrunk(method.shrink).to(place), record | {"shrink": method.shrink}


def prior_of(
    method: Any, model: Model, encoder: TextEncoder, layer: int, edits: Sequence[Edit] = ()
) -> tuple[solve.Prior, dict]:
    """The prior at a layer, and what to record of its covariance.

    What tells a noun's key after "a small" from its key after "a" costs as much as the whole corpus: so a change is
    written along a direction on which `method.modifiers` make no difference, as far as there is one (the scatter within
    a class in Fisher's linear discriminant).
    """
    matrix, record = covariance_of(method, model, encoder, layer)
    for edit in edits:
        for key, others in keys_with(encoder, layer, edit, method.modifiers):
            apart = (others - key).to(matrix)
            matrix = matrix + apart.T @ apart / len(apart)
    return solve.prior(matrix), record


def protect(
    method: Any, encoder: TextEncoder, layer: int, edits: Sequence[Edit], onto: Sequence[Patch], keys, prior
) -> tuple[solve.Prior, list[Dropped]]:
    """The prior that holds the empty prompt (unless told not to), `preserve` prompts and earlier patches' facts."""
    kept = [p for edit in edits for p in (*edit.preserve, *(ends_of(edit) if method.keep_ends else ()))]
    labels, rows = token_keys(encoder, layer, list(dict.fromkeys(kept)), method.hold_empty)
    for patch in onto:
        earlier = torch.cat(list(keys_of_patch(encoder, layer, patch)))
        rows, labels = torch.cat([rows, earlier]), labels + [Dropped(", ".join(patch.names), 0)] * len(earlier)
    held, dropped = solve.hold_what_can_be(prior, torch.cat(keys), rows, method.hold)
    return held, [labels[i] for i in dropped]


def ends_of(edit: Edit) -> list[str]:
    """The texts of source and target, as far as they are texts of their own."""
    return [text for text in (edit.old, edit.new) if isinstance(text, str) and text != edit.prompt]


def write(method: Any, wanted: Wanted, prior: solve.Prior) -> tuple[solve.Solution, Tensor]:
    """The right factor, and what share of each edit's offset each key should get."""
    keys = written_keys(method, wanted)
    if method.write == "value" and not method.ridge and (method.exact_at == "prompt" or method.inverse == "float32"):
        at = torch.stack([place.at for place in wanted.places])
        return solve.oblique(at, keys, prior, method.inverse), torch.eye(len(at), dtype=torch.float64, device=at.device)
    groups = torch.eye(len(wanted.keys), dtype=torch.float64, device=keys.device)
    if method.write == "offset":
        groups = groups.repeat_interleave(torch.tensor([len(k) for k in wanted.keys], device=keys.device), 0)
    if method.ridge:
        return solve.ridge(keys, prior, method.ridge * solve.typical(keys, prior), groups), groups
    return solve.exact(keys, prior, groups), groups


def written_keys(method: Any, wanted: Wanted) -> Tensor:
    """The keys (n, d_in) that the closed form is given: each context's, or each edit's mean."""
    if method.write not in ("value", "offset"):
        raise EditError(f"write is 'value' or 'offset', not {method.write!r}")
    return torch.cat(wanted.keys) if method.write == "offset" else torch.stack([p.mean for p in wanted.places])
