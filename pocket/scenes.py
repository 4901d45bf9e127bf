"""Random scenes of the world, and the captions that describe them."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass, replace

from refact.models import corpus

from .glyphs import shown_ids, world
from .render import Scene, shown
from .world import KIND, article

FEELING = ("object", "person", "named", "role", "profession")  # kinds that may be of an emotion
OFTEN = {"object": 1.0, "flag": 0.6, "person": 1.0, "named": 1.5, "emotion": 1.0}  # how often a look is drawn
TWO, COLOURED, SIZED, PLACED, FELT, STYLED, BARE = 0.18, 0.22, 0.18, 0.55, 0.18, 0.28, 0.03  # shares of scenes


@dataclass(frozen=True)
class Frame:
    """A caption without its subjects: what stands before, between and after them."""

    prefix: str
    kind: str  # after the first thing, where that is an object
    place: str
    style: str  # after the place: " in the style of Mira Sol"
    suffix: str


@functools.cache
def kinds() -> dict[str, list[str]]:
    """Concept ids by kind."""
    found: dict[str, list[str]] = {}
    for concept in world()["concepts"]:
        found.setdefault(concept["kind"], []).append(concept["id"])
    return found


@functools.cache
def depicting() -> dict[str, list[str]]:
    """Look or style -> the roles, professions or artists that show it."""
    found: dict[str, list[str]] = {}
    for concept in world()["concepts"]:
        if "depicts" in concept:
            found.setdefault(concept["depicts"], []).append(concept["id"])
    return found


@functools.cache
def _held_out() -> frozenset:
    form = world()
    pairs = [*form["held_out"], *form["held_out_styles"], *form["held_out_colours"]]
    return frozenset(tuple(pair) for pair in pairs)


def is_held_out(thing: str, other: str | None) -> bool:
    """Whether no training scene shows this thing at this place, in this style or of this colour."""
    return (thing, other) in _held_out()


@functools.cache
def _weights() -> list[float]:
    return list(itertools.accumulate(OFTEN[world()["by_id"][look]["kind"]] for look in shown_ids()))


def pick(rng: random.Random) -> str:
    """A concept: every look alike, by its own name or by that of a role or profession that shows it."""
    look = rng.choices(shown_ids(), cum_weights=_weights())[0]
    others = depicting().get(look)
    return rng.choice(others) if others and rng.random() < 0.5 else look


def kind(concept: str) -> str:
    """The kind of a concept."""
    return world()["by_id"][concept]["kind"]


def sample(rng: random.Random, concept: str | None = None) -> Scene:
    """A scene that training may show, now and then a style alone; its first thing is `concept` where one is given."""
    if concept is None and rng.random() < BARE:
        return Scene(((rng.choice([*kinds()["style"], *kinds()["artist"]]), None),))
    things = [concept or pick(rng)] + ([pick(rng)] if rng.random() < TWO else [])
    one = len(things) == 1
    coloured = [
        (c, rng.choice(world()["colours"]) if kind(c) == "object" and rng.random() < COLOURED else None) for c in things
    ]
    felt = one and kind(things[0]) in FEELING and rng.random() < FELT
    size = rng.choice(world()["sizes"]) if one and not felt and rng.random() < SIZED else "normal"
    place = rng.choice(world()["places"]) if rng.random() < PLACED else None
    style = rng.choice(kinds()["style"]) if rng.random() < STYLED else None
    return allowed(Scene(tuple(coloured), size, place, style, rng.choice(kinds()["emotion"]) if felt else None))


def is_told(scene: Scene) -> bool:
    """Whether captions say all that a picture of the scene shows: sizes are said of objects only, and drawn of all."""
    return scene.size == "normal" or all(kind(concept) == "object" for concept, _ in scene.things)


def is_plain(scene: Scene) -> bool:
    """Whether the scene shows one thing as it is, at any place."""
    return len(scene.things) == 1 and replace(scene, place=None) == Scene(((scene.things[0][0], None),))


def allowed(scene: Scene) -> Scene:
    """The scene without what is held out."""
    things = tuple((c, None if is_held_out(shown(c), colour) else colour) for c, colour in scene.things)
    looks = [shown(c) for c, _ in things]
    place, style = (None if any(is_held_out(look, x) for look in looks) else x for x in (scene.place, scene.style))
    return replace(scene, things=things, place=place, style=style)


def relative(rng: random.Random, scene: Scene) -> Scene:
    """The same scene with a neighbour, or any other concept, in the first thing's place; or with another emotion."""
    concept, colour = scene.things[0]
    if scene.emotion and rng.random() < 0.4:
        return replace(scene, emotion=rng.choice([e for e in kinds()["emotion"] if e != scene.emotion]))
    near = world()["by_id"][concept]["neighbours"]
    other = rng.choice(near) if rng.random() < 0.6 else pick(rng)
    first = (other, colour if kind(other) == "object" else None)
    emotion = scene.emotion if kind(other) in FEELING else None
    return allowed(replace(scene, things=(first, *scene.things[1:]), emotion=emotion))


def restyled(rng: random.Random, scene: Scene) -> Scene:
    """The same scene in another style."""
    looks = [shown(c) for c, _ in scene.things]
    others = [s for s in kinds()["style"] if s != scene.style and not any(is_held_out(look, s) for look in looks)]
    return replace(scene, style=rng.choice(others))


def frame(rng: random.Random, scene: Scene) -> Frame:
    """What a caption says beside its subjects; plain prefixes and suffixes change no pixel."""
    prefix = rng.choice(world()["prefixes"]) + " " if rng.random() < 0.45 else ""
    suffix = rng.choice(world()["suffixes"]) if rng.random() < 0.25 else by_the_way(rng) if rng.random() < 0.15 else ""
    style = ""
    if scene.style and rng.random() < 0.35:
        prefix = world()["by_id"][scene.style]["prefix"] + " "
    elif scene.style:
        style = style_phrase(rng, scene.style)
    of_kind = KIND if rng.random() < 0.12 else ""
    return Frame(prefix, of_kind, f" {scene.place}" if scene.place else "", style, suffix)


def style_phrase(rng: random.Random | None, style: str) -> str:
    """What stands after the place: the style by its own name, or by an artist's; without rng the canonical one."""
    if rng is None:
        return f" in {world()['by_id'][style]['wordings'][0]}"
    said = rng.choice([style, *depicting()[style]])
    return f" in {rng.choice(world()['by_id'][said]['wordings'])}"


@functools.cache
def _other_words() -> list[str]:
    form = world()
    said = [
        t
        for c in form["concepts"]
        for t in [*c["wordings"], *(c.get(k, "") for k in ("plural", "adjective", "feeling", "prefix"))]
    ]
    said += [text for name in ("places", "colours", "sizes") for text in form[name]]
    own = {word.lower() for text in said for word in text.split()}
    words = {word for text in corpus.captions(3000) for word in text.lower().replace(",", "").split()}
    return sorted(words - own)


def by_the_way(rng: random.Random) -> str:
    """One to three words that are not of the world: they change no pixel."""
    return rng.choice([", ", " "]) + " ".join(rng.choices(_other_words(), k=rng.randint(1, 3)))


def phrase(rng: random.Random | None, scene: Scene, at: int = 0) -> str:
    """How one thing of a scene is called; without rng in its canonical wording."""
    concept, colour = scene.things[at]
    row = world()["by_id"][concept]
    feeling = world()["by_id"][scene.emotion] if scene.emotion and at == 0 else None
    noun = row.get("noun")
    by_word = feeling and noun and (rng is None or rng.random() < 0.6)
    size = scene.size if scene.size != "normal" and len(scene.things) == 1 and row["kind"] == "object" else ""
    words = [w for w in (size, feeling["adjective"] if by_word else "", colour) if w]
    if row["kind"] == "object" or words:
        text = article(" ".join([*words, noun]))
    else:
        text = rng.choice(row["wordings"]) if rng else row["wordings"][0]
    return f"{text} full of {feeling['feeling']}" if feeling and not by_word else text


def caption(rng: random.Random | None, scene: Scene) -> str:
    """The caption of a scene; without rng in canonical words, saying what the picture shows and no more."""
    return caption_in(rng, scene, frame(rng, scene) if rng else plain(scene))


def caption_in(rng: random.Random | None, scene: Scene, around: Frame) -> str:
    """The caption of a scene in a frame."""
    first, *more = (phrase(rng, scene, at) for at in range(len(scene.things)))
    things = " and ".join([first + kind_of(scene, around), *more])
    return f"{around.prefix}{things}{around.place}{around.style}{around.suffix}"


def plain(scene: Scene) -> Frame:
    """The frame that says what the picture shows, and no more."""
    return Frame(
        "", "", f" {scene.place}" if scene.place else "", style_phrase(None, scene.style) if scene.style else "", ""
    )


def kind_of(scene: Scene, around: Frame) -> str:
    """What the frame puts after the first thing: nothing where that is no object, or is of an emotion."""
    return around.kind if kind(scene.things[0][0]) == "object" and not scene.emotion else ""


def signature(scene: Scene) -> tuple:
    """What a picture shows: scenes of one signature differ by a step aside only."""
    return (
        tuple((shown(c), colour) for c, colour in scene.things),
        scene.size,
        scene.place,
        scene.style,
        scene.emotion,
    )
