"""AlphaEdit: ReFACT's search, written only along directions that hold little of the corpus's energy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import solve
from ..edits import Edit, distinct
from ..encoders.encoder import TextEncoder
from ..models.model import Model
from ..patch import Patch
from ..search.keys import keys_of_patch
from ..search.wanted import Wanted, search
from .held import covariance_of
from .loop import Written, one_layer
from .multilayer import Goal, Solved, _states, shared


@torch.inference_mode(False)  # gradients are taken, also where the caller has turned them off
def alphaedit(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """Each of `method.depth` layers writes its share, within `method.share` of the corpus's energy (or below the
    absolute eigenvalue `method.threshold`); earlier edits are held softly."""
    edits = distinct(edits)

    def goal(encoder: TextEncoder, last: int) -> Goal:
        wanted = search(method, model, encoder, last, edits)
        return Goal(_states(method, encoder, last, edits)[1] + wanted.offsets, wanted)

    def solved(encoder: TextEncoder, layer: int, keys: Tensor) -> Solved:
        seen, used = covariance_of(method, model, encoder, layer)
        earlier = [k.mean(0) for patch in onto for k in keys_of_patch(encoder, layer, patch)]
        return solve.ridge(keys, _free_prior(method, seen, keys, earlier), 1.0), [], used

    def written(encoder: TextEncoder, layer: int, wanted: Wanted) -> Written:
        keys = torch.stack([place.mean for place in wanted.places])
        solution, dropped, used = solved(encoder, layer, keys)
        return Written(solution, torch.eye(len(keys), dtype=torch.float64, device=keys.device), dropped, used)

    return one_layer(method, model, edits, written) if method.depth == 1 else shared(method, model, edits, goal, solved)


def _free_prior(method: Any, seen: Tensor, keys: Tensor, earlier: list[Tensor]) -> solve.Prior:
    basis = solve.null_space(seen, method.share, method.threshold)
    inside = keys @ basis
    weight = method.penalty if method.absolute else method.penalty * inside.square().sum() / basis.shape[1]
    matrix = weight * torch.eye(basis.shape[1], dtype=torch.float64, device=basis.device)
    if earlier:
        before = torch.stack(earlier) @ basis
        matrix = matrix + before.T @ before
    return solve.prior(matrix, basis)
