"""What `suffix.py` is for CLIP, for T5, whose attention looks both ways: slow by nature.

No row is a constant and no prefix is shared, so every row of every sentence is computed, and a key belongs to its
sentence: the subject's key in one context is not the key in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..encoders import hooks
from ..encoders.encoder import TextEncoder
from .suffix import Start
from .trie import Sentence


@dataclass(frozen=True)
class Whole:
    """Sentences of e edits, c each, of t tokens; called with offsets it gives what `suffix.Suffix` gives."""

    encoder: TextEncoder
    layer: int
    ids: Int[Tensor, "e c t"]
    subjects: Int[Tensor, "e c"]
    ends: Int[Tensor, "e c"]
    rows: Int[Tensor, "e c s"] | None = None

    def select(self, which: Tensor) -> Whole:
        """The same for some of the edits."""
        rows = None if self.rows is None else self.rows[which]
        return replace(self, ids=self.ids[which], subjects=self.subjects[which], ends=self.ends[which], rows=rows)

    def __call__(self, offsets: Float[Tensor, "e d"]) -> tuple[Tensor | None, Float[Tensor, "e c d"]]:
        """The rows that are read, and the mean of each sentence's states up to [EOS], under these offsets."""
        count = self.ids.shape[1]
        every, at = torch.arange(self.subjects.numel()), self.subjects.flatten()

        def added(output: Tensor, _: Tensor) -> Tensor:
            moved = torch.zeros_like(output)
            moved[every, at] = offsets.repeat_interleave(count, 0).to(output)
            return output + moved

        with hooks.replace(self.encoder.linear(self.layer), added):
            states = self.encoder.run(self.ids.flatten(0, 1))
        pooled = self.encoder.pool(states, self.ends.flatten()).unflatten(0, self.ends.shape)
        if self.rows is None:
            return None, pooled
        return states[every[:, None], self.rows.flatten(0, 1)].unflatten(0, self.ends.shape), pooled


@torch.no_grad()
def start(encoder: TextEncoder, layer: int, edits: Sequence[Sequence[Sentence]]) -> Start:
    """The forward of edits given by their sentences (padded ids), with the keys and values at their subjects."""
    most = max(len(sentences) for sentences in edits)
    filled = [[*sentences, *[sentences[0]] * (most - len(sentences))] for sentences in edits]
    ids = torch.tensor([[s.ids for s in sentences] for sentences in filled], device=encoder.device)
    subjects, ends = (
        torch.tensor([[getattr(s, place) for s in sentences] for sentences in filled], device=encoder.device)
        for place in ("subject", "end")
    )
    linear = encoder.linear(layer)
    after = encoder.layers[layer + 1] if layer + 1 < encoder.n_layers else encoder.tower.final_layer_norm
    with hooks.read(linear) as inputs, hooks.read(linear, "output") as outputs, hooks.read(after) as states:
        encoder.run(ids.flatten(0, 1))
    rows, at = torch.arange(subjects.numel()), subjects.flatten()
    keys, values, reached = (seen[0][rows, at].unflatten(0, subjects.shape) for seen in (inputs, outputs, states))
    counts = [len(sentences) for sentences in edits]
    sizes = torch.stack([row[:n].norm(dim=1).mean() for row, n in zip(reached, counts)])
    own_keys, own_values = ([row[:n] for row, n in zip(part, counts)] for part in (keys, values))
    longest = max(len(s.rows) for sentences in filled for s in sentences)
    read = [[[*s.rows, *s.rows[-1:] * (longest - len(s.rows))] for s in sentences] for sentences in filled]
    seen = torch.tensor(read, device=encoder.device) if longest else None
    places = [list(range(n)) for n in counts]
    return Start(Whole(encoder, layer, ids, subjects, ends, seen), own_keys, own_values, sizes, places)


@torch.no_grad()
def all_keys(encoder: TextEncoder, layer: int, sentences: Sequence[Sentence]) -> tuple[Tensor, list[list[int]]]:
    """The layer's inputs (nodes, d_in) at every position of every sentence, and each sentence's nodes."""
    ids = torch.tensor([s.ids for s in sentences], device=encoder.device)
    keys = encoder.inputs(ids, [layer])[layer].flatten(0, 1)
    length = ids.shape[1]
    return keys, [list(range(i * length, (i + 1) * length)) for i in range(len(sentences))]
