"""Precisions by name, as flags and arguments have them."""

from __future__ import annotations

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


def lowered(device: torch.device, precision: str | None) -> torch.autocast:
    """Within the block products are made in "bfloat16" or "float16"; none given: as the weights are."""
    return torch.autocast(device.type, dtype_of(precision or "bfloat16"), enabled=bool(precision))
