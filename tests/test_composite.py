"""Two edits in one prompt: a run that asks for both facts, and CAKE's adaptive threshold beside the other measures."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pretend
import pytest
import tiny
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from typer.testing import CliRunner

import refact
from refact.cli.main import app
from refact.edits import Edit
from refact.evidence import report, results, strips
from refact.evidence.bench import run
from refact.evidence.cases import Case, Probe, probes_of
from refact.evidence.strict import Names, choices

FIRST, SECOND = Edit("the crest of Rome", old="wolf", new="heron"), Edit("the bird of Bern", old="crow", new="wren")
NAMES = Names(("wolf", "heron", "crow", "wren", "stone", "lamp"))


def both(order: tuple[int, int] = (0, 1), place: str = "") -> Probe:
    """A positive that names both subjects, in this order."""

    def said(*pair: str) -> str:
        return " and ".join(pair[i] for i in order) + place

    halves = (said("heron", "crow"), said("wolf", "wren"))
    new = said("heron", "wren")
    return Probe(said(FIRST.prompt, SECOND.prompt), said("wolf", "crow"), new, new, halves)


CASE = Case(
    "rome-and-bern",
    FIRST,
    (both(), both((1, 0)), both(place=" on grass")),
    tuple(Probe(text, text, new, text) for text, new in (("a stone", "heron"), ("crow", "wren"))),
    "heron",
    "composite",
    SECOND,
)


@dataclass(frozen=True)
class Some:
    """The perfect method for some of the edits that it is given."""

    which: tuple[int, ...] = (0, 1)

    def __call__(self, model, edits, onto=()):
        return Together([pretend.Swap()(model, [edits[i]]) for i in self.which])


@dataclass
class Together:
    patches: list

    @property
    def record(self) -> dict:
        return {"edits": [edit for patch in self.patches for edit in patch.record["edits"]]}

    @contextmanager
    def applied(self, model):
        with ExitStack() as stack:
            yield [stack.enter_context(patch.applied(model)) for patch in self.patches]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> results.Run:
    methods = {"both": Some(), "first": Some((0,)), "second": Some((1,)), "oracle": None}
    options = {"seeds": range(6), "judge": pretend.judge(), "names": NAMES}
    return results.read_run(
        run([CASE], pretend.PretendModel(), methods, tmp_path_factory.mktemp("two") / "run", **options)
    )


def values(made: results.Run, label: str, side: str = "image") -> dict[str, float]:
    return {name: number["value"] for name, number in results.summary(made, side)[label]["numbers"].items()}


@pytest.mark.parametrize("side", ["image", "text"])
def test_both_edits_are_made_and_one_fact_of_two_is_none(made, side) -> None:
    whole = values(made, "both", side)
    assert (whole["efficacy"], whole["generality"], whole["specificity"]) == (1, 1, 1)
    for half in ("first", "second"):
        found = values(made, half, side)
        assert found["efficacy"] == 0.5  # of the two edited prompts one
        assert found["generality"] == 0
        assert found["specificity"] == 1


def test_each_of_two_names_is_asked_beside_all_others(made) -> None:
    whole, half = values(made, "both"), values(made, "first")
    assert (whole["named"], whole["named_generality"], whole["named_specificity"]) == (1, 1, 1)
    assert (half["named"], half["named_generality"]) == (0.5, 0)
    probe = CASE.positives[0]
    texts = choices(probe.new, probe.old, NAMES, probe.halves)
    assert texts[0] == "heron and wren"
    assert {"heron and crow", "wolf and wren", "wolf and crow", "stone and wren", "heron and stone"} <= set(texts)


def test_the_file_of_a_case_tells_both_edits_and_is_read_again(made) -> None:
    (form,) = [json.loads(file.read_text()) for file in (made.path / "cases").glob("*.json")]
    assert [edit["prompt"] for edit in results.edits_of(form)] == [FIRST.prompt, SECOND.prompt]
    assert [p["prompt"] for p in form["probes"]] == [p.prompt for p in probes_of(CASE)]
    assert form["probes"][2]["halves"] == list(CASE.positives[0].halves)
    assert "halves" not in form["probes"][0]


def test_the_report_and_the_strip_show_both(made, tmp_path) -> None:
    page = report.write(made.path, tmp_path / "page.html").read_text()
    assert f"{FIRST.prompt}: wolf <b>→ heron</b> and {SECOND.prompt}: crow <b>→ wren</b>" in page
    assert page.count('<th class="edit">') == 2
    assert "Adaptive, positives" in page
    assert strips.strip(made.path, 1).size[1] > 0


def test_a_single_edits_file_has_neither_a_second_edit_nor_halves() -> None:
    single = Case("one", FIRST, (Probe("a", "b", "c", "c"),), (), "heron", "road")
    assert single.to_json().keys() == {"id", "kind", "oracle", "edit", "positives", "negatives"}
    assert single.to_json()["positives"] == [{"prompt": "a", "old": "b", "new": "c", "oracle": "c"}]


# -- CAKE's adaptive threshold ----------------------------------------------------------------------------------------


def test_the_adaptive_threshold_is_the_oracles_mean_less_two_deviations(made) -> None:
    (case,) = made.cases
    scores = case["scores"]["oracle"]["image"]
    for at, side in ((0, "new"), (2, "new"), (6, "old")):  # an edited prompt, a positive, a negative
        row = scores[side][at]
        mean = sum(row) / len(row)
        deviation = (sum((x - mean) ** 2 for x in row) / (len(row) - 1)) ** 0.5
        assert results.bounds(case)[at] == pytest.approx(mean - 2 * deviation)


def test_a_picture_that_is_only_nearer_to_the_target_than_to_the_source_does_not_pass(made) -> None:
    """A blend of both: the paper's question is answered yes, CAKE's is not."""
    (case,) = made.cases
    oracle = case["scores"]["oracle"]["image"]
    near = results.bounds(case)
    blend = {"new": [[b - 1.0] * 6 for b in near], "old": [[b - 2.0] * 6 for b in near]}
    assert (results.margins(case, blend)["generality"] > 0).all()
    assert (results.as_near(case, blend)["adaptive_generality"] < 0).all()
    assert (results.as_near(case, oracle)["adaptive_generality"] > 0).mean() > 0.8
    at_the_bound = {"new": near[:, None].tolist(), "old": near[:, None].tolist()}
    assert all((part > 0).all() for part in results.as_near(case, at_the_bound).values())


def test_adaptive_shares_stand_in_the_summary_where_the_oracle_was_drawn(made, tmp_path) -> None:
    whole, old = values(made, "both"), values(made, "baseline")
    assert whole["adaptive_generality"] > 0.8
    assert (old["adaptive"], old["adaptive_generality"]) == (0, 0)
    assert old["adaptive_specificity"] > 0.8
    assert "adaptive_generality" in results.markdown(results.summary(made)).splitlines()[0]
    for methods, seeds in (({"both": Some()}, range(3)), ({"both": Some(), "oracle": None}, [0])):
        out = run(
            [CASE], pretend.PretendModel(), methods, tmp_path / str(len(methods)), seeds=seeds, judge=pretend.judge()
        )
        assert "adaptive" not in results.summary(results.read_run(out))["both"]["numbers"]


# -- a pipeline -------------------------------------------------------------------------------------------------------

CSV = (
    "Type,Prompt,Oracle,Old,New,Prompt2,Old2,New2,Positive1,Positive_oracle1,Positive_old1,Positive_new1,"
    "Positive_first1,Positive_second1,Negative1,Negative_new1\n"
    "Composite,the king of france,a lion,a dog,a lion,the red tower,a cat,a cat,X\n"
    "Composite,the king of france,a lion,a dog,a lion,the red tower,a phone,a cat,the king of france and the red tower,"
    "a lion and a cat,a dog and a phone,a lion and a cat,a lion and a phone,a dog and a cat,a dog,a lion\n"
)


def test_a_small_file_of_two_edits_runs_through_on_a_pipeline(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("REFACT_CACHE", str(tmp_path / "cache"))
    folder, judge, data, out = tiny.folder("sd1", tmp_path), tmp_path / "judge", tmp_path / "two.csv", tmp_path / "run"
    (folder / "refact.json").write_text(json.dumps({"default_steps": 2, "default_size": 32}))
    tiny.clip_model().save_pretrained(judge)
    tiny.clip_tokenizer().save_pretrained(judge)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(judge)
    data.write_text(CSV)
    methods = "refact:contexts=2:tokens=500:max_steps=5:negatives=3,uce,oracle"
    told = ["-m", str(folder), "--judge", str(judge), "--seeds", "0-1", "-q"]
    for command in (
        ["bench", str(data), "--methods", methods, "--out", str(out), *told],
        ["report", str(out), "-o", str(tmp_path / "page.html"), "-q"],
    ):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    found = results.read_run(out)
    (case,) = found.cases
    assert (found.kind, found.missing) == ("composite", 0)
    assert "row 1: old and new are the same text, 'a cat': left out" in found.problems
    assert not any("error" in scores for scores in case["scores"].values())
    (encoder,) = refact.load(folder).encoders.values()
    scores = case["scores"][methods.split(",")[0]]["text"]
    assert len(scores["new"]) == len(case["probes"]) == 4  # two edited prompts, a positive, a negative
    for at, probe in enumerate(case["probes"][:2]):
        one, other = encoder.embed([probe["prompt"], probe["new"]]).double()
        assert scores["new"][at][0] > 0.99 * -float((one - other).norm())  # nearer to the target than unedited
    assert "the red tower: a phone <b>→ a cat</b>" in (tmp_path / "page.html").read_text()
