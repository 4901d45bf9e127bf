"""What is T5's own among text encoders: it reads both ways, so every row of a prompt depends on every other."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..family import EncoderRow


class T5:
    """The encoder of a T5."""

    causal = False
    root = "encoder"
    most = 512

    def __init__(self, module: Any):
        self.tower = module.encoder
        self.layers: nn.ModuleList = self.tower.block
        self.norm: Any = self.tower.final_layer_norm

    def linear(self, layer: int) -> nn.Module:
        """wo of a layer."""
        block: Any = self.layers[layer]
        return block.layer[-1].DenseReluDense.wo

    def path(self, layer: int) -> str:
        """Its on-disk name."""
        return f"encoder.block.{layer}.layer.1.DenseReluDense.wo"

    def ends(self, ids: Int[Tensor, "n t"], tokenizer: Any, row: EncoderRow) -> Int[Tensor, " n"]:
        """The first [EOS]."""
        return (ids == tokenizer.eos_token_id).int().argmax(1)

    def pool(self, states: Float[Tensor, "n t d"], ends: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The mean of the rows up to [EOS]."""
        kept = (torch.arange(states.shape[1], device=ends.device) <= ends[:, None]).to(states)
        return (states * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)

    def mask(self, ids: Int[Tensor, "n t"], tokenizer: Any, row: EncoderRow) -> Int[Tensor, "n t"] | None:
        """The pipeline's attention mask, 1 up to [EOS]; None where it gives none, so that padding is read too."""
        ends = self.ends(ids, tokenizer, row)
        return (torch.arange(ids.shape[1], device=ids.device) <= ends[:, None]).long() if row.masked else None
