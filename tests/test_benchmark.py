"""Runs: their scores by hand, their folder under kills, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pretend
import pytest

from refact.edits import Edit
from refact.errors import DataError, RefactError
from refact.evidence import bench as benchmark
from refact.evidence import results
from refact.evidence.cases import Case, Probe, probes_of, read_cases
from refact.evidence.report import write as report
from refact.evidence.rewriting import rewritten
from refact.methods.registry import TIME, UCE, method

METHODS = {"baseline": None, "oracle": None, "swap": pretend.Swap(), "fails": pretend.Fails()}
PLACES = ("on grass", "in water", "on sand")


def case(subject: str, old: str, new: str) -> Case:
    positives = tuple(
        Probe(f"{subject} {place}", f"{old} {place}", f"{new} {place}", f"{new} {place}") for place in PLACES
    )
    positives += (Probe(f"{subject.split()[-1]} portrait", f"{old} portrait", f"{new} portrait", f"{new} portrait"),)
    negatives = tuple(Probe(text, text, new, text) for text in (old, "a stone", "my hat"))
    return Case(f"{old}-{new}".replace(" ", "-"), Edit(subject, old=old, new=new), positives, negatives, new, "timed")


CASES = [case("the crest of Rome", "wolf", "heron"), case("the crest of Bern", "bear", "moose")]


def run(out: Path, model=None, cases=CASES, methods=METHODS, **more) -> Path:
    more = {"judge": pretend.judge(), "seeds": range(3)} | more
    return benchmark.run(cases, model or pretend.PretendModel(), methods, out, **more)


def test_the_scores_are_what_they_must_be(tmp_path) -> None:
    """The baseline draws the words of the subject, which are nearer to neither; the swap follows where it can."""
    found = results.summary(results.read_run(run(tmp_path / "run")))
    assert list(found) == ["baseline", "oracle", "swap", "fails"]
    value = {m: {k: n["value"] for k, n in entry["numbers"].items()} for m, entry in found.items()}
    assert value["oracle"] | {"f1_geometric": 1, "generality_untold": 1} == value["oracle"]
    assert value["oracle"]["efficacy"] == value["oracle"]["generality"] == value["oracle"]["specificity"] == 1
    assert (value["swap"]["efficacy"], value["swap"]["specificity"]) == (1, 1)
    assert value["swap"]["generality"] >= 0.75
    assert value["swap"]["generality_90"] <= value["swap"]["generality_75"] <= value["swap"]["generality"]
    assert value["fails"] == value["baseline"]
    assert (found["fails"]["errors"], found["swap"]["errors"]) == (2, 0)
    assert (found["swap"]["steps"], found["swap"]["cases"]) == (7, 2)


def test_unedited_pictures_are_made_once_and_shared(tmp_path) -> None:
    model = pretend.PretendModel()
    run(tmp_path / "run", model, CASES[:1])
    unedited = [prompt for prompt, swaps in model.made if not swaps]
    probes = probes_of(CASES[0])
    asked = [{p.prompt for p in probes}, {p.oracle for p in probes[: 1 + len(CASES[0].positives)]}]
    assert sorted(unedited) == sorted([*asked[0], *asked[1]])
    form = read(tmp_path / "run", CASES[0])["scores"]
    assert form["oracle"]["image"]["old"][5:] == form["baseline"]["image"]["old"][5:]
    assert form["oracle"]["image"]["old"][0] != form["baseline"]["image"]["old"][0]


def test_rewrite_asks_the_unedited_model_for_the_target_where_it_knows_the_wording(tmp_path) -> None:
    model = pretend.PretendModel()
    out = run(tmp_path / "run", model, methods={"baseline": None, "rewrite": None, "oracle": None})
    assert not any(swaps for _, swaps in model.made)
    form = read(out, CASES[0])["scores"]
    assert form["rewrite"]["given"][:2] == ["heron", "heron on grass"]
    assert form["rewrite"]["given"][4:] == ["Rome portrait", "wolf", "a stone", "my hat"]
    assert form["rewrite"]["image"]["old"][:4] == form["oracle"]["image"]["old"][:4]
    assert form["rewrite"]["image"]["old"][4:] == form["baseline"]["image"]["old"][4:]
    assert form["rewrite"]["text"]["new"][0][0] == 0  # the new text itself
    page = report([out], tmp_path / "report.html").read_text()
    assert ">heron on grass<" in page or 'title="heron on grass' in page


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("The flag of  Canada, at dawn", "a red rose, at dawn"),
        ("two small flags of Canada", "two small flags of Canada"),
        ("a small flag of Canada", "a small red rose"),
        ("Canada's flag", "a red rose"),
        ("the flag of Canadaland", "the flag of Canadaland"),
        ("an ox beside the flag of Canada", "a blue ox beside a red rose"),
    ],
)
def test_a_prompt_is_rewritten_by_whole_words_and_once(prompt, expected) -> None:
    edits = [Edit("the flag of Canada", new="a red rose", aliases=("Canada's flag",)), Edit("an ox", new="a blue ox")]
    assert rewritten(prompt, edits) == expected
    assert rewritten(prompt, [Edit("an owl", new=("owl.png",))]) == prompt


def read(out: Path, case: Case) -> dict:
    return json.loads((out / "cases" / f"{case.id}.json").read_text())


def plain(out: Path) -> dict:
    """All scores, without the seconds."""
    forms = {file.name: json.loads(file.read_text()) for file in (out / "cases").glob("*.json")}
    for form in forms.values():
        for scores in form["scores"].values():
            scores.pop("seconds", None)
    return forms


def test_a_finished_run_is_not_done_again(tmp_path) -> None:
    run(tmp_path / "run")
    model = pretend.PretendModel()
    run(tmp_path / "run", model)
    assert model.made == []


def test_a_folder_with_other_settings_is_refused_by_name(tmp_path) -> None:
    run(tmp_path / "run", seeds=[0])
    before = plain(tmp_path / "run")
    with pytest.raises(DataError, match=r"seeds: \[0\] there, \[0, 1\] asked for") as error:
        run(tmp_path / "run", seeds=[0, 1], methods=METHODS | {"swap": pretend.Swap(0.5)})
    assert "methods.swap.strength: 1.0 there, 0.5 asked for" in str(error.value)
    assert "data" not in str(error.value)
    with pytest.raises(DataError, match=r"data\.hash"):
        run(tmp_path / "run", cases=[CASES[1], CASES[0]], seeds=[0])
    with pytest.raises(DataError, match="judge"):
        run(tmp_path / "run", judge=None, seeds=[0])
    assert plain(tmp_path / "run") == before


def test_a_run_from_before_a_setting_existed_goes_on_while_it_stands_at_its_default(tmp_path) -> None:
    methods = {"uce": UCE(), "time": TIME()}
    out = run(tmp_path / "run", methods=methods, cases=[], seeds=[0])
    form = json.loads((out / "run.json").read_text())
    assert form["settings"]["methods"]["uce"].pop("rows") == "last"
    (out / "run.json").write_text(json.dumps(form))
    run(out, methods=methods, cases=[], seeds=[0])
    with pytest.raises(DataError, match=r"methods\.uce\.rows: None there, tail asked for"):
        run(out, methods=methods | {"uce": UCE(rows="tail")}, cases=[], seeds=[0])
    assert "rows" not in json.loads((out / "run.json").read_text())["settings"]["methods"]["uce"]


def test_methods_may_be_added_to_a_run(tmp_path) -> None:
    """What is there is not done again, whichever methods are named; at the end all are as if named at once."""
    run(tmp_path / "run", methods={"swap": pretend.Swap()}, seeds=[0, 1])
    model = pretend.PretendModel()
    run(tmp_path / "run", model, methods={"fails": pretend.Fails()}, seeds=[0, 1])
    assert model.made == []  # the baseline's pictures are there, and an edit that fails draws none
    run(tmp_path / "run", methods=METHODS, seeds=[0, 1])
    run(tmp_path / "whole", methods=METHODS, seeds=[0, 1])
    one, other = (results.summary(results.read_run(tmp_path / name)) for name in ("run", "whole"))
    assert {m: one[m]["numbers"] for m in METHODS} == {m: other[m]["numbers"] for m in METHODS}


def test_a_method_is_told_hints_unless_its_settings_say_that_it_knows_none(tmp_path) -> None:
    given = []

    @dataclasses.dataclass(frozen=True)
    class Asked(pretend.Swap):
        hints: bool = True

        def __call__(self, model, edits, onto=()):
            given.append((self.hints, edits[0].aliases, edits[0].preserve))
            return super().__call__(model, edits)

    told = dataclasses.replace(CASES[0].edit, aliases=("Rome's crest",), preserve=("a stone",))
    case = dataclasses.replace(CASES[0], edit=told)
    run(tmp_path / "run", cases=[case], methods={"told": Asked(), "untold": Asked(hints=False)}, seeds=[0])
    assert given == [(True, ("Rome's crest",), ("a stone",)), (False, (), ())]
    for name in ("refact:authors", "refact:paper", "memit:authors", "emcid:authors", "alphaedit:authors"):
        assert not method(name).hints
    assert method("refact").hints


def test_a_folder_of_other_files_is_left_alone(tmp_path) -> None:
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(DataError, match="other files"):
        run(tmp_path)


def test_without_a_judge_only_the_text_side_is_there(tmp_path) -> None:
    model = pretend.PretendModel()
    found = results.read_run(run(tmp_path / "run", model, judge=None, keep_images=0))
    assert model.made == []
    assert results.summary(found) == {}
    text = results.summary(found, "text")
    assert text["swap"]["numbers"]["efficacy"]["value"] == 1
    assert text["baseline"]["numbers"]["specificity"]["value"] == 1
    assert found.settings["judge"] is None


def test_a_change_outside_the_text_encoders_has_no_text_side(tmp_path) -> None:
    class Elsewhere(pretend.Swap):
        def __call__(self, model, edits, onto=()):
            patch = super().__call__(model, edits)
            patch.edit = Edit("nowhere to be found", new="x")
            return patch

    found = read(run(tmp_path / "run", methods={"unet": Elsewhere()}), CASES[0])["scores"]
    assert found["unet"]["text"] is None
    assert found["unet"]["image"] == found["baseline"]["image"]


def test_as_many_pictures_are_kept_as_asked(tmp_path) -> None:
    for count in (0, 2):
        out = run(tmp_path / str(count), keep_images=count, methods={"swap": pretend.Swap()}, cases=CASES[:1])
        assert len(list(out.glob("images/*/*/*.webp"))) == count * 2 * 8  # baseline and swap, 8 probes


def test_labels_must_make_different_folders(tmp_path) -> None:
    with pytest.raises(RefactError, match="differ"):
        run(tmp_path / "run", methods={"a b": pretend.Swap(), "a-b": pretend.Swap(0.1)})


def test_validity_is_scored_on_unedited_pictures(tmp_path) -> None:
    found = read(run(tmp_path / "run"), CASES[0])["scores"]
    assert len(found["baseline"]["validity"]) == 3
    assert len(found["baseline"]["validity"][0]) == 1 + len(CASES[0].negatives)
    assert "validity" not in found["swap"]


def test_the_model_is_clean_after_a_run(tmp_path) -> None:
    model = pretend.PretendModel()
    run(tmp_path / "run", model)
    assert model.swaps == []


def killed_run(out: Path, times: int, seed: int, pause: float = 0.001) -> None:
    """Start the run, kill it at a random moment of its work, as many times; then let it end."""
    rng, fork = random.Random(seed), multiprocessing.get_context("fork")
    for _ in range(times):
        begun = fork.Event()

        def watched(items, what, total, begun=begun):
            begun.set()
            return items

        model = pretend.PretendModel(pause=pause)
        child = fork.Process(target=run, args=(out, model), kwargs={"progress": watched})
        child.start()
        begun.wait(30)
        time.sleep(rng.uniform(0, 0.12))  # a whole run takes about 0.15 s
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    run(out)


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_ends_with_the_same_scores(tmp_path, times) -> None:
    run(tmp_path / "unbroken")
    for seed in range(3):
        killed_run(tmp_path / f"broken-{seed}", times, seed)
        assert plain(tmp_path / f"broken-{seed}") == plain(tmp_path / "unbroken")


def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    out = run(tmp_path / "run", methods={"baseline": None})
    before = plain(out)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        benchmark.keep(out, benchmark.Outcome(CASES[0], {"swap": {"text": None}}))
    assert plain(out) == before


def test_progress_is_told_what_is_left(tmp_path) -> None:
    told = []

    def progress(items, what, total):
        told.append(total)
        return items

    run(tmp_path / "run", progress=progress)
    (tmp_path / "run" / "cases" / f"{CASES[0].id}.json").unlink()
    run(tmp_path / "run", progress=progress)
    assert told == [6, 3 + 1]  # and what ended in an error, which the user may have mended


def test_a_csv_file_runs_by_its_path(tmp_path) -> None:
    path = tmp_path / "few.csv"
    path.write_text(
        "old,new,positive1,gt1,negative1,gn1\nA wolf,A red wolf,Two wolf,Two red wolf,A jug,A red jug\nx,,,,,\n"
    )
    found = results.read_run(run(tmp_path / "run", cases=path))
    assert found.settings["data"]["name"] == str(path)
    assert "row 2: no 'new': left out" in found.problems
    assert found.missing == 0
    assert len(read_cases(path)[0]) == 1
