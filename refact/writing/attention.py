"""DiffQuickFix: the out-projection of a text encoder's self-attention, by ridge regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import solve
from ..edits import Edit, distinct
from ..encoders import hooks
from ..encoders.devices import doubled
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from ..lora import Factors
from ..models.model import Model
from ..patch import Patch
from ..search.sentences import wordings
from .loop import alone, chosen, patch_of


def diffquickfix(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """One matrix an encoder: what the subject's last token gives becomes what the target's last token gives."""
    alone(method, onto)
    edits = distinct(edits)
    factors: Factors = {}
    logs: list[dict] = [{} for _ in edits]
    for encoder in chosen(model, method.encoders):
        if method.layer not in encoder.effective:
            raise EditError(f"layer is 0 to {encoder.effective.stop - 1} of {encoder.name}, not {method.layer}")
        site = f"{encoder.name}.text_model.encoder.layers.{method.layer}.self_attn.out_proj"
        pairs = [_pairs(method, encoder, edit) for edit in edits]
        keys, targets = (torch.cat(part) for part in zip(*pairs))
        scale = float(method.strength * keys.square().sum(1).mean())
        solution = solve.ridge(
            keys, solve.prior(torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)), scale
        )
        weight = doubled(model[site].weight.detach())
        factors[site] = ((weight @ (targets - keys).T).float(), solution.right.float())
        first = 0
        for log, (own, _) in zip(logs, pairs):
            log[site] = {"rows": [first, first + len(own)], "layer": method.layer}
            first += len(own)
    return patch_of(method, model, edits, factors, logs, {})


def _pairs(method: Any, encoder: TextEncoder, edit: Edit) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """The matrix's inputs at the last token of each wording's subject, and at the target's last token."""
    if not isinstance(edit.new, str):
        raise EditError(f"{type(method).__name__} takes a target by text")
    told = wordings(edit) if method.aliases else wordings(edit)[:1]
    prompts = [prompt for prompt, _ in told]
    subjects = [encoder.locate(prompt, words) for prompt, words in told]
    target = max(int(encoder.tokenize([edit.new]).ends[0]) - 1, 0)
    keys, aim = (_inputs(encoder, method.layer, *given) for given in ((prompts, subjects), ([edit.new], [target])))
    return keys, aim.expand(len(keys), -1)


@torch.no_grad()
def _inputs(encoder: TextEncoder, layer: int, prompts: list[str], at: list[int]) -> Float[Tensor, "n d"]:
    block: Any = encoder.layers[layer]
    with hooks.read(block.self_attn.out_proj, stop=True) as seen:
        encoder.tower(encoder.tokenize(prompts).ids.to(encoder.device))
    rows = seen[0].reshape(len(prompts), -1, encoder.width)
    return doubled(rows[torch.arange(len(prompts)), at])
