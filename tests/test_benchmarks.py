"""The benchmarks measure what they say: the fast path equals the plain one, floors are below, rows are complete."""

from __future__ import annotations

import math

import pytest

from benchmarks import __main__ as benchmarks


@pytest.mark.parametrize("edits", [benchmarks.alike(2), benchmarks.unlike(3)], ids=["alike", "unlike"])
def test_a_search_step_equals_the_plain_forward(edits) -> None:
    row = benchmarks.search("tiny", edits)
    assert row["difference"] < 1e-4
    assert all(math.isfinite(value) and value > 0 for value in row.values())
    assert row["times faster"] == pytest.approx(row["plain ms"] / row["ms"])


def test_unlike_edits_differ_in_contexts_and_in_length() -> None:
    edits = benchmarks.unlike(6)
    assert len({len(edit) for edit in edits}) == 6
    assert len({edit[0].subject for edit in edits}) == 6


def test_the_floor_counts_an_edits_own_rows_only() -> None:
    apart = sum(
        len(benchmarks.trie.grow(edit).ids) - benchmarks.trie.grow(edit).constants for edit in benchmarks.unlike(3)
    )
    begun = benchmarks.suffix.start(benchmarks.shaped.tower_of("tiny"), 2, benchmarks.unlike(3), 4).suffix
    assert apart < begun.base.shape[0] * begun.base.shape[1]  # a batch is filled up to its longest


def test_the_parts_around_it_have_their_rows() -> None:
    assert benchmarks.covered("tiny", 600)["tokens"] >= 600
    assert benchmarks.facts("tiny", 3)["MB"] > 50
    assert benchmarks.applying("tiny", 2).keys() == {"apply ms", "revert ms"}
    assert benchmarks.started("show")["CPU s"] > 0


def test_a_search_step_of_a_language_model_equals_the_plain_forward() -> None:
    row = benchmarks.language.search("tiny", 2, lambda *sizes: 1e9)
    assert row["difference"] < 1e-4
    assert row["rows"] > 20
    assert benchmarks.language.fact("tiny", steps=2)["residual"] < 1e-6
