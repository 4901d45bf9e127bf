"""The benchmarks at real sizes run at tiny ones: every row is complete, on the CPU and on a pretended accelerator."""

from __future__ import annotations

import math

import pytest
import torch
from accelerator import Accelerator

from benchmarks import drawing, large, machine


@pytest.mark.slow
def test_every_row_is_measured_and_told() -> None:
    rows = large.measured(large.rows_of(small=True), minutes=9)
    text = large.table("a processor", {"memory GB/s": 1.0}, rows)
    assert len(rows) == 9
    assert text.count("\n| ") == 10
    numbers = [value for row in rows.values() for value in row.values()]
    assert all(math.isfinite(value) for value in numbers)
    assert all(row["residual"] < 1e-6 for name, row in rows.items() if name.startswith(("one edit", "3 facts")))


@pytest.mark.slow
def test_the_rows_without_pictures_are_measured_on_an_accelerator_too(monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    rows = {name: row for name, row in large.rows_of(small=True).items() if not name.startswith("pictures")}
    with Accelerator(monkeypatch):
        for row in rows.values():
            assert row()


def test_no_row_is_begun_when_the_time_is_over() -> None:
    assert large.measured({"a": dict}, minutes=-1.0) == {"a": {"not run": "no time was left"}}


def test_the_floors_are_rates_of_this_machine() -> None:
    found = machine.floors(128)
    assert found.keys() == {f"{kind} Tmul-add/s" for kind in ("float32", "bfloat16", "float64")} | {"memory GB/s"}
    assert all(value > 0 for value in found.values())


def test_bench_and_the_bare_loop_draw_the_same_pictures(monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(drawing, "_bare", lambda *given: drawn.append(given[2:]) or 4)
    monkeypatch.setattr(drawing, "_bench", lambda *given: drawn.append(given[2:]) or 4)
    row = drawing.compared("tiny", seeds=2, batch=4, steps=1, times=1, compiled=False)
    assert row.keys() == {"bare pictures/s", "bench pictures/s", "bench of bare"}
    assert len(drawn) == 4
    assert all(given == drawn[0] for given in drawn)
