"""What each edit needs at a layer: its keys, and the change of the MLP's output that a search finds for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..edits import Edit
from ..models.corpus import captions
from ..models.encoders import TextEncoder
from ..models.model import Model
from . import suffix, values
from .readings import reading
from .sentences import sentences_of, starting, templates_of
from .targets import candidates, companion_of


@dataclass(frozen=True)
class Wanted:
    """What the search found for the edits of one layer."""

    keys: list[Float[Tensor, "_ d_in"]]  # an edit's distinct keys, float64
    offsets: Float[Tensor, "e d_out"]
    found: values.Found


def search(method: Any, model: Model, encoder: TextEncoder, layer: int, edits: Sequence[Edit]) -> Wanted:
    """What each edit needs at this layer, found on the unedited encoder, `method.batch` edits at a time."""
    others = captions(method.negatives, seed=method.seed)
    read = reading(encoder, method.embedding, others or captions(20), companion_of(model, method, edits, encoder))
    read = replace(read, precision=method.autocast)
    away = read.of_texts(others) if others else torch.zeros(0)
    asked = [sentences_of(encoder, read, edit, templates_of(method)) for edit in edits]
    groups = suffix.grouped([suffix.extent(sentences) for sentences in asked], method.batch)
    keys: dict[int, Tensor] = {}
    parts = []
    for group in groups:
        sentences, these = [asked[at] for at in group], [edits[at] for at in group]
        begun = starting(encoder, layer, sentences, read.depth)
        compared = candidates(model, read, these, templates_of(method), away, method.gap)
        scale, how = scale_of(method, begun), search_of(method, edits)
        keys |= {at: k.double() for at, k in zip(group, begun.keys)}
        with frozen(encoder.module, read.projection):
            label = f"search in {encoder.name}, {len(these)} of {len(edits)} facts"
            wanted = (begun.suffix, read.of_states, compared, scale, encoder.width, how)
            parts.append(values.find(*wanted, progress=model.progress, label=label))
    order = [at for group in groups for at in group]
    found = values.Found.of_all(parts).at(sorted(range(len(order)), key=order.__getitem__))
    return Wanted([keys[at] for at in range(len(edits))], found.offsets.double(), found)


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
