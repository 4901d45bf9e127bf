"""The peers that edit the UNet's cross-attention instead of the text encoder: TIME and UCE.

Every key and value projection W of the cross-attention maps text states; both methods ask that the state of a source
token be mapped to where the state of a target token went: residual (T - S) W^T at the keys S.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import solve
from ..edits import Edit, distinct
from ..errors import EditError
from ..lora import Factors
from ..models.model import Model
from ..patch import Patch
from .loop import alone, patch_of


def time(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """TIME (arXiv 2303.08084): aligned tokens of prompt and destination, ridge towards the old projection."""
    alone(method, onto)
    edits = distinct(edits)
    pairs = [_aligned(model, edit) for edit in edits]
    keys = torch.cat([source for source, _ in pairs])
    prior = solve.prior(method.strength * torch.eye(keys.shape[1], dtype=torch.float64))
    right = solve.ridge(keys, prior, 1.0).right
    return _patch(method, model, edits, pairs, right)


def uce(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """UCE (arXiv 2308.14761): the last content token, with the `preserve` prompts and the empty one kept."""
    alone(method, onto)
    edits = distinct(edits)
    pairs = [(_last(model, [edit.prompt]), _last(model, [_text(edit)])) for edit in edits]
    keys = torch.cat([source for source, _ in pairs])
    kept = _last(model, ["", *dict.fromkeys(p for edit in edits for p in edit.preserve)])
    identity = torch.eye(keys.shape[1], dtype=torch.float64)
    prior = solve.prior((method.strength * identity + method.keep * kept.T @ kept) / method.erase)
    right = solve.ridge(keys, prior, 1.0).right
    return _patch(method, model, edits, pairs, right)


def _text(edit: Edit) -> str:
    if not isinstance(edit.new, str):
        raise EditError("this method takes a target by text")
    return edit.new


def _patch(method: Any, model: Model, edits: list[Edit], pairs: list, right: Tensor) -> Patch:
    moves = torch.cat([target - source for source, target in pairs])
    factors: Factors = {}
    logs: list[dict] = [{} for _ in edits]
    if not model.conditioning_sites:
        raise EditError(f"{model.name} has no cross-attention on text states; {type(method).__name__} needs a UNet's")
    for site in model.conditioning_sites:
        weight = model[site].weight.detach().double()
        factors[site] = ((weight @ moves.T).float(), right.float())
    first = 0
    for log, (source, _) in zip(logs, pairs):
        log.update({site: {"rows": [first, first + len(source)]} for site in factors})
        first += len(source)
    return patch_of(method, model, edits, factors, logs, {})


def _states(model: Model, prompts: list[str]) -> Tensor:
    with torch.no_grad():
        return model.encode(prompts)["prompt_embeds"].double()


def _ids(model: Model, prompts: list[str]) -> tuple[list[list[int]], list[int]]:
    tokens = next(iter(model.encoders.values())).tokenize(prompts)
    return tokens.ids.tolist(), tokens.ends.tolist()


def _last(model: Model, prompts: list[str]) -> Tensor:
    """The state of each prompt's last content token; of [BOS] where there is none."""
    _, ends = _ids(model, prompts)
    return torch.stack([states[max(end - 1, 0)] for states, end in zip(_states(model, prompts), ends)])


def _aligned(model: Model, edit: Edit) -> tuple[Tensor, Tensor]:
    """States of the prompt's tokens and of the same tokens in the destination, then [EOS] and padding by position.

    TIME needs a destination that contains the prompt's words ("A blue banana"). Where the target shares none of
    them, the destination is "<new> as <prompt>", the form of RoAD's oracle column.
    """
    new = _text(edit)
    shared = set(edit.prompt.casefold().split()[-1:]) & set(new.casefold().split())
    texts = [edit.prompt, new if shared else f"{new} as {edit.prompt}"]
    states = _states(model, texts)
    (source, target), (source_end, target_end) = _ids(model, texts)
    blocks = difflib.SequenceMatcher(a=source[1:source_end], b=target[1:target_end], autojunk=False)
    matches = [(1 + m.a + i, 1 + m.b + i) for m in blocks.get_matching_blocks() for i in range(m.size)]
    tail = len(source) - max(source_end, target_end)
    matches += [(source_end + i, target_end + i) for i in range(tail)]
    left, right = zip(*matches)
    return _distinct(states[0, list(left)], states[1, list(right)])


def _distinct(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs without repetition: padding rows may be equal to the last bit."""
    kept = [i for i in range(len(source)) if not any(torch.equal(source[i], source[j]) for j in range(i))]
    return source[kept], target[kept]
