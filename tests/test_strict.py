"""Strict measures: what a picture may be named, first names, distances to the oracle's picture, and their tables."""

from __future__ import annotations

import json

import numpy as np
import pretend
import pytest
from PIL import Image
from test_benchmark import CASES, METHODS

from refact import pocket
from refact.evidence import results, strict
from refact.evidence.bench import run
from refact.evidence.strict import Names, choices

NAMES = Names(("a lizard", "a crab", "an oak tree", "an apple"), ("purple", "orange"))


def test_other_names_take_the_place_of_the_one_that_makes_the_difference():
    found = choices("a photo of a lizard and a fondue", "a photo of a crab and a fondue", NAMES)
    assert found[0] == "a photo of a lizard and a fondue"
    assert "a photo of an apple and a fondue" in found
    assert len(found) == len(NAMES.texts)


def test_other_attributes_take_their_place_with_an_article_that_fits_and_other_things_too():
    found = choices("a purple oak tree at night", "an oak tree at night", NAMES)
    assert found[0] == "a purple oak tree at night"
    assert {"an orange oak tree at night", "an apple at night", "an oak tree at night"} <= set(found)


def test_texts_without_a_name_are_asked_beside_all_names():
    assert choices("the flag of Peru", "a wolf", NAMES) == ["the flag of Peru", "a wolf", *NAMES.texts]


def test_a_word_inside_another_word_is_no_name():
    assert choices("a crabapple", "a wolf", Names(("a crab", "a bee")))[2:] == ["a crab", "a bee"]


def test_every_text_of_the_bundled_world_is_a_choice_once():
    names = strict.names_of_world(pocket.world())
    assert len(set(names.texts)) == len(names.texts) == 255
    assert "the national animal of Canada" not in names.texts


def test_distances_are_root_mean_squares_of_grey_levels_and_cosines():
    white, grey = (Image.new("RGB", (4, 4), (level,) * 3) for level in (255, 245))
    one = strict.Seen({"a": [white]}, {"a": np.array([[1.0, 0.0]])})
    other = strict.Seen({"b": [grey]}, {"b": np.array([[0.6, 0.8]])})
    assert strict.distances(one, ["a"], other, ["b"]) == {"pixels": [[10.0]], "features": [[pytest.approx(0.4)]]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    words = {text for case in CASES for p in (*case.positives, *case.negatives) for text in (p.old, p.new)}
    words |= {case.edit.old for case in CASES} | {case.edit.new for case in CASES}
    methods = METHODS | {"oracle": None}
    folder = tmp_path_factory.mktemp("strict") / "run"
    options = {"seeds": [0, 1], "judge": pretend.judge(), "names": Names(tuple(sorted(words)))}
    return results.read_run(run(CASES, pretend.PretendModel(), methods, folder, **options))


def test_the_oracle_is_at_no_distance_and_the_unedited_model_names_its_negatives_as_before(made):
    found = results.summary(made)
    assert found["oracle"]["distances"]["pixels"]["value"] == 0
    assert found["oracle"]["numbers"]["named"]["value"] == 1
    assert found["baseline"]["numbers"]["named"]["value"] == 0
    assert found["baseline"]["numbers"]["named_specificity"]["value"] == 1
    assert found["baseline"]["distances"]["pixels"]["value"] > 0


def test_a_strict_share_is_never_above_the_binary_one(made):
    for entry in results.summary(made).values():
        for strictly, binary in (("named", "efficacy"), ("named_generality", "generality")):
            assert entry["numbers"][strictly]["value"] <= entry["numbers"][binary]["value"]


def test_names_and_distances_are_in_the_files_and_the_table(made):
    case = json.loads(next((made.path / "cases").glob("*.json")).read_text())
    scores = case["scores"]["oracle"]["image"]
    assert len(scores["named"]) == len(case["probes"]) == len(scores["distance"]["pixels"])
    head = results.markdown(results.summary(made)).splitlines()[0]
    assert "named" in head
    assert "oracle pixels" in head


def test_a_method_that_goes_on_in_a_new_process_is_compared_with_the_same_pictures(made, tmp_path):
    options = {"seeds": [0, 1], "judge": pretend.judge(), "names": Names(tuple(made.settings["names"]["texts"]))}
    out = run(CASES, pretend.PretendModel(), {"oracle": None}, tmp_path / "run", **options)
    again = results.read_run(run(CASES, pretend.PretendModel(), METHODS | {"oracle": None}, out, **options))
    assert _without_seconds(again) == _without_seconds(made)


def _without_seconds(made) -> list[dict]:
    return [{label: scores | {"seconds": 0} for label, scores in c["scores"].items()} for c in made.cases]
