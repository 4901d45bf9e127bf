"""Every wording of an edit's subject in every context, as token ids, and the encoder's part that they run through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..edits import Edit
from ..errors import EditError
from ..models.encoders import TextEncoder
from . import bidirectional, cached, suffix
from .aligned import Aligned, aligned
from .readings import Reading, reading
from .trie import Sentence


def templates_of(method: Any) -> tuple[str, ...]:
    """The contexts in use."""
    if not 1 <= method.contexts <= len(method.templates):
        raise EditError(f"contexts is 1 to {len(method.templates)}, the number of templates, not {method.contexts}")
    return method.templates[: method.contexts]


def wordings(edit: Edit) -> list[tuple[str, str]]:
    """(prompt, subject) of the edit and of each alias."""
    return [(edit.prompt, edit.words), *zip(edit.reworded(), edit.aliases)]


def sentences_of(encoder: TextEncoder, read: Reading | Aligned, edit: Edit, templates: Sequence[str]) -> list[Sentence]:
    """Every wording in every context, wordings outer."""
    placed = [(template, *wording) for wording in wordings(edit) for template in templates]
    tokens = encoder.tokenize([template.replace("{}", prompt) for template, prompt, _ in placed])
    subjects = [
        encoder.locate(template.replace("{}", prompt), words, within=(template.index("{}"), len(prompt)))
        for template, prompt, words in placed
    ]
    return [
        read.sentence(ids, subject, end)
        for ids, subject, end in zip(tokens.ids.tolist(), subjects, tokens.ends.tolist())
    ]


def reading_for(
    encoder: TextEncoder, embedding: str, texts: Sequence[str], companion: Any = None, layer: int = 0
) -> Reading | Aligned:
    """What edits of a layer are judged by: of a language model always what the generator is sent.

    texts: unrelated ones, for the spread of what is compared.
    """
    sent = embedding == "conditioning" and encoder.kind == "t5"
    if encoder.kind == "decoder" or sent:
        return aligned(encoder, layer, texts)
    return reading(encoder, embedding, texts, companion)


def starting(
    encoder: TextEncoder, layer: int, edits: Sequence[Sequence[Sentence]], read: Reading | Aligned
) -> suffix.Start:
    """The part of the encoder that edits can change, and their keys and values."""
    if encoder.kind == "t5":
        return bidirectional.start(encoder, layer, edits)
    if encoder.kind == "decoder":
        return cached.start(encoder, layer, edits, read.taps if isinstance(read, Aligned) else ())
    return suffix.start(encoder.tower, layer, edits, read.depth)


def every_key(encoder: TextEncoder, layer: int, sentences: Sequence[Sentence]) -> tuple[Tensor, list[list[int]]]:
    """The keys at all positions of the sentences (nodes, d_in), and each sentence's nodes."""
    if encoder.kind == "t5":
        return bidirectional.all_keys(encoder, layer, sentences)
    if encoder.kind == "decoder":
        whole = [replace(s, rows=(*range(s.end + 1), *(row for row in s.rows if row > s.end))) for s in sentences]
        return cached.all_keys(encoder, layer, whole)
    return suffix.all_keys(encoder.tower, layer, sentences)
