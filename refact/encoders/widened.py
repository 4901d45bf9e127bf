"""Products in float32 with weights that stay in bfloat16 or float16: a block of one matrix at a time is float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

BLOCK = 1 << 20  # weights that are float32 at a time: what a processor's cache holds


class Widened(TorchFunctionMode):
    """Within the block a Linear whose weight is narrower than its input gives what a float32 copy of it would give.

    Its weight asks for no gradient there; the input's is computed the same way, so that nothing of the copy is kept.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.nn.functional.linear:
            x, weight, *bias = args
            if x.dtype == torch.float32 and weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
                return _Linear.apply(x, weight, (bias or [(kwargs or {}).get("bias")])[0])
        return func(*args, **(kwargs or {}))


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        out = x.new_empty(*x.shape[:-1], len(weight))
        for at, block in _blocks(weight):
            out[..., at] = x @ block.T
        return out if bias is None else out + bias.float()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        total = slope.new_zeros(*slope.shape[:-1], weight.shape[1])
        for at, block in _blocks(weight):
            total += slope[..., at] @ block
        return total, None, None


def _blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a matrix in float32, some at a time."""
    step = max(1, BLOCK // weight.shape[1])
    for start in range(0, len(weight), step):
        at = slice(start, start + step)
        yield at, weight[at].float()
