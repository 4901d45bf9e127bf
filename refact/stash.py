"""The only place where a model's weights change: weight = stashed base + the active patches, in one fixed order.

Adding an update and subtracting it again does not give the weight back (rounding), so the base is kept and restored.
Threads may do so at the same time: every change, and every reading of unpatched weights, holds `LOCK`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import PatchError

LOCK = threading.RLock()  # one for all weights, as a patch changes several at once
SAMPLE = 65536
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
    aside: dict[object, Update] = field(default_factory=dict)  # lifted for a while


def base_weight(linear: nn.Linear | nn.Embedding) -> Tensor:
    """The weight as it is without any patch."""
    stash = getattr(linear, "_refact_stack", None)
    return linear.weight.detach() if stash is None else stash.base


@contextmanager
def lifted(parts: Mapping[str, Any]) -> Iterator[None]:
    """Within the block modules have their weights as without any patch; then every patch is back that was not reverted.

    Raises PatchError where something else has changed a weight meanwhile.
    """
    stashes = []
    try:
        with LOCK:
            for name, part in ((n, p) for n, p in parts.items() if hasattr(p, "_refact_stack")):
                _check(part, name)
                stash = part._refact_stack
                stash.aside, stash.active = stash.active | stash.aside, {}
                stashes.append((part, stash))
                _write(part, stash, stash.base)
        yield
    finally:
        with LOCK:
            for part, stash in stashes:
                _back(part, stash)


def _back(part: Any, stash: Stash) -> None:
    stash.aside, stash.active = {}, stash.aside | stash.active
    _write(part, stash, _sum(stash.base, stash.active.values()))
    if not stash.active and hasattr(part, "_refact_stack"):
        del part._refact_stack


def check(linear: nn.Linear, site: str) -> None:
    """Raises PatchError where a weight cannot be changed and put back: offloaded, quantised, or written by others."""
    with LOCK:
        _check(linear, site)


def _check(linear: nn.Linear, site: str) -> None:
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
    """Add an update; the same patch may be there several times, each under its own owner.

    Raises PatchError, and leaves the weight, where the sum is not finite in the weight's own precision.
    """
    with LOCK:
        stash = getattr(linear, "_refact_stack", None)
        if stash is None:
            with torch.inference_mode(False):  # a base that is made in inference mode could take part in no search
                base = linear.weight.detach() if _lent(linear) else linear.weight.detach().clone()
            stash = Stash(base, _mark(base))
        new = _sum(stash.base, [*stash.active.values(), update])
        if not torch.isfinite(new).all():
            raise PatchError(f"the patched weight is not finite in {stash.base.dtype}; use a smaller strength")
        linear._refact_stack = stash  # type: ignore[assignment]
        stash.active[owner] = update
        _write(linear, stash, new)


def pop(linear: nn.Linear, owner: object) -> None:
    """Take an owner's update away; the last one to go leaves the base, bit for bit, and no stash.

    It always succeeds. An interrupted call can be repeated: the owner is struck off once the weight has been written.
    """
    with LOCK:
        stash = getattr(linear, "_refact_stack", None)
        if stash is None or owner not in stash.active:
            if stash is not None:
                stash.aside.pop(owner, None)
            return
        left = {other: update for other, update in stash.active.items() if other is not owner}
        _write(linear, stash, _sum(stash.base, left.values()))
        stash.active = left
        if not left and not stash.aside:
            del linear._refact_stack


@torch.no_grad()
def _write(linear: nn.Linear, stash: Stash, new: Tensor) -> None:
    weight, new = linear.weight, new.to(linear.weight.device)
    if _lent(linear):
        weight.data = new
    else:
        with torch.inference_mode(weight.is_inference()), torch.no_grad():  # where alone such a weight may be written
            weight.copy_(new)
    stash.mark = _mark(weight)


def _lent(linear: nn.Module) -> bool:
    """Whether the weight is another program's (encoders/widened.py): ours stands in its place, it is never written."""
    return getattr(linear, "lent", False)


def _sum(base: Tensor, updates: Iterable[Update]) -> Tensor:
    """Base plus updates in the order of their digests, summed in float32 at least; of 8 bits, it stays in float32."""
    ordered = sorted(updates, key=lambda update: (update.digest, update.strength))
    if not ordered:
        return base
    eight_bits = base.element_size() < 2  # of another program: too coarse to hold an edit
    total = base.to(torch.float32 if eight_bits else torch.promote_types(base.dtype, torch.float32))
    for update in ordered:
        left, right = update.left.to(total), update.right.to(total)
        total = total + update.strength * (left @ right)
    return total if eight_bits else total.to(base.dtype)


def _mark(weight: Tensor) -> int:
    """The sum of the bit patterns: exact, and the same on every device."""
    return int(weight.detach().view(_BITS[weight.element_size()]).sum(dtype=torch.int64))


def sample(weight: Tensor) -> int:
    """The same of some tens of thousands of its numbers, which is cheap for the largest matrices."""
    flat = weight.detach().reshape(-1) if weight.is_contiguous() else weight.detach().flatten()
    return _mark(flat[:: max(1, len(flat) // SAMPLE)].contiguous()) if weight.is_floating_point() else 0


def digest(factors: dict[str, tuple[Tensor, Tensor]]) -> str:
    """A name for factors: sha256 of sites and bytes, 16 hex digits."""
    total = hashlib.sha256()
    for site, pair in sorted(factors.items()):
        total.update(site.encode())
        for factor in pair:
            total.update(f"{tuple(factor.shape)}".encode())
            total.update(factor.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]
