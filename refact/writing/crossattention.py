"""The peers that edit the UNet's cross-attention instead of the text encoder: TIME and UCE.

Every key and value projection W of the cross-attention maps text states; both methods ask that the state of a source
token be mapped to where the state of a target token went: residual (T - S) W^T at the keys S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import solve
from ..edits import Edit, distinct
from ..encoders.devices import doubled
from ..errors import EditError
from ..lora import Factors
from ..models.model import Model
from ..patch import Patch
from .loop import alone, patch_of

AUGMENTED = ("A photo of", "An image of", "A picture of")  # TIME's --with_augs


def time(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """TIME (arXiv 2303.08084): aligned rows of prompt and destination, ridge towards the old projection."""
    _check(method, model, onto)
    edits = distinct(edits)
    pairs = [_joined([_aligned(model, *texts) for texts in _told(method, edit)]) for edit in edits]
    keys = torch.cat([source for source, _ in pairs])
    identity = torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
    prior = solve.prior(method.strength * identity, of_prompts=True)
    right = solve.ridge(keys, prior, 1.0).right
    return _patch(method, model, edits, pairs, right)


def uce(method: Any, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
    """UCE (arXiv 2308.14761): the last content row, or all from it on; `preserve` prompts and the empty one kept."""
    _check(method, model, onto)
    if method.rows not in ("last", "tail"):
        raise EditError(f"rows is 'last' or 'tail', not {method.rows!r}")
    edits, tail = distinct(edits), method.rows == "tail"
    pairs = [_joined([_ends(model, prompt, _text(edit), tail) for prompt in _prompts(method, edit)]) for edit in edits]
    keys = torch.cat([source for source, _ in pairs])
    others = ["", *dict.fromkeys(p for edit in edits for p in edit.preserve)]
    kept = _states(model, others).flatten(0, 1) if tail else _last(model, others)
    identity = torch.eye(keys.shape[1], dtype=torch.float64, device=keys.device)
    prior = solve.prior((method.strength * identity + method.keep * kept.T @ kept) / method.erase, of_prompts=True)
    right = solve.ridge(keys, prior, 1.0).right
    return _patch(method, model, edits, pairs, right)


def _check(method: Any, model: Model, onto: Sequence[Patch]) -> None:
    alone(method, onto)
    if not model.conditioning_sites:
        raise EditError(f"{model.name} has no cross-attention on text states; {type(method).__name__} needs a UNet's")


def _prompts(method: Any, edit: Edit) -> list[str]:
    """The prompt, and its other wordings where the method is told them."""
    return [edit.prompt, *(edit.reworded() if method.aliases else ())]


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The pairs of several wordings as one."""
    source, target = zip(*pairs)
    return torch.cat(source), torch.cat(target)


def _text(edit: Edit) -> str:
    if not isinstance(edit.new, str):
        raise EditError("this method takes a target by text")
    return edit.new


def _patch(method: Any, model: Model, edits: list[Edit], pairs: list, right: Tensor) -> Patch:
    moves = torch.cat([target - source for source, target in pairs])
    factors: Factors = {}
    logs: list[dict] = [{} for _ in edits]
    for site in model.conditioning_sites:
        weight = doubled(model[site].weight.detach())
        factors[site] = ((weight @ moves.T).float(), right.float())
    first = 0
    for log, (source, _) in zip(logs, pairs):
        log.update({site: {"rows": [first, first + len(source)]} for site in factors})
        first += len(source)
    return patch_of(method, model, edits, factors, logs, {})


def _states(model: Model, prompts: list[str]) -> Tensor:
    with torch.no_grad():
        return doubled(model.encode(prompts)["prompt_embeds"])


def _ids(model: Model, prompts: list[str]) -> tuple[list[list[int]], list[int]]:
    tokens = next(iter(model.encoders.values())).tokenize(prompts)
    return tokens.ids.tolist(), tokens.ends.tolist()


def _last(model: Model, prompts: list[str]) -> Tensor:
    """The state of each prompt's last content token; of [BOS] where there is none."""
    _, ends = _ids(model, prompts)
    return torch.stack([states[max(end - 1, 0)] for states, end in zip(_states(model, prompts), ends)])


def _ends(model: Model, source: str, target: str, tail: bool) -> tuple[Tensor, Tensor]:
    """The states of two texts' last content rows; with tail, of all rows from there on, as far as both have them."""
    if not tail:
        return _last(model, [source]), _last(model, [target])
    (one, other), states = (
        [max(end - 1, 0) for end in _ids(model, [source, target])[1]],
        _states(model, [source, target]),
    )
    count = states.shape[1] - max(one, other)
    return states[0, one : one + count], states[1, other : other + count]


def _told(method: Any, edit: Edit) -> list[tuple[str, str]]:
    """The pairs of texts that TIME is given: each wording and its destination, with `augmented` in phrases too."""
    pairs = [(prompt, _text(edit)) for prompt in _prompts(method, edit)]
    if not method.augmented:
        return pairs
    inside = [tuple("a" + t[1:] if t[:1] == "A" else t for t in pair) for pair in pairs]
    return pairs + [(f"{start} {one}", f"{start} {other}") for one, other in inside for start in AUGMENTED]


def _aligned(model: Model, source: str, target: str) -> tuple[Tensor, Tensor]:
    """All rows of the source's states, and for each the row of the destination's that it is mapped to.

    As TIME's released code has it: from [BOS] to [EOS] each token goes to the next equal one ("an" is "a"), then
    padding in order, the rows that are left to the last one. It needs a destination that holds the source's tokens in
    their order ("A blue banana"); where the target does not, it is "<target> as <source>", RoAD's oracle column.
    """
    ids, ends = _ids(model, [source, target])
    found = _matches(model, ids, ends)
    if found is None:
        target = f"{target} as {source}"
        ids, ends = _ids(model, [source, target])
        found = _matches(model, ids, ends)
    if found is None:
        raise EditError(f"TIME cannot align {source!r} with {target!r}: the second is cut before the first's words end")
    length = len(ids[0])
    found += list(range(found[-1] + 1, length))
    states = _states(model, [source, target])
    return states[0], states[1, (found + [length - 1] * length)[:length]]


def _matches(model: Model, ids: list[list[int]], ends: list[int]) -> list[int] | None:
    """For each of the first text's tokens the place of the next equal one in the second; None where one is missing."""
    tokenizer = next(iter(model.encoders.values())).tokenizer
    article, an = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("a", "an"))
    same = {an[0]: article[0]} if len(an) == len(article) == 1 else {}
    source, target = ([same.get(t, t) for t in row[: end + 1]] for row, end in zip(ids, ends))
    places: list[int] = []
    for token in source:
        after = places[-1] + 1 if places else 0
        if token not in target[after:]:
            return None
        places.append(target.index(token, after))
    return places
