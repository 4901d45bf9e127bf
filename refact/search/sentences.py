"""Every wording of an edit's subject in every context, as token ids, and the encoder's part that they run through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..edits import Edit
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from . import bidirectional, cached, suffix
from .aligned import Aligned, aligned
from .readings import Reading, reading
from .trie import Sentence

PLAIN = "{}"  # the template of the prompt as it is


def templates_of(method: Any) -> tuple[str, ...]:
    """The contexts whose keys a method writes at."""
    if not 1 <= method.contexts <= len(method.templates):
        raise EditError(f"contexts is 1 to {len(method.templates)}, the number of templates, not {method.contexts}")
    return method.templates[: method.contexts]


def searched_of(method: Any) -> tuple[str, ...]:
    """The contexts that a search runs over: those of the keys, and the bare prompt where the method adds it."""
    contexts = templates_of(method)
    return contexts if not method.with_bare or PLAIN in contexts else (PLAIN, *contexts)


def spoken(method: Any, edits: Sequence[Edit]) -> list[Edit]:
    """The edits as the method reads them: their texts in lower case where it lowers them."""
    return [_lowered(edit) if method.lowercase else edit for edit in edits]


def _lowered(edit: Edit) -> Edit:
    texts: dict[str, Any] = {"aliases": tuple(alias.lower() for alias in edit.aliases)}
    for name in ("prompt", "new", "old", "subject"):
        if isinstance(text := getattr(edit, name), str):
            texts[name] = text.lower()
    return replace(edit, **texts)


def wordings(edit: Edit) -> list[tuple[str, str]]:
    """(prompt, subject) of the edit and of each alias."""
    return [(edit.prompt, edit.words), *zip(edit.reworded(), edit.aliases)]


def filling_of(edit: Edit, template: str, filled: str = "prompt") -> str:
    """What a template is filled with: the edit's prompt, or with "subject" the subject alone; bare, the prompt."""
    if filled not in ("prompt", "subject"):
        raise EditError(f"filled is 'prompt' or 'subject', not {filled!r}")
    return edit.words if filled == "subject" and template != PLAIN else edit.prompt


def sentences_of(
    encoder: TextEncoder, read: Reading | Aligned, edit: Edit, templates: Sequence[str], filled: str = "prompt"
) -> list[Sentence]:
    """Every wording in every context, wordings outer."""
    worded = [replace(edit, prompt=prompt, subject=words) for prompt, words in wordings(edit)]
    placed = [(t, filling_of(one, t, filled), one.words) for one in worded for t in templates]
    tokens = encoder.tokenize([template.replace("{}", filling) for template, filling, _ in placed])
    subjects = [
        encoder.locate(template.replace("{}", filling), words, within=(template.index("{}"), len(filling)))
        for template, filling, words in placed
    ]
    return [
        read.sentence(ids, subject, end)
        for ids, subject, end in zip(tokens.ids.tolist(), subjects, tokens.ends.tolist())
    ]


def reading_for(
    encoder: TextEncoder, embedding: str, texts: Sequence[str], companion: Any = None, layer: int = 0
) -> Reading | Aligned:
    """What edits of a layer are judged by: of a language model always what the generator is sent.

    Where the generator gets no rows of a CLIP (FLUX.1), its conditioning is the pooled vector.

    texts: unrelated ones, for the spread of what is compared.
    """
    if encoder.kind == "decoder" or (embedding == "conditioning" and encoder.row.rows != "none"):
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
