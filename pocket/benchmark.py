"""The pocket's own benchmarks in RoAD's and TIMED's columns, drawn from its world with fixed seeds.

python -m pocket.benchmark FOLDER writes pocket-{road,timed,abstract,composite}{,-validation}.csv there; `pocket.export`
ships them. Nothing of the model is asked: no row is there because a method, or the model, does well on it. What
`evidence.cases.hints` tells a method of a subject is left out of the negatives, and the wording that it holds back is
among the positives.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refact.evidence.cases import hints

from .world import KIND, article, make

SEED = 4
VALIDATION = 10  # rows of each form
FLAGS = 18  # rows about flags in RoAD's form; the roles give the others
ATTRIBUTES = 62  # objects with an attribute row for test; some of them
TWICE = 8  # have a second row with another colour, as TIMED's have
PLAIN = ("a photo of", "a picture of", "a painting of", "a drawing of")  # prefixes that change no pixel
USED = ("red", "green", "blue", "purple", "pink")  # yellow and grey are near to so many things that no row uses them
OWN_FILE = Path(__file__).parent / "own_colours.json"  # colours too near to what a thing is anyhow: pocket.tints

ROAD = ["Type", "Prompt", "Oracle", "Old", "New"]
ROAD += [f"Positive{part}{i}" for i in range(1, 6) for part in ("", "_oracle", "_old", "_new")]
ROAD += [f"Negative{part}{i}" for i in range(1, 6) for part in ("", "_new")]
TIMED = ["old", "new"]
TIMED += [
    f"{name}{i}"
    for one, other in (("positive", "gt"), ("negative", "gn"))
    for i in range(1, 6)
    for name in (one, other)
]


@dataclass(frozen=True)
class World:
    """The world by ids."""

    concepts: Mapping[str, Mapping]
    places: Sequence[str]
    colours: Sequence[str]
    held_out: frozenset[tuple[str, str]]  # (thing, place), (thing, style), (thing, colour) in no training scene

    def kind(self, *kinds: str) -> list[Mapping]:
        """The concepts of these kinds, in the file's order."""
        return [c for c in self.concepts.values() if c["kind"] in kinds]

    def thing(self, concept: Mapping) -> Mapping:
        """What a concept shows."""
        return self.concepts[concept.get("depicts", concept["id"])]


def read_world(form: Mapping | None = None) -> World:
    """The world of the scripts, or the one given."""
    form = form or make()
    lists = (form.get(name, ()) for name in ("held_out", "held_out_styles", "held_out_colours"))
    held_out = frozenset(tuple(pair) for pairs in lists for pair in pairs)
    return World({c["id"]: c for c in form["concepts"]}, form["places"], form["colours"], held_out)


def first(concept: Mapping) -> str:
    """Its canonical wording."""
    return concept["wordings"][0]


# -- roles and appearances ---------------------------------------------------------------------------------------------


def road(world: World, seed: int = SEED) -> tuple[list[dict], list[dict]]:
    """The validation and the test rows in RoAD's form: a row for every role, and some for flags."""
    rng = random.Random(seed)
    lands = {c["country"] for c in world.kind("role")}
    flags = rng.sample([c for c in world.kind("flag") if c["country"] in lands], FLAGS)
    rows = [row for c in _shuffled(rng, world.kind("role")) if (row := role_row(world, c, rng))]
    looks = [row for c in flags if (row := flag_row(world, c, rng))]
    few = VALIDATION // 4
    return rows[: VALIDATION - few] + looks[:few], rows[VALIDATION - few :] + looks[few:]


def role_row(world: World, role: Mapping, rng: random.Random) -> dict | None:
    """A role that shall show another thing of its thing's group; None where the world has too few negatives."""
    source = world.thing(role)
    others = [c for c in world.kind("object", "named") if c["group"] == source["group"] and c["id"] != source["id"]]
    target = rng.choice([c for c in others if c["id"] not in (*source["neighbours"], *_siblings_shown(world, role))])
    same = [c for c in world.kind("role") if c["relation"] == role["relation"] and c["id"] != role["id"]]
    other = [c for c in world.kind("role") if c["relation"] != role["relation"] and c["country"] != role["country"]]
    siblings = _shuffled(rng, same) + _shuffled(rng, other)
    land = [c for c in _at_home(world, role) if c["id"] != role["id"]]
    alike = [world.concepts[i] for i in source["neighbours"]]
    found = negatives(world, role, target, [[source], siblings, siblings, alike, land])
    return found and _road_row("Role", world, role, source, target, found, rng)


def flag_row(world: World, flag: Mapping, rng: random.Random) -> dict | None:
    """A flag that shall look like another."""
    others = _shuffled(
        rng, [c for c in world.kind("flag") if c["id"] != flag["id"] and c["id"] not in flag["neighbours"]]
    )
    target, near = others[0], [world.concepts[i] for i in flag["neighbours"]]
    land = [c for c in _at_home(world, flag) if c["kind"] == "role"]
    things = _shuffled(rng, world.kind("object"))
    found = negatives(world, flag, target, [near, others, others, land, things])
    return found and _road_row("Appearance", world, flag, flag, target, found, rng)


def _siblings_shown(world: World, role: Mapping) -> list[str]:
    """The things of the roles next to this one: as targets they would leave it no siblings to keep."""
    return [world.thing(world.concepts[i])["id"] for i in role["neighbours"] if world.concepts[i]["kind"] == "role"]


def _at_home(world: World, concept: Mapping) -> list[Mapping]:
    """All that ends in the same country's name."""
    last = first(concept).split()[-1]
    return [c for c in world.concepts.values() if c["kind"] != "object" and first(c).split()[-1] == last]


def negatives(
    world: World, subject: Mapping, target: Mapping, wanted: Iterable[Sequence[Mapping]]
) -> list[Mapping] | None:
    """One concept from each list: not told to methods, not the subject, not showing the target, none twice."""
    protected = set(hints(first(subject), {"concepts": list(world.concepts.values())})[1])
    chosen: list[Mapping] = []
    for candidates in wanted:
        free = [c for c in candidates if first(c) not in protected and c not in chosen and c["id"] != subject["id"]]
        free = [c for c in free if world.thing(c)["id"] != world.thing(target)["id"]]
        if not free:
            return None
        chosen.append(free[0])
    return chosen


def _road_row(
    kind: str,
    world: World,
    subject: Mapping,
    source: Mapping,
    target: Mapping,
    kept: Sequence[Mapping],
    rng: random.Random,
) -> dict:
    old, new = first(source), first(target)
    row = {"Type": kind, "Prompt": first(subject), "Oracle": new, "Old": old, "New": new}
    for i, (wording, frame) in enumerate(framed(world, subject, (source, target), rng), 1):
        row[f"Positive{i}"] = frame.format(wording)
        row[f"Positive_oracle{i}"] = row[f"Positive_new{i}"] = frame.format(new)
        row[f"Positive_old{i}"] = frame.format(old if source is not subject else wording)
    for i, concept in enumerate(kept, 1):
        row |= {f"Negative{i}": first(concept), f"Negative_new{i}": new}
    return row


def framed(world: World, subject: Mapping, things: Sequence[Mapping], rng: random.Random) -> list[tuple[str, str]]:
    """Five (wording, frame with a {}): places, a pair, a prefix; the last wording is the one no method is told."""
    one, *others = subject["wordings"]
    untold, told = (others[-1], others[0]) if others else (one, one)
    a, b, c = rng.sample([p for p in world.places if all((t["id"], p) not in world.held_out for t in things)], 3)
    taken = {t["group"] for t in things}
    beside = rng.choice([o for o in world.kind("object") if o["group"] not in taken])
    prefix = rng.choice(PLAIN)
    pair = "{} and " + first(beside)
    return [(one, f"{{}} {a}"), (untold, f"{prefix} {{}}"), (untold, f"{{}} {b}"), (one, pair), (told, f"{{}} {c}")]


# -- attributes --------------------------------------------------------------------------------------------------------


def timed(world: World, seed: int = SEED) -> tuple[list[dict], list[dict]]:
    """The validation and the test rows in TIMED's form: things that shall be of a colour."""
    rng = random.Random(seed)
    things = _shuffled(rng, [c for c in world.kind("object") if len(tints(world, c)) > 1])
    things = things[: VALIDATION + ATTRIBUTES]
    colours = {c["id"]: rng.sample(tints(world, c), 2) for c in things}
    rows = [row for c in things if (row := colour_row(world, c, colours[c["id"]][0], rng))]
    again = [row for c in things[VALIDATION:] if (row := colour_row(world, c, colours[c["id"]][1], rng))][:TWICE]
    return rows[:VALIDATION], rows[VALIDATION:] + again


@functools.cache
def own_colours() -> dict[str, list[str]]:
    """Thing -> the used colours that are its own."""
    return json.loads(OWN_FILE.read_text(encoding="utf-8"))


def tints(world: World, thing: Mapping) -> list[str]:
    """The colours that are news for a thing."""
    old = (*own_colours()[thing["id"]], *(c for one, c in world.held_out if one == thing["id"]))
    return [c for c in world.colours if c in USED and c not in old]


def colour_row(world: World, thing: Mapping, colour: str, rng: random.Random) -> dict | None:
    """A thing that shall be of a colour; other things, look-alikes first, shall not."""
    nouns = {c["id"]: c["noun"] for c in world.kind("object")}
    a, b = rng.sample([p for p in world.places if (thing["id"], p) not in world.held_out], 2)
    objects = _shuffled(rng, [c for c in world.kind("object") if colour in tints(world, c)])
    beside = next(c for c in objects if c["group"] != thing["group"])
    same_end = [c for c in objects if nouns[c["id"]].split()[-1] == nouns[thing["id"]].split()[-1]]
    group = [c for c in objects if c["group"] == thing["group"]]
    near = [world.concepts[i] for i in thing["neighbours"] if colour in tints(world, world.concepts[i])]
    rest = [c for c in objects if c is not beside]
    kept = negatives(world, thing, thing, [near + group + rest, near + group + rest, same_end + rest, rest, rest])
    if kept is None:
        return None
    frames = [(thing["noun"], f"{{}} {a}"), (thing["noun"], f"{rng.choice(PLAIN)} {{}}{KIND}")]
    frames += [
        (f"small {thing['noun']}", "{}"),
        (thing["noun"], "{} and " + first(beside)),
        (thing["noun"], f"{{}} {b}"),
    ]
    row = {"old": first(thing), "new": coloured(thing["noun"], colour)}
    for i, (noun, frame) in enumerate(frames, 1):
        row |= {f"positive{i}": frame.format(article(noun)), f"gt{i}": frame.format(coloured(noun, colour))}
    for i, concept in enumerate(kept, 1):
        row |= {f"negative{i}": first(concept), f"gn{i}": coloured(concept["noun"], colour)}
    return row


def coloured(noun: str, colour: str) -> str:
    """ "small apple", "blue" -> "a small blue apple"."""
    size, _, rest = noun.partition(" ")
    return article(f"small {colour} {rest}" if size == "small" else f"{colour} {noun}")


# -- files -------------------------------------------------------------------------------------------------------------


def _shuffled(rng: random.Random, items: Iterable) -> list:
    items = list(items)
    return rng.sample(items, len(items))


def text_of(rows: Sequence[Mapping], columns: Sequence[str]) -> str:
    """The rows as csv."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def files(world: World) -> dict[str, str]:
    """name -> csv text of the eight files."""
    from .abstract import COMPOSITE, abstract, composite

    found = {}
    made = (
        ("road", road(world), ROAD), ("timed", timed(world), TIMED), ("abstract", abstract(world), ROAD),
        ("composite", composite(world), COMPOSITE),
    )  # fmt: skip
    for name, halves, columns in made:
        for end, rows in zip(("-validation", ""), halves):
            found[f"pocket-{name}{end}.csv"] = text_of(rows, columns)
    return found


def write(folder: Path) -> dict[str, int]:
    """Write the files; how many rows each has."""
    made = files(read_world())
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: len(text.splitlines()) - 1 for name, text in made.items()}


if __name__ == "__main__":
    print(json.dumps(write(Path(sys.argv[1])), indent=1))
