"""AlphaEdit: the same search as ReFACT's, written only along directions that the corpus hardly uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import solve
from ..edits import Edit, distinct
from ..models.encoders import TextEncoder
from ..models.model import Model
from ..patch import Patch
from ..search.keys import keys_of_patch
from ..search.wanted import Wanted
from .held import covariance_of
from .loop import Written, one_layer


@torch.inference_mode(False)  # gradients are taken, also where the caller has turned them off
def alphaedit(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """One layer, along directions that hold `method.share` of the corpus's energy; earlier edits are held softly."""

    def written(encoder: TextEncoder, layer: int, wanted: Wanted) -> Written:
        seen, used = covariance_of(method, model, encoder, layer)
        keys = torch.stack([k.mean(0) for k in wanted.keys])
        earlier = [k.mean(0) for patch in onto for k in keys_of_patch(encoder, layer, patch)]
        solution = solve.ridge(keys, _free_prior(method, seen, keys, earlier), 1.0)
        return Written(solution, torch.eye(len(keys), dtype=torch.float64), [], used)

    return one_layer(method, model, distinct(edits), written)


def _free_prior(method: Any, seen: Tensor, keys: Tensor, earlier: list[Tensor]) -> solve.Prior:
    basis = solve.null_space(seen, method.share)
    inside = keys @ basis
    weight = method.penalty * inside.square().sum() / basis.shape[1]
    matrix = weight * torch.eye(basis.shape[1], dtype=torch.float64)
    if earlier:
        before = torch.stack(earlier) @ basis
        matrix = matrix + before.T @ before
    return solve.prior(matrix, basis)
