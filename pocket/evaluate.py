"""How good the bundled model is, by the judge. python -m pocket.evaluate [--seeds N] [--share S] [--out FILE]

Every figure is a share of pictures of which the judge, zero-shot, names the right thing *first of all names in the
world*, things, flags, persons and faces alike (of colours, styles, emotions: first of all of them, and of none).
Captions: a random wording at a random place or none. Seeds are not those of training; held-out pairs were in no
training scene, and there both must be right, the thing among all names and the other among its like.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import refact
from refact.evidence.judge import Judge, load_judge
from refact.pictures import grid, save

from . import scenes
from .glyphs import shown_ids, world
from .render import SAMPLE, Scene, render, shown

GOALS = {
    "judge on rendered scenes": 0.98, "things": 0.93, "flags": 0.97, "persons": 0.93, "named": 0.93, "faces": 0.93,
    "professions": 0.93, "roles": 0.95, "offices": 0.93, "colours": 0.95, "styles": 0.95, "artists": 0.95,
    "emotions": 0.93, "held out: place": 0.88, "held out: style": 0.88, "held out: colour": 0.88, "two things": 0.85,
}  # fmt: skip
KINDS = {
    "things": "object", "flags": "flag", "persons": "person", "named": "named", "faces": "emotion",
    "professions": "profession",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A caption, and lists of texts among which the first must be what its picture shows best."""

    caption: str
    scene: Scene
    choices: tuple[tuple[str, ...], ...]


def names() -> dict[str, str]:
    """What the judge chooses from: id -> canonical wording of every look."""
    return {c: world()["by_id"][c]["wordings"][0] for c in shown_ids()}


def canonical(scene: Scene) -> str:
    """What a scene shows, in canonical words, by the look's own name."""
    looks = tuple((shown(c), colour) for c, colour in scene.things)
    return scenes.caption(None, replace(scene, things=looks))


def among(scene: Scene, others: Sequence[Scene]) -> tuple[str, ...]:
    """The right text, then those of other scenes."""
    right = canonical(scene)
    return (right, *dict.fromkeys(text for other in others if (text := canonical(other)) != right))


def first_thing(scene: Scene, at: int = 0) -> tuple[str, ...]:
    """All names in one place of the scene, the right one first."""
    kept = [colour for _, colour in scene.things]
    others = []
    for look in shown_ids():
        colour = kept[at] if scenes.kind(look) == "object" else None
        things = tuple((look, colour) if n == at else pair for n, pair in enumerate(scene.things))
        others.append(replace(scene, things=things))
    return among(scene, others)


def its_colour(scene: Scene) -> tuple[str, ...]:
    """All colours of the first thing, and none."""
    first = scene.things[0][0]
    return among(scene, [replace(scene, things=((first, colour),)) for colour in (None, *world()["colours"])])


def its_style(scene: Scene) -> tuple[str, ...]:
    """All styles, and none."""
    return among(scene, [replace(scene, style=style) for style in (None, *scenes.kinds()["style"])])


def its_emotion(scene: Scene) -> tuple[str, ...]:
    """All emotions, and none."""
    return among(scene, [replace(scene, emotion=emotion) for emotion in (None, *scenes.kinds()["emotion"])])


def its_place(scene: Scene) -> tuple[str, ...]:
    """All places, and none."""
    return among(scene, [replace(scene, place=place) for place in (None, *world()["places"])])


# -- what is asked -----------------------------------------------------------------------------------------------------


def asked(rng: random.Random, scene: Scene, *choices: Callable[[Scene], tuple[str, ...]]) -> Question:
    """A question about a scene, in a random wording."""
    around = replace(scenes.plain(scene), style=scenes.style_phrase(rng, scene.style) if scene.style else "")
    return Question(scenes.caption_in(rng, scene, around), scene, tuple(choice(scene) for choice in choices))


def somewhere(rng: random.Random, scene: Scene) -> Scene:
    """At a random place, or none."""
    place = rng.choice(world()["places"]) if rng.random() < 0.5 else None
    return scenes.allowed(replace(scene, place=place))


def part(rng: random.Random, items: Sequence, share: float, least: int = 8) -> list:
    """A random share of some items."""
    return rng.sample(list(items), min(len(items), max(least, round(share * len(items)))))


def questions(rng: random.Random, share: float) -> dict[str, list[Question]]:
    """Every figure's questions; share: of the concepts, and of 120 scenes for what is drawn at random."""
    kinds, found = scenes.kinds(), {}
    for name, kind in KINDS.items():
        alone = [somewhere(rng, Scene(((c, None),))) for c in part(rng, kinds[kind], share)]
        found[name] = [asked(rng, scene, first_thing) for scene in alone]
    offices = {c for c in kinds["role"] if world()["by_id"][c]["relation"] in ("president", "prime minister")}
    for name, ids in (("roles", [c for c in kinds["role"] if c not in offices]), ("offices", sorted(offices))):
        alone = [somewhere(rng, Scene(((c, None),))) for c in part(rng, ids, share)]
        found[name] = [asked(rng, scene, first_thing) for scene in alone]
    return found | attributes(rng, share) | unseen(rng, share) | together(rng, share)


def attributes(rng: random.Random, share: float) -> dict[str, list[Question]]:
    """Colours, styles by their own names and by artists', emotions: of random things."""
    count, kinds, form = max(8, round(120 * share)), scenes.kinds(), world()
    things = [rng.choice(kinds["object"]) for _ in range(4 * count)]
    coloured = [Scene(((c, rng.choice(form["colours"])),)) for c in things[:count]]
    felt = [Scene(((c, None),), emotion=rng.choice(kinds["emotion"])) for c in things[count : 2 * count]]
    found = {
        "colours": [asked(rng, somewhere(rng, s), its_colour) for s in coloured if scenes.allowed(s) == s],
        "emotions": [asked(rng, somewhere(rng, s), its_emotion) for s in felt],
    }
    for name, kind, which in (
        ("styles", "style", things[2 * count : 3 * count]),
        ("artists", "artist", things[3 * count :]),
    ):
        found[name] = []
        for concept in which:
            said = rng.choice(kinds[kind])
            scene = scenes.allowed(somewhere(rng, Scene(((concept, None),), style=shown(said))))
            if scene.style:
                text = f" in {rng.choice(form['by_id'][said]['wordings'])}"
                caption = scenes.caption_in(rng, scene, replace(scenes.plain(scene), style=text))
                found[name].append(Question(caption, scene, (its_style(scene),)))
    return found


def unseen(rng: random.Random, share: float) -> dict[str, list[Question]]:
    """Held-out pairs: the thing must be named, and the place, style or colour."""
    form, few = world(), share / 3
    places = [Scene(((c, None),), place=p) for c, p in part(rng, form["held_out"], few)]
    styles = [Scene(((c, None),), style=s) for c, s in part(rng, styles_held_out(), few)]
    colours = [Scene(((c, colour),)) for c, colour in part(rng, form["held_out_colours"], few)]
    return {
        "held out: place": [asked(rng, s, first_thing, its_place) for s in places],
        "held out: style": [asked(rng, s, first_thing, its_style) for s in styles],
        "held out: colour": [asked(rng, s, first_thing, its_colour) for s in colours],
    }


def styles_held_out() -> list[tuple[str, str]]:
    """Pairs of thing and style that no training showed: not of the thing by which a style alone is shown."""
    return [(c, s) for c, s in world()["held_out_styles"] if c != SAMPLE[0]]


def together(rng: random.Random, share: float) -> dict[str, list[Question]]:
    """Two things: each must be named, given the other."""
    kinds = scenes.kinds()
    pairs = [Scene(tuple((c, None) for c in rng.sample(kinds["object"], 2))) for _ in range(max(8, round(60 * share)))]
    both = [somewhere(rng, scene) for scene in pairs]
    return {"two things": [asked(rng, s, first_thing, lambda scene: first_thing(scene, 1)) for s in both]}


# -- answers -----------------------------------------------------------------------------------------------------------


def right(judge: Judge, pictures: Sequence, asked_of: Sequence[Question]) -> list[bool]:
    """Of each picture whether the judge puts the right text first, in every list."""
    seen = judge.of_images(pictures)
    return [
        all(int((judge.of_texts(choice) @ one).argmax()) == 0 for choice in question.choices)
        for one, question in zip(seen, asked_of)
    ]


def share_right(judge: Judge, found: Sequence[Question], draw: Callable[[Sequence[Question]], list]) -> float:
    """The share of right answers; draw: questions -> as many pictures or a multiple, in their order."""
    drawn = draw(found)
    each = len(drawn) // len(found)
    return float(np.mean(right(judge, drawn, [question for question in found for _ in range(each)])))


def rendered(rng: random.Random, share: float) -> list[Question]:
    """Every look at a random place or none, rendered."""
    return [asked(rng, somewhere(rng, Scene(((c, None),))), first_thing) for c in part(rng, shown_ids(), share)]


def sheet(model: refact.Model, file: Path) -> None:
    """64 scenes drawn at random: the model's picture and, below it, the rendered one, for a person to look at."""
    rng = random.Random(3)
    drawn = list(itertools.islice((s for s in iter(lambda: scenes.sample(rng), None) if scenes.is_told(s)), 64))
    captions = [canonical(scene) for scene in drawn]
    made = [p.image for p in model.generate(captions, [5], batch_size=32)]
    rows = []
    for at in range(0, 64, 16):
        rows += [("generated", made[at : at + 16]), ("rendered", [render(s) for s in drawn[at : at + 16]])]
    save(grid(rows, cell=96, text=12), file)


def speed(model: refact.Model) -> float:
    """Seconds for 16 pictures in one batch, the better of two."""
    taken = []
    for seed in (1, 2):
        begun = time.perf_counter()
        model.generate(["a dog"] * 16, [seed])
        taken.append(time.perf_counter() - begun)
    return min(taken)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--share", type=float, default=1.0, help="of the concepts, drawn at random")
    parser.add_argument("--guidance", type=float, help="by default the model's own")
    parser.add_argument("--device", help="where to compute")
    parser.add_argument("--grid", type=Path, help="write 64 pictures beside rendered ones")
    parser.add_argument("--out", type=Path, help="write the figures to this file, too")
    given = parser.parse_args()
    seeds, rng, begun = range(100, 100 + given.seeds), random.Random(1), time.perf_counter()
    model, judge = refact.load("pocket", given.device), load_judge("pocket", given.device)
    _ = model.pipe
    model.defaults["default_guidance"] = given.guidance or model.defaults["default_guidance"]
    found = {"loading, s": time.perf_counter() - begun, "seeds": given.seeds, "share of concepts": given.share}
    if given.grid:
        sheet(model, given.grid)
    found |= {"steps": model.defaults["default_steps"], "guidance": model.defaults["default_guidance"]}
    found["16 pictures, s"] = speed(model)
    found["threads"] = torch.get_num_threads()
    found["judge on rendered scenes"] = share_right(
        judge, rendered(rng, given.share), lambda few: [render(q.scene, rng) for q in few]
    )
    for name, few in questions(rng, given.share).items():
        found[f"rendered: {name}"] = share_right(judge, few, lambda few: [render(q.scene, rng) for q in few])
        found[name] = share_right(
            judge, few, lambda few: [p.image for p in model.generate([q.caption for q in few], seeds, batch_size=32)]
        )
        print(f"{name}: {found[name]:.3f} of {len(few) * given.seeds}", flush=True)
    text = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
