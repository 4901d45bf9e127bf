"""Where work is done: the accelerator that is there, float64 where it has it, and smaller batches where memory ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import RefactError

R = TypeVar("R")
SHARE = 0.8  # of the free memory that is filled
Batch = tuple[Any, ...]  # rows side by side, all of one length


def chosen(device: str | torch.device | None = None) -> torch.device:
    """The device asked for; where none is, the accelerator that this machine has, else the CPU."""
    if device is not None:
        return torch.device(device)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def exact(device: torch.device) -> torch.device:
    """Where float64 is computed for tensors of that device: there, or on the CPU where it has no such numbers."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):  # which of the two differs from one kind of device to another
        return torch.device("cpu")
    return device


def doubled(rows: Tensor) -> Tensor:
    """The rows in float64, on their own device where it has float64."""
    return rows.to(exact(rows.device)).double()


def fitted(work: Callable[..., R], batches: Iterable[Batch], what: str) -> Iterator[tuple[Batch, R]]:
    """Each batch with work(*batch); it and those after it are halved where the device's memory does not hold them.

    Each halving is told in a warning of one line. Raises RefactError where a single row does not fit.
    """
    parts = 1
    for batch in batches:
        waiting = _cut(batch, parts)
        while waiting:
            part = waiting.pop(0)
            try:
                found = [work(*part)]
            except RuntimeError as error:  # Apple's says so in words alone
                if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
                    raise
                found = []  # tried again outside of this block, which holds on to what the failed try has allocated
            if found:
                yield part, found[0]
                continue
            _freed()
            if len(part[0]) == 1:
                raise RefactError(
                    f"the device's memory does not hold {what}, one at a time: use a smaller dtype (--dtype float16), "
                    "close other programs, or compute on the CPU (--device cpu)"
                )
            parts *= 2
            waiting = [half for whole in (part, *waiting) for half in _cut(whole, 2)]
            warnings.warn(f"out of memory: {what} in batches of {len(waiting[0][0])} from here on", stacklevel=2)


def _cut(batch: Batch, parts: int) -> list[Batch]:
    count = len(batch[0])
    size = -(-count // parts)
    return [tuple(rows[at : at + size] for rows in batch) for at in range(0, count, max(size, 1))]


def _freed() -> None:
    """What the allocator keeps for later is given back."""
    if torch.accelerator.is_available():
        empty = getattr(torch.get_device_module(torch.accelerator.current_accelerator()), "empty_cache", None)
        if empty is not None:
            empty()


def fetched(rows: Tensor) -> Callable[[], Tensor]:
    """What gives the rows in the CPU's memory; the copy begins at once, and only that call waits for it."""
    if rows.device.type == "cpu":
        return lambda: rows
    copy = rows.to("cpu", non_blocking=True)
    done = torch.accelerator.current_stream(rows.device).record_event()

    def wait() -> Tensor:
        done.synchronize()
        return copy

    return wait


class Room:
    """How many more rows a device's memory holds, by what the last ones took."""

    def __init__(self, device: torch.device, module: Any):
        self.device, self.module = device, module
        module.reset_peak_memory_stats(device)
        self.before = module.memory_allocated(device)

    @classmethod
    def of(cls, device: torch.device) -> Room | None:
        """None where the device does not tell its memory."""
        module = torch.get_device_module(device)
        told = (
            "mem_get_info",
            "memory_allocated",
            "memory_reserved",
            "max_memory_allocated",
            "reset_peak_memory_stats",
        )
        return cls(device, module) if all(hasattr(module, name) for name in told) else None

    def for_more(self, rows: int) -> int:
        """How many rows fit at once, a power of two, when `rows` of them have been done since this was made."""
        peak, now = self.module.max_memory_allocated(self.device), self.module.memory_allocated(self.device)
        free = self.module.mem_get_info(self.device)[0] + self.module.memory_reserved(self.device) - now
        fits = int(SHARE * free / max((peak - self.before) / rows, 1))
        return 1 << max(fits.bit_length() - 1, 0)
