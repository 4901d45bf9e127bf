"""The text encoder, tuned so that its rows say a thing alike whatever else is said of it. python -m pocket.reader

As `pocket.clip` leaves them, the rows after "a red peanut" are nearer to those after other red things than to those
after "a peanut": a UNet, which reads them, would have to learn every thing in every colour, style and emotion anew. So
the upper half of the text tower learns to give, for a marked thing, the rows of the same prompt without the mark plus
what the mark adds to all things in the mean. Of two things every other row of the padding says the first, and every
other one the second. The row of [EOS], by which CLIP compares texts with pictures, stays, and so do all rows before and
between; the lower half rests, where edits are made.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refact.encoders.encoder import text_tower

from . import clip, coordinates, pools, prompts, scenes, tokenizer, training
from .glyphs import world
from .prompts import Prompt, arrays, rows_of
from .scenes import Frame

BATCH, PEAK, CPU_SHARE = 1024, 4e-4, 1 / 8
LOWER = 4  # layers that rest
SWAPPED = 0.25  # share of prompts into which another prompt's subject is put in the lower half, as an edit does
END, SUBJECT = 4.0, 0.5  # weights of the rows of [EOS] and of the subject, whose spread is larger
MARKER = 4.0  # how far apart the rows of a first and of a second thing are put, in a direction drawn at random
MEASURED, CHUNK = 6000, 500  # prompts by which it is known what a mark adds; so many at once


@dataclass(frozen=True)
class Told:
    """A prompt; its things alone in the same frame without their marks, and these; and another subject in its frame."""

    own: Prompt
    first: Prompt
    second: Prompt  # of one thing the first again
    marks: tuple[tuple[str, ...], tuple[str, ...]]  # of the first thing and of the second
    other: Prompt

    @property
    def two(self) -> bool:
        """Whether there are two things."""
        return self.own.second != self.own.subject


def told(rng: random.Random) -> Told:
    """A random prompt, mostly of a marked thing."""
    scene = scenes.sample(rng)
    if rng.random() < 0.7:
        place = rng.choice(world()["places"]) if rng.random() < 0.4 else None
        scene = scenes.allowed(replace(pools.marked(rng), place=place))
    around, seed = scenes.frame(rng, scene), rng.random()
    of_all = []
    if scene.style:
        of_all.append(f"{'after' if around.style else 'before'} {scene.style}")
    if scene.emotion:
        full = " full of " in scenes.phrase(random.Random(seed), scene)
        of_all.append(f"{'full of' if full else 'as'} {scene.emotion}")
    marks = [(*of_all, *([colour] if colour else [])) for _, colour in scene.things]
    frame = Frame(
        "" if scene.style and not around.style else around.prefix, around.kind, around.place, "", around.suffix
    )
    alone = [replace(scene, things=((c, None),), style=None, emotion=None) for c, _ in scene.things]
    first, *more = (prompts.prompt(random.Random(seed), one, frame) for one in alone)
    own = prompts.prompt(random.Random(seed), scene, around)
    other = prompts.prompt(random.Random(seed), scenes.relative(rng, scene), around)
    return Told(own, first, (more or [first])[0], (marks[0], marks[-1]), other)


def names() -> list[str]:
    """All marks."""
    kinds = scenes.kinds()
    styles = [f"{how} {style}" for how in ("before", "after") for style in kinds["style"]]
    return [*world()["colours"], *styles, *(f"{how} {e}" for how in ("as", "full of") for e in kinds["emotion"])]


class Reader:
    """The text encoder as a part, with itself as it was."""

    name, peak, decay, average, muon = "reader", PEAK, 0.0, 0.99, 4.0

    def __init__(self, asked: training.Given) -> None:
        self.size = max(4, round(asked.batch * BATCH))
        self.before = training.trained("clip", clip.build()).to(asked.device)
        self.coordinates = coordinates.load(asked.device)
        model = training.trained("clip", clip.build())
        for layer in text_tower(model.text_model).encoder.layers[LOWER:]:
            layer.requires_grad_(True)
        self.players = {"reader": model}
        self.kept = {"clip": training.size_of(self.before), "coordinates": training.size_of(self.coordinates)}
        if found := training.load(self.name):
            training.check_parts(self.name, found["kept"], self.kept)
        self.adds = self.measured(asked.device)
        direction = torch.randn(clip.TEXT["hidden_size"], generator=torch.Generator().manual_seed(72))
        self.marker = (MARKER / direction.norm() * direction).to(asked.device)

    def begin(self, clock: training.Clock) -> None:
        """Nothing here depends on the time."""

    def batch(self, step: int) -> dict[str, Any]:
        """Prompts of all kinds, marks; and the layer after which the first prompts' subjects go into others' frames."""
        rng = training.rng_of(self.name, step)
        return as_arrays([told(rng) for _ in range(self.size)]) | {"layer": rng.randrange(LOWER)}

    def rows(self, model: nn.Module, ids: Tensor, swap: Any = None) -> tuple[Tensor, list[Tensor]]:
        """Whitened rows (n, 32, d), and the states after each layer."""
        rows, seen = rows_of(model, ids, swap)
        return self.coordinates.rows(rows).float(), seen

    @torch.no_grad()
    def measured(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What each mark adds to the subject's row, and to those of the padding, in the mean (marks, d)."""
        rng, found = random.Random(71), []
        for at in range(0, MEASURED, CHUNK):
            some = [one for one in (told(rng) for _ in range(min(CHUNK, MEASURED - at))) if not one.two]
            batch = training.moved(as_arrays(some), device)
            own, bare, each = batch["own"], batch["first"], torch.arange(len(some), device=device)
            rows, plain = (self.rows(self.before, one["ids"])[0] for one in (own, bare))
            padding = padded(own["ends"])
            more = ((rows - padding_of(plain, bare["ends"])) * padding[..., None]).sum(1)
            more = more / padding.sum(1, keepdim=True).clamp_min(1)
            found.append((batch["marks"][:, 0], rows[each, own["subjects"]] - plain[each, bare["subjects"]], more))
        marks, subjects, paddings = (torch.cat(parts) for parts in zip(*found))
        square = marks.T @ marks + torch.eye(marks.shape[1], device=device)
        return torch.linalg.solve(square, marks.T @ subjects), torch.linalg.solve(square, marks.T @ paddings)

    @torch.no_grad()
    def wanted(self, batch: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        """The rows that each prompt shall have, and its states as they are."""
        own, two = batch["own"], (batch["own"]["seconds"] != batch["own"]["subjects"])[:, None]
        rows, seen = self.rows(self.before, own["ids"])
        each, paddings = torch.arange(len(rows), device=rows.device), []
        for place, kind, marks, side in zip(
            ("subjects", "seconds"), ("first", "second"), batch["marks"].unbind(1), (1, -1)
        ):
            plain = self.rows(self.before, batch[kind]["ids"])[0]
            apart = side * two * self.marker
            found = plain[each, batch[kind]["subjects"]] + marks @ self.adds[0]
            if kind == "first":
                rows[each, own[place]] = found  # which cannot know yet of a second
            else:
                rows[each, own[place]] = torch.where(two, found + apart, rows[each, own[place]])
            paddings.append(padding_of(plain, batch[kind]["ends"]) + (marks @ self.adds[1] + apart)[:, None])
        odd = torch.arange(rows.shape[1], device=rows.device) % 2 == 1
        padding = torch.where((two & odd)[..., None], paddings[1], paddings[0])
        return torch.where(padded(own["ends"])[..., None], padding, rows), seen

    @torch.no_grad()
    def wanted_elsewhere(self, batch: dict[str, Any], rows: Tensor, swap: Any) -> Tensor:
        """The rows that other subjects' prompts shall have once these subjects are put into them."""
        own, other, count = batch["own"], batch["other"], len(rows)
        each = torch.arange(count, device=rows.device)
        found = self.rows(self.before, other["ids"][:count], swap)[0]
        for place in ("seconds", "subjects"):
            found[each, other[place][:count]] = rows[each, own[place][:count]]
        padding = padding_of(rows, own["ends"][:count])
        return torch.where(padded(other["ends"][:count])[..., None], padding, found)

    def losses(self, player: str, batch: dict, noise: torch.Generator, memo: dict) -> dict[str, Tensor]:
        """How far rows are from those wanted; and, to be looked at, those of padding, subject and [EOS] alone."""
        own, other, layer, model = batch["own"], batch["other"], batch["layer"], self.players[player]
        count = int(SWAPPED * len(own["ids"]))
        each = torch.arange(count, device=own["ids"].device)
        wanted, seen = self.wanted(batch)
        swap = (layer, other["subjects"][:count], seen[layer][each, own["subjects"][:count]])
        moved = self.wanted_elsewhere(batch, wanted[:count], swap)
        rows = [self.rows(model, other["ids"][:count], swap)[0], self.rows(model, own["ids"][count:])[0]]
        error = (torch.cat(rows) - torch.cat([moved, wanted[count:]])).square().mean(2)
        places = {at: torch.cat([other[at][:count], own[at][count:]]) for at in ("subjects", "seconds", "ends")}
        everyone, padding = torch.arange(len(error), device=error.device), padded(places["ends"])
        weight = torch.ones_like(error)
        for at, worth in (("subjects", SUBJECT), ("seconds", SUBJECT), ("ends", END)):
            weight[everyone, places[at]] = worth
        others = {f"(row of {at})": error.detach()[everyone, of].mean() for at, of in places.items()}
        own_loss = {"rows": (weight * error).sum() / weight.sum(), "(padding)": error.detach()[padding].mean()}
        return own_loss | others


def as_arrays(some: list[Told]) -> dict[str, Any]:
    """Prompts as arrays of 32 ids, and marks of first and second things as ones among zeros (n, 2, marks)."""
    all_names = names()
    marks = np.array(
        [[[float(name in of) for name in all_names] for of in one.marks] for one in some], dtype=np.float32
    )
    kinds = ("own", "first", "second", "other")
    return {kind: arrays([getattr(one, kind) for one in some], tokenizer.LENGTH) for kind in kinds} | {"marks": marks}


def padded(ends: Tensor) -> Tensor:
    """Which rows are of padding (n, 32), by the places of [EOS]."""
    return torch.arange(tokenizer.LENGTH, device=ends.device) > ends[:, None]


def padding_of(rows: Tensor, ends: Tensor) -> Tensor:
    """Rows (n, 32, d) with padding, of places as odd or even, in the place of all before it, too."""
    places, begin = torch.arange(rows.shape[1], device=rows.device)[None], ends[:, None] + 1
    places = torch.where(places < begin, begin + (places - begin) % 2, places).clamp_max(rows.shape[1] - 1)
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2]))


if __name__ == "__main__":
    given = training.given(training.parser(__doc__).parse_args(), CPU_SHARE)
    training.train(Reader(given), given)
