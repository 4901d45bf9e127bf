"""The pocket's benchmarks: their files are what the script makes of the world, and every row is fair."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import Counter

import pytest

from pocket import benchmark
from pocket.export import OUT
from pocket.world import make
from refact.evidence.cases import Case, hints, read_cases

NAMES = [f"pocket-{name}{end}" for name in ("road", "timed", "abstract", "composite") for end in ("", "-validation")]


@pytest.fixture(scope="module")
def form() -> dict:
    return make()


@pytest.fixture(scope="module")
def made(form) -> dict[str, str]:
    return benchmark.files(benchmark.read_world(form))


@pytest.fixture(scope="module")
def cases(form, made, tmp_path_factory) -> dict[str, list[Case]]:
    """The cases of each file; the reader finds nothing wrong with any row."""
    folder, found = tmp_path_factory.mktemp("benchmark"), {}
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
        found[name.removesuffix(".csv")], problems = read_cases(folder / name, world=form)
        assert [p for p in problems if "verbatim" not in p] == []
    return found


def rows(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


def shows(form: dict, text: str) -> set[str]:
    """The things that a caption shows: the longest wordings in it, roles as what they depict."""
    named = [(w, c.get("depicts", c["id"])) for c in form["concepts"] for w in c["wordings"] if f" {w} " in f" {text} "]
    return {thing for words, thing in named if not any(words != other and words in other for other, _ in named)}


def test_the_files_are_enough_and_in_the_published_columns(made) -> None:
    assert sorted(made) == sorted(f"{name}.csv" for name in NAMES)
    counts = {name: len(rows(text)) for name, text in made.items()}
    assert counts["pocket-road.csv"] >= 60
    assert counts["pocket-timed.csv"] >= 60
    assert counts["pocket-abstract.csv"] >= 40
    assert counts["pocket-composite.csv"] >= 30
    assert all(counts[f"{name}.csv"] == 10 for name in NAMES if name.endswith("validation"))
    assert {"Type", "Prompt", "Oracle", "Old", "New", "Positive_old5", "Negative_new5"} <= rows(
        made["pocket-road.csv"]
    )[0].keys()
    assert {"old", "new", "positive5", "gt5", "negative5", "gn5"} <= rows(made["pocket-timed.csv"])[0].keys()


def test_the_script_repeats_itself(form, made) -> None:
    assert benchmark.files(benchmark.read_world(form)) == made


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_files_are_those_of_the_shipped_world(name) -> None:
    """When this fails: python -m pocket.benchmark refact/data."""
    world = json.loads((OUT / "world.json").read_text(encoding="utf-8"))
    if world.get("version") != 4:
        pytest.skip("the shipped files are the third version's: pocket.export brings the fourth's")
    shipped = benchmark.files(benchmark.read_world(world))
    assert (OUT / f"{name}.csv").read_text(encoding="utf-8") == shipped[f"{name}.csv"]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_whole_and_no_two_texts_that_are_compared_are_the_same(cases, name) -> None:
    for case in cases[name]:
        assert len(case.positives) == len(case.negatives) == 5
        assert all(p.old != p.new for p in (*case.positives, *case.negatives))
        assert len({p.prompt for p in (*case.positives, *case.negatives)} | {case.edit.prompt}) == 11


@pytest.mark.parametrize("name", NAMES)
def test_no_negative_contradicts_the_edit_or_shows_its_target(cases, form, name) -> None:
    for case in cases[name]:
        for edit, probe in itertools.product(case.edits, case.negatives):
            assert edit.prompt not in probe.prompt
            target = edit.prompt if case.kind == "timed" else edit.new
            assert not shows(form, probe.prompt) & shows(form, target)


@pytest.mark.parametrize("name", NAMES)
def test_what_methods_are_told_is_not_what_they_are_tested_with(cases, form, name) -> None:
    """The wording that is held back is asked for twice; of roles and flags it ends in another word."""
    last = {c["wordings"][0]: c["wordings"][-1] for c in form["concepts"]}
    for case in cases[name]:
        busy = {text for edit in case.edits for text in (edit.prompt, edit.new)}
        for edit in case.edits:
            aliases, protected = hints(edit.prompt, form)
            assert (edit.aliases, set(edit.preserve)) == (aliases, set(protected) - busy)
            assert not {p.prompt for p in case.negatives} & set(edit.preserve)
            if case.kind == "timed":
                continue
            held_back = last[edit.prompt]
            assert held_back not in aliases
            asked = [p.prompt for p in case.positives if held_back in p.prompt]
            assert len(asked) >= 2
            if case.kind != "abstract":
                assert all(edit.prompt.split()[-1] not in prompt.split() for prompt in asked)


def test_attributes_are_also_asked_in_a_wording_that_ends_in_another_word(cases, form) -> None:
    """Roles are by the test above."""
    seconds = {c["wordings"][0]: c["wordings"][1] for c in form["concepts"] if c["kind"] == "object"}
    for case in (*cases["pocket-timed"], *cases["pocket-timed-validation"]):
        assert sum(p.prompt.endswith(seconds[case.edit.prompt]) for p in case.positives) == 1


def test_roads_negatives_hold_the_source_siblings_and_the_same_last_word(cases, form) -> None:
    for case in cases["pocket-road"]:
        prompts = [p.prompt for p in case.negatives]
        assert any(p.split()[-1] == case.edit.prompt.split()[-1] for p in prompts)
        if case.edit.old != case.edit.prompt:
            assert case.edit.old in prompts
            relation = case.edit.prompt.split(" of ")[0]
            assert relation == "the national plant" or sum(p.startswith(relation + " of ") for p in prompts) >= 2


def test_validation_and_test_rows_share_no_subject(cases) -> None:
    for form in ("road", "timed", "composite"):
        tested, tuned = (
            {edit.prompt for c in cases[f"pocket-{form}{end}"] for edit in c.edits} for end in ("", "-validation")
        )
        assert not tested & tuned


@pytest.mark.parametrize("name", NAMES)
def test_no_row_asks_for_a_pair_that_no_training_scene_shows(cases, form, name) -> None:
    """Of a thing and a place or style."""
    held_out = {tuple(pair) for pair in (*form["held_out"], *form["held_out_styles"])}
    styles = {
        w: c.get("depicts", c["id"])
        for c in form["concepts"]
        if c["kind"] in ("style", "artist")
        for w in c["wordings"]
    }
    for case in cases[name]:
        for probe in (*case.positives, *case.negatives):
            for text in (probe.prompt, probe.new):
                around = {p for p in form["places"] if f" {p}" in text} | {s for w, s in styles.items() if w in text}
                assert not {(thing, other) for thing in shows(form, text) for other in around} & held_out, text


def test_some_things_get_two_colours_and_none_its_own(cases, form) -> None:
    counts = Counter(c.edit.prompt for c in cases["pocket-timed"])
    assert sorted(set(counts.values())) == [1, 2]
    for case in (*cases["pocket-timed"], *cases["pocket-timed-validation"]):
        colour = next(c for c in form["colours"] if f" {c} " in f" {case.edit.new} ")
        (thing,) = shows(form, case.edit.prompt)
        assert colour not in benchmark.own_colours()[thing]
        assert all(f" {colour} " in p.new for p in (*case.positives, *case.negatives))


def test_the_table_of_own_colours_is_of_the_things_of_the_world(form) -> None:
    things = {c["id"] for c in form["concepts"] if c["kind"] == "object"}
    assert benchmark.own_colours().keys() == things
    assert {colour for own in benchmark.own_colours().values() for colour in own} <= set(benchmark.USED)


def test_two_edits_in_one_prompt_are_asked_for_both(cases) -> None:
    for case in (*cases["pocket-composite"], *cases["pocket-composite-validation"]):
        assert case.kind == "composite"
        first, second = case.edits
        assert len({first.old, first.new, second.old, second.new}) == 4
        for probe in case.positives:
            assert len({*probe.others, probe.new}) == 4
            assert first.new in probe.new
            assert second.new in probe.new
            assert [(first.new in half, second.new in half) for half in probe.halves] == [(True, False), (False, True)]
        assert not {p.prompt for p in case.negatives} & {first.new, second.new}


def test_abstract_rows_are_of_styles_artists_and_emotions(made, cases, form) -> None:
    assert {case.kind for case in cases["pocket-abstract"]} == {"abstract"}
    kinds = {w: c["kind"] for c in form["concepts"] for w in c["wordings"]}
    found = rows(made["pocket-abstract.csv"]) + rows(made["pocket-abstract-validation.csv"])
    assert Counter(kinds[row["Prompt"]] for row in found).keys() >= {"artist", "style", "emotion", "object", "named"}
    assert {row["Type"] for row in found} == {"Style", "Emotion", "Feeling"}


def test_articles_follow_the_colour() -> None:
    assert benchmark.coloured("apple", "blue") == "a blue apple"
    assert benchmark.coloured("small apple", "blue") == "a small blue apple"
    assert benchmark.coloured("box of fries", "orange") == "an orange box of fries"
