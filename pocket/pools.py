"""What the generators learn from, made once: latents of scenes, and text rows of their prompts.

A CPU keeps both in files, and makes them again where anything that they depend on has changed.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import autoencoder, clip, scenes, tokenizer, training
from .glyphs import shown_ids, world
from .prompts import arrays, asking, empty_rows, rows_of
from .render import Scene, compose, row_of

CHUNK, TOLD = 500, 97  # scenes made at once; every so manieth tells whether a file's scenes are the same still
SWAPPED, HIDDEN = 0.3, 0.2  # shares of prompts whose subject is put into another's prompt, or stands alone
PLAIN = 2.0  # how often a scene of one thing as it is is drawn, where others are drawn once
PLAIN_SIZE, WORDINGS = 2048, 8  # scenes of things as they are on a plain ground; prompts of each
# from which step on the shares of looks, of marked things and of all scenes; between two rows they change evenly
SHARES = (
    (0, (1.0, 0.0, 0.0)), (2000, (1.0, 0.0, 0.0)), (8000, (0.15, 0.0, 0.85)), (9500, (0.15, 0.0, 0.85)),
    (9501, (0.1, 0.6, 0.3)), (13_000, (0.1, 0.6, 0.3)), (17_000, (0.1, 0.2, 0.7)),
)  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """Scenes that a generator sees again and again, by number, and the names of their files."""

    name: str  # of the latents' file
    texts: str  # of the prompts'
    scene: Callable[[int], Scene]
    wordings: int = 1  # prompts of each scene
    aside: bool = True  # whether things stand a little aside from the middle

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """What the renderer is told of these scenes."""
        asides = (training.rng_of("aside", i) if self.aside else None for i in indices.tolist())
        return np.array([row_of(self.scene(i), aside) for i, aside in zip(indices.tolist(), asides)])


def scene_of(index: int) -> Scene:
    """A random scene, the same always."""
    return scenes.sample(training.rng_of("pool", index))


def named(look: str, index: int) -> Scene:
    """A look as it is, by any of its names: which one, the index says."""
    names = [look, *scenes.depicting().get(look, [])]
    return Scene(((training.rng_of("plain", index).choice(names), None),))


def plain_of(index: int) -> Scene:
    """Every look in turn, as it is, by any of its names."""
    return named(shown_ids()[index % len(shown_ids())], index)


def marked_of(index: int) -> Scene:
    """A marked thing, the same always."""
    return marked(training.rng_of("marked", index))


def marked(rng: random.Random) -> Scene:
    """A thing that has a colour, a style, an emotion or a second thing beside it; at no place."""
    while True:
        mark, first = rng.choices(("colour", "style", "emotion", "two"), (0.35, 0.3, 0.2, 0.15))[0], scenes.pick(rng)
        scene = Scene(((first, None),))
        if mark == "colour":
            scene = Scene(((rng.choice(scenes.kinds()["object"]), rng.choice(world()["colours"])),))
        elif mark == "style":
            scene = replace(scene, style=rng.choice(scenes.kinds()["style"]))
        elif mark == "emotion" and scenes.kind(first) in scenes.FEELING:
            scene = replace(scene, emotion=rng.choice(scenes.kinds()["emotion"]))
        elif mark == "two":
            scene = Scene(((first, None), (scenes.pick(rng), None)))
        if scenes.allowed(scene) == scene and not scenes.is_plain(scene):
            return scene


RANDOM = Pool("latents", "texts", scene_of)
LOOKS = Pool("plain", "plain-texts", plain_of, WORDINGS, aside=False)
MARKED = Pool("marked", "marked-texts", marked_of, aside=False)


def shares(step: int) -> tuple[float, float, float]:
    """The shares of looks, of marked things and of all scenes in a step's batch."""
    steps, rows = zip(*SHARES)
    looks, marked, everything = (float(np.interp(step, steps, column)) for column in zip(*rows))
    return looks, marked, everything


class Mixture:
    """Which scenes and prompts a step shows: looks alone until a generator knows them, then more and more of all.

    Scenes are numbered through all pools, prompts too: first one of each random scene, then the looks', then one of
    each marked thing.
    """

    def __init__(self, everything: Pool, many: int, marked: int = 0) -> None:
        self.many, self.few, self.marked = many, min(PLAIN_SIZE, many), marked
        self.usable = [i for i in range(many) if scenes.is_told(everything.scene(i))]
        weights = (PLAIN if scenes.is_plain(everything.scene(i)) else 1.0 for i in self.usable)
        self.often = list(accumulate(weights))

    def draw(self, rng: random.Random, step: int, size: int) -> dict[str, np.ndarray]:
        """Numbers of scenes, `at`, and of their prompts, `said`."""
        looks, marked, _ = shares(step)
        plain = [rng.randrange(self.few) for _ in range(round(looks * size))]
        made = [rng.randrange(self.marked) for _ in range(round(marked * size) if self.marked else 0)]
        others = rng.choices(self.usable, cum_weights=self.often, k=size - len(plain) - len(made))
        worded = [self.many + rng.randrange(WORDINGS) * self.few + i for i in plain]
        at = others + [self.many + i for i in plain] + [self.many + self.few + i for i in made]
        said = others + worded + [self.many + WORDINGS * self.few + i for i in made]
        return {"at": np.array(at), "said": np.array(said)}


def _chunks(size: int) -> list[np.ndarray]:
    return [np.arange(at, min(at + CHUNK, size)) for at in range(0, size, CHUNK)]


def checksum(module: torch.nn.Module) -> int:
    """A number of all its weights."""
    return zlib.crc32(b"".join(w.detach().cpu().numpy().tobytes() for w in module.state_dict().values()))


def kept(
    name: str, device: torch.device, size: int, pool: Pool, of: torch.nn.Module,
    make: Callable[[], Iterator[tuple[Tensor, ...]]],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Tensors made in chunks: from a CPU's file where that belongs to the same scenes and network."""
    told = {"of": checksum(of), "size": size, "scenes": zlib.crc32(pool.rows(np.arange(0, size, TOLD)).tobytes())}
    file = training.WORK / f"{name}.pt"
    if device.type == "cpu" and file.exists():
        found = torch.load(file, weights_only=True, mmap=True)
        if found["told"] == told:
            return tuple(x.clone() for x in found["made"])
    made = tuple(torch.cat(parts) for parts in zip(*make()))
    if device.type == "cpu":
        training.WORK.mkdir(parents=True, exist_ok=True)
        torch.save({"told": told, "made": made}, file)
    return made


@torch.no_grad()
def latents(pool: Pool, size: int, asked: training.Given) -> Tensor:
    """The first autoencoder's latents of a pool's first scenes (size, 16, 16, 16), float16, on the device."""
    encoder = training.trained("autoencoder", autoencoder.build()).encoder.to(asked.device)
    chunks = _chunks(size)

    def make() -> Iterator[tuple[Tensor]]:
        for rows in training.batches(lambda at: pool.rows(chunks[at]), range(len(chunks)), asked.workers):
            with training.low(asked):
                yield (encoder(compose(torch.from_numpy(rows), asked.device) * 2 - 1).half(),)

    return kept(pool.name, asked.device, size, pool, encoder, make)[0]


@torch.no_grad()
def texts(pool: Pool, size: int, model: Any, asked: training.Given) -> Tensor:
    """Text rows of prompts of a pool's first scenes (wordings, size, 32, d), float16, on the device.

    Some are of another subject's prompt, into which this scene's subject is put at a random layer, as an edit does; of
    some the rows before the subject are the empty prompt's. So a generator leans on the rows from the subject's last
    token on, which an edit reaches.
    """
    chunks = [(time, at) for time in range(pool.wordings) for at in _chunks(size)]
    empty = empty_rows(model, asked.device)

    def spoken(at: int) -> dict[str, Any]:
        rng = training.rng_of(pool.texts, at)
        own, others = asking(rng, [pool.scene(i) for i in chunks[at][1].tolist()])
        swapped = sorted(rng.sample(range(len(own)), max(1, int(SWAPPED * len(own)))))
        return {
            "own": arrays(own, tokenizer.LENGTH), "swapped": np.array(swapped, dtype=int),
            "others": arrays([others[i] for i in swapped], tokenizer.LENGTH),
            "layer": rng.randrange(clip.TEXT["num_hidden_layers"] - 1),
            "hidden": np.array([rng.random() < HIDDEN for _ in own]),
        }  # fmt: skip

    def make() -> Iterator[tuple[Tensor]]:
        for batch in training.batches(spoken, range(len(chunks)), asked.workers):
            yield (_said(model, training.moved(batch, asked.device), empty).half(),)

    made = kept(pool.texts, asked.device, size, pool, model.text_model, make)[0]
    return made.unflatten(0, (pool.wordings, size))


def _said(model: Any, batch: dict[str, Any], empty: Tensor) -> Tensor:
    own, others, swapped, layer = batch["own"], batch["others"], batch["swapped"], batch["layer"]
    rows, seen = rows_of(model, own["ids"])
    places = own["subjects"].clone()
    if len(swapped):
        subjects = seen[layer][swapped, places[swapped]]
        rows[swapped] = rows_of(model, others["ids"], (layer, others["subjects"], subjects))[0]
        places[swapped] = others["subjects"]
    before = torch.arange(rows.shape[1], device=rows.device)[None] < places[:, None]
    return torch.where((before & batch["hidden"][:, None])[..., None], empty[None].to(rows.dtype), rows)
