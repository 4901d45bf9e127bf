"""A plan in figures: a few units are done, kept and timed, and the whole is computed from them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import refact
from refact.cli.main import app
from refact.evidence import bench, estimate, results
from refact.evidence.bench import Outcome

DATA = "pocket-road-validation"


@pytest.fixture(scope="module")
def model():
    return refact.load("pocket")


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where the test says so."""
    now = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    return now


def test_the_whole_is_computed_from_two_cases_that_are_kept(model, tmp_path, clock, monkeypatch) -> None:
    """Each picture 2 s, each edit 10 s and the first unit 100 s more: what is computed is what the whole takes."""
    first = [100.0]

    def work(self, unit):
        label = "baseline" if unit.label == bench.CLEAN else unit.label
        clock[0] += (first.pop() if first else 0) + 2 * drawn(unit) + 10 * (label == "refact")
        return Outcome(unit.case, {label: {"text": None, "image": None, "seconds": 10.0 * (label == "refact")}})

    def drawn(unit):
        return len({p.prompt for p in bench.probes_of(unit.case)}) * 3

    monkeypatch.setattr(bench.Bench, "__call__", work)
    how = {"seeds": range(3), "limit": 7, "judge": "pocket"}
    found = estimate.estimated(DATA, model, ["refact", "baseline"], tmp_path, **how)
    cases = bench.read_cases(DATA)[0][:7]
    pictures = sum(2 * drawn(bench.Unit(case, "refact")) for case in cases)
    assert (found.cases, found.units, found.pictures, found.timed_units) == (7, 14, pictures, 4)
    assert (found.picture, found.edits, found.start) == (2.0, {"refact": 10.0}, 100.0)
    assert found.work == 2 * pictures + 70
    assert found.hours(1) == pytest.approx((found.work + 100) / 3600)
    assert found.device_hours(8) == pytest.approx((found.work + 800) / 3600)
    assert found.hours(64) == pytest.approx((100 + max(found.work / 64, found.longest)) / 3600)
    kept = results.read_run(tmp_path).cases
    assert {case["id"] for case in kept} == {cases[0].id, cases[3].id}
    assert len(bench.begun(DATA, model, ["refact", "baseline"], tmp_path, **how).units) == 10


def test_the_command_says_hours_devices_and_disk_and_stops(tmp_path) -> None:
    words = ["bench", DATA, "--methods", "refact,baseline", "--seeds", "0", "--limit", "3", "--out", str(tmp_path)]
    said = CliRunner().invoke(app, [*words, "--estimate"])
    assert said.exit_code == 0, said.output
    assert "timed: 4 units of 6" in said.stdout
    assert "64 workers:" in said.stdout
    assert len(list((tmp_path / "cases").iterdir())) == 2
    form = json.loads(CliRunner().invoke(app, [*words, "--estimate", "--json"]).stdout)
    assert [plan["workers"] for plan in form["plans"]] == [1, 8, 64]
    assert form["timed_units"] == 2, "the two cases that are done are not done again"
    assert "nothing to estimate" in str(CliRunner().invoke(app, [*words, "--estimate"]).exception)


@pytest.mark.slow
def test_an_estimate_over_a_cluster_is_made_by_one_of_its_workers(tmp_path) -> None:
    pytest.importorskip("ray")
    words = ["bench", DATA, "--methods", "refact,baseline", "--seeds", "0", "--limit", "3", "--out", str(tmp_path)]
    said = CliRunner().invoke(app, [*words, "--estimate", "--ray", "local", "--workers", "2"])
    assert said.exit_code == 0, said.output
    assert "timed: 4 units of 6" in said.stdout
