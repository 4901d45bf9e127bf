"""Precisions by name, as flags and arguments have them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import ModelError


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The torch dtype of that name; None stays None. Raises ModelError."""
    if isinstance(dtype, str):
        found = getattr(torch, dtype, None)
        if found not in (torch.float32, torch.float16, torch.bfloat16):
            raise ModelError(f"dtype is float32, float16 or bfloat16, not {dtype!r}")
        return found
    return dtype


@contextmanager
def lowered(device: torch.device, precision: str | None) -> Iterator[None]:
    """Within the block products are made in "bfloat16" or "float16", or in "tf32" where the device has that; none
    given: as the weights are. On the CPU "tf32" changes nothing."""
    if precision == "tf32":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest" if device.type == "cpu" else "high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    with torch.autocast(device.type, dtype_of(precision or "bfloat16"), enabled=bool(precision)):
        yield
