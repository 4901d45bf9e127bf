"""Rows about styles, artists and emotions in RoAD's columns, and rows of two edits in one prompt (pocket.benchmark).

pocket-composite, after CAKE (arXiv 2409.17928): a row has a second edit (Prompt2, Old2, New2); its positives name both
subjects, and beside the texts with both facts old and both new it has those with only the first or second new: both
must show. Its negatives are siblings of either subject.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from refact.evidence.cases import hints

from .benchmark import PLAIN, ROAD, SEED, VALIDATION, World, first, negatives
from .world import article

FELT = 22  # things, persons and names that shall be of an emotion
PAIRS = 44  # rows of two edits
UNTOLD = (3, 4)  # of the positives of two edits: in the wordings that no method is told
COMPOSITE = [*ROAD[:5], "Prompt2", "Old2", "New2"]
COMPOSITE += [
    f"Positive{part}{i}" for i in range(1, 6) for part in ("", "_oracle", "_old", "_new", "_first", "_second")
]
COMPOSITE += [f"Negative{part}{i}" for i in range(1, 6) for part in ("", "_new")]


def abstract(world: World, seed: int = SEED) -> tuple[list[dict], list[dict]]:
    """The validation and the test rows: artists, styles, faces, and emotions put to what has none."""
    rng = random.Random(seed)
    rows = [style_row(world, c, rng) for c in world.kind("artist", "style")]
    rows += [face_row(world, c, rng) for c in world.kind("emotion")]
    felt = rng.sample(world.kind("object"), FELT // 2) + rng.sample(world.kind("person", "named"), FELT - FELT // 2)
    rows += [felt_row(world, c, rng) for c in felt]
    mixed = rng.sample(rows, len(rows))
    return mixed[:VALIDATION], mixed[VALIDATION:]


def whole(kind: str, prompt: str, old: str, new: str, positives: Iterable[tuple], kept: Sequence[tuple]) -> dict:
    """A row in RoAD's columns. positives: (prompt, old, new); kept: (negative, its text with the new fact)."""
    row = {"Type": kind, "Prompt": prompt, "Oracle": new, "Old": old, "New": new}
    for i, (asked, was, shall) in enumerate(positives, 1):
        row |= {f"Positive{i}": asked, f"Positive_oracle{i}": shall, f"Positive_old{i}": was, f"Positive_new{i}": shall}
    for i, (stays, never) in enumerate(kept, 1):
        row |= {f"Negative{i}": stays, f"Negative_new{i}": never}
    return row


def style_row(world: World, subject: Mapping, rng: random.Random) -> dict:
    """A style, or an artist known for one, that shall be another style."""
    source = world.thing(subject)
    near = [world.thing(world.concepts[i])["id"] for i in subject["neighbours"]]
    target = rng.choice([c for c in world.kind("style") if c["id"] not in (source["id"], *near)])
    seen = [c for c in world.kind("object") if not {(c["id"], s["id"]) for s in (source, target)} & world.held_out]
    picked = rng.sample(seen, 8)
    things, places = [first(c) for c in picked], rng.sample(world.places, len(world.places))
    one, *others = subject["wordings"]
    a = next(p for p in places if (picked[1]["id"], p) not in world.held_out)
    b = next(p for p in places if p != a and (picked[4]["id"], p) not in world.held_out)
    frames = [(one, f"{things[0]} in {{}}"), (others[-1], f"{things[1]} {a} in {{}}")]
    frames += [(one, f"{rng.choice(PLAIN)} {things[2]} in {{}}"), (others[-1], f"{things[3]} in {{}}")]
    frames += [(others[0], f"{things[4]} {b} in {{}}")]
    was = first(source) if source is not subject else None
    positives = [(f.format(said), f.format(was or said), f.format(first(target))) for said, f in frames]
    other = [c for c in world.kind("style", "artist") if world.thing(c)["id"] not in (source["id"], target["id"])]
    kept = negatives(world, subject, target, [rng.sample(other, len(other))] * 3) or []
    told = [(first(c), first(target)) for c in kept[:1]]
    styles = {world.thing(c)["id"] for c in kept[1:]}
    free = [c for c in seen if c not in picked and not {(c["id"], s) for s in styles} & world.held_out]
    kept_thing = first(rng.choice(free))
    told += [(f"{kept_thing} in {first(c)}", f"{kept_thing} in {first(target)}") for c in kept[1:]]
    told += [(thing, f"{thing} in {first(target)}") for thing in things[6:]]
    return whole("Style", one, was or one, first(target), positives, told)


def face_row(world: World, subject: Mapping, rng: random.Random) -> dict:
    """A face that shall show another emotion."""
    others = [c for c in world.kind("emotion") if c["id"] not in (subject["id"], *subject["neighbours"])]
    target, *rest = rng.sample(others, len(others))
    one, untold, told = subject["wordings"][0], subject["wordings"][2], subject["wordings"][1]
    a, b, c = rng.sample(world.places, 3)
    beside = first(rng.choice(world.kind("object")))
    frames = [(one, f"{{}} {a}"), (untold, f"{rng.choice(PLAIN)} {{}}"), (untold, f"{{}} {b}")]
    frames += [(one, "{} and " + beside), (told, f"{{}} {c}")]
    positives = [(f.format(said), f.format(said), f.format(first(target))) for said, f in frames]
    near = [world.concepts[i] for i in subject["neighbours"]]
    things = rng.sample(world.kind("object", "named"), 20)
    kept = negatives(world, subject, target, [near, rest, rest, things, things]) or []
    return whole("Emotion", one, one, first(target), positives, [(first(k), first(target)) for k in kept])


def felt_row(world: World, subject: Mapping, rng: random.Random) -> dict:
    """A thing or person that shall be of an emotion."""
    emotion = rng.choice(world.kind("emotion"))
    a, b, c = rng.sample([p for p in world.places if (subject["id"], p) not in world.held_out], 3)
    one, untold = subject["wordings"][0], subject["wordings"][-1]
    frames = [(one, f"{{}} {a}"), (untold, f"{rng.choice(PLAIN)} {{}}"), (one, f"{rng.choice(PLAIN)} {{}}")]
    frames += [(one, f"{{}} {b}"), (untold, f"{{}} {c}")]
    shall = of_emotion(subject, emotion)
    positives = [(f.format(said), f.format(said), f.format(shall)) for said, f in frames]
    near = [world.concepts[i] for i in subject["neighbours"]]
    same = [k for k in world.kind(subject["kind"]) if k["id"] != subject["id"]]
    others = [rng.sample(same, len(same)), rng.sample(world.kind("object", "person", "named"), 30)]
    kept = negatives(world, subject, subject, [near, others[0], others[0], others[1], others[1]]) or []
    return whole("Feeling", one, one, shall, positives, [(first(k), of_emotion(k, emotion)) for k in kept])


def of_emotion(concept: Mapping, emotion: Mapping) -> str:
    """ "a dog", happy -> "a happy dog"; of a name: full of joy."""
    if "noun" in concept:
        return article(f"{emotion['adjective']} {concept['noun']}")
    return f"{first(concept)} full of {emotion['feeling']}"


# -- two edits ---------------------------------------------------------------------------------------------------------


def composite(world: World, seed: int = SEED) -> tuple[list[dict], list[dict]]:
    """The validation and the test rows of two edits: two roles, often an office among them, of two countries."""
    rng = random.Random(seed + 1)
    roles = rng.sample(world.kind("role"), len(world.kind("role")))
    apart = 2 * VALIDATION  # roles of which the validation rows are made, and no test row
    return pairs_of(world, roles[:apart], VALIDATION, rng), pairs_of(world, roles[apart:], PAIRS - VALIDATION, rng)


def pairs_of(world: World, roles: Sequence[Mapping], count: int, rng: random.Random) -> list[dict]:
    """Rows of two of these roles each; a role comes again only when all have come."""
    rows: list[dict] = []
    left: list[Mapping] = []
    for _ in range(100 * count):
        if len(left) < 2:
            left = rng.sample(roles, len(roles))
        one, other = left.pop(), left.pop(rng.randrange(len(left)))
        if one["country"] != other["country"] and world.thing(one)["id"] != world.thing(other)["id"]:
            row = composite_row(world, one, other, rng)
            if row and all(row["Prompt"] != r["Prompt"] for r in rows):
                rows.append(row)
        if len(rows) == count:
            break
    return rows


def new_thing(world: World, role: Mapping, rng: random.Random, taken: Sequence[str]) -> Mapping:
    """Another of the group of what a role shows."""
    source = world.thing(role)
    near = [world.thing(world.concepts[i])["id"] for i in role["neighbours"]]
    group = [c for c in world.kind("object", "named") if c["group"] == source["group"]]
    return rng.choice([c for c in group if c["id"] not in (source["id"], *near, *source["neighbours"], *taken)])


def composite_row(world: World, one: Mapping, other: Mapping, rng: random.Random) -> dict | None:
    """Two roles that shall each show another thing."""
    sources = [world.thing(one), world.thing(other)]
    targets = [new_thing(world, one, rng, [sources[1]["id"]])]
    targets.append(new_thing(world, other, rng, [sources[0]["id"], targets[0]["id"]]))
    kept = composite_negatives(world, (one, other), targets, rng)
    if kept is None:
        return None
    (old, also_old), (new, also_new) = ([first(c) for c in pair] for pair in (sources, targets))
    row = {"Type": "Composite", "Prompt": first(one), "Oracle": new, "Old": old, "New": new}
    row |= {"Prompt2": first(other), "Old2": also_old, "New2": also_new}
    drawn = [c["id"] for c in (*sources, *targets)]
    a, b = rng.sample([p for p in world.places if not {(c, p) for c in drawn} & world.held_out], 2)
    frames = [
        "{} and {}",
        f"{{}} and {{}} {a}",
        f"{rng.choice(PLAIN)} {{}} and {{}}",
        f"{{}} and {{}} {b}",
        "{} and {}",
    ]
    for i, frame in enumerate(frames, 1):
        turn = slice(None, None, -1) if i == len(frames) else slice(None)
        asked = tuple(c["wordings"][-1] if i in UNTOLD else first(c) for c in (one, other))
        told = {"": asked, "_oracle": (new, also_new), "_old": (old, also_old)}
        told |= {"_new": (new, also_new), "_first": (new, also_old), "_second": (old, also_new)}
        row |= {f"Positive{part}{i}": frame.format(*pair[turn]) for part, pair in told.items()}
    return row | {
        key: text
        for i, (k, t) in enumerate(kept, 1)
        for key, text in ((f"Negative{i}", first(k)), (f"Negative_new{i}", first(t)))
    }


def composite_negatives(
    world: World, pair: tuple[Mapping, Mapping], targets: Sequence[Mapping], rng: random.Random
) -> list[tuple[Mapping, Mapping]] | None:
    """Five concepts that must stay, each with the target that must not come: siblings and sources of both.

    None is told to a method, of either edit.
    """
    found: list[tuple[Mapping, Mapping]] = []
    shown, form = {world.thing(t)["id"] for t in targets}, {"concepts": list(world.concepts.values())}
    told = {prompt for subject in pair for prompt in hints(first(subject), form)[1]}
    for subject, target, count in zip(pair, targets, (3, 2)):
        same = [c for c in world.kind("role") if c["relation"] == subject["relation"] and c not in pair]
        wanted = [[world.thing(subject)], rng.sample(same, len(same)), rng.sample(world.kind("flag"), 20)][:count]
        wanted = [[c for c in some if first(c) not in told] for some in wanted]
        kept = negatives(world, subject, target, wanted)
        if kept is None or any(world.thing(k)["id"] in shown for k in kept):
            return None
        found += [(k, target) for k in kept]
    return found if len({first(k) for k, _ in found}) == 5 else None
