"""Sentences of one edit merged by what they begin with: one node a distinct prefix, for attention that looks back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sentence:
    """Token ids up to the last row that is read, the row of the subject's last token, the rows to read."""

    ids: tuple[int, ...]
    subject: int
    end: int  # the pooled [EOS]
    rows: tuple[int, ...] = ()  # rows that a generator sees, for an objective on the conditioning


@dataclass(frozen=True)
class Trie:
    """The sentences of one edit, one node a distinct prefix: constant nodes first, then those an edit reaches."""

    ids: np.ndarray
    positions: np.ndarray
    sees: np.ndarray  # (nodes, nodes): whether the column is the row itself or before it
    constants: int
    edited: np.ndarray  # (nodes,) bool
    paths: list[list[int]]  # each sentence's nodes


def grow(sentences: Sequence[Sentence]) -> Trie:
    """The trie of the sentences."""
    children: dict[tuple[int, int], int] = {}
    parents: list[int] = []
    paths: list[list[int]] = []
    for sentence in sentences:
        node = -1
        path: list[int] = []
        for token in sentence.ids:
            node = children.setdefault((node, token), len(children))
            if node == len(parents):
                parents.append(path[-1] if path else -1)
            path.append(node)
        paths.append(path)
    tokens = np.array([token for _, token in children], dtype=np.int64)
    edited = np.zeros(len(parents), dtype=bool)
    edited[[path[s.subject] for s, path in zip(sentences, paths)]] = True
    return _ordered(tokens, parents, edited, paths)


def _ordered(tokens: np.ndarray, parents: list[int], edited: np.ndarray, paths: list[list[int]]) -> Trie:
    count = len(parents)
    sees, live = np.eye(count, dtype=bool), edited.copy()
    positions = np.zeros(count, dtype=np.int64)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
            live[node] |= live[parent]
            positions[node] = positions[parent] + 1
    order = np.argsort(live, kind="stable")
    place = np.argsort(order)
    return Trie(
        ids=tokens[order],
        positions=positions[order],
        sees=sees[order][:, order],
        constants=int((~live).sum()),
        edited=edited[order],
        paths=[[int(place[node]) for node in path] for path in paths],
    )


def extent(sentences: Sequence[Sentence]) -> int:
    """About how many rows of an edit's sentences it can change."""
    return sum(sentence.end - sentence.subject + 1 for sentence in sentences)


def grouped(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Indices in groups of at most `most`, whose sizes are so alike that a batch is at most half filling."""
    groups: list[list[int]] = []
    for at in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        last = groups[-1] if groups else []
        whole = sum(sizes[i] for i in last) + sizes[at]
        if last and len(last) < most and sizes[at] * (len(last) + 1) <= 2 * whole:
            last.append(at)
        else:
            groups.append([at])
    return groups


def slots_of(trie: Trie, constants: int) -> np.ndarray:
    """Where each node stands once constant nodes fill the first `constants` places."""
    nodes = np.arange(len(trie.ids))
    return np.where(nodes < trie.constants, nodes, nodes - trie.constants + constants)


def spread(arrays: list[np.ndarray], slots: list[np.ndarray], length: int) -> np.ndarray:
    """The arrays in rows of one length, at their slots, zeros elsewhere."""
    out = np.zeros((len(arrays), length), dtype=arrays[0].dtype)
    for row, array, slot in zip(out, arrays, slots):
        row[slot] = array
    return out
