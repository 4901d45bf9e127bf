"""The studies as commands, on the bundled model: each makes a run and says its scores, apart for texts and pictures."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import refact
from refact.cli import main as commands
from refact.cli.app import app
from refact.methods.refact import ReFACT

DATA = "pocket-road-validation"
RUNS = {
    "layers": ([DATA, "--layers", "3"], ["layer=3"]),
    "thresholds": ([DATA, "--values", "0.5"], ["stop=0.5"]),
    "variants": ([DATA, "--only", "refact,contrastive"], ["refact", "contrastive"]),
    "sequence": ([DATA, "--every", "1", "--orders", "1"], ["order 0, after 1"]),
    "probes": ([DATA, "--methods", "refact"], ["refact"]),
    "concepts": (["a guitar", "--to", "a blue guitar"], ["layer=0", "layer=6"]),
}


def run(*words: object) -> str:
    assert commands  # imported: it registers the commands
    result = CliRunner().invoke(app, ["study", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_study_is_a_run_with_its_scores(name, tmp_path) -> None:
    words, labels = RUNS[name]
    sides = json.loads(run(name, *words, "--limit", 1, "--seeds", "0", "--out", tmp_path, "--json"))
    assert set(sides) == {"image", "text"}
    assert {*labels, "baseline"} <= sides["image"].keys()
    assert sides["text"][labels[-1]]["numbers"]["efficacy"]["value"] == 1
    assert (tmp_path / "run.json").is_file()


def test_tracing_finds_the_subjects_last_word_first() -> None:
    words = [
        "the national animal of Canada",
        "--source",
        "a beaver",
        "--other",
        "a panda",
        "--other",
        "a lion",
        "--json",
    ]
    found = json.loads(run("trace", *words))
    assert found["effect"][0].index(max(found["effect"][0])) == found["tokens"].index("canada</w>")
    assert found["clean"] > found["corrupted"]


def test_a_scale_study_refuses_a_folder_of_other_settings(tmp_path) -> None:
    words = ["scale", "--counts", "1", "--ways", "at once", "--out", tmp_path]
    assert "| refact | at once | 1 | 100.0 %" in run(*words, "--methods", "refact")
    assert "| refact | at once | 1 | 100.0 %" in run(*words, "--methods", "refact")
    both = run(*words, "--methods", "refact:ridge=0.5")  # another method is added to what is there
    assert "| refact | at once | 1 | 100.0 %" in both
    assert "| refact:ridge=0.5 | at once | 1 |" in both
    with pytest.raises(Exception, match=r"other settings \(autocast"):
        run(*words, "--methods", "refact", "--autocast", "bfloat16")


def test_quality_is_measured_before_and_after(tmp_path) -> None:
    patch = tmp_path / "canada.safetensors"
    edit = refact.Edit("the national animal of Canada", old="a beaver", new="a penguin")
    refact.edit("pocket", edit, ReFACT(max_steps=2, contexts=2)).save(patch)
    words = ["quality", patch, f"{patch}+{patch}", "--count", "6", "--autocast", "bfloat16", "--out", tmp_path / "run"]
    found = json.loads(run(*words, "--json"))
    assert set(found) == {"before", "canada", "canada+canada"}
    assert len({scores["fid"] for scores in found.values()}) == 3
    assert set(found["canada"]) == {"clip_score", "fid", "kid", "cmmd"}
    assert found["canada"]["clip_score"] > 0
    assert "canada " in run(*words)
    with pytest.raises(AssertionError, match="names that differ"):
        run("quality", patch, patch, "--out", tmp_path / "twice")
    with pytest.raises(AssertionError, match="name its folder"):
        run(*words, "--model", tmp_path)
