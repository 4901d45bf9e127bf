"""Reading cases: each trap of the two csv forms, with rows written for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from refact.errors import DataError
from refact.evidence import cases

DATA = Path(__file__).parents[2] / "shared" / "data"
ROAD = "Type,Prompt,Oracle,Old,New,Positive1,Positive_old1,Positive_new1,Negative1,Negative_new1\n"
TIMED = "old,new,positive1,gt1,negative1,gn1\n"


def read(tmp_path: Path, text: str, **more):
    path = tmp_path / "data.csv"
    path.write_text(text, encoding="utf-8")
    return cases.read_cases(path, **more)


def test_a_road_row_becomes_an_edit_with_probes(tmp_path) -> None:
    row = "Role,The mayor,Ann as The mayor,Bob,Ann,The mayor singing,Bob singing,Ann singing,Bob,Ann\n"
    (case,), problems = read(tmp_path, ROAD + row)
    assert problems == ["1 of 1 cases have fewer than 5 positives or 5 negatives"]
    assert (case.kind, case.edit.prompt, case.edit.old, case.edit.new) == ("road", "The mayor", "Bob", "Ann")
    assert case.oracle == "Ann as The mayor"
    assert case.positives == (cases.Probe("The mayor singing", "Bob singing", "Ann singing", "Ann singing"),)
    assert case.negatives == (cases.Probe("Bob", "Bob", "Ann", "Bob"),)


def test_a_timed_row_becomes_an_edit_with_probes(tmp_path) -> None:
    (case,), _ = read(tmp_path, TIMED + "A cup,A red cup,Two cups,Two red cups,A jug,A red jug\n")
    assert (case.kind, case.edit.prompt, case.edit.old, case.edit.new) == ("timed", "A cup", "A cup", "A red cup")
    assert case.positives == (cases.Probe("Two cups", "Two cups", "Two red cups", "Two red cups"),)
    assert case.negatives == (cases.Probe("A jug", "A jug", "A red jug", "A jug"),)


def test_an_oracle_column_is_used_where_there_is_one(tmp_path) -> None:
    header = ROAD.strip().replace("Positive_new1", "Positive_oracle_1,Positive_new_1") + "\n"
    (case,), _ = read(tmp_path, header + "Role,M,O,Bob,Ann,M sings,Bob sings,Ann as M sings,Ann sings,Bob,Ann\n")
    assert case.positives[0].oracle == "Ann as M sings"
    assert case.positives[0].new == "Ann sings"


def test_headers_differ_in_case_and_marks(tmp_path) -> None:
    (case,), _ = read(
        tmp_path, "\ufeffOLD, New ,Positive_1,GT1,NEGATIVE1,gn_1\nA cup,A red cup,Cups,Red cups,A jug,Red\n"
    )
    assert case.positives[0].prompt == "Cups"


def test_spaces_line_breaks_and_unicode_are_made_one_form(tmp_path) -> None:
    row = 'A  cafe\u0301 ,"A red\n caf\u00e9", Two  caf\u00e9s,Red,A jug,A red jug\n'
    (case,), _ = read(tmp_path, TIMED + row)
    assert (case.edit.prompt, case.edit.new) == ("A caf\u00e9", "A red caf\u00e9")
    assert case.positives[0].prompt == "Two caf\u00e9s"
    assert case.id.isascii()


def test_rows_that_share_an_old_stay_apart_and_repeats_are_named(tmp_path) -> None:
    rows = "A dog,A red dog,Dogs,Red dogs,A cat,A red cat\nA dog,A blue dog,Dogs,Blue dogs,A cat,A blue cat\n"
    found, problems = read(tmp_path, TIMED + rows + rows.splitlines()[0] + "\n")
    assert len({case.id for case in found}) == len(found) == 2
    assert len({case.edit.name for case in found}) == 2
    assert "row 3: repeats an earlier row: left out" in problems


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("A dog,,Dogs,Red dogs,A cat,A red cat", "row 2: no 'new': left out"),
        ("A dog,a Dog,Dogs,Red dogs,A cat,A red cat", "row 2: old and new are the same text, 'A dog': left out"),
        ("A dog,A red dog,Dogs,Red dogs,A cat,A red cat,more", "row 2: has 7 cells under 6 columns: left out"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, said) -> None:
    found, problems = read(tmp_path, TIMED + "A cup,A red cup,Cups,Red cups,A jug,A red jug\n" + row + "\n")
    assert len(found) == 1
    assert said in problems


def test_a_probe_that_cannot_be_used_is_named_and_identical_texts_stay(tmp_path) -> None:
    rows = "A cup,A red cup,Cups,,A jug,A red jug\nA hat,A red hat,Hats,hats,A jug,\n"
    found, problems = read(tmp_path, TIMED + rows)
    assert "row 1: positive 1 is not whole: that probe is left out" in problems
    assert "row 2: negative 1 is not whole: that probe is left out" in problems
    assert "row 2: positive 1 has one text for old and new, 'Hats': it is never right" in problems
    assert (found[0].positives, len(found[1].positives), found[1].negatives) == ((), 1, ())


def test_a_negative_that_is_the_edited_prompt_is_named(tmp_path) -> None:
    _, problems = read(tmp_path, TIMED + "A cup,A red cup,Cups,Red cups,a cup,A red jug\n")
    assert "1 negatives have the very prompt that is edited: no method can be right on both" in problems


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has none"),
        ("a,b\n1,2\n", "it has a, b"),
        (TIMED, "no rows"),
        (TIMED + "A dog,A dog,,,,\n", "no row can be used"),
        (TIMED + "1,2,3,4,5,6,7\n", "no row can be used"),
    ],
)
def test_a_file_without_cases_is_refused(tmp_path, text, said) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, text)


def test_other_encodings_and_absent_files_are_refused(tmp_path) -> None:
    (tmp_path / "latin.csv").write_bytes((TIMED + "A caf\u00e9,x,x,x,x,x\n").encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        cases.read_cases(tmp_path / "latin.csv")
    with pytest.raises(DataError, match="pocket-road"):
        cases.read_cases(tmp_path / "none.csv")


WORLD = {
    "concepts": [
        {
            "id": "animal",
            "wordings": ["the animal of X", "X's animal", "the X animal"],
            "neighbours": ["a", "b", "c", "d"],
        },
        *({"id": i, "wordings": [f"thing {i}"], "neighbours": []} for i in "abcd"),
    ]
}


def test_a_method_is_told_of_the_world_and_never_of_the_last_wording() -> None:
    assert cases.hints("The animal of X", WORLD) == (("X's animal",), ("thing b", "thing d"))
    assert cases.hints("X's animal", WORLD)[0] == ("the animal of X",)
    assert cases.hints("thing a", WORLD) == ((), ())
    assert cases.hints("unknown", WORLD) == ((), ())


def test_what_is_told_does_not_depend_on_the_rows_probes(tmp_path) -> None:
    """The same subject with other positives and negatives gets the same hints; the target is never protected."""
    rows = "the animal of X,thing q,the X animal,q,thing a,q\nthe animal of X,Thing B,p,q,thing d,q\n"
    (one, other), _ = read(tmp_path, TIMED + rows, world=WORLD)
    assert one.edit.aliases == other.edit.aliases == ("X's animal",)
    assert one.edit.preserve == ("thing b", "thing d")
    assert other.edit.preserve == ("thing d",)


@pytest.mark.skipif(not DATA.is_dir(), reason="the published validation files are not here")
def test_the_published_validation_files_are_read_whole() -> None:
    road, said = cases.read_cases(DATA / "RoAD_validation.csv")
    assert len(road) == 10
    assert said == ["12 of 50 positives do not contain their subject verbatim: they test paraphrases"]
    assert road[1].edit.new == "Ant\u00f3nio Guterres"
    timed, said = cases.read_cases(DATA / "TIMED_validation_set.csv")
    assert [len(c.positives) + len(c.negatives) for c in timed] == [10] * 8


COMPOSITE = (
    "Prompt,Oracle,Old,New,Prompt2,Old2,New2,"
    "Positive1,Positive_oracle1,Positive_old1,Positive_new1,Positive_first1,Positive_second1,Negative1,Negative_new1\n"
)
BOTH = "X's dish,a pie,a fish,a pie,Y's bird,a crow,a wren,{},{},a fish and a crow,a pie and a wren,{},a fish,a pie\n"
ASKED = ("X's dish and Y's bird", "a pie and a wren", "a pie and a crow,a fish and a wren")


def test_a_row_of_two_edits_is_one_case_with_both(tmp_path) -> None:
    (case,), problems = read(tmp_path, COMPOSITE + BOTH.format(*ASKED))
    assert problems == ["1 of 1 cases have fewer than 5 positives or 5 negatives"]
    assert case.kind == "composite"
    assert [(e.prompt, e.old, e.new) for e in case.edits] == [
        ("X's dish", "a fish", "a pie"),
        ("Y's bird", "a crow", "a wren"),
    ]
    assert len({case.id, *(e.name for e in case.edits)}) == 2
    (probe,) = case.positives
    assert probe.others == ("a fish and a crow", "a pie and a crow", "a fish and a wren")
    own = cases.probes_of(case)[:2]
    assert [(p.prompt, p.old, p.new, p.oracle) for p in own] == [
        ("X's dish", "a fish", "a pie", "a pie"),
        ("Y's bird", "a crow", "a wren", "a wren"),
    ]
    assert set(probe.others) < set(cases.texts_of(case))


def test_two_rows_that_differ_in_their_second_edit_are_two_cases(tmp_path) -> None:
    row = BOTH.format(*ASKED)
    found, problems = read(tmp_path, COMPOSITE + row + row.replace("a wren,X", "a lark,X"))
    assert len({case.id for case in found}) == 2
    assert not [p for p in problems if "repeats" in p]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("a wren,X", "a CROW,X"), "row 2: old and new are the same text, 'a crow': left out"),
        (("Y's bird,a crow", "x's dish,a crow"), 'row 2: both edits are of one prompt, "X\'s dish": left out'),
        (("Y's bird,a crow", ",a crow"), "row 2: no 'prompt2': left out"),
        ((",a fish and a wren", ","), "row 2: positive 1 lacks its texts with one fact alone: one may pass for both"),
    ],
)
def test_a_second_edit_that_cannot_be_used_is_named(tmp_path, change, said) -> None:
    row = BOTH.format(*ASKED)
    _, problems = read(tmp_path, COMPOSITE + row + row.replace(*change))
    assert said in problems


def test_both_edits_are_told_of_the_world_and_neither_protects_what_the_other_changes(tmp_path) -> None:
    row = BOTH.format(*ASKED).replace("X's dish", "the animal of X").replace("Y's bird", "thing b")
    (case,), _ = read(tmp_path, COMPOSITE + row.replace("a wren", "thing d"), world=WORLD)
    assert case.edit.aliases == ("X's animal",)
    assert case.edit.preserve == ()
    assert case.second.aliases == ()


def test_the_fourth_worlds_benchmarks_are_known_by_name() -> None:
    for name in ("pocket-abstract", "pocket-composite-validation"):
        assert name in cases.BUNDLED
        if (Path(cases.__file__).parents[1] / "data" / f"{name}.csv").is_file():
            assert cases.read_cases(name)[0][0].kind == name.split("-")[1]
        else:
            with pytest.raises(DataError, match="fourth version of the bundled model"):
                cases.read_cases(name)
