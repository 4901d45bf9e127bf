"""Files of facts say what they mean or are refused by line: TOML, JSON, CSV."""

from __future__ import annotations

import pytest

from refact.edits import Edit, distinct, read_edits, read_prompts
from refact.errors import DataError, EditError
from refact.trust import limits

FACT = '[[edit]]\nprompt = "the flag of Canada"\nnew = "a cat"\n'
REFUSED = {
    "a table in single brackets": ("f.toml", '[edit]\nprompt = "a"\nnew = "b"\n', r"\[\[edit\]\], not \[edit\]"),
    "a number for a text": (
        "f.toml",
        '[[edit]]\nprompt = 3\nnew = "b"\n',
        "edit 1's 'prompt': a text is needed, not 3",
    ),
    "a number for shared texts": ("f.toml", f"preserve = 3\n{FACT}", "preserve: a text is needed, not 3|preserve"),
    "numbers among texts": ("f.toml", f"{FACT}aliases = [1]\n", "a text is needed, not 1"),
    "edits that are no tables": ("f.toml", "edit = [1]\n", "edit 1: a JSON object is needed|edit 1"),
    "an unknown field": ("f.toml", f"{FACT}nwe = 'x'\n", r"no \['nwe'\]"),
    "deep TOML": ("f.toml", f"{FACT}aliases = {'[' * 3000}{']' * 3000}\n", "cannot be read|a text is needed"),
    "deep JSON": ("f.json", "[" * 100_000, "not valid JSON"),
    "JSON just deep enough to parse": ("f.json", "[" * 900 + "]" * 900, "nested deeper than"),
    "a huge integer": ("f.json", f'[{{"prompt": "a", "new": {"1" * 4000}}}]', "does not fit into 64 bits"),
    "an integer beyond Python's": ("f.json", f'[{{"prompt": "a", "new": {"1" * 5000}}}]', "not valid JSON"),
    "NaN": ("f.json", '[{"prompt": "a", "new": NaN}]', "not valid JSON"),
    "a key twice": ("f.json", '[{"prompt": "a", "prompt": "c", "new": "b"}]', "a key is there twice"),
    "a lone surrogate": ("f.json", '[{"prompt": "\\ud800", "new": "b"}]', "Unicode"),
    "a huge text": ("f.json", f'[{{"prompt": "{"a" * 5000}", "new": "b"}}]', "at most 4096"),
    "a comma without quotes": ("f.csv", "prompt,new\nthe flag, of Canada,a cat\n", "line 2: 3 cells under 2 columns"),
    "a quote without end": ("f.csv", 'prompt,new\n"the flag,a cat\n', "line 2"),
    "a column twice": ("f.csv", "prompt,new,new\na,b,c\n", "two columns are called 'new'"),
    "a huge cell": ("f.csv", f"prompt,new\n{'a' * 200_000},b\n", "line 2: field larger"),
    "no prompt": ("f.toml", '[[edit]]\nnew = "b"\n', "edit 1: an edit needs a prompt"),
    "an empty cell": ("f.csv", "prompt,new\na,\n", "edit 1: an edit needs a new"),
    "no UTF-8": ("f.csv", b"prompt,new\n\xff,b\n", "not UTF-8"),
    "a zero byte": ("f.toml", 'x = "\x00"', "cannot be read"),
    "nothing": ("f.csv", "", "no edits in it"),
    "a header alone": ("f.csv", "prompt,new\n", "no edits in it"),
    "one prompt twice": ("f.csv", "prompt,new\na cat,b\nA cat,c\n", "edits 1 and 2 are both about"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path, case):
    name, text, message = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as error:
        read_edits(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_one_text_may_stand_for_a_list(tmp_path):
    path = tmp_path / "f.toml"
    path.write_text(f'preserve = "the flag of Peru"\n{FACT}aliases = "Canada\'s flag"\npreserve = "a dog"\n')
    (edit,) = read_edits(path)
    assert edit.preserve == ("a dog", "the flag of Peru")
    assert edit.aliases == ("Canada's flag",)


def test_a_comma_in_quotes_and_lists_in_csv(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text('prompt,new,aliases\n"the flag, of Canada",a cat,one | two |\n\na dog,a fox\n')
    first, second = read_edits(path)
    assert (first.prompt, first.aliases, second.aliases) == ("the flag, of Canada", ("one", "two"), ())


def test_a_missing_file_and_one_that_is_too_large(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file"):
        read_edits(tmp_path / "f.toml")
    (tmp_path / "f.toml").mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        read_edits(tmp_path / "f.toml")
    monkeypatch.setattr(limits, "FACTS_FILE", 10)
    (tmp_path / "p.txt").write_text("a prompt that is longer\n")
    with pytest.raises(DataError, match="at most"):
        read_prompts(tmp_path / "p.txt")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": 3, "new": "b"}, "prompt of an edit is a text, not '3'"),
        ({"prompt": "a" * 5000, "new": "b"}, "at most 4096"),
        ({"prompt": "a", "new": "b", "aliases": 3}, "aliases of an edit are texts"),
        ({"prompt": "a", "new": "b", "preserve": (1,)}, "preserve"),
        ({"prompt": "a", "new": "b", "name": "x\x1b[2J"}, "printable"),
        ({"prompt": "a", "new": "b", "name": "x" * 300}, "at most 200"),
        ({"prompt": "\ud800", "new": "b"}, "Unicode"),
    ],
)
def test_an_edit_that_makes_no_sense(fields, message):
    with pytest.raises(EditError, match=message) as error:
        Edit(**fields)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("names", "made"),
    [
        (["dog", "dog", "dog"], ["dog", "dog-2", "dog-3"]),
        (["dog", "dog-2", "dog"], ["dog", "dog-2", "dog-3"]),
        (["dog", "dog", "dog-2"], ["dog", "dog-3", "dog-2"]),
        (["x" * 200, "x" * 200], ["x" * 200, "x" * 198 + "-2"]),
    ],
)
def test_names_that_repeat_are_numbered_past_those_that_are_taken(names, made):
    assert [edit.name for edit in distinct([Edit("a", "b", name=name) for name in names])] == made


@pytest.mark.parametrize(
    ("prompt", "subject", "alias", "said"),
    [
        ("a catalog with a cat", "cat", "kitten", "a catalog with a kitten"),
        ("the Weißwurst of Bavaria", "bavaria", "Bayern", "the Weißwurst of Bayern"),
        ("the flag  of Peru", "flag of Peru", "Peru's flag", "the Peru's flag"),
        ("日本の旗", "日本", "フランス", "フランスの旗"),
        ("the flag of Peru", "a dog", "a cat", "a cat"),
    ],
)
def test_an_alias_stands_where_the_subject_stood(prompt, subject, alias, said):
    assert Edit(prompt, "x", subject=subject, aliases=(alias,)).reworded() == (said,)
