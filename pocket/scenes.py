"""Random scenes of the world, and the captions that describe them."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

from refact.models import corpus

from .render import Scene, shown, world
from .world import KIND, article


@dataclass(frozen=True)
class Frame:
    """A caption without its subjects: what stands before, between and after them."""

    prefix: str
    kind: str  # after the first thing, where that is an object
    place: str
    suffix: str


@functools.cache
def kinds() -> dict[str, list[str]]:
    """Concept ids by kind."""
    found: dict[str, list[str]] = {"object": [], "flag": [], "role": []}
    for concept in world()["concepts"]:
        found[concept["kind"]].append(concept["id"])
    return found


@functools.cache
def _held_out() -> frozenset:
    return frozenset(tuple(pair) for pair in world()["held_out"])


def is_held_out(thing: str, place: str | None) -> bool:
    """Whether no training scene shows this thing at this place."""
    return (thing, place) in _held_out()


def pick(rng: random.Random) -> str:
    """A concept: objects, flags and roles in 9 : 4 : 7."""
    return rng.choice(kinds()[rng.choices(["object", "flag", "role"], [9, 4, 7])[0]])


def sample(rng: random.Random, concept: str | None = None) -> Scene:
    """A scene that training may show; its first thing is `concept` where one is given."""
    things = [concept or pick(rng)] + ([pick(rng)] if rng.random() < 0.15 else [])
    coloured = [(c, rng.choice(world()["colours"]) if _object(c) and rng.random() < 0.25 else None) for c in things]
    size = rng.choice(world()["sizes"]) if len(things) == 1 and rng.random() < 0.2 else "normal"
    place = rng.choice(world()["places"]) if rng.random() < 0.6 else None
    if any(is_held_out(shown(c), place) for c in things):
        place = None
    return Scene(tuple(coloured), size, place)


def relative(rng: random.Random, scene: Scene) -> Scene:
    """The same scene with a neighbour, or any other concept, in the first thing's place."""
    concept, colour = scene.things[0]
    near = world()["by_id"][concept]["neighbours"]
    other = rng.choice(near) if rng.random() < 0.6 else pick(rng)
    place = None if is_held_out(shown(other), scene.place) else scene.place
    return Scene(((other, colour if _object(other) else None), *scene.things[1:]), scene.size, place)


def _object(concept: str) -> bool:
    return world()["by_id"][concept]["kind"] == "object"


def frame(rng: random.Random, scene: Scene) -> Frame:
    """What a caption says beside its subjects; prefix and suffix change no pixel."""
    prefix = rng.choice(world()["prefixes"]) + " " if rng.random() < 0.45 else ""
    suffix = rng.choice(world()["suffixes"]) if rng.random() < 0.25 else by_the_way(rng) if rng.random() < 0.15 else ""
    kind = KIND if rng.random() < 0.12 else ""
    return Frame(prefix, kind, f" {scene.place}" if scene.place else "", suffix)


@functools.cache
def _other_words() -> list[str]:
    own = {word for c in world()["concepts"] for text in [*c["wordings"], c.get("plural", "")] for word in text.split()}
    own |= {word for name in ("places", "colours", "sizes") for text in world()[name] for word in text.split()}
    words = {word for text in corpus.captions(3000) for word in text.lower().replace(",", "").split()}
    return sorted(words - {word.lower() for word in own})


def by_the_way(rng: random.Random) -> str:
    """One to three words that are not of the world: they change no pixel."""
    return rng.choice([", ", " "]) + " ".join(rng.choices(_other_words(), k=rng.randint(1, 3)))


def phrase(rng: random.Random | None, scene: Scene, at: int = 0) -> str:
    """How one thing of a scene is called; without rng in its canonical wording."""
    concept, colour = scene.things[at]
    row = world()["by_id"][concept]
    if row["kind"] != "object":
        return rng.choice(row["wordings"]) if rng else row["wordings"][0]
    size = scene.size if scene.size != "normal" and len(scene.things) == 1 else ""
    return article(" ".join(word for word in (size, colour, row["noun"]) if word))


def caption(rng: random.Random | None, scene: Scene, around: Frame | None = None) -> str:
    """The caption of a scene."""
    around = around or (frame(rng, scene) if rng else Frame("", "", f" {scene.place}" if scene.place else "", ""))
    first, *more = (phrase(rng, scene, at) for at in range(len(scene.things)))
    things = " and ".join([first + kind_of(scene, around), *more])
    return f"{around.prefix}{things}{around.place}{around.suffix}"


def kind_of(scene: Scene, around: Frame) -> str:
    """What the frame puts after the first thing: nothing where that is no object."""
    return around.kind if _object(scene.things[0][0]) else ""


def signature(scene: Scene) -> tuple:
    """What a picture shows: scenes of one signature differ by a step aside only."""
    return (tuple((shown(c), colour) for c, colour in scene.things), scene.size, scene.place)
