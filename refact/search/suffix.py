"""The part of a CLIP text tower that an edit can change: rows from the subject on, layers above the edit.

Attention is causal, so what stands before the subject never changes, and sentences that begin alike are alike for
as long as they do. The sentences of one edit are therefore merged into a trie: one row a distinct prefix. Rows that
are neither edited nor below an edited one are constants, of which only keys and values are kept. The last layer
computes only the rows that are read. The result equals the plain forward of every sentence (tests: 1e-5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .trie import Sentence, Trie, grow, slots_of, spread

Tower = Any  # a CLIP text tower, on any layout that transformers has had
Layer = Any  # a block of it
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Packing:
    """Which of (e, r) places hold rows; linear maps go over these alone, attention over all with the filling masked."""

    shape: tuple[int, int]
    at: Int[Tensor, " n"]  # the places, counted through

    def pack(self, x: Float[Tensor, "e r d"]) -> Float[Tensor, "n d"]:
        """The rows at the places."""
        return x.flatten(0, 1)[self.at]

    def spread(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "e r d"]:
        """The rows at their places, zeros elsewhere."""
        places = rows.new_zeros(self.shape[0] * self.shape[1], rows.shape[1])
        return places.index_copy(0, self.at, rows).unflatten(0, self.shape)


@dataclass(frozen=True)
class Suffix:
    """What the layers above the edit need; e edits, c sentences each, r rows an edit can change, p constant ones."""

    tower: Tower
    above: tuple[Layer, ...]  # the layers above the edit
    depth: int  # how many of them the generator's rows have passed (all of them, or all but the last)
    base: Float[Tensor, "e r d"]  # the rows after the edited layer, without the edit
    edited: Float[Tensor, "e r 1"]  # 1 where the edit's offset is added
    fixed: tuple[Pair, ...]  # keys and values of the constant rows, a pair a layer
    sees: Bool[Tensor, "e 1 r k"]  # k = p + r
    live: Bool[Tensor, "e r"]  # False: filling, where edits have fewer rows than others
    ends: Int[Tensor, "e c"]
    rows: Int[Tensor, "e c s"] | None

    def select(self, which: Tensor) -> Suffix:
        """The same for some of the edits."""
        changed = {
            f.name: getattr(self, f.name)[which] for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, fixed=tuple((k[which], v[which]) for k, v in self.fixed), **changed)

    @cached_property
    def packing(self) -> Packing | None:
        """None where nothing is filling."""
        places = self.live.flatten().nonzero().flatten()
        return None if bool(self.live.all()) else Packing((self.live.shape[0], self.live.shape[1]), places)

    def __call__(self, offsets: Float[Tensor, "e d"]) -> tuple[Tensor | None, Float[Tensor, "e c d"]]:
        """The rows that the generator sees (e, c, s, d) and the pooled states, under these offsets."""
        x = self.base + self.edited * offsets[:, None]
        rows = _take(x, self.rows) if self.rows is not None and self.depth == 0 else None
        x = x if self.packing is None else self.packing.pack(x)
        for number, (layer, fixed) in enumerate(zip(self.above, self.fixed), 1):
            if number == len(self.above):  # the last: only what is read
                return self._last(layer, fixed, x, rows)
            x = block(layer, x, x, self.sees, fixed, packing=self.packing)
            if self.rows is not None and number == self.depth:
                rows = _take(_spread_out(x, self.packing), self.rows)
        return rows, self.tower.final_layer_norm(_take(_spread_out(x, self.packing), self.ends))

    def _last(self, layer: Layer, fixed: Pair, x: Tensor, rows: Tensor | None) -> tuple[Tensor | None, Tensor]:
        whole = self.rows if self.depth == len(self.above) else None
        wanted = self.ends if whole is None else torch.cat([self.ends, whole.flatten(1)], 1)
        sees = self.sees.gather(2, wanted[:, None, :, None].expand(-1, -1, -1, self.sees.shape[3]))
        asking = _take(_spread_out(x, self.packing), wanted)
        out = self.tower.final_layer_norm(block(layer, asking, x, sees, fixed, packing=self.packing))
        if whole is not None:
            rows = out[:, self.ends.shape[1] :].unflatten(1, whole.shape[1:])
        return rows, out[:, : self.ends.shape[1]]


def _spread_out(rows: Tensor, packing: Packing | None) -> Tensor:
    """Packed rows (n, d) at their places (e, r, d); others as they are."""
    return rows if packing is None or rows.dim() == 3 else packing.spread(rows)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """x (e, r, d) at index (e, ...) -> (e, ..., d)."""
    flat = index.flatten(1)[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, flat).unflatten(1, index.shape[1:])


def _heads(attention: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


def key_values(layer: Layer, x: Tensor, packing: Packing | None = None) -> Pair:
    """A layer's attention keys and values of rows x (e, n, d), split into heads."""
    h, attention = layer.layer_norm1(x), layer.self_attn
    keys, values = (_spread_out(projected(h), packing) for projected in (attention.k_proj, attention.v_proj))
    return _heads(attention, keys), _heads(attention, values)


def block(
    layer: Layer,
    x: Tensor,
    seen: Tensor,
    sees: Tensor,
    fixed: Pair | None = None,
    mlp: Callable | None = None,
    packing: Packing | None = None,
) -> Tensor:
    """One CLIP layer: rows x attend to `fixed` and `seen` rows where `sees` says so; rows may be packed (n, d)."""
    attention = layer.self_attn
    keys, values = key_values(layer, seen, packing)
    if fixed is not None:
        keys, values = torch.cat([fixed[0], keys], 2), torch.cat([fixed[1], values], 2)
    queries = _heads(attention, _spread_out(attention.q_proj(layer.layer_norm1(x)), packing))
    mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=sees, scale=attention.scale)
    mixed = mixed.transpose(1, 2).flatten(2)
    x = x + attention.out_proj(packing.pack(mixed) if packing is not None and x.dim() == 2 else mixed)
    return x + (mlp or layer.mlp)(layer.layer_norm2(x))


@dataclass(frozen=True)
class Start:
    """A suffix with the keys and values of its edited rows."""

    suffix: Any  # a `values.Forward`: a Suffix, or what stands for it where attention looks both ways
    keys: list[Float[Tensor, "_ d_in"]]  # one row a distinct prefix up to the subject's last token
    values: list[Float[Tensor, "_ d_out"]]  # the MLP's output there
    sizes: Float[Tensor, " e"]  # the norm of the states that an offset is added to, mean over the edited rows
    places: list[list[int]]  # of each sentence of each edit, which of the edit's rows is its own


@torch.no_grad()
def start(tower: Tower, layer: int, edits: Sequence[Sequence[Sentence]], rows_depth: int) -> Start:
    """The suffix above `layer` of edits given by their sentences; rows_depth: layers that the rows read have passed."""
    tries = [grow(sentences) for sentences in edits]
    device, dtype = tower.final_layer_norm.weight.device, tower.final_layer_norm.weight.dtype
    p, r = max(t.constants for t in tries), max(len(t.ids) - t.constants for t in tries)
    slots = [slots_of(t, p) for t in tries]
    arrays = [spread([getattr(t, f) for t in tries], slots, p + r) for f in ("ids", "positions", "edited")]
    live = torch.from_numpy(spread([np.ones(len(t.ids), dtype=bool) for t in tries], slots, p + r)).to(device)
    mask = np.broadcast_to(np.eye(p + r, dtype=bool), (len(tries), p + r, p + r)).copy()
    for i, (t, slot) in enumerate(zip(tries, slots)):
        mask[i][np.ix_(slot, slot)] = t.sees
    ids, positions, edited, sees = (torch.from_numpy(a).to(device) for a in (*arrays, mask))
    x = _embed(tower, ids, positions)
    blocks, sees = list(tower.encoder.layers), sees[:, None]
    for below in blocks[:layer]:
        x = block(below, x, x, sees)
    x, keys, values = _edited_layer(blocks[layer], x, sees)
    suffix = Suffix(
        tower=tower,
        above=tuple(blocks[layer + 1 :]),
        depth=rows_depth - layer - 1,
        base=x[:, p:],
        edited=edited[:, p:, None].to(dtype),
        fixed=_constants(blocks[layer + 1 :], x[:, :p], sees[:, :, :p, :p]),
        sees=sees[:, :, p:],
        live=live[:, p:],
        ends=_read(edits, tries, slots, p, lambda s: s.end, device),
        rows=_read(edits, tries, slots, p, lambda s: s.rows, device) if edits[0][0].rows else None,
    )
    at = [edited[i].nonzero().flatten() for i in range(len(tries))]
    own_keys, own_values, states = ([part[i, a] for i, a in enumerate(at)] for part in (keys, values, x))
    nodes = [[int(slot[p[s.subject]]) for s, p in zip(e, t.paths)] for e, t, slot in zip(edits, tries, slots)]
    places = [[a.tolist().index(node) for node in own] for own, a in zip(nodes, at)]
    return Start(suffix, own_keys, own_values, torch.stack([rows.norm(dim=1).mean() for rows in states]), places)


def _embed(tower: Tower, ids: Tensor, positions: Tensor) -> Tensor:
    """The embeddings of a trie's nodes, of which there may be more than positions (so not by the module's forward)."""
    return tower.embeddings.token_embedding(ids) + tower.embeddings.position_embedding(positions)


def _edited_layer(layer: Layer, x: Tensor, sees: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows after the layer, and its fc2's inputs and outputs."""
    kept = {}

    def mlp(h: Tensor) -> Tensor:
        kept["keys"] = layer.mlp.activation_fn(layer.mlp.fc1(h))
        kept["values"] = layer.mlp.fc2(kept["keys"])
        return kept["values"]

    return block(layer, x, x, sees, mlp=mlp), kept["keys"], kept["values"]


def _constants(layers: Sequence[Layer], x: Tensor, sees: Tensor) -> tuple[Pair, ...]:
    pairs = []
    for number, layer in enumerate(layers):
        pairs.append(key_values(layer, x))
        if number + 1 < len(layers):
            x = block(layer, x, x, sees)
    return tuple(pairs)


def _read(edits, tries, slots, constants, which, device) -> Tensor:
    """The places among the changeable rows of what each sentence reads.

    Edits with fewer sentences repeat one, and sentences that read fewer rows than others repeat their first row.
    """
    count = max(len(sentences) for sentences in edits)
    longest = max(np.size(which(s)) for sentences in edits for s in sentences)
    places: list[list[Any]] = []
    for sentences, trie, slot in zip(edits, tries, slots):
        places.append([])
        for s, path in zip(sentences, trie.paths):
            read = np.asarray(which(s))
            if read.ndim:
                read = np.append(read, [read[0]] * (longest - len(read))).astype(int)
            places[-1].append(slot[np.asarray(path)[read]] - constants)
        places[-1] += places[-1][:1] * (count - len(sentences))
    return torch.from_numpy(np.array(places, dtype=np.int64)).to(device)


@torch.no_grad()
def all_keys(tower: Tower, layer: int, sentences: Sequence[Sentence]) -> tuple[Tensor, list[list[int]]]:
    """The fc2 inputs (nodes, d_in) of every distinct prefix, and each sentence's nodes."""
    trie = grow(sentences)
    x, sees = _through(tower, trie, layer)
    return _edited_layer(tower.encoder.layers[layer], x, sees)[1][0], trie.paths


@torch.no_grad()
def pooled(tower: Tower, sentences: Sequence[Sentence]) -> Float[Tensor, "n d"]:
    """The sentences' [EOS] states; what they begin with alike is computed once."""
    trie = grow(sentences)
    x, _ = _through(tower, trie, len(tower.encoder.layers))
    return tower.final_layer_norm(x[0, [path[s.end] for s, path in zip(sentences, trie.paths)]]).float()


def _through(tower: Tower, trie: Trie, layers: int) -> tuple[Float[Tensor, "1 r d"], Bool[Tensor, "1 1 r r"]]:
    """A trie's rows after so many layers, and what each sees."""
    device = tower.final_layer_norm.weight.device
    ids, positions, sees = (torch.from_numpy(a).to(device)[None] for a in (trie.ids, trie.positions, trie.sees))
    x = _embed(tower, ids, positions)
    for layer in tower.encoder.layers[:layers]:
        x = block(layer, x, x, sees[:, None])
    return x, sees[:, None]
