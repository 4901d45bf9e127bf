"""Every wording of an edit's subject in every context, as token ids, and the encoder's part that they run through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..edits import Edit
from ..errors import EditError
from ..models.encoders import TextEncoder
from . import bidirectional, suffix
from .readings import Reading
from .suffix import Sentence


def templates_of(method: Any) -> tuple[str, ...]:
    """The contexts in use."""
    if not 1 <= method.contexts <= len(method.templates):
        raise EditError(f"contexts is 1 to {len(method.templates)}, the number of templates, not {method.contexts}")
    return method.templates[: method.contexts]


def wordings(edit: Edit) -> list[tuple[str, str]]:
    """(prompt, subject) of the edit and of each alias."""
    return [(edit.prompt, edit.words), *zip(edit.reworded(), edit.aliases)]


def sentences_of(encoder: TextEncoder, read: Reading, edit: Edit, templates: Sequence[str]) -> list[Sentence]:
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


def starting(encoder: TextEncoder, layer: int, edits: Sequence[Sequence[Sentence]], depth: int) -> suffix.Start:
    """The part of the encoder that edits can change, and their keys and values."""
    if encoder.kind == "t5":
        return bidirectional.start(encoder, layer, edits)
    return suffix.start(encoder.tower, layer, edits, depth)


def every_key(encoder: TextEncoder, layer: int, sentences: Sequence[Sentence]) -> tuple[Tensor, list[list[int]]]:
    """The keys at all positions of the sentences (nodes, d_in), and each sentence's nodes."""
    if encoder.kind == "t5":
        return bidirectional.all_keys(encoder, layer, sentences)
    return suffix.all_keys(encoder.tower, layer, sentences)
