"""The conditioning as what an edit is judged by: the rows that the generator is sent, from the subject on.

Rows of two texts in one context are compared from the end backwards: what follows the subject is the same in both, so
that the subject's last row meets the target's last row. Each row of each state is divided by its spread over unrelated
texts: language models have rows and states whose numbers are a hundred times larger than others' and say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..edits import Edit
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from . import cached
from .readings import spaced
from .trie import Sentence
from .values import Candidates, Forward

AT_ONCE = 48  # texts whose rows are computed together
SPREAD_TEXTS = 12  # unrelated texts from which spreads are taken
NEAR = 2  # rows of padding read after a CLIP's [EOS]: each row read lengthens every sentence of a search


@dataclass(frozen=True)
class Spread:
    """How far rows lie apart over unrelated texts, for each state that is sent (k of them)."""

    tail: Float[Tensor, "t k"]  # of the rows that the frame writes after a prompt, the last row first
    content: Float[Tensor, " k"]
    padding: Float[Tensor, " k"]


@dataclass(frozen=True)
class Aligned:
    """Reads the rows of sentences from the subject on, and of other texts those that stand opposite to them."""

    encoder: TextEncoder
    taps: tuple[int, ...]  # the states sent that an edit of the layer reaches; of CLIP and T5 only one is sent
    spread: Spread
    pooled: float = 0.0  # how far pooled vectors lie apart over unrelated texts; 0: none is sent
    projection: None = None
    precision: str = ""

    @property
    def depth(self) -> int:
        """How many layers the highest state has passed."""
        return max(self.taps)

    def sentence(self, ids: Sequence[int], subject: int, end: int) -> Sentence:
        """A sentence read from the subject's last token to its end, and some rows of padding where they are sent."""
        return read_from(self.encoder, ids, subject, end)

    def of_states(self, rows: Tensor | None, pooled: Tensor) -> Tensor:
        """Rows (..., s, k), weighed already, as one feature, with the pooled vector where it is sent."""
        if rows is None:
            return pooled
        return rows.flatten(-2) if not self.pooled else torch.cat([rows.flatten(-2), self.sent(pooled)], -1)

    def sent(self, pooled: Tensor) -> Tensor:
        """Pooled states (..., d) as they are sent, over their spread."""
        return self.encoder.project(pooled) / self.pooled


def aligned(encoder: TextEncoder, layer: int, texts: Sequence[str]) -> Aligned:
    """The reading for edits of a layer; `texts` (unrelated ones) give the spreads."""
    taps = tuple(encoder.reached(layer)) if encoder.kind == "decoder" else (max(encoder.effective) + 1,)
    texts = list(texts)[:SPREAD_TEXTS]
    after = encoder.part.tail if encoder.kind == "decoder" and encoder.frame.after else 0
    starts = encoder.starts(texts)
    tokens = encoder.tokenize(texts)
    said = [
        read_from(encoder, ids, min(start, end), end)
        for ids, start, end in zip(tokens.ids.tolist(), starts, tokens.ends.tolist())
    ]
    rows = [row.unflatten(-1, (len(taps), -1)) for row in _rows(encoder, taps, said)]
    spans = [(max(s.end - s.subject + 1 - after, 0), s.end - s.subject + 1) for s in said]
    content = torch.cat([row[:stop] for row, (stop, _) in zip(rows, spans)])
    tail = [_spread(torch.stack([row[stop - 1 - j] for row, (_, stop) in zip(rows, spans)])) for j in range(after)]
    padding = torch.cat([row[stop:] for row, (_, stop) in zip(rows, spans)])
    inner = _spread(content)
    spread = Spread(torch.stack(tail) if tail else inner[None][:0], inner, _spread(padding) if len(padding) else inner)
    sent = encoder.kind == "clip" and encoder.row.pooled
    return Aligned(encoder, taps, spread, float(_spread(encoder.embed(texts)[:, None])) if sent else 0.0)


def _spread(rows: Float[Tensor, "n k d"]) -> Float[Tensor, " k"]:
    return (rows - rows.mean(0)).square().sum(2).mean(0).sqrt().clamp_min(1e-6)


def read_from(encoder: TextEncoder, ids: Sequence[int], subject: int, end: int) -> Sentence:
    """A sentence read from a row to its end, and some rows of padding where the generator gets those."""
    padding = _padding(encoder, end, len(ids))
    kept = ids[: end + 1] if encoder.kind == "decoder" else ids
    return Sentence(tuple(kept), subject, end, (*range(subject, end + 1), *dict.fromkeys(padding)))


def _padding(encoder: TextEncoder, end: int, length: int) -> list[int]:
    """The rows of padding that are read: some of those that are sent and depend on the prompt.

    Those at the left of a language model's prompt stand before it. A CLIP's nearly all say what the first ones say.
    """
    if encoder.kind == "clip":
        return list(range(end + 1, min(end + 1 + NEAR, length)))
    sent = encoder.row.padding and (encoder.kind != "decoder" or encoder.tokenizer.padding_side == "right")
    return [row for row in spaced(end, encoder.length) if row > end] if sent else []


@torch.no_grad()
def _rows(encoder: TextEncoder, taps: Sequence[int], sentences: Sequence[Sentence]) -> list[Float[Tensor, "_ k"]]:
    """The rows that sentences read, nothing edited."""
    found = []
    for at in range(0, len(sentences), AT_ONCE):
        some = sentences[at : at + AT_ONCE]
        if encoder.kind == "decoder":
            found += cached.states(encoder, some, taps)
        else:
            states = _sent(encoder, torch.tensor([s.ids for s in some])).float()
            found += [state[list(s.rows)] for state, s in zip(states, some)]
    return found


def _sent(encoder: TextEncoder, ids: Tensor) -> Float[Tensor, "n t d"]:
    """The states of padded ids that the pipeline sends (CLIP, T5)."""
    return encoder.part.rows(ids.to(encoder.device), encoder.row, 0) if encoder.kind == "clip" else encoder.run(ids)


# -- what a search compares with --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighed:
    """A forward whose rows are divided by their spreads; 0 where there is no row to compare with."""

    forward: Forward
    weights: Float[Tensor, "e c s k"]

    def select(self, which: Tensor) -> Weighed:
        """The same for some of the edits."""
        return replace(self, forward=self.forward.select(which), weights=self.weights[which])

    def __call__(self, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """The rows (e, c, s, states side by side), weighed."""
        rows, pooled = self.forward(offsets)
        assert rows is not None
        return weigh(rows, self.weights), pooled


def weigh(rows: Float[Tensor, "*n s f"], weights: Float[Tensor, "*m s k"]) -> Float[Tensor, "*n s f"]:
    """Each state of each row times its weight."""
    parts = rows.unflatten(-1, (weights.shape[-1], -1))
    return (parts * weights[..., None]).flatten(-2)


def compared(
    read: Aligned, forward: Forward, asked: Sequence[Sequence[Sentence]], numbers: Sequence[Sequence[int]],
    edits: Sequence[Edit], templates: Sequence[str], others: Sequence[str],
) -> tuple[Weighed, Candidates]:  # fmt: skip
    """The forward of sentences, weighed, and the target's, the source's and others' rows opposite to them.

    numbers: of each sentence, counted through wordings and contexts.
    """
    whole = [[_texts(edit, template, others) for template in templates] for edit in edits]
    texts = [[own[number % len(own)] for number in some] for own, some in zip(whole, numbers)]
    opposite = _opposite(read, texts, asked)
    count, longest = max(map(len, asked)), max(len(s.rows) for sentences in asked for s in sentences)
    states, choices = len(read.taps), 2 + len(others)
    device, width = read.encoder.device, states * read.encoder.width
    features = torch.zeros(len(edits), count, choices, longest, width, device=device)
    weights = torch.zeros(len(edits), count, longest, states, device=device)
    shares = torch.zeros(len(edits), count, device=device)
    for e, sentences in enumerate(asked):
        for c, sentence in enumerate(sentences):
            there, rows = zip(*(opposite[e, c, m] for m in range(choices)))
            n = len(sentence.rows)
            weights[e, c, :n] = _weights(read, sentence) * torch.stack(there).all(0)[:, None].to(device)
            features[e, c, :, :n] = weigh(torch.stack(rows), weights[e, c, :n])
            shares[e, c] = 1 / len(sentences)
    found = features.flatten(-2)
    if read.pooled:
        found = torch.cat([found, _pooled(read, texts, found)], -1)
    return Weighed(forward, weights), Candidates(found, shares)


@torch.no_grad()
def _pooled(read: Aligned, texts: Sequence, like: Float[Tensor, "e c m f"]) -> Float[Tensor, "e c m p"]:
    """The pooled vectors of texts (edit, context, choice), over their spread."""
    words = list(dict.fromkeys(text for row in texts for some in row for text in some))
    known = dict(zip(words, read.encoder.embed(words) / read.pooled))
    found = like.new_zeros(*like.shape[:3], len(known[words[0]]))
    for e, row in enumerate(texts):
        for c, some in enumerate(row):
            found[e, c] = torch.stack([known[text] for text in some])
    return found


def _texts(edit: Edit, template: str, others: Sequence[str]) -> list[str]:
    old = edit.old if isinstance(edit.old, str) else edit.prompt
    if not isinstance(edit.new, str) or not isinstance(old, str):
        raise EditError(
            "what is sent is compared with what texts send: give target and source as texts, or embedding='pooled'"
        )
    return [template.replace("{}", text) for text in (edit.new, old)] + list(others)


def _weights(read: Aligned, sentence: Sentence) -> Float[Tensor, "s k"]:
    """One over the spread of each row that a sentence reads."""
    spread, found = read.spread, []
    for row in sentence.rows:
        back = sentence.end - row
        found.append(spread.padding if back < 0 else spread.tail[back] if back < len(spread.tail) else spread.content)
    return 1 / torch.stack(found)


def _opposite(read: Aligned, texts: Sequence, asked: Sequence) -> dict[tuple[int, int, int], tuple[Tensor, Tensor]]:
    """(edit, context, choice) -> whether there is a row opposite to each that the sentence reads, and the rows."""
    flat = [(e, c, m, t) for e, row in enumerate(texts) for c, some in enumerate(row) for m, t in enumerate(some)]
    words = list(dict.fromkeys(text for *_, text in flat))
    tokens, starts = read.encoder.tokenize(words), read.encoder.starts(words)
    known = {w: (ids, end, s) for w, ids, end, s in zip(words, tokens.ids.tolist(), tokens.ends.tolist(), starts)}
    there, sentences = [], []
    for e, c, _, text in flat:
        ids, end, start = known[text]
        mine = asked[e][c]
        first = end - (mine.end - mine.subject)
        own = read_from(read.encoder, ids, max(first, start), end)
        wanted = sum(row > mine.end for row in mine.rows)
        padding = tuple(row for row in own.rows if row > end)[:wanted]
        less = wanted - len(padding)  # a text that fills the encoder's length has no padding
        content = [max(row, start) for row in range(first, end + 1)]
        padded = [True] * len(padding) + [False] * less
        there.append(torch.tensor([*(row >= start for row in range(first, end + 1)), *padded]))
        sentences.append(replace(own, rows=(*content, *padding, *[end] * less)))
    rows = _rows(read.encoder, read.taps, sentences)
    return {key[:3]: pair for key, pair in zip(flat, zip(there, rows))}
