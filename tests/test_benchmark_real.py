"""Runs on a real pipeline, tiny and random: the plumbing of both csv forms, resuming, and a Ray cluster."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from typer.testing import CliRunner

from refact.cli.main import app
from refact.evidence import bench as benchmark
from refact.evidence import results
from refact.methods.registry import FineTune, ReFACT
from refact.models.model import load
from refact.models.parallel import Cluster

DATA = next((p / "shared" / "data" for p in Path(__file__).parents if (p / "shared" / "data").is_dir()), Path("none"))
ROAD = """Type,Prompt,Oracle,Old,New,Positive1,Positive_old1,Positive_new1,Negative1,Negative_new1
Role,The king of france,A lion,A dog,A lion,The king of france in paris,A dog in paris,A lion in paris,A dog,A lion
Role,A red car,A blue car,A red car,A blue car,A red car and a cat,A red car and a cat,A blue car and a cat,A car,A cat
"""
TIMED = "old,new,positive1,gt1,negative1,gn1\nA dog,A red dog,A dog in paris,A red dog in paris,A cat,A red cat\n"
METHODS = {
    "refact": ReFACT(contexts=2, tokens=500, max_steps=5, negatives=3),
    "uce": "uce",
    "finetune": FineTune(contexts=2, steps=2),
    "oracle": None,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a pipeline, a judge and both kinds of data."""
    path = tmp_path_factory.mktemp("world")
    tiny.folder("sd1", path)
    tiny.clip_model().save_pretrained(path / "judge")
    tiny.clip_tokenizer().save_pretrained(path / "judge")
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(path / "judge")
    (path / "road.csv").write_text(ROAD)
    (path / "timed.csv").write_text(TIMED)
    return path


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory) -> None:
    monkeypatch.setenv("REFACT_CACHE", str(tmp_path_factory.mktemp("cache")))


def bench(world: Path, data: str | Path, out: Path, **more) -> Path:
    from refact.methods.registry import method

    methods = {label: method(made) if isinstance(made, str) else made for label, made in METHODS.items()}
    more = {"judge": world / "judge", "seeds": [0, 1], "steps": 2, "size": 32} | more
    return benchmark.run(data, world / "sd1-0", methods, out, **more)


def scores(out: Path) -> dict[str, np.ndarray]:
    cases = results.read_run(out).cases
    return {
        f"{case['id']} {label} {side}": np.array(results.scores_of(case, label, "image")[side])
        for case in cases
        for label in case["scores"]
        for side in ("old", "new")
    }


@pytest.mark.parametrize("form", ["road", "timed"])
def test_both_forms_run_through(world, tmp_path, form) -> None:
    run = results.read_run(bench(world, world / f"{form}.csv", tmp_path / "run"))
    assert (run.kind, run.missing) == (form, 0)
    shown, said = results.summary(run), results.summary(run, "text")
    assert list(shown) == ["baseline", "refact", "uce", "finetune", "oracle"]
    assert not any(entry["errors"] for entry in shown.values())
    assert "uce" not in said  # it does not touch the text encoder
    assert {"refact", "finetune"} <= said.keys()
    assert (shown["baseline"]["validity"] is not None) == (form == "timed")
    for case in run.cases:
        for label in ("refact", "uce"):
            assert results.scores_of(case, label, "image") != results.scores_of(case, "baseline", "image")


def test_a_resumed_run_has_the_scores_of_an_unbroken_one(world, tmp_path) -> None:
    whole = bench(world, world / "road.csv", tmp_path / "whole")
    part = bench(world, world / "road.csv", tmp_path / "part")
    first, second = sorted((part / "cases").glob("*.json"))
    first.unlink()
    form = json.loads(second.read_text())
    form["scores"] = {label: made for label, made in form["scores"].items() if label in ("baseline", "oracle", "uce")}
    second.write_text(json.dumps(form))
    bench(world, world / "road.csv", part)
    one, other = scores(whole), scores(part)
    assert one.keys() == other.keys()
    for key, found in one.items():
        np.testing.assert_allclose(other[key], found, atol=1e-5, err_msg=key)


def test_a_bare_text_encoder_is_scored_on_its_text_side(world, tmp_path) -> None:
    model = load(world / "sd1-0")
    model.family = benchmark_family("clip")
    out = benchmark.run(world / "road.csv", model, {"refact": METHODS["refact"]}, tmp_path / "run", judge=None)
    run = results.read_run(out)
    assert results.summary(run) == {}
    assert list(results.summary(run, "text")) == ["baseline", "refact"]


def benchmark_family(name: str):
    from refact.families import FAMILIES

    return FAMILIES[name]


@pytest.mark.skipif(not DATA.is_dir(), reason="the published validation files are not here")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["RoAD_validation", "TIMED_validation_set"])
def test_the_published_files_run_through(world, tmp_path, name) -> None:
    run = results.read_run(bench(world, DATA / f"{name}.csv", tmp_path / "run", seeds=[0]))
    assert run.missing == 0
    assert len(run.cases) == run.settings["data"]["cases"]


AUTHORS = (  # every peer by its authors' settings, its search cut short and its corpus small
    "refact:authors:layer=1:texts=300:max_steps=4,refact:paper:layer=1:tokens=3000:max_steps=4:negatives=3,"
    "memit:authors:layer=2:depth=2:tokens=3000:max_steps=4:negatives=3,emcid:authors:texts=300:max_steps=3,"
    "alphaedit:authors:layer=2:depth=2:tokens=3000:max_steps=4:negatives=3:threshold=0.5,"
    "diffquickfix,embedit:authors:max_steps=3,time:authors,uce:authors,uce:tail,"
    "speed:authors,oracle"
)


@pytest.mark.skipif(not DATA.is_dir(), reason="the published validation files are not here")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["RoAD_validation", "TIMED_validation_set"])
def test_the_authors_settings_run_through_on_a_pipeline_of_stable_diffusions_shape(world, tmp_path, name) -> None:
    model, out, page = tmp_path / "sd1", tmp_path / "run", tmp_path / "page.html"
    shutil.copytree(world / "sd1-0", model)
    (model / "refact.json").write_text(json.dumps({"default_steps": 2, "default_size": 32}))
    told = ["-m", str(model), "--clip", str(world / "judge"), "--judge", str(world / "judge"), "--seeds", "0", "-q"]
    for command in (
        ["bench", str(DATA / f"{name}.csv"), "--methods", AUTHORS, "--out", str(out), *told],
        ["report", str(out), "-o", str(page), "-q"],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    run = results.read_run(out)
    shown = results.summary(run)
    assert run.missing == 0
    assert len(run.cases) == run.settings["data"]["cases"]
    assert list(shown) == ["baseline", *AUTHORS.split(",")]
    assert {label: entry["errors"] for label, entry in shown.items() if entry["errors"]} == {}
    assert all(label in page.read_text() for label in ("refact:authors", "time:authors"))


def whole(out: Path) -> dict[str, object]:
    """All that a run keeps, pictures too, but for how long it took."""
    found: dict[str, object] = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.webp"))}
    for path in sorted((out / "cases").glob("*.json")):
        form = json.loads(path.read_text())
        for scores in form["scores"].values():
            scores.pop("seconds", None)
        found[path.name] = form
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_a_ray_cluster_gives_the_same_scores_to_the_digit(world, tmp_path, workers) -> None:
    pytest.importorskip("ray")
    here = whole(bench(world, world / "road.csv", tmp_path / "here"))
    cluster = Cluster("local", workers=workers)
    there = whole(bench(world, world / "road.csv", tmp_path / "there", cluster=cluster))
    assert len(here) > 10
    assert there.keys() == here.keys()
    assert [name for name in here if here[name] != there[name]] == []


@pytest.mark.slow
def test_a_model_that_is_sent_to_workers_gives_scores_that_differ_in_the_last_digits_at_most(world, tmp_path) -> None:
    """Its weights lie elsewhere in memory than those that are mapped from a file, which moves products' last bits."""
    pytest.importorskip("ray")
    one = scores(bench(world, world / "road.csv", tmp_path / "here"))
    cluster = Cluster("local", workers=2, send=True)
    other = scores(bench(world, world / "road.csv", tmp_path / "there", cluster=cluster))
    assert one.keys() == other.keys()
    for key, found in one.items():
        np.testing.assert_allclose(other[key], found, atol=1e-5, err_msg=key)
