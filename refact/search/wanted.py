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
from ..encoders.devices import doubled, exact, fitted
from ..encoders.encoder import TextEncoder
from ..errors import EditError
from ..models.corpus import captions
from ..models.model import Model
from ..models.parallel import Cluster, spread
from . import suffix, trie, values
from .aligned import Aligned, compared
from .readings import Reading
from .sentences import PLAIN, reading_for, searched_of, sentences_of, spoken, starting, templates_of
from .targets import candidates, check_lengths, companion_of, picture_files

ROWS = 640  # rows of a language model that are searched through together
NO_CLAMP = 1e6  # times a state's size: no bound


@dataclass(frozen=True)
class Places:
    """Where one edit's change goes, float64: its distinct keys; the mean key k*; the key at which a value is exact."""

    keys: Float[Tensor, "n d_in"]
    mean: Float[Tensor, " d_in"]
    at: Float[Tensor, " d_in"]

    def to(self, device: Any) -> Places:
        """The same on another device."""
        return Places(self.keys.to(device), self.mean.to(device), self.at.to(device))


@dataclass(frozen=True)
class Wanted:
    """What the search found for the edits of one layer."""

    places: list[Places]
    offsets: Float[Tensor, "e d_out"]
    found: values.Found

    @property
    def keys(self) -> list[Float[Tensor, "_ d_in"]]:
        """Each edit's distinct keys."""
        return [place.keys for place in self.places]


def search(
    method: Any,
    model: Model,
    encoder: TextEncoder,
    layer: int,
    edits: Sequence[Edit],
    cluster: Cluster | None = None,
) -> Wanted:
    """What each edit needs at this layer, found on the unedited encoder, `method.batch` edits at a time.

    cluster: where to search; the groups are the same there, and so is what is found.
    """
    here = Searching(method, model, encoder, layer, spoken(method, edits))
    groups, parts = here.groups(), []
    if cluster is None:
        parts = here.in_parts(groups)
    else:
        make = partial(_elsewhere, method, encoder.name, layer, here.edits)
        label = f"search in {encoder.name}, groups of facts"
        for some in model.progress(spread(make, [model], groups, cluster), label, len(groups)):
            parts += some
    order, place = [at for part in parts for at in part.group], exact(encoder.device)
    back = sorted(range(len(order)), key=order.__getitem__)
    found = values.Found.of_all([part.found for part in parts]).at(back)
    places = [one.to(place) for part in parts for one in part.places]
    offsets = doubled(found.offsets).to(place) + torch.cat([part.shifts for part in parts])[back].to(place)
    return Wanted([places[at] for at in back], offsets, found.here())


def _elsewhere(method: Any, name: str, layer: int, edits: Sequence[Edit], model: Model) -> Callable[[list[int]], list]:
    """On a worker of a cluster."""
    there = Searching(method, model, model.encoders[name].in_float32(), layer, edits)
    return lambda group: [part.here() for part in there.in_parts([group])]


@dataclass(frozen=True)
class Part:
    """What was found for one group of edits, in its order."""

    group: list[int]
    places: list[Places]
    shifts: Float[Tensor, "e d_out"]
    found: values.Found

    def here(self) -> Part:
        """On the CPU, to be sent."""
        return Part(self.group, [place.to("cpu") for place in self.places], self.shifts.cpu(), self.found.here())


class Searching:
    """A search for the edits of one layer, called with the numbers of those that are searched for together."""

    def __init__(self, method: Any, model: Model, encoder: TextEncoder, layer: int, edits: Sequence[Edit]):
        others = captions(method.negatives, seed=method.seed)
        companion = companion_of(model, method, edits, encoder)
        self.edits, self._method, self._model, self._encoder, self._layer = list(edits), method, model, encoder, layer
        self._read = reading_for(encoder, method.embedding, others or captions(20), companion, layer)
        check_lengths(encoder, edits, searched_of(method) if isinstance(self._read, Aligned) else ())
        self._compare = comparing(method, model, self._read, others)
        self._asked = [sentences_of(encoder, self._read, e, searched_of(method), method.filled) for e in edits]

    def groups(self) -> list[list[int]]:
        """Numbers of the edits that are searched for together."""
        return groups_of(self._encoder, self._asked, self._method.batch)

    def in_parts(self, groups: Sequence[list[int]]) -> list[Part]:
        """What the edits of all groups need; a group is halved where the device's memory does not hold it."""
        return [part for _, part in fitted(self, ((group,) for group in groups), f"facts in {self._encoder.name}")]

    def __call__(self, group: list[int]) -> Part:
        """What these edits need."""
        method, encoder, read = self._method, self._encoder, self._read
        sentences, these = [self._asked[at] for at in group], [self.edits[at] for at in group]
        begun = starting(encoder, self._layer, sentences, read)
        contexts = len(searched_of(method))
        searched = fewer(encoder, self._layer, read, begun, sentences, contexts)
        forward, candidates = self._compare(*searched, these)
        scale, how = scale_of(method, begun), search_of(method, self.edits)
        places, shifts = zip(*(places_of(method, begun, number) for number in range(len(group))))
        with frozen(encoder.module, read.projection):
            label = f"search in {encoder.name}, {len(these)} of {len(self.edits)} facts"
            wanted = (forward, read.of_states, candidates, scale, encoder.width, how)
            found = values.find(*wanted, progress=self._model.progress, label=label)
        return Part(group, list(places), torch.stack(shifts), found)


def _away(model: Model, method: Any, read: Reading, others: Sequence[str]) -> Tensor:
    """Features of what to stay away from: unrelated texts, and the pictures of `method.away`."""
    pictures = [model.image_features(picture_files(method.away, "away"))] if method.away else []
    found = [*([read.of_texts(others)] if others else []), *pictures]
    return torch.cat(found) if found else torch.zeros(0)


def places_of(method: Any, begun: suffix.Start, number: int) -> tuple[Places, Float[Tensor, " d_out"]]:
    """Where the change of the edit of that number goes, and what is to be added to what its search finds.

    The mean key counts each sentence (as published), however many have the same key. A value is v0 + d, with v0 the
    output at `method.first_context`; written at a key whose own output is another, the change is v0 + d less that.
    """
    contexts, own = searched_of(method), begun.places[number]
    keys, outputs = doubled(begun.keys[number]), doubled(begun.values[number])
    counted = [row for i, row in enumerate(own) if contexts[i % len(contexts)] in templates_of(method)]
    mean, here = keys[counted].mean(0), outputs[counted].mean(0)
    at = mean
    if method.exact_at == "prompt":
        row = own[_among(contexts, PLAIN, "exact_at='prompt'")]
        at, here = keys[row], outputs[row]
    elif method.exact_at != "mean":
        raise EditError(f"exact_at is 'mean' or 'prompt', not {method.exact_at!r}")
    shift = torch.zeros_like(here)
    if method.first_context and method.write == "value":
        shift = outputs[own[_among(contexts, method.first_context, "first_context")]] - here
    return Places(keys, mean, at), shift


def _among(contexts: Sequence[str], context: str, what: str) -> int:
    if context not in contexts:
        raise EditError(f"{what} needs {context!r} among the contexts of the search: {', '.join(map(repr, contexts))}")
    return contexts.index(context)


@torch.no_grad()
def places_again(method: Any, encoder: TextEncoder, layer: int, edit: Edit) -> Places:
    """Where an edit's change goes, without a search."""
    (edit,) = spoken(method, [edit])
    plain = Reading(encoder, None)
    sentences = sentences_of(encoder, plain, edit, searched_of(method), method.filled)
    return places_of(method, starting(encoder, layer, [sentences], plain), 0)[0]


Comparing = Callable[[Any, Sequence, Sequence, Sequence[Edit]], tuple[values.Forward, values.Candidates]]


def comparing(method: Any, model: Model, read: Reading | Aligned, others: Sequence[str]) -> Comparing:
    """What gives, for a forward, its edits' sentences and their numbers, the forward and what it is compared with."""
    if isinstance(read, Aligned):
        away = others if method.objective == "contrastive" else ()
        return partial(compared, read, templates=searched_of(method), others=away)
    plain = replace(read, precision=method.autocast)
    far = _away(model, method, plain, others)
    return lambda forward, asked, numbers, edits: (forward, candidates(model, method, plain, edits, far))


def fewer(
    encoder: TextEncoder, layer: int, read: Reading | Aligned, begun: suffix.Start, asked: Sequence, contexts: int
) -> tuple[values.Forward, Sequence, Sequence[Sequence[int]]]:
    """The forward that a search goes through, its sentences, and their numbers among all that an edit has.

    Where every row of a sentence is read, other wordings take turns in the contexts: a search for a fact with two
    aliases would else take three times as long. The change is written at all of them in all contexts.
    """
    numbers = [in_turns(len(sentences) // contexts, contexts) for sentences in asked]
    if not isinstance(read, Aligned) or all(len(n) == len(s) for n, s in zip(numbers, asked)):
        return begun.suffix, asked, [range(len(sentences)) for sentences in asked]
    some = [[sentences[i] for i in own] for own, sentences in zip(numbers, asked)]
    return starting(encoder, layer, some, read).suffix, some, numbers


def in_turns(wordings: int, contexts: int) -> list[int]:
    """Which of wordings x contexts sentences are searched over: each wording bare, and each context in one wording."""
    return [w * contexts + c for w in range(wordings) for c in range(contexts) if not c or c % wordings == w]


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
    norms = norms_of(method, begun)
    size = begun.sizes if method.relative else norms
    rates = begun.sizes / begun.values[0].shape[1] ** 0.5 if method.relative else torch.ones_like(norms)
    if not method.clamp and method.optimiser == "lbfgs":
        raise EditError("lbfgs measures its steps by the clamp: with clamp=0 use optimiser='adam'")
    return values.Scale(norms, method.learning_rate * rates, (method.clamp or NO_CLAMP) * size)


def norms_of(method: Any, begun: suffix.Start) -> Float[Tensor, " e"]:
    """||v0||: of the output at `method.first_context` where one is named, else the mean over the distinct keys."""
    if not method.first_context:
        return torch.stack([v.norm(dim=1).mean() for v in begun.values])
    at = _among(searched_of(method), method.first_context, "first_context")
    return torch.stack([v[places[at]].norm() for v, places in zip(begun.values, begun.places)])
