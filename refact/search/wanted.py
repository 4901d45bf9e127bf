"""What each edit needs at a layer: its keys, and the change of the MLP's output that a search finds for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..edits import Edit
from ..models.corpus import captions
from ..models.encoders import TextEncoder
from ..models.model import Model
from . import suffix, trie, values
from .aligned import Aligned, compared
from .readings import Reading
from .sentences import reading_for, sentences_of, starting, templates_of
from .targets import candidates, check_lengths, companion_of

ROWS = 640  # rows of a language model that are searched through together


@dataclass(frozen=True)
class Wanted:
    """What the search found for the edits of one layer."""

    keys: list[Float[Tensor, "_ d_in"]]  # an edit's distinct keys, float64
    offsets: Float[Tensor, "e d_out"]
    found: values.Found


def search(method: Any, model: Model, encoder: TextEncoder, layer: int, edits: Sequence[Edit]) -> Wanted:
    """What each edit needs at this layer, found on the unedited encoder, `method.batch` edits at a time."""
    check_lengths(encoder, edits)
    others = captions(method.negatives, seed=method.seed)
    companion = companion_of(model, method, edits, encoder)
    read = reading_for(encoder, method.embedding, others or captions(20), companion, layer)
    asked = [sentences_of(encoder, read, edit, templates_of(method)) for edit in edits]
    keys: dict[int, Tensor] = {}
    parts = []
    groups = groups_of(encoder, asked, method.batch)
    compare = comparing(method, model, read, others)
    for group in groups:
        sentences, these = [asked[at] for at in group], [edits[at] for at in group]
        begun = starting(encoder, layer, sentences, read)
        forward, candidates = compare(begun.suffix, these, sentences)
        scale, how = scale_of(method, begun), search_of(method, edits)
        keys |= {at: k.double() for at, k in zip(group, begun.keys)}
        with frozen(encoder.module, read.projection):
            parts.append(values.find(forward, read.of_states, candidates, scale, encoder.width, how))
    order = [at for group in groups for at in group]
    found = values.Found.of_all(parts).at(sorted(range(len(order)), key=order.__getitem__))
    return Wanted([keys[at] for at in range(len(edits))], found.offsets.double(), found)


Comparing = Callable[[Any, Sequence[Edit], Sequence], tuple[values.Forward, values.Candidates]]


def comparing(method: Any, model: Model, read: Reading | Aligned, others: Sequence[str]) -> Comparing:
    """What gives, for a forward of edits and their sentences, the forward to use and what it is compared with."""
    templates = templates_of(method)
    if isinstance(read, Aligned):
        away = others if method.objective == "contrastive" else ()
        return partial(compared, read, templates=templates, others=away)
    plain = replace(read, precision=method.autocast)
    far = plain.of_texts(others) if others else torch.zeros(0)
    return lambda forward, edits, _: (forward, candidates(model, plain, edits, templates, far, method.gap))


def groups_of(encoder: TextEncoder, asked: Sequence[Sequence[trie.Sentence]], most: int) -> list[list[int]]:
    """Edits that are searched for together; rows of a language model are one batch, whose mask is square."""
    sizes = [trie.extent(sentences) for sentences in asked]
    if encoder.kind == "decoder":
        most = min(most, max(1, ROWS // max(sizes)))
        return [list(range(at, min(at + most, len(sizes)))) for at in range(0, len(sizes), most)]
    return trie.grouped(sizes, most)


@contextmanager
def frozen(*modules: nn.Module | None) -> Iterator[None]:
    """Within the block no weight asks for a gradient, so that a search keeps no tensors for theirs."""
    asking = [w for module in modules if module is not None for w in module.parameters() if w.requires_grad]
    try:
        for weight in asking:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)


def search_of(method: Any, edits: Sequence[Edit]) -> values.Search:
    """The fields of a method that the search needs.

    Where targets are pictures the distance is cosine unless one is named. A contrast is no use there: text and picture
    features lie so far apart that one picture against many texts is won by leaving the texts, wherever to.
    """
    pictures = any(edit.targets_images for edit in edits)
    given = {name: getattr(method, name) for name in values.Search.__dataclass_fields__}
    given["distance"] = given["distance"] or ("cosine" if pictures else "l2")
    return values.Search(**given)


def scale_of(method: Any, begun: suffix.Start) -> values.Scale:
    """Rates and bounds: as the paper's code has them, or in units of the states that the offset is added to."""
    norms = torch.stack([v.norm(dim=1).mean() for v in begun.values])
    size = begun.sizes if method.relative else norms
    rates = begun.sizes / begun.values[0].shape[1] ** 0.5 if method.relative else torch.ones_like(norms)
    return values.Scale(norms, method.learning_rate * rates, method.clamp * size)
