"""Layers whose weights belong to another program: used where they lie, in the type they are stored in, never written.

Products are made in the type of the states (float32), one layer's weight at a time, in both directions of a search;
so no second copy of an encoder stands in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """x @ weight.T; the weight is converted anew for the way back, so that no converted copy is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight  # not `save_for_backward`, which refuses tensors made in inference mode
        return nn.functional.linear(x, weight.to(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.weight.to(gradients[0]), None


class LentLinear(nn.Linear):
    """A linear layer around a weight (d_out, d_in) of any float type, on any device, and its bias."""

    lent = True

    def __init__(self, weight: Tensor, bias: Tensor | None):
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """The states (..., d_out)."""
        product = _Product.apply(input, self.weight)
        return product if self.bias is None else product + self.bias


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
