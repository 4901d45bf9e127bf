"""What is a language model's own among text encoders: any decoder of transformers whose MLPs end in a down_proj.

Its layers are run by the library's own code; nothing of an architecture is written again here. Everything is computed
in float32, whatever the weights are stored in (`widened`), and what prompts begin with alike, an instruction or a chat
template, is computed once for a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ModelError
from ..family import EncoderRow
from .hooks import read
from .widened import Widened


def language_tower(module: nn.Module) -> Any:
    """The part with embed_tokens, layers and norm, inside whatever a checkpoint wraps around it."""
    for part in module.modules():
        if hasattr(part, "embed_tokens") and hasattr(part, "layers") and hasattr(part, "norm"):
            return part
    raise ModelError(f"{type(module).__name__} has no embed_tokens, layers and norm: it is no decoder of transformers")


class Decoder:
    """The decoder of a language model."""

    causal = True
    root = "model"
    most = 1 << 20

    def __init__(self, module: nn.Module):
        self.tower = language_tower(module)
        self.layers: nn.ModuleList = self.tower.layers
        self.norm: Any = self.tower.norm
        self.tail = 1  # how many of a prompt's last rows the frame writes, at least one
        if (how := self.tower.config._attn_implementation) not in ("sdpa", "eager"):
            raise ModelError(f"attention is {how!r}, which takes no mask of ours: load with attn_implementation='sdpa'")

    def linear(self, layer: int) -> nn.Module:
        """down_proj of a layer."""
        block: Any = self.layers[layer]
        return block.mlp.down_proj

    def path(self, layer: int) -> str:
        """Its name in the files of most repositories (others have no `model.`, or more before it)."""
        return f"model.layers.{layer}.mlp.down_proj"

    def taps(self, row: EncoderRow) -> list[int]:
        """The states that the generator gets, by how many layers they have passed, lowest first."""
        count = len(self.layers)
        found = [tap + count + 1 if tap < 0 else tap for tap in row.taps] or list(range(1, count + 1))
        if not 0 < min(found) <= max(found) <= count:
            raise ModelError(f"{row.name} has {count} layers, but its pipeline sends the states after {found}")
        return found

    def pool(self, states: Float[Tensor, "n t d"], ends: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The mean of the rows that the frame writes after the prompt; the last row where it writes none."""
        at = ends[:, None] - torch.arange(self.tail, device=ends.device)
        return states[torch.arange(len(ends))[:, None], at].mean(1)

    def embedded(self, ids: Int[Tensor, "n t"]) -> Float[Tensor, "n t d"]:
        """The tokens' embeddings, float32."""
        return self.tower.get_input_embeddings()(ids.to(self.norm.weight.device)).float()

    def rows(self, ids: Int[Tensor, "n t"], taps: Sequence[int]) -> Float[Tensor, "n t k"]:
        """The states after these numbers of layers side by side, as transformers gives them: the last one normalised.

        ids: padded at the right; rows of padding are computed, but mean nothing.
        """
        watched = [self.watched(tap) for tap in taps]
        highest = watched[max(range(len(taps)), key=taps.__getitem__)]
        return torch.cat(self.given(ids, watched, highest), -1)

    def watched(self, tap: int) -> tuple[nn.Module, str]:
        """Where a state is seen: given to a layer, or by the final norm."""
        return (self.layers[tap], "input") if tap < len(self.layers) else (self.norm, "output")

    @torch.no_grad()
    def given(
        self, ids: Int[Tensor, "n t"], watched: Sequence[tuple[nn.Module, str]], last: tuple[nn.Module, str]
    ) -> list[Float[Tensor, "n t _"]]:
        """What the watched modules are given, or give, at every row; nothing after the last of them is run."""
        from transformers import DynamicCache

        alike = _alike(ids)
        cache = DynamicCache(config=self.tower.config)
        parts: list[list[Tensor]] = []
        for piece in [ids[:1, :alike], ids[:, alike:]] if alike else [ids]:
            if parts:
                cache.batch_repeat_interleave(len(ids))
            with ExitStack() as stack, Widened():
                seen = [stack.enter_context(read(*module, stop=module == last)) for module in watched]
                self.tower(inputs_embeds=self.embedded(piece), past_key_values=cache, use_cache=True)
            parts.append([found[0].float().expand(len(ids), -1, -1) for found in seen])
        return [torch.cat(found, 1) for found in zip(*parts)]


def _alike(ids: Int[Tensor, "n t"]) -> int:
    """How many tokens all rows begin with alike, all but one at most; 0 where there is one row."""
    if len(ids) < 2:
        return 0
    same = (ids == ids[0]).all(0).int().cumprod(0)
    return min(int(same.sum()), ids.shape[1] - 1)
