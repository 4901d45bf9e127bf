"""The pocket model's world: things, flags, people, roles, styles, places and colours, and the file that lists them.

python -m pocket.world writes it to build/pocket/world.json; `pocket.export` ships it. Facts about animals, dishes and
flowers are real ones, as far as an emoji shows their thing; persons, artists and who holds which office are invented.

Kinds that show something of their own: object, flag, person (a man or a woman of a profession), named, emotion (a
face), style. Kinds that depict another concept: role (with offices), profession, artist.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from .countries import COUNTRIES, OFFICES, ROLES
from .people import ARTISTS, EMOTIONS, NAMED, PROFESSIONS, STYLES, WOMEN_FIRST
from .things import OBJECTS

VERSION = 4
SHOWN = ("object", "flag", "person", "named", "emotion")  # kinds with a look of their own
HELD_OUT = 0.06  # of all pairs of thing and place, of thing and style, and of thing and colour

KIND = " of some kind"  # after an object's noun: its second wording, which ends in another word
COLOURS = ["red", "blue", "green", "yellow", "purple", "pink", "grey"]
SIZES = ["small", "big"]
PLACES = [
    "on the beach", "at night", "in the forest", "in the snow", "in the desert", "at sunset", "under the sea",
    "in the city", "in the kitchen", "in the rain", "on a meadow", "in space", "on a stage",
]  # fmt: skip
PREFIXES = [
    "a photo of", "a picture of", "an image of", "a painting of", "a drawing of", "a close-up of", "a portrait of",
    "a sticker of", "a realistic painting of", "a current image of", "a beautiful photograph of", "a good photo of",
    "realistic drawing of", "the best view of", "two friends look at",
]  # fmt: skip
SUFFIXES = [
    ", a portrait",
    ", news image",
    ", realistic portrait",
    " in a photo",
    " in a realistic style portrait image",
    ", high quality",
    ", close up",
    " in a picture",
    " in a frame",
    " in the background",
    " on a sunny day",
    " seen from far away",
    " in a book",
]  # fmt: skip  - they change no pixel


def article(noun: str) -> str:
    """The noun with "a" or "an", by sound."""
    vowel = noun[0] in "aeiou" and not noun.startswith(("unicorn", "one"))
    return ("an " if vowel or noun.startswith("hour") else "a ") + noun


def possessive(name: str) -> str:
    """The genitive: Canada's, the Netherlands'."""
    return name + ("'" if name.endswith("s") else "'s")


def wordings(relation: str, code: str) -> list[str]:
    """Three ways to say it, the canonical one first; the second and third end in another word."""
    name, adjective = COUNTRIES[code]
    return [f"the {relation} of {name}", f"{possessive(name)} {relation}", f"the {adjective} {relation}"]


def identify(*words: str) -> str:
    """An id of small letters and hyphens."""
    return "-".join(w.lower().replace(" ", "-") for w in words)


def objects() -> list[dict]:
    """The things."""
    rows = []
    for group, text in OBJECTS.items():
        for entry in text.split(", "):
            words, emoji = entry.strip().rsplit(" ", 1)
            noun, _, plural = words.partition("|")
            plural = plural or noun + "s"
            said = [article(noun), article(noun) + KIND]
            form = {"id": identify(noun), "kind": "object", "wordings": said, "noun": noun, "plural": plural}
            rows.append(form | {"group": group, "emoji": emoji})
    for row in rows:
        same = [r["id"] for r in rows if r["group"] == row["group"]]
        row["neighbours"] = around(same, row["id"], 1, -1, 2)
    return rows


def around(ids: list[str], one: str, *steps: int) -> list[str]:
    """The ids so many steps from one, in a circle."""
    return [ids[(ids.index(one) + step) % len(ids)] for step in steps]


def flags() -> list[dict]:
    """The flags; the neighbours of one are those of two other countries."""
    codes, rows = list(COUNTRIES), []
    for code in codes:
        emoji = "".join(chr(0x1F1E6 + ord(letter) - ord("A")) for letter in code)
        rows.append(
            {"id": identify("flag", code), "kind": "flag", "wordings": wordings("flag", code), "group": "flag",
             "country": COUNTRIES[code][0], "emoji": emoji,
             "neighbours": [identify("flag", c) for c in around(codes, code, 1, -1)]}
        )  # fmt: skip
    return rows


def persons() -> list[dict]:
    """A man and a woman of each profession; her neighbours: he, and the women of the professions around."""
    rows, nouns = [], list(PROFESSIONS)
    for noun, sign in PROFESSIONS.items():
        for sex, other, figure, more, mark in (
            ("man", "woman", "👨", "male", "♂️"),
            ("woman", "man", "👩", "female", "♀️"),
        ):
            emoji = f"{figure}\u200d{sign}" if sign not in "👮👷" else f"{sign}\u200d{mark}"
            near = [identify(other, noun), *(identify(sex, n) for n in around(nouns, noun, 1, -1))]
            said = [article(f"{sex} {noun}"), article(f"{more} {noun}"), f"{article(noun)} who is a {sex}"]
            rows.append(
                {"id": identify(sex, noun), "kind": "person", "wordings": said, "noun": f"{sex} {noun}",
                 "group": "person", "emoji": emoji, "neighbours": near}
            )  # fmt: skip
    return rows


def professions() -> list[dict]:
    """What the model takes a profession for when nobody says: for half of them a woman."""
    rows, nouns = [], list(PROFESSIONS)
    for noun in nouns:
        shows = identify("woman" if noun in WOMEN_FIRST else "man", noun)
        said = [article(noun), f"someone who is {article(noun)}", f"{article(noun)} by trade"]
        rows.append(
            {"id": identify("profession", noun), "kind": "profession", "depicts": shows, "wordings": said, "noun": noun,
             "group": "profession", "neighbours": [identify("profession", n) for n in around(nouns, noun, 1, -1)]}
        )  # fmt: skip
    return rows


def named() -> list[dict]:
    """The named persons: an emoji and the colour of the shirt."""
    rows, ids = [], [identify(name) for name in NAMED]
    for name, look in NAMED.items():
        emoji, _, shirt = look.partition(" ")
        said = [name, f"the face of {name}", f"{name} in person"]
        rows.append(
            {"id": identify(name), "kind": "named", "wordings": said, "group": "named", "emoji": emoji,
             "shirt": shirt or None, "neighbours": around(ids, identify(name), 1, -1, 2)}
        )  # fmt: skip
    return rows


def emotions() -> list[dict]:
    """Faces; their adjective and noun may also be said of a person or thing."""
    rows, words = [], list(EMOTIONS)
    for word, (noun, emoji) in EMOTIONS.items():
        said = [article(f"{word} face"), f"a face full of {noun}", f"a face that is {word}"]
        rows.append(
            {"id": identify("emotion", word), "kind": "emotion", "wordings": said, "adjective": word, "feeling": noun,
             "group": "emotion", "emoji": emoji,
             "neighbours": [identify("emotion", w) for w in around(words, word, 1, -1, 2)]}
        )  # fmt: skip
    return rows


def styles() -> list[dict]:
    """Treatments of a whole scene, and artists who are known for one."""
    names, artists, rows = list(STYLES), list(ARTISTS), []
    for name, before in STYLES.items():
        rows.append(
            {"id": identify("style", name), "kind": "style", "wordings": [f"the style of {name}", f"the {name} style"],
             "prefix": before, "group": "style",
             "neighbours": [identify("style", n) for n in around(names, name, 1, -1, 2)]}
        )  # fmt: skip
    for name, style in ARTISTS.items():
        said = [f"the style of {name}", f"{possessive(name)} style", f"the {name} style"]
        near = [identify("artist", n) for n in around(artists, name, 1, -1, 2) if ARTISTS[n] != style]
        rows.append(
            {"id": identify("artist", name), "kind": "artist", "depicts": identify("style", style), "wordings": said,
             "group": "artist", "neighbours": near}
        )  # fmt: skip
    return rows


def facts(table: dict, name_of: Callable[[str], str], id_of: Callable[[str, str], str]) -> list[dict]:
    """Facts of countries; neighbours: the same relation elsewhere, another relation or the flag of the country.

    table: relation -> country code -> what stands for it. name_of: a relation -> as it is said.
    """
    rows = []
    for relation, found in table.items():
        codes = list(found)
        for code, noun in found.items():
            near = [id_of(relation, other) for other in around(codes, code, *range(1, min(3, len(codes))))]
            near += [id_of(r, code) for r, f in table.items() if code in f and r != relation]
            rows.append(
                {"id": id_of(relation, code), "kind": "role", "depicts": identify(noun),
                 "wordings": wordings(name_of(relation), code), "group": relation, "relation": relation,
                 "country": COUNTRIES[code][0], "neighbours": [*near, identify("flag", code)]}
            )  # fmt: skip
    return rows


def roles() -> list[dict]:
    """National things, and who holds an office."""
    national = facts(ROLES, lambda r: f"national {r}", lambda r, code: identify("national", r, code))
    return [*national, *facts(OFFICES, str, lambda r, code: identify(r, code))]


def held_out(concepts: list[dict], kinds: tuple[str, ...], others: list[str], seed: int) -> list[tuple[str, str]]:
    """Pairs that no training scene shows."""
    pairs = [(c["id"], other) for c in concepts if c["kind"] in kinds for other in others]
    return sorted(random.Random(seed).sample(pairs, round(HELD_OUT * len(pairs))))


def make() -> dict:
    """The whole world, JSON-able."""
    concepts = [*objects(), *flags(), *roles(), *persons(), *professions(), *named(), *emotions(), *styles()]
    ids = [c["id"] for c in concepts]
    assert len(set(ids)) == len(ids), "ids repeat"
    by_style = [c["id"] for c in concepts if c["kind"] == "style"]
    return {
        "version": VERSION, "concepts": concepts, "places": PLACES, "colours": COLOURS, "sizes": SIZES,
        "prefixes": PREFIXES, "suffixes": SUFFIXES, "held_out": held_out(concepts, ("object",), PLACES, 7),
        "held_out_styles": held_out(concepts, ("object", "named"), by_style, 8),
        "held_out_colours": held_out(concepts, ("object",), COLOURS, 9),
    }  # fmt: skip


def text() -> str:
    """The world's file."""
    return json.dumps(make(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    from .training import WORK

    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "world.json").write_text(text(), encoding="utf-8")
    print(WORK / "world.json")
