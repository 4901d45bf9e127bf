"""The only place where a model's weights change: weight = stashed base + the active patches, in one fixed order.

Adding an update and subtracting it again does not give the weight back (rounding), so the base is kept and restored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import PatchError

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Update:
    """One patch at one site: weight += strength * left @ right."""

    digest: str
    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "r d_in"]
    strength: float


@dataclass
class Stash:
    """Lies on an nn.Linear as `_refact_stack`, a plain attribute, while any patch is active there."""

    base: Float[Tensor, "d_out d_in"]
    mark: int  # of the weight as we wrote it, to see when somebody else writes
    active: dict[object, Update] = field(default_factory=dict)


def base_weight(linear: nn.Linear | nn.Embedding) -> Tensor:
    """The weight as it is without any patch."""
    stash = getattr(linear, "_refact_stack", None)
    return linear.weight.detach() if stash is None else stash.base


@contextmanager
def lifted(parts: Mapping[str, Any]) -> Iterator[None]:
    """Within the block modules have their weights as without any patch; then every patch is back, to the bit.

    Raises PatchError where something else has changed a weight meanwhile.
    """
    patched = {name: part for name, part in parts.items() if hasattr(part, "_refact_stack")}
    for name, part in patched.items():
        check(part, name)
    laid = [(part, part._refact_stack) for part in patched.values()]
    try:
        for part, stash in laid:
            _put(part, stash.base)
            del part._refact_stack
        yield
    finally:
        for part, stash in laid:
            part._refact_stack = stash
            _write(part, stash)


def check(linear: nn.Linear, site: str) -> None:
    """Raises PatchError where a weight cannot be changed and put back: offloaded, quantised, or written by others."""
    weight = linear.weight
    if weight.is_meta or not weight.is_floating_point() or (weight.element_size() < 2 and not _lent(linear)):
        held = "offloaded" if weight.is_meta else f"of type {weight.dtype}"
        raise PatchError(f"{site}: the weight is {held}; load the encoder in float32, float16 or bfloat16")
    stash = getattr(linear, "_refact_stack", None)
    if stash is not None and weight.dtype == stash.base.dtype and _mark(weight) != stash.mark:
        raise PatchError(
            f"{site}: something else changed this weight while a patch was active (a fused LoRA, training); undo that "
            "first, or revert(force=True) to put the stashed weight back and lose the change"
        )


def push(linear: nn.Linear, owner: object, update: Update) -> None:
    """Add an update; the same patch may be there several times, each under its own owner."""
    stash = getattr(linear, "_refact_stack", None)
    if stash is None:
        base = linear.weight.detach() if _lent(linear) else linear.weight.detach().clone()
        stash = linear._refact_stack = Stash(base, _mark(base))  # type: ignore[assignment]
    stash.active[owner] = update
    _write(linear, stash)


def pop(linear: nn.Linear, owner: object) -> None:
    """Take an owner's update away; the last one to go leaves the base, bit for bit, and no stash."""
    stash = getattr(linear, "_refact_stack", None)
    if stash is None or owner not in stash.active:
        return
    del stash.active[owner]
    _write(linear, stash)
    if not stash.active:
        del linear._refact_stack


@torch.no_grad()
def _write(linear: nn.Linear, stash: Stash) -> None:
    new = _sum(stash).to(linear.weight.device)
    if stash.active and not torch.isfinite(new).all():
        raise PatchError(f"the patched weight is not finite in {stash.base.dtype}; use a smaller strength")
    _put(linear, new)
    stash.mark = _mark(linear.weight)


def _put(linear: nn.Linear, new: Tensor) -> None:
    weight = linear.weight
    if _lent(linear):
        weight.data = new
        return
    with torch.inference_mode() if weight.is_inference() else torch.no_grad():  # only there may such weights be written
        weight.copy_(new)


def _lent(linear: nn.Module) -> bool:
    """Whether the weight is another program's (models/lent.py): ours then stands in its place, it is never written."""
    return getattr(linear, "lent", False)


def _sum(stash: Stash) -> Tensor:
    """Base plus updates in the order of their digests, summed in float32 at least, in the base's dtype (eight bits: in
    float32)."""
    if not stash.active:
        return stash.base
    eight_bits = stash.base.element_size() < 2  # lent: too coarse to hold an edit, and never written itself
    total = stash.base.to(torch.float32 if eight_bits else torch.promote_types(stash.base.dtype, torch.float32))
    for update in sorted(stash.active.values(), key=lambda update: (update.digest, update.strength)):
        left, right = update.left.to(total), update.right.to(total)
        total = total + update.strength * (left @ right)
    return total if eight_bits else total.to(stash.base.dtype)


def _mark(weight: Tensor) -> int:
    """The sum of the bit patterns: exact, and the same on every device."""
    return int(weight.detach().view(_BITS[weight.element_size()]).sum(dtype=torch.int64))


def digest(factors: dict[str, tuple[Tensor, Tensor]]) -> str:
    """A name for factors: sha256 of sites and bytes, 16 hex digits."""
    total = hashlib.sha256()
    for site, pair in sorted(factors.items()):
        total.update(site.encode())
        for factor in pair:
            total.update(f"{tuple(factor.shape)}".encode())
            total.update(factor.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]
