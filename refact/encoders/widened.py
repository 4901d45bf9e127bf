"""Products in float32 with weights that stay in the type they are stored in: float32 is a block of one at a time.

`Widened` is for modules of ours; `LentLinear` and `LentEmbedding` hold weights of another program, which are used where
they lie and never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
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
        ctx.weight = weight  # not save_for_backward, which refuses tensors made in inference mode
        out = x.new_empty(*x.shape[:-1], len(weight))
        for at, block in _blocks(weight, x):
            out[..., at] = x @ block.T
        return out if bias is None else out + bias.float()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        weight = ctx.weight
        total = slope.new_zeros(*slope.shape[:-1], weight.shape[1])
        for at, block in _blocks(weight, slope):
            total += slope[..., at] @ block
        return total, None, None


def _blocks(weight: Tensor, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a matrix in float32, some at a time, where `like` is."""
    step = max(1, BLOCK // weight.shape[1])
    for start in range(0, len(weight), step):
        at = slice(start, start + step)
        yield at, weight[at].to(like.device, torch.float32)


class LentLinear(nn.Linear):
    """A linear layer around a weight (d_out, d_in) of any float type, on any device; autocast does not change it."""

    lent = True

    def __init__(self, weight: Tensor, bias: Tensor | None):
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """The states (..., d_out), float32."""
        with torch.autocast(input.device.type, enabled=False):
            return _Linear.apply(input.float(), self.weight, self.bias)


class LentEmbedding(nn.Embedding):
    """A table (n, d) of any float type, on any device; its rows come out in float32."""

    lent = True

    def __init__(self, weight: Tensor):
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = self.max_norm = None
        self.norm_type, self.scale_grad_by_freq, self.sparse = 2.0, False, False
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        """The rows (..., d)."""
        table = self.weight.detach()
        if table.element_size() > 1:
            return table[input.to(table.device)].to(input.device, torch.float32)
        # torch looks no rows up in an eight-bit float type
        return table.view(torch.uint8)[input.to(table.device)].view(table.dtype).to(input.device, torch.float32)


def is_lent(module: Any) -> bool:
    """Whether a module's weight belongs to another program."""
    return getattr(module, "lent", False)
