"""The part of a language model that an edit can change: what `suffix.py` is for CLIP, for any decoder of transformers.

The library's own layers are run; what is ours is what they are given. Rows that no edit can change are constants: their
keys and values are handed in through the library's cache. Sentences that begin alike share rows, which is said by the
attention mask. Of the edited layer only the edited rows are run, for its keys and values never change. The result
equals the plain forward of every sentence (tests: 1e-4, of each architecture). Everything is computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from ..encoders import hooks
from ..encoders.encoder import TextEncoder
from ..encoders.widened import Widened
from ..errors import ModelError
from .suffix import Start
from .trie import Sentence, grow

Pair = tuple[Tensor, Tensor]
NEVER = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Nodes:
    """The rows of several edits: those that stay first, shared by all edits, then each edit's own."""

    ids: np.ndarray
    positions: np.ndarray
    sees: np.ndarray  # (n, n)
    owner: np.ndarray  # (n,): whose row it is; -1: nobody's, it stays
    edited: np.ndarray  # (n,) bool
    read: list[list[list[int]]]  # of each edit's sentences, the nodes that are read
    subjects: list[list[int]]  # of each edit's sentences, the node of the subject's last token

    @property
    def constants(self) -> int:
        """How many rows stay."""
        return int((self.owner < 0).sum())


def joined(edits: Sequence[Sequence[Sentence]], pad: int, alive: bool = True) -> Nodes:
    """The rows of edits given by their sentences. alive: False where nothing is edited, so that all rows stay.

    A sentence's rows past its end are padding: each sees the sentence, but no other padding.
    """
    known: dict[tuple, int] = {}
    entries: list[tuple[int, int, int, bool]] = []  # id, position, owner, edited
    above: list[list[int]] = []  # the nodes that each sees, itself among them where it does
    read: list[list[list[int]]] = []
    subjects: list[list[int]] = []

    def node(key: tuple, entry: tuple[int, int, int, bool], seen: list[int], itself: bool = True) -> int:
        if key not in known:
            known[key] = len(entries)
            entries.append(entry)
            above.append([*seen, known[key]] if itself else list(seen))
        return known[key]

    for number, sentences in enumerate(edits):
        trie = grow(sentences)
        read.append([])
        subjects.append([])
        for sentence, path in zip(sentences, trie.paths):
            trail: list[int] = []
            for position, (token, place) in enumerate(zip(sentence.ids, path)):
                owner = number if alive and place >= trie.constants else -1
                entry = (token, position, owner, bool(alive and trie.edited[place]))
                trail.append(node((owner, *sentence.ids[: position + 1]), entry, trail[:position]))
            subjects[-1].append(trail[sentence.subject])
            padding = [
                node((number, *sentence.ids, "padding", row), (pad, row, number if alive else -1, False), trail, False)
                for row in sentence.rows
                if row > sentence.end
            ]
            read[-1].append([*(trail[row] for row in sentence.rows if row <= sentence.end), *padding])
    return _sorted(entries, above, read, subjects)


def _sorted(entries: list, above: list[list[int]], read: list[list[list[int]]], subjects: list[list[int]]) -> Nodes:
    ids, positions, owner, edited = (np.array(column) for column in zip(*entries))
    sees = np.zeros((len(entries), len(entries)), dtype=bool)
    for row, seen in zip(sees, above):
        row[seen] = True
    order = np.argsort(owner, kind="stable")
    place = np.argsort(order)
    found = [[[int(place[node]) for node in rows] for rows in sentences] for sentences in read]
    own = [[int(place[node]) for node in nodes] for nodes in subjects]
    return Nodes(ids[order], positions[order], sees[order][:, order], owner[order], edited[order], found, own)


class Held(Cache):
    """A cache that hands a layer constant keys and values, before its own rows' or, where `alone`, in their place."""

    def __init__(self, pair: Pair, alone: bool = False):
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.pair, self.alone = pair, alone

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Pair:  # type: ignore[override]
        """What the layer attends to."""
        if self.alone:
            return self.pair
        return torch.cat([self.pair[0], keys], 2), torch.cat([self.pair[1], values], 2)


@dataclass(frozen=True)
class Call:
    """What the library gives a layer beside the rows. window: how far back its rows see; 0: to the beginning."""

    window: int
    more: dict[str, Any]

    def at(self, rows: Tensor) -> dict[str, Any]:
        """The same for some of the rows."""
        found = dict(self.more)
        if isinstance(found.get("position_embeddings"), tuple):
            found["position_embeddings"] = tuple(part[..., rows, :] for part in found["position_embeddings"])
        if isinstance(found.get("position_ids"), Tensor):
            found["position_ids"] = found["position_ids"][..., rows]
        return found


@dataclass(frozen=True)
class Walk:
    """A forward of nodes by the library's own code: what the layers were given, their keys and values, and states."""

    calls: list[Call]
    cache: DynamicCache
    seen: list[Tensor]  # (n, _) of each module that was watched

    def pair(self, layer: int, count: int) -> Pair:
        """A layer's keys and values of the first rows."""
        held: Any = self.cache.layers[layer]
        return held.keys[:, :, :count], held.values[:, :, :count]


@torch.no_grad()
def walk(encoder: TextEncoder, nodes: Nodes, watched: Sequence[tuple[Any, str]], last: tuple[Any, str]) -> Walk:
    """Run nodes through the library's forward, our masks in the place of its own, up to the last module watched."""
    part, calls = encoder.part, []
    ids, positions = (torch.from_numpy(a)[None].to(encoder.device) for a in (nodes.ids, nodes.positions))
    cache = DynamicCache()

    def ours(more: dict) -> dict:
        window = _window(more.get("attention_mask"), len(nodes.ids))
        kept = {k: v for k, v in more.items() if k not in ("attention_mask", "past_key_values", "use_cache")}
        calls.append(Call(window, kept))
        return more | {"attention_mask": mask_of(nodes, window, encoder.device)}

    with ExitStack() as stack, Widened():
        for layer in part.layers:
            stack.enter_context(hooks.given(layer, ours))
        seen = [stack.enter_context(hooks.read(*module, stop=module == last)) for module in watched]
        everything = torch.ones_like(ids)
        part.tower(
            inputs_embeds=part.embedded(ids), position_ids=positions, attention_mask=everything,
            past_key_values=cache, use_cache=True,
        )  # fmt: skip
    return Walk(calls, cache, [found[0][0].float() for found in seen])


def _window(mask: Tensor | None, count: int) -> int:
    """How many rows back the library's own mask of a layer lets a row see, itself counted; 0: all that there are.

    Raises ModelError for a mask of another kind (in blocks, or both ways).
    """
    if mask is None:
        return 0
    sees = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] > NEVER / 2
    width = int(sees.sum(1).max())
    apart = torch.arange(count)[:, None] - torch.arange(count)
    if not torch.equal(sees.cpu(), (apart >= 0) & (apart < width)):
        raise ModelError("a layer of this language model sees neither all earlier tokens nor a window of them")
    return 0 if width == count else width


def mask_of(nodes: Nodes, window: int, device: torch.device) -> Float[Tensor, "1 1 n n"]:
    """What is added to the attention of nodes in a layer of that window."""
    apart = nodes.positions[:, None] - nodes.positions
    sees = nodes.sees & (apart < window) if window else nodes.sees
    return torch.where(torch.from_numpy(sees).to(device), 0.0, NEVER)[None, None]


@dataclass(frozen=True)
class Cached:
    """What a search needs of the layers from the edit to the last state that is sent; e edits, r rows that change."""

    encoder: TextEncoder
    layer: int
    taps: tuple[int, ...]
    entering: Float[Tensor, "q d"]  # the edited rows before the edited layer
    edited: Int[Tensor, " q"]  # which of the rows they are
    base: Float[Tensor, "r d"]  # the rows after the edited layer, without the edit
    owner: Int[Tensor, " r"]  # the edit of each row
    calls: dict[int, Call]  # of the layers from the edited one on, for these rows
    whole: Pair  # keys and values of all rows in the edited layer
    fixed: dict[int, Pair]  # of the constant rows, in the layers above
    masks: dict[int, Tensor]  # by window: (1, 1, r, p + r)
    rows: Int[Tensor, "e c s"]  # the rows that are read; the last one again where a sentence reads fewer

    def select(self, which: Tensor) -> Cached:
        """The same for some of the edits."""
        kept = torch.isin(self.owner, which).nonzero().flatten()
        place = torch.full((len(self.owner),), -1, device=self.owner.device)
        place[kept] = torch.arange(len(kept), device=place.device)
        number = torch.full((len(self.rows),), -1, device=place.device)
        number[which] = torch.arange(len(which), device=place.device)
        constant = next(iter(self.masks.values())).shape[3] - len(self.owner)
        columns = torch.cat([torch.arange(constant, device=place.device), constant + kept])
        mine = place[self.edited] >= 0
        keys, values = (part[:, :, columns] for part in self.whole)
        return replace(
            self,
            entering=self.entering[mine],
            edited=place[self.edited[mine]],
            base=self.base[kept],
            owner=number[self.owner[kept]],
            calls={at: Call(call.window, call.at(kept)) for at, call in self.calls.items()},
            whole=(keys, values),
            masks={window: mask[:, :, kept][..., columns] for window, mask in self.masks.items()},
            rows=place[self.rows[which]],
        )

    def __call__(self, offsets: Float[Tensor, "e d"]) -> tuple[Float[Tensor, "e c s k"], Float[Tensor, "e c k"]]:
        """The rows that the generator gets, states side by side, under these offsets; and the first of them again."""
        found, x = [], self._edited_layer(offsets)
        with Widened():
            for passed in range(self.layer + 1, max(self.taps) + 1):
                if passed > self.layer + 1:
                    x = self._run(passed - 1, x, self.calls[passed - 1].more, self.masks, Held(self.fixed[passed - 1]))
                if passed in self.taps:
                    found.append(self.encoder.part.norm(x) if passed == self.encoder.n_layers else x)
        states = torch.cat(found, -1)[0][self.rows]
        return states, states[:, :, 0]

    def _edited_layer(self, offsets: Tensor) -> Float[Tensor, "1 r d"]:
        """The rows after the edited layer: the edited ones run through it with the offset at its MLP's output."""
        call, at = self.calls[self.layer], self.edited
        masks = {window: mask[:, :, at] for window, mask in self.masks.items()}
        moved = hooks.replace(self.encoder.linear(self.layer), lambda out, _: out + offsets[self.owner[at]])
        with moved, Widened():
            changed = self._run(self.layer, self.entering[None], call.at(at), masks, Held(self.whole, alone=True))
        return self.base.index_copy(0, at, changed[0])[None]

    def _run(self, layer: int, x: Tensor, more: dict, masks: dict[int, Tensor], cache: Held) -> Tensor:
        mask = masks[self.calls[layer].window]
        out = self.encoder.layers[layer](x, **more, attention_mask=mask, past_key_values=cache, use_cache=True)
        return out if isinstance(out, Tensor) else out[0]


@torch.no_grad()
def start(encoder: TextEncoder, layer: int, edits: Sequence[Sequence[Sentence]], taps: Sequence[int]) -> Start:
    """The part above `layer` of edits given by their sentences, and their keys and values there."""
    nodes, part, linear = joined(edits, encoder.tokenizer.pad_token_id or 0), encoder.part, encoder.linear(layer)
    last = max((layer, *(tap - 1 for tap in taps)))  # the last layer whose keys are needed
    watched = [(part.layers[layer], "input"), (part.layers[layer], "output"), (linear, "input"), (linear, "output")]
    end = (part.layers[last], "output") if last > layer else watched[1]
    walked = walk(encoder, nodes, list(dict.fromkeys([*watched, end])), end)
    entering, base, keys, values = walked.seen[:4]
    p, device = nodes.constants, encoder.device
    live = torch.arange(p, len(nodes.ids), device=device)
    at, owner = (torch.from_numpy(a[p:]).to(device) for a in (nodes.edited, nodes.owner))
    calls = {number: walked.calls[number] for number in range(layer, last + 1)}
    cached = Cached(
        encoder=encoder, layer=layer, taps=tuple(taps), entering=entering[p:][at], edited=at.nonzero().flatten(),
        base=base[p:], owner=owner, calls={number: Call(c.window, c.at(live)) for number, c in calls.items()},
        whole=walked.pair(layer, len(nodes.ids)),
        fixed={number: walked.pair(number, p) for number in range(layer + 1, last + 1)},
        masks={window: mask_of(nodes, window, device)[:, :, p:] for window in {c.window for c in calls.values()}},
        rows=_filled(nodes, device) - p,
    )  # fmt: skip
    mine = [(at & (owner == number)).nonzero().flatten() + p for number in range(len(edits))]
    # where a norm follows the MLP (Gemma), an offset is measured by the MLP's own output
    added = values if hasattr(part.layers[layer], "post_feedforward_layernorm") else base
    sizes = torch.stack([added[rows].norm(dim=1).mean() for rows in mine])
    places = [[rows.tolist().index(node) for node in own] for rows, own in zip(mine, nodes.subjects)]
    return Start(cached, [keys[rows] for rows in mine], [values[rows] for rows in mine], sizes, places)


def _filled(nodes: Nodes, device: torch.device) -> Int[Tensor, "e c s"]:
    """The nodes that are read, sentences and rows repeated to one number."""
    count, longest = max(map(len, nodes.read)), max(len(rows) for sentences in nodes.read for rows in sentences)
    full = [[[*rows, *rows[-1:] * (longest - len(rows))] for rows in sentences] for sentences in nodes.read]
    rows = [[*sentences, *[sentences[0]] * (count - len(sentences))] for sentences in full]
    return torch.tensor(rows, dtype=torch.int64, device=device)  # also where no row is read


def states(encoder: TextEncoder, sentences: Sequence[Sentence], taps: Sequence[int]) -> list[Float[Tensor, "_ k"]]:
    """What the generator gets of the rows that sentences read, nothing edited; beginnings are computed once."""
    nodes = joined([sentences], encoder.tokenizer.pad_token_id or 0, alive=False)
    watched = [encoder.part.watched(tap) for tap in taps]
    walked = walk(encoder, nodes, watched, watched[max(range(len(taps)), key=taps.__getitem__)])
    found = torch.cat(walked.seen, -1)
    return [found[rows] for rows in nodes.read[0]]


def all_keys(encoder: TextEncoder, layer: int, sentences: Sequence[Sentence]) -> tuple[Tensor, list[list[int]]]:
    """The layer's keys (nodes, d_in) at the rows that sentences read, and each sentence's nodes."""
    nodes = joined([sentences], encoder.tokenizer.pad_token_id or 0, alive=False)
    watched = (encoder.linear(layer), "input")
    return walk(encoder, nodes, [watched], watched).seen[0], nodes.read[0]
