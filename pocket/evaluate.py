"""How good the bundled model is, by the judge. python -m pocket.evaluate [--seeds N] [--share S] [--grid FILE]

Every figure is a share of pictures in which the judge, zero-shot over all things and flags, names the right one.
Seeds are not those of training scenes; held-out pairs of thing and place were in no training scene.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import refact
from refact.evidence.judge import Judge, load_judge
from refact.pictures import grid, save

from .render import Scene, render, shown, world


def names() -> dict[str, str]:
    """What the judge chooses from: id -> canonical wording of every object and flag."""
    return {c["id"]: c["wordings"][0] for c in world()["concepts"] if c["kind"] != "role"}


def hits(judge: Judge, pictures: Sequence, truth: Sequence[str], suffix: str = "") -> float:
    """The share of pictures whose thing the judge names."""
    ids = list(names())
    found = judge.logits(pictures, [text + suffix for text in names().values()]).argmax(1)
    return float(np.mean([ids[at] == right for at, right in zip(found, truth)]))


def rendered(judge: Judge) -> float:
    """On rendered scenes with places and jitter."""
    rng = random.Random(4242)
    asked = [(c, rng.choice([None, *world()["places"]])) for c in names() for _ in range(4)]
    pictures = [render(Scene(((c, None),), place=place), rng) for c, place in asked]
    return float(
        np.mean([hits(judge, [p], [c], f" {place}" if place else "") for p, (c, place) in zip(pictures, asked)])
    )


def generated(
    model: refact.Model, judge: Judge, prompts: dict[str, list[str]], seeds: Sequence[int], suffix=""
) -> float:
    """On generated pictures; prompts: id of the thing shown -> prompts."""
    pairs = [(prompt, thing) for thing, texts in prompts.items() for prompt in texts]
    drawn = model.generate([prompt for prompt, _ in pairs], seeds, batch_size=32)
    truth = [thing for _, thing in pairs for _ in seeds]
    return hits(judge, [p.image for p in drawn], truth, suffix)


def colours(model: refact.Model, judge: Judge, rng: random.Random, count: int, seeds: Sequence[int]) -> float:
    """The share of "a blue apple" pictures whose colour the judge names among all, and none."""
    things = [c for c in world()["concepts"] if c["kind"] == "object"]
    total = []
    for thing in rng.sample(things, count):
        options = [f"a {colour} {thing['noun']}" for colour in world()["colours"]]
        right = rng.randrange(len(options))
        drawn = model.generate([options[right]], seeds)
        logits = judge.logits([p.image for p in drawn], [*options, thing["wordings"][0]])
        total += list(logits.argmax(1) == right)
    return float(np.mean(total))


def grouped(kinds: tuple[str, ...], rng: random.Random, share: float, every: bool = False) -> dict[str, list[str]]:
    """A random share of the concepts of these kinds: id of what is shown -> prompts (every wording, or the first)."""
    concepts = [c for c in world()["concepts"] if c["kind"] in kinds]
    found: dict[str, list[str]] = {}
    for c in rng.sample(concepts, max(1, round(share * len(concepts)))):
        found.setdefault(shown(c["id"]), []).extend(c["wordings"] if every else c["wordings"][:1])
    return found


def held_out(model: refact.Model, judge: Judge, rng: random.Random, share: float, seeds: Sequence[int]) -> float:
    """Pairs of thing and place never seen together."""
    total = []
    pairs = [tuple(p) for p in world()["held_out"]]
    for place in world()["places"]:
        things = [thing for thing, where in pairs if where == place]
        things = rng.sample(things, max(1, round(share * len(things)))) if things else []
        total += [generated(model, judge, {t: [f"{names()[t]} {place}"]}, seeds, f" {place}") for t in things]
    return float(np.mean(total))


def speed(model: refact.Model) -> float:
    """Seconds for 16 pictures in one batch."""
    begun = time.perf_counter()
    model.generate(["a dog"] * 16, [1])
    return time.perf_counter() - begun


def sheet(model: refact.Model, file: Path) -> None:
    """64 pictures with their prompts' first words, for a person to look at."""
    rng = random.Random(3)
    concepts = rng.sample(world()["concepts"], 64)
    prompts = [
        c["wordings"][0] + (f" {rng.choice(world()['places'])}" if i % 2 else "") for i, c in enumerate(concepts)
    ]
    drawn = model.generate(prompts, [5], batch_size=32)
    rows = [("; ".join(prompts[at : at + 8])[:150], [p.image for p in drawn[at : at + 8]]) for at in range(0, 64, 8)]
    save(grid(rows, cell=128, text=12), file)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--share", type=float, default=1.0, help="of the concepts, drawn at random")
    parser.add_argument("--grid", type=Path)
    given = parser.parse_args()
    seeds, rng = range(100, 100 + given.seeds), random.Random(1)
    begun = time.perf_counter()
    model, judge = refact.load("pocket"), load_judge("pocket")
    _ = model.pipe
    found = {"loading, s": time.perf_counter() - begun, "seeds": given.seeds, "share of concepts": given.share}
    if given.grid:
        sheet(model, given.grid)
    found["16 pictures, s"] = speed(model)
    found["judge on rendered scenes"] = rendered(judge)
    for kind in ("object", "flag", "role"):
        found[f"generated: {kind}"] = generated(model, judge, grouped((kind,), rng, given.share), seeds)
    found["roles in every wording"] = generated(model, judge, grouped(("role",), rng, given.share, True), seeds[:2])
    found["colours"] = colours(model, judge, rng, round(60 * given.share), seeds[:2])
    found["held-out pairs"] = held_out(model, judge, rng, given.share, seeds[:2])
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}, indent=1))


if __name__ == "__main__":
    main()
