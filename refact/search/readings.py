"""What of an encoder's output an edit is judged by: the pooled state, or the conditioning that the generator gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..encoders.encoder import TextEncoder
from ..errors import EditError
from ..models.precision import lowered
from .suffix import pooled
from .trie import Sentence

PADDING_ROWS = 8  # rows read from [EOS] on, evenly spaced: neighbours among them say nearly the same
ALIKE = 64  # texts a trie, whose mask is square


@dataclass(frozen=True)
class Reading:
    """Features of a prompt, from its text or from states during a search; both ways give the same numbers.

    "pooled": the projected [EOS] state (the paper). "conditioning": the last subject row, the mean of the rows from
    [EOS] on, and the pooled vector, as far as the family's generator gets them; each over its spread on other texts.
    """

    encoder: TextEncoder
    projection: nn.Module | None  # to the space of a companion CLIP, or the module's own
    scales: tuple[float, ...] = ()  # (): pooled only
    precision: str = ""  # of the encoder's products on plain texts; "": its own

    @property
    def depth(self) -> int:
        """How many layers the rows that are read have passed."""
        return self.encoder.n_layers - (self.encoder.row.rows == "penultimate")

    def sentence(self, ids: Sequence[int], subject: int, end: int) -> Sentence:
        """A sentence cut after the last row that is read (T5: none is); `ids` are padded as the pipeline pads."""
        if self.encoder.kind == "t5":
            return Sentence(tuple(ids), subject, end)
        if not self.scales or self.encoder.row.rows == "none":
            return Sentence(tuple(ids[: end + 1]), subject, end)
        return Sentence(tuple(ids), subject, end, (subject, *spaced(end, len(ids))))

    def of_states(self, rows: Tensor | None, pooled: Tensor) -> Tensor:
        """Features (..., f) of the rows (..., s, d) and pooled states (..., d) that a search gives."""
        pooled = pooled if self.projection is None else self.projection(pooled)
        return pooled if not self.scales else self._weigh(_parts(self.encoder, rows, pooled))

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Float[Tensor, "n f"]:
        """Features of plain texts under the unedited encoder; a text's subject is its last word."""
        return self._weigh(self._text_parts(texts)) if self.scales else self._pooled(texts)

    def _pooled(self, texts: Sequence[str]) -> Tensor:
        own = getattr(self.encoder.module, "text_projection", None)
        found = self.encoder.embed(list(texts)) if self.encoder.kind == "t5" else self._alike(texts)
        return found if self.projection is None or self.projection is own else self.projection(found)

    def _alike(self, texts: Sequence[str]) -> Tensor:
        """As `TextEncoder.embed`; most texts here begin like others."""
        tokens = self.encoder.tokenize(list(texts))
        self.encoder.check_pooled(tokens.ends)
        sentences = [
            Sentence(tuple(ids[: end + 1]), end, end) for ids, end in zip(tokens.ids.tolist(), tokens.ends.tolist())
        ]
        with lowered(self.encoder.device, self.precision):
            parts = [pooled(self.encoder.tower, sentences[at : at + ALIKE]) for at in range(0, len(texts), ALIKE)]
        return self.encoder.project(torch.cat(parts))

    def _text_parts(self, texts: Sequence[str]) -> list[Tensor]:
        if self.encoder.row.rows == "none":
            return _parts(self.encoder, None, self._pooled(texts))
        tokens = self.encoder.tokenize(list(texts))
        states = self.encoder.states(list(texts))
        index = [(max(end - 1, 0), *spaced(end, states.shape[1])) for end in tokens.ends.tolist()]
        rows = states[torch.arange(len(texts))[:, None], torch.tensor(index)]
        return _parts(self.encoder, rows, self._pooled(texts) if self.encoder.row.pooled else states[:, 0])

    def _weigh(self, parts: list[Tensor]) -> Tensor:
        return torch.cat([part / scale for part, scale in zip(parts, self.scales, strict=True)], -1)


def reading(encoder: TextEncoder, embedding: str, texts: Sequence[str], companion: Any = None) -> Reading:
    """The reading of an encoder; `texts` (unrelated ones) give the spread that makes parts comparable."""
    own = getattr(encoder.module, "text_projection", None)
    projection = own if companion is None else companion.text_projection
    plain = Reading(encoder, projection)
    if embedding == "pooled":
        return plain
    if embedding != "conditioning":
        raise EditError(f"embedding is 'pooled' or 'conditioning', not {embedding!r}")
    with torch.no_grad():
        parts = plain._text_parts(texts)
    spread = tuple(float((part - part.mean(0)).square().sum(1).mean().sqrt()) for part in parts)
    return Reading(encoder, projection, spread)


def spaced(end: int, length: int) -> list[int]:
    """Rows from [EOS] to the last padding row, evenly spaced."""
    return [round(end + (length - 1 - end) * i / (PADDING_ROWS - 1)) for i in range(PADDING_ROWS)]


def _parts(encoder: TextEncoder, rows: Tensor | None, pooled: Tensor) -> list[Tensor]:
    parts = [] if rows is None else [rows[..., 0, :], rows[..., 1:, :].mean(-2)]
    return [*parts, pooled] if encoder.row.pooled or rows is None else parts
