"""The machine that is measured: its device, its clock, and its rates, from which each figure gets its floor."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear

from refact.encoders import devices

TABLE = 1 << 28  # bytes that are copied to measure the memory


def device() -> torch.device:
    """The accelerator of the machine, else the CPU; what `refact.load` computes on."""
    return devices.chosen()


def settle() -> None:
    """All work that was begun is done."""
    if device().type != "cpu":
        torch.accelerator.synchronize()


def timed(fn: Callable[[], object]) -> float:
    """Seconds of one run."""
    settle()
    begun = time.perf_counter()
    fn()
    settle()
    return time.perf_counter() - begun


def seconds(fn: Callable[[], object], times: int = 5) -> float:
    """The fastest of some runs, after one to warm up."""
    fn()
    return min(timed(fn) for _ in range(times))


def rate(rows: int, width: int, inner: int, dtype: torch.dtype = torch.float32) -> float:
    """Multiply-adds a second in a product of these sizes."""
    a, b = (torch.randn(n, width, device=device()).to(dtype) for n in (rows, inner))
    return rows * width * inner / seconds(lambda: linear(a, b), 20)


def memory_rate(size: int = TABLE) -> float:
    """Bytes a second that are read or written while a tensor is copied."""
    one = torch.zeros(size, dtype=torch.uint8, device=device())
    other = torch.empty_like(one)
    return 2 * size / seconds(lambda: other.copy_(one))


def floors(size: int = 4096) -> dict[str, float]:
    """The machine's rates: products in each precision, and memory."""
    kinds = [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
    if devices.exact(device()) == device():
        kinds.append(("float64", torch.float64))
    found = {f"{name} Tmul-add/s": rate(size, size, size, dtype) / 1e12 for name, dtype in kinds}
    return found | {"memory GB/s": memory_rate() / 1e9}


def named() -> str:
    """The device in words."""
    place = device()
    module = torch.get_device_module(place) if place.type != "cpu" else None
    told = module.get_device_name(place) if hasattr(module, "get_device_name") else str(place)
    return f"{told}, torch {torch.__version__}, {torch.get_num_threads()} threads"
