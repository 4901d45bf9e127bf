"""What is CLIP's own among text encoders: where its parts are, where it pools, which of its rows a generator gets."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ModelError
from ..family import EncoderRow
from .hooks import read

LEGACY_EOS = 2  # eos_token_id of the first published CLIP configs: transformers then pools at the highest id


def text_tower(module: Any) -> Any:
    """The part with embeddings, encoder and final_layer_norm, on every layout that transformers has had."""
    while (inner := getattr(module, "text_model", module)) is not module:
        module = inner
    return module


class Clip:
    """A CLIP text tower."""

    causal = True
    root = "text_model"  # the tower's name in published files

    def __init__(self, module: nn.Module):
        self.tower = text_tower(module)
        self.layers: nn.ModuleList = self.tower.encoder.layers
        self.norm: Any = self.tower.final_layer_norm
        self.most: int = self.tower.embeddings.position_embedding.num_embeddings

    def linear(self, layer: int) -> nn.Module:
        """fc2 of a layer."""
        block: Any = self.layers[layer]
        return block.mlp.fc2

    def path(self, layer: int) -> str:
        """Its on-disk name."""
        return f"text_model.encoder.layers.{layer}.mlp.fc2"

    def ends(self, ids: Int[Tensor, "n t"], tokenizer: Any, row: EncoderRow) -> Int[Tensor, " n"]:
        """Where the installed transformers pools: the first [EOS], or the highest id where the config is old."""
        eos = self.tower.config.eos_token_id
        if eos == LEGACY_EOS:
            # learned words have higher ids than [EOS]; where no generator gets this vector, they need not count
            return (ids if row.pooled else ids.where(ids <= tokenizer.eos_token_id, -1)).argmax(1)
        return (ids == eos).int().argmax(1)

    def pool(self, states: Float[Tensor, "n t d"], ends: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The row at [EOS]."""
        return states[torch.arange(len(ends)), ends]

    def rows(self, ids: Tensor, row: EncoderRow, clip_skip: int) -> Tensor:
        """The rows of the last layer, normalised, or of the one before it as they are."""
        early = clip_skip + (row.rows == "penultimate")
        if not early:
            return self.tower(ids)[0]
        if early > len(self.layers):
            raise ModelError(f"{row.name} has {len(self.layers)} layers; clip_skip={clip_skip} leaves none")
        with read(self.layers[len(self.layers) - early], stop=True) as seen:
            self.tower(ids)
        return seen[0] if row.rows == "penultimate" else self.norm(seen[0])
