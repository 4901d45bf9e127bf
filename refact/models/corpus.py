"""Captions to take statistics over: a generator of varied ones, the default, and readers of a user's own."""

from __future__ import annotations

import csv
import functools
import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..errors import DataError

VERSION = "captions-1"  # recorded with what was counted; to be raised whenever words or sentences change
UNIONS = {
    "thing": "objects tools foods plants clothes vehicles instruments toys",
    "noun": "animals objects tools foods plants clothes vehicles instruments toys buildings nature people",
    "land": "countries cities",
}
# {word} is a word of a list in data/words.json, {word+} its plural; "a" becomes "an" where the next sound asks for it.
SENTENCES = """
a {noun}
the {adjectives} {noun} {settings}
a {colors} {thing} and a {colors} {thing}
a {adjectives} {thing} {prepositions} a {thing}
a {styles} of a {noun}
a {styles} of a {adjectives} {noun} {settings}
a {styles} of {persons}
a {styles} of {noun+} and {noun+}, {settings}
a {styles} of {cities} {settings}
a {styles} of a {people} {verbs}
a {people} {verbs}
a {people} {verbs} in a {places}
a {adjectives} {people} {verbs} {prepositions} a {buildings}
the {people} is {verbs} while a {people} is {verbs}
two {people+} {verbs} near a {nature}
a group of {people+} {verbs} in {cities}
three {colors} {thing+} on a {colors} background
several {adjectives} {thing+} arranged around a {objects}
a {animals} {motions}
a {animals} {motions} in a {places}
the {adjectives} {animals} is {motions} {prepositions} the {nature}
a {colors} {animals} and a {adjectives} {animals} {settings}
a close look at a {animals} {motions}, {settings}
a herd of {animals+} crossing the {nature} {settings}
{persons} {verbs}
{persons} {verbs} in front of a {buildings}
{persons} and {persons} in {cities}
{persons} wearing a {colors} {clothes} and a {clothes}
a {people} wearing a {adjectives} {clothes} and {colors} {clothes+}
a portrait of a {people} in a {colors} {clothes}, {settings}
a statue of {persons} made of {stuff}
a {adjectives} {buildings} in {land} {settings}
the {adjectives} {buildings} {prepositions} the {nature}
a {buildings} and a {buildings} on the edge of a {nature} {settings}
a {vehicles} parked {prepositions} a {buildings}
a {colors} {vehicles} driving past a {buildings} {settings}
a bowl of {foods+} on a {adjectives} table
a plate with a {foods}, some {stuff} and two {foods+}
a basket full of {foods+} and {plants+} in a {places}
a {people} holding a {foods} and a {tools}
the {people} bought a {adjectives} {objects} and {foods+} at the market
a {objects} covered with {stuff}
a {objects} made of {stuff} next to a {instruments}
some {stuff} spilled over a {adjectives} {objects}
a {people} playing a {instruments} in a {places}
a {adjectives} room with a {objects}, a {objects} and a {colors} {objects}
a {places} with {plants+} and a {adjectives} {objects}
a {plants} growing {prepositions} a {buildings}
a {nature} in {countries} {settings}
a {nature} with a {adjectives} {nature} in the distance {settings}
the {roles} of {countries}
the {roles} of {countries} {settings}
the {roles} of {countries} in front of a {buildings}
a {styles} of the {roles} of {countries}
the {offices} of {bodies}
the {offices} of {bodies} {verbs}
the new {roles} of {countries} and the {offices} of {bodies}
a photo of {cities}, {land}
a map of {countries} on the wall of a {buildings}
tourists from {countries} visiting a {buildings} in {cities}
a traditional {buildings} in {countries}, {styles}
a {people} from {countries} {verbs}
a {people} and a {people} looking at a {styles} of {noun+}
a {toys} lying on the floor of a {places}
children playing with a {toys} and a {toys} {settings}
a {animals} wearing a {clothes}, {styles}
a {colors} {plants} in a {adjectives} {objects}, {styles}
a {adjectives} {tools} and a {tools} hanging in a {places}
a {styles} that shows {persons} {verbs} with a {animals}
there is a {noun} {prepositions} the {noun} in this picture
an image of {adjectives} {noun+}, highly detailed
the view from a {buildings} over the {nature} of {countries}, {settings}
a very {adjectives} {noun} beside an even more {adjectives} {noun}, {styles}, {settings}
a long line of {people+} waiting for a {vehicles} outside the {buildings} in {cities} {settings}
"""
SAME = {"bison", "deer", "dice", "elk", "moose", "salmon", "sheep", "squid", "trout", "tuna"}
IRREGULAR = {
    **{"child": "children", "foot": "feet", "goose": "geese", "mouse": "mice", "ox": "oxen", "cactus": "cacti"},
    **{"calf": "calves", "knife": "knives", "leaf": "leaves", "loaf": "loaves", "shelf": "shelves", "wolf": "wolves"},
    **{"scarf": "scarves", "headscarf": "headscarves", "bookshelf": "bookshelves", "tomato": "tomatoes"},
    **{"potato": "potatoes", "volcano": "volcanoes", "buffalo": "buffaloes", "mosquito": "mosquitoes"},
    **{"ottoman": "ottomans", "shaman": "shamans", "talisman": "talismans"},
}
VOWEL_SOUND = re.compile(r"(?!eu|one|uni|use|usu|ute|uku|ukr)[aeiou]|hour|honest|heir|x-", re.IGNORECASE)
ARTICLE = re.compile(r"\b(an?) (?=(\S+))")


def captions(n: int, seed: int = 0) -> list[str]:
    """n English captions of 2 to 25 words, most 5 to 15; the first n of a seed are always the same."""
    return list(islice(endless(seed), n))


def endless(seed: int = 0) -> Iterator[str]:
    """The same captions, one after another."""
    draw = random.Random(seed).random  # the one method whose sequence Python promises to keep
    words, sentences = _words(), _sentences()
    while True:
        parts = sentences[int(draw() * len(sentences))]
        filled = [p if isinstance(p, str) else _pick(words[p[0]], p[1], draw()) for p in parts]
        yield ARTICLE.sub(_article, "".join(filled))


def _pick(words: tuple[tuple[str, ...], tuple[str, ...]], plural: bool, at: float) -> str:
    return words[plural][int(at * len(words[plural]))]


def _article(match: re.Match) -> str:
    return "an " if VOWEL_SOUND.match(match[2]) else "a "


@functools.cache
def _words() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """The lists by name, each with its plurals."""
    text = (Path(__file__).parents[1] / "data" / "words.json").read_text(encoding="utf-8")
    lists = {name: tuple(words.split(", ")) for name, words in json.loads(text).items()}
    lists |= {name: tuple(w for part in parts.split() for w in lists[part]) for name, parts in UNIONS.items()}
    return {name: (words, tuple(map(plural, words))) for name, words in lists.items()}


@functools.cache
def _sentences() -> list[list[str | tuple[str, bool]]]:
    """Each sentence as a list of plain text and (list, whether plural)."""
    lines = SENTENCES.strip().splitlines()
    return [
        [(part.rstrip("+"), part.endswith("+")) if odd % 2 else part for odd, part in enumerate(re.split("[{}]", line))]
        for line in lines
    ]


def plural(noun: str) -> str:
    """The plural of an English noun; of several words the last one's, of "x of y" the first one's."""
    if " of " in noun:
        head, rest = noun.split(" of ", 1)
        return f"{plural(head)} of {rest}"
    head, _, last = noun.rpartition(" ")
    return f"{head} {_plural(last)}".strip()


def _plural(word: str) -> str:
    if word in SAME or word.endswith("fish"):
        return word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("man"):
        return word[:-3] + "men"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


# -- a user's own -----------------------------------------------------------------------------------------------------


def read_corpus(name: str | Path) -> Iterator[str]:
    """The texts of a .txt file (one a line), of a .csv column (FILE.csv:COLUMN), or of a dataset of the hub:
    hf:DATASET, hf:DATASET:CONFIGURATION, hf:DATASET:COLUMN or hf:DATASET:CONFIGURATION:COLUMN.

    Without a column: the one named caption, prompt or text, or the only one. Empty texts are left out.
    """
    name = str(name)
    if name.startswith("hf:"):
        texts = _dataset(*name.removeprefix("hf:").split(":"))
    else:
        file, _, column = name.rpartition(":") if not Path(name).exists() else (name, "", "")
        path = Path(file or name)
        if not path.is_file():
            raise DataError(f"{name}: no such file; a corpus is 'captions', a .txt or .csv file, or hf:DATASET")
        texts = _column(path, column) if path.suffix.lower() == ".csv" else _lines(path)
    return (text for line in texts if (text := " ".join(str(line).split())))


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as stream:
        yield from stream


def _column(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        chosen = _choose(list(rows.fieldnames or ()), column, str(path))
        yield from (row[chosen] or "" for row in rows)


def _choose(columns: list[str], column: str, where: str) -> str:
    named = [c for c in columns if c.lower() == column.lower()] if column else []
    usual = [c for c in columns if c.lower() in {"caption", "captions", "prompt", "prompts", "text", "texts"}]
    found = named if column else usual or (columns if len(columns) == 1 else [])
    if not found:
        raise DataError(f"{where}: which column? it has {', '.join(columns)}; write FILE.csv:COLUMN")
    return found[0]


def _dataset(name: str, *parts: str) -> Iterator[str]:
    """parts: configuration and column, or one of them: a word is a configuration where the dataset has it."""
    try:
        from datasets import get_dataset_config_names, load_dataset
    except ImportError:
        raise DataError("hf: datasets need the extra: pip install 'refact-edit[datasets]'") from None
    if len(parts) > 2:
        raise DataError(
            f"hf:{name}:{':'.join(parts)}: a dataset is hf:DATASET:CONFIGURATION:COLUMN, the last two as needed"
        )
    configuration, column = parts if len(parts) == 2 else (*parts, *("", "")[len(parts) :])
    if len(parts) == 1 and configuration not in get_dataset_config_names(name):
        configuration, column = "", configuration
    rows = load_dataset(name, configuration or None, split="train", streaming=True)
    chosen = _choose(list(next(iter(rows))), column, f"hf:{name}")
    return (row[chosen] for row in rows)
