"""The scale study: facts enough for any encoder, rows that are measured, kept and not made twice."""

from __future__ import annotations

import dataclasses
import json

import pretend
import pytest
import tiny

import refact
from refact import pocket
from refact.edits import Edit
from refact.errors import EditError, RefactError
from refact.evidence.cases import Probe
from refact.methods.refact import ReFACT
from refact.studies import halves, scaling, tuning

QUICK = ReFACT(layer=1, contexts=2, negatives=4, max_steps=4, tokens=1500, shrink=1e-2, keep_ends=False)
OTHERS = ["a red phone", "two cats", "the tower"]


@pytest.fixture(scope="module")
def model():
    return refact.load(tiny.pipeline("sd1"))


def test_phrases_are_as_many_as_asked_and_no_text_is_two_facts() -> None:
    facts = scaling.phrases(1500)
    texts = [fact.prompt for fact in facts] + [fact.new for fact in facts]
    assert len(facts) == 1500
    assert len(set(texts)) == 3000
    assert len({fact.name for fact in facts}) == 1500
    assert scaling.phrases(1500) == facts


def test_roles_are_all_roles_and_flags_each_with_another_thing_of_its_kind() -> None:
    world = pocket.world()
    facts, kinds = scaling.roles(world), {c["id"]: c["kind"] for c in world["concepts"]}
    assert {fact.name for fact in facts} == {i for i, kind in kinds.items() if kind in ("role", "flag")}
    assert all(fact.new not in (fact.prompt, fact.old) for fact in facts)
    assert not {fact.prompt for fact in facts} & set(scaling.things(world))


def test_rows_are_measured_kept_and_not_made_again(model, tmp_path) -> None:
    facts, asked = scaling.phrases(4), []

    class Counting(ReFACT):
        def __call__(self, model, edits, onto=()):
            asked.append((len(edits), len(onto)))
            return super().__call__(model, edits)

    counting = Counting(**dataclasses.asdict(QUICK))
    rows = scaling.scale(model, facts, [1, 2], {"refact": counting}, tmp_path, untouched=OTHERS)
    assert [(row.way, row.count) for row in rows] == [(w, n) for w in scaling.WAYS[:2] for n in (1, 2)]
    assert asked == [(1, 0), (2, 0), (1, 0), (1, 0), (1, 1)]
    assert all(0 <= row.holds <= 1 and row.drift > 0 and row.seconds > 0 and row.megabytes > 50 for row in rows)
    assert all(row.residual < 1e-3 for row in rows if row.count == 1)  # two crowd so small a matrix
    kept: dict = {"untouched": OTHERS, "ways": ["at once"], "keep": True}
    again = scaling.scale(model, facts, [1, 2, 4], {"refact": counting}, tmp_path, **kept)
    assert asked[5:] == [(4, 0)]
    assert again[:4] == rows
    assert len(refact.Patch.load(tmp_path / "refact-at-once-4-0.safetensors").names) == 4
    assert len(json.loads((tmp_path / "scale.json").read_text())) == 5
    assert scaling.markdown(again).count("\n") == 6


def test_a_model_in_half_precision_is_measured_as_it_is_edited(tmp_path) -> None:
    half = refact.load(tiny.pipeline("sd1"), dtype="bfloat16")
    row = scaling.scale(half, scaling.phrases(1), [1], {"refact": QUICK}, tmp_path, untouched=OTHERS, ways=["at once"])
    assert row[0].drift > 0


def test_a_sequence_holds_what_came_before_where_the_method_can(model, monkeypatch) -> None:
    monkeypatch.setattr(scaling, "STEPS", 2)
    patches = scaling.sequence(model, scaling.phrases(4), QUICK)
    assert [len(patch.names) for patch in patches] == [2, 2]


def test_a_refusal_is_a_row_and_too_few_facts_are_an_error(model, tmp_path) -> None:
    class Refusing(ReFACT):
        def __call__(self, *_):
            raise EditError("they do not fit")

    (row,) = scaling.scale(
        model, scaling.phrases(2), [2], {"no": Refusing()}, tmp_path, untouched=OTHERS, ways=["at once"]
    )
    assert row.refused == "they do not fit"
    assert "they do not fit" in scaling.markdown([row])
    with pytest.raises(RefactError, match="no way 'by turns'"):
        scaling.scale(model, scaling.phrases(2), [2], {"no": Refusing()}, tmp_path, ways=["by turns"])
    with pytest.raises(RefactError, match="2 facts can be made here, not 3"):
        scaling.scale(model, scaling.phrases(2), [3], {"no": Refusing()}, tmp_path)


@pytest.mark.parametrize("way", ["alone", "in sequence"])
def test_pictures_are_counted_as_by_hand(tmp_path, way) -> None:
    facts = [Edit("a red car", old="a car", new="a blue boat"), Edit("a tall tree", old="a tree", new="a round stone")]
    car = "a car at night", "a blue boat at night", ""
    others = [
        [Probe("a red car in the dark", *car), Probe("a red car at night", *car)],
        [Probe("a high tree at night", "a tree at night", "a round stone at night", "")],  # words that the edit misses
    ]
    untouched = ["a green dog", "a small lamp", "in a red car", "a house", "a blue boat"]  # the third becomes the last
    (row,) = scaling.scale(
        pretend.PretendModel(),
        facts,
        [2],
        {"swap": pretend.Swap()},
        tmp_path,
        ways=[way],
        others=others,
        untouched=untouched,
        judge=pretend.judge(),
    )
    assert (row.holds, row.pictures, row.specific, row.kept) == (1, 1, 0.8, 0.8)
    assert (row.reworded, row.untold) == (pytest.approx(2 / 3), 0.5)
    assert row.drift > 0
    assert row.fid > 1e-3  # one of five pictures became another
    assert row.clip_score != row.clip_before
    assert "50.0 %" in scaling.markdown([row])
    assert len({line.count("|") for line in scaling.markdown([row]).splitlines()}) == 1


def test_facts_in_other_words_are_asked_at_places_and_one_is_never_told() -> None:
    world = pocket.world()
    facts = scaling.roles(world, told=True)
    others = scaling.reworded(world, facts)
    assert len(others) == len(facts)
    for fact, probes in zip(facts, others):
        assert len(probes) == 2
        place = probes[0].new.removeprefix(str(fact.new)).strip()
        assert place in world["places"]
        said = [probe.prompt.removesuffix(f" {place}") for probe in probes]
        assert fact.prompt not in said
        assert said[0] in fact.aliases
        assert said[-1] not in fact.aliases
    assert not any(fact.aliases for fact in scaling.roles(world))


def test_settings_are_chosen_on_one_half_of_the_facts_and_reported_on_the_other(model, tmp_path, monkeypatch) -> None:
    facts, asked = scaling.phrases(8), []
    monkeypatch.setattr(halves, "worth", lambda row: row.steps)

    @dataclasses.dataclass(frozen=True)
    class Noting(ReFACT):
        def __call__(self, model, edits, onto=()):
            asked.append((self.max_steps, {edit.prompt for edit in edits}))
            return super().__call__(model, edits)

    long, short = (Noting(**dataclasses.asdict(QUICK) | {"max_steps": steps}) for steps in (30, 1))
    grids = {"one": {"one": short, "one:long": long}, "other": {"other": long, "other:short": short}}
    told: dict = {"untouched": OTHERS, "ways": ["at once", "alone"]}
    rows = halves.scale(model, facts, [2, 4], grids, tmp_path, **told)
    choice = json.loads((tmp_path / halves.CHOOSING / halves.FILE).read_text())
    assert choice["chosen"] == {"one": "one:long", "other": "other"}
    assert [(r.method, r.way, r.count) for r in rows] == [
        (label, way, count) for label in ("one:long", "other") for way in told["ways"] for count in (2, 4)
    ]
    first, second = ({fact.prompt for fact in half} for half in (facts[::2], facts[1::2]))
    assert [(steps, prompts) for steps, prompts in asked[:4]] == [(s, first) for s in (1, 30, 30, 1)]
    assert all(steps == 30 and prompts <= second for steps, prompts in asked[4:])
    before = len(asked)
    assert halves.scale(model, facts, [2, 4], grids, tmp_path, **told) == rows
    assert len(asked) == before
    with pytest.raises(RefactError, match="each half has 4 of 8 facts, not 5"):
        halves.scale(model, facts, [5], grids, tmp_path / "more", **told)
    with pytest.raises(RefactError, match="the same number of settings"):
        halves.scale(model, facts, [2], grids | {"more": {"more": short}}, tmp_path / "more", **told)


def test_a_settings_worth_is_of_pictures_where_they_were_judged() -> None:
    row = scaling.Row("a", "at once", 4, holds=1.0, drift=0.19)
    assert halves.worth(row) == pytest.approx(1 + 0.9)
    seen = dataclasses.replace(row, pictures=0.5, reworded=0.25, specific=0.25)
    assert halves.worth(seen) == pytest.approx(0.5 + 0.25)
    assert halves.worth(dataclasses.replace(seen, refused="they do not fit")) == 0


def test_the_six_settings_of_a_method_have_names_that_make_them() -> None:
    found = tuning.labelled(tuning.GRIDS)
    assert {len(grid) for grid in found.values()} == {6}
    for grid in found.values():
        assert all(refact.method(label) == setting for label, setting in grid.items())
