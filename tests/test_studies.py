"""The studies, on the pretend model: what they run, what they count, and that the model is clean afterwards."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pretend
import pytest
from test_benchmark import CASES, case

import refact
from refact.edits import Edit
from refact.errors import DataError, RefactError
from refact.evidence import results
from refact.evidence.bench import run
from refact.evidence.cases import Case
from refact.methods.registry import BUILT_IN
from refact.studies import probing, quality, sequence, tuning, variants

SHORT = {"judge": pretend.judge(), "seeds": range(2)}


@dataclass(frozen=True)
class Layered(pretend.Swap):
    """Takes edits in layers below 2 only."""

    layer: int = 0

    def __call__(self, model, edits, onto=()):
        patch = super().__call__(model, edits)
        if self.layer > 1:
            patch.edit = Edit("nowhere to be found", new="x")
        return patch


def values(out, side: str = "image") -> dict[str, dict[str, float]]:
    found = results.summary(results.read_run(out), side)
    return {m: {k: n["value"] for k, n in entry["numbers"].items()} for m, entry in found.items()}


def test_a_layer_search_tells_the_layers_apart(tmp_path) -> None:
    found = values(variants.layers(CASES, pretend.PretendModel(), Layered(), tmp_path / "s", layers=[0, 1, 2], **SHORT))
    assert list(found) == ["baseline", "layer=0", "layer=1", "layer=2"]
    assert found["layer=0"] == found["layer=1"]
    assert found["layer=0"]["efficacy"] == 1
    assert found["layer=2"] == found["baseline"]


def test_a_sweep_over_no_setting_is_refused(tmp_path) -> None:
    with pytest.raises(RefactError, match="no setting 'depth'"):
        variants.sweep(CASES, pretend.PretendModel(), Layered(), "depth", [1], tmp_path / "s")


def test_tuning_chooses_by_validation_rows_and_keeps_what_was_tried(tmp_path) -> None:
    grids = {
        "layered": {"layered": Layered(layer=2), "layered:layer=1": Layered(layer=1)},
        "swap": {"swap": pretend.Swap(), "swap:strength=0.5": pretend.Swap(0.5)},
    }
    chosen = tuning.tune(CASES, pretend.PretendModel(), grids, tmp_path / "t", **SHORT)
    assert chosen["layered"] == Layered(layer=1)
    assert chosen["swap"] == pretend.Swap()
    kept = json.loads((tmp_path / "t" / "tuning.json").read_text())
    assert set(kept["scores"]) == {"baseline", *grids["layered"], *grids["swap"]}
    assert kept["chosen"] == {"layered": "layered:layer=1", "swap": "swap"}
    with pytest.raises(RefactError, match="same number"):
        tuning.tune(CASES, pretend.PretendModel(), grids | {"more": {"more": pretend.Swap()}}, tmp_path / "u", **SHORT)


def test_a_benchmark_takes_what_a_tuning_chose(tmp_path) -> None:
    (tmp_path / "tuning.json").write_text(json.dumps({"chosen": {"time": "time:strength=10.0", "uce": "uce"}}))
    found = tuning.tuned(["time", "refact:many", "oracle"], tmp_path)
    assert found == {"time": refact.TIME(strength=10.0), "refact:many": refact.ReFACT.many(), "oracle": None}
    (tmp_path / "tuning.json").write_text(json.dumps({"chosen": {"time": "time #3"}}))
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match=r"tuning.json"):
            tuning.tuned(["time"], folder)


MANY = [*CASES, case("the anthem of Oslo", "harp", "drum"), case("the statue of Lima", "lion", "tapir")]


def test_a_sequence_scores_the_edits_so_far_with_all_of_them_active(tmp_path) -> None:
    model = pretend.PretendModel()
    out = sequence.sequence(MANY, model, pretend.Swap(), tmp_path / "q", every=3, orders=2, **SHORT)
    run = results.read_run(out)
    counts = {label: sum(label in c["scores"] for c in run.cases) for label in run.labels}
    assert counts == {"baseline": 4} | {f"order {o}, after {k}": k for o in (0, 1) for k in (3, 4)}
    assert values(out)["order 1, after 4"]["efficacy"] == 1
    assert max(len(swaps) for _, swaps in model.made) == 4
    assert model.swaps == []


def test_a_sequence_that_was_stopped_goes_on_and_ends_the_same(tmp_path) -> None:
    class Stopped(Exception):
        pass

    def stop(items, what, total):
        for i, item in enumerate(items):
            if i == 4:
                raise Stopped
            yield item

    options = {"every": 2, "orders": 2, **SHORT}
    whole = sequence.sequence(MANY, pretend.PretendModel(), pretend.Swap(), tmp_path / "whole", **options)
    model = pretend.PretendModel()
    with pytest.raises(Stopped):
        sequence.sequence(MANY, model, pretend.Swap(), tmp_path / "part", progress=stop, **options)
    assert model.swaps == []
    part = sequence.sequence(MANY, pretend.PretendModel(), pretend.Swap(), tmp_path / "part", **options)
    assert results.read_run(part).cases == results.read_run(whole).cases
    again = pretend.PretendModel()
    sequence.sequence(MANY, again, pretend.Swap(), tmp_path / "part", **options)
    assert again.made == []


def test_an_edit_that_is_refused_in_a_sequence_is_said(tmp_path) -> None:
    out = sequence.sequence(CASES, pretend.PretendModel(), pretend.Fails(), tmp_path / "q", every=2, orders=1, **SHORT)
    scores = results.read_run(out).cases[0]["scores"]["order 0, after 2"]
    assert scores["refused"] == "the subject is absent"
    assert scores["image"]


def test_targets_by_picture_are_drawn_by_the_clean_model() -> None:
    seen = []

    @dataclass(frozen=True)
    class Looks:
        def __call__(self, model, edits, onto=()):
            seen.extend(edits)

    variants.ByPictures(Looks(), pictures=3)(pretend.PretendModel(), [CASES[0].edit])
    assert len(seen[0].new) == 3
    judge = pretend.judge()
    assert (judge.of_images(seen[0].new) @ judge.of_texts(["heron"])[0] > 0.9).all()


def test_an_unaided_method_is_told_the_fact_alone() -> None:
    seen = []
    edit = dataclasses.replace(CASES[0].edit, aliases=("that one",), preserve=("a tree",))
    variants.Unaided(lambda model, edits, onto: seen.extend(edits))(None, [edit])
    assert seen == [dataclasses.replace(edit, aliases=(), preserve=())]


def test_the_papers_variants_are_all_there_and_all_different() -> None:
    found = variants.variants()
    assert {"refact", "refact:paper", "contrastive", "cosine", "image target", "pooled", "no covariance"} < set(found)
    assert len({repr(m) for m in found.values()}) == len(found)


def test_quality_measures_before_and_after_and_is_not_done_twice(tmp_path) -> None:
    captions = [f"{a} and {b}" for a in ("wolf", "cat", "boat") for b in ("tree", "house", "hill")]
    change = {"edited": [pretend.PretendPatch(Edit("wolf", new="zebra"), {"edits": []})]}
    model = pretend.PretendModel()
    found = quality.quality(model, captions, change, tmp_path / "q", pretend.judge(), batch=4)
    assert found["before"]["clip_score"] > 90 > found["edited"]["clip_score"]
    assert found["edited"]["cmmd"] > 3 * found["before"]["cmmd"]
    again = pretend.PretendModel()
    assert quality.quality(again, captions, change, tmp_path / "q", pretend.judge(), batch=4) == found
    assert again.made == []
    with pytest.raises(DataError, match="seed"):
        quality.quality(again, captions, change, tmp_path / "q", pretend.judge(), batch=4, seed=1)


def test_quality_against_a_folder_of_pictures(tmp_path) -> None:
    captions = ["a wolf", "a cat", "a boat"]
    (tmp_path / "real").mkdir()
    for i, caption in enumerate(captions):
        pretend.drawn(caption, i).save(tmp_path / "real" / f"{i}.png")
    found = quality.quality(
        pretend.PretendModel(), captions, {}, tmp_path / "q", pretend.judge(), reference=tmp_path / "real"
    )
    assert found["before"]["fid"] == pytest.approx(0, abs=1e-4)


# -- derived cases -----------------------------------------------------------------------------------------------------


def test_a_companion_is_kept_and_the_new_thing_is_shown(tmp_path) -> None:
    derived = probing.companions(CASES, things=("a clock", "a bear"))
    assert [len(c.positives) for c in derived] == [4, 2]  # no bear beside a bear
    probe = derived[1].positives[0]
    assert (probe.prompt, probe.new) == ("a clock and the crest of Bern", "a clock and moose")
    assert (derived[1].negatives[0].old, derived[1].negatives[0].new) == ("a clock and moose", "moose")
    out = run(derived, pretend.PretendModel(), {"swap": pretend.Swap(), "oracle": None}, tmp_path / "c", **SHORT)
    assert values(out)["swap"]["specificity"] == values(out)["oracle"]["specificity"] == 1
    assert values(out)["swap"]["generality"] == values(out)["oracle"]["generality"] == 1


def test_concepts_are_one_case_a_target() -> None:
    found = probing.concepts("a doctor", ["a happy doctor", "a sad doctor"])
    assert [c.edit.new for c in found] == ["a happy doctor", "a sad doctor"]
    assert len({c.id for c in found}) == 2
    with pytest.raises(DataError, match="differ"):
        probing.concepts("a doctor", ["A doctor"])


WORLD = {
    "concepts": [
        {"id": "wolf", "kind": "object", "wordings": ["a wolf"]},
        {"id": "rose", "kind": "object", "wordings": ["a rose"]},
        {"id": "bear", "kind": "object", "wordings": ["a bear"]},
        {"id": "ra", "kind": "role", "wordings": ["the national animal of Rome"], "depicts": "wolf"},
        {"id": "rf", "kind": "role", "wordings": ["the national flower of Rome"], "depicts": "rose"},
        {"id": "ba", "kind": "role", "wordings": ["the national animal of Bern"], "depicts": "bear"},
        {"id": "flag", "kind": "flag", "wordings": ["the flag of Rome"]},
    ]
}


def test_relations_of_a_role() -> None:
    role = Case("r", Edit("the national animal of Rome", old="a wolf", new="a bear"), (), (), "a bear", "road")
    found = {c.kind: c for c in probing.relations([role], WORLD)}
    assert [p.prompt for p in found["two-step"].positives] == [
        "the national animal of the country whose national flower is a rose",
    ]
    (inverse,) = found["inverse"].positives
    assert (inverse.prompt, inverse.new) == ("the country whose national animal is a bear", "the flag of Rome")
    assert inverse.old == "the flag of Bern"
    kept = {p.prompt: p.old for p in found["sibling"].negatives}
    assert kept == {"the national flower of Rome": "a rose", "the flag of Rome": "the flag of Rome"}
    with pytest.raises(DataError, match="role"):
        probing.relations(CASES[:0], WORLD)


def test_groups_part_a_run_by_kind(tmp_path) -> None:
    mixed = [CASES[0], probing.concepts("a cat", ["a dog"])[0]]
    found = results.groups(results.read_run(run(mixed, pretend.PretendModel(), {}, tmp_path / "g", **SHORT)))
    assert {kind: len(part.cases) for kind, part in found.items()} == {"timed": 1, "concepts": 1}
    assert not np.isnan(values(tmp_path / "g")["baseline"]["efficacy"])


def test_every_method_gets_as_many_settings_as_the_others() -> None:
    found = tuning.grids(tuning.GRIDS)
    assert {len({repr(m) for m in grid}) for grid in found.values()} == {6}  # none twice
    assert set(found) == {*BUILT_IN, "refact:many"}
    with pytest.raises(RefactError, match="no grid"):
        tuning.grids(["rome"])
