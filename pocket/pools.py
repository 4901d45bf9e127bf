"""What the generators learn from, made once: latents of scenes, and text rows of their prompts.

A CPU keeps both in files, and makes them again where anything that they depend on has changed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import autoencoder, clip, scenes, tokenizer, training
from .glyphs import shown_ids
from .prompts import arrays, asking, empty_rows, rows_of
from .render import Scene, compose, row_of

CHUNK, TOLD = 500, 97  # scenes made at once; every so manieth tells whether a file's scenes are the same still
SWAPPED, HIDDEN = 0.3, 0.2  # shares of prompts whose subject is put into another's prompt, or stands alone
Scenes = Callable[[int], Scene]


def scene_of(index: int) -> Scene:
    """A random scene, the same always."""
    return scenes.sample(training.rng_of("pool", index))


def plain_of(index: int) -> Scene:
    """Every look in turn, as it is, in the middle of a plain ground, by any of its names."""
    look = shown_ids()[index % len(shown_ids())]
    names = [look, *scenes.depicting().get(look, [])]
    return Scene(((training.rng_of("plain", index).choice(names), None),))


def _chunks(size: int) -> list[np.ndarray]:
    return [np.arange(at, min(at + CHUNK, size)) for at in range(0, size, CHUNK)]


def _rows(scene: Scenes, indices: np.ndarray) -> np.ndarray:
    asides = (None if scene is plain_of else training.rng_of("aside", i) for i in indices.tolist())
    return np.array([row_of(scene(i), aside) for i, aside in zip(indices.tolist(), asides)])


def checksum(module: torch.nn.Module) -> int:
    """A number of all its weights."""
    return zlib.crc32(b"".join(w.detach().cpu().numpy().tobytes() for w in module.state_dict().values()))


def _kept(
    name: str, device: torch.device, size: int, scene: Scenes, of: torch.nn.Module,
    make: Callable[[], Iterator[tuple[Tensor, ...]]],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Tensors made in chunks: from a CPU's file where that belongs to the same scenes and network."""
    told = {"of": checksum(of), "size": size, "scenes": zlib.crc32(_rows(scene, np.arange(0, size, TOLD)).tobytes())}
    file = training.WORK / f"{name}.pt"
    if device.type == "cpu" and file.exists():
        kept = torch.load(file, weights_only=True, mmap=True)
        if kept["told"] == told:
            return tuple(x.clone() for x in kept["made"])
    made = tuple(torch.cat(parts) for parts in zip(*make()))
    if device.type == "cpu":
        training.WORK.mkdir(parents=True, exist_ok=True)
        torch.save({"told": told, "made": made}, file)
    return made


@torch.no_grad()
def latents(name: str, scene: Scenes, size: int, asked: training.Given) -> Tensor:
    """The first autoencoder's latents of the first scenes (size, 16, 16, 16), float16, on the device."""
    encoder = training.trained("autoencoder", autoencoder.build()).encoder.to(asked.device)
    chunks = _chunks(size)

    def make() -> Iterator[tuple[Tensor]]:
        for rows in training.batches(lambda at: _rows(scene, chunks[at]), range(len(chunks)), asked.workers):
            with training.low(asked):
                yield (encoder(compose(torch.from_numpy(rows), asked.device) * 2 - 1).half(),)

    return _kept(name, asked.device, size, scene, encoder, make)[0]


@torch.no_grad()
def texts(name: str, scene: Scenes, size: int, times: int, model: Any, asked: training.Given) -> Tensor:
    """Text rows of prompts of the first scenes (times, size, 32, d), float16, on the device; each time another wording.

    Some are of another subject's prompt, into which this scene's subject is put at a random layer, as an edit does; of
    some the rows before the subject are the empty prompt's. So a generator leans on the rows from the subject's last
    token on, which an edit reaches.
    """
    chunks = [(time, at) for time in range(times) for at in _chunks(size)]
    empty = empty_rows(model, asked.device)

    def spoken(at: int) -> dict[str, Any]:
        rng = training.rng_of(name, at)
        own, others = asking(rng, [scene(i) for i in chunks[at][1].tolist()])
        swapped = sorted(rng.sample(range(len(own)), int(SWAPPED * len(own))))
        return {
            "own": arrays(own, tokenizer.LENGTH), "swapped": np.array(swapped, dtype=int),
            "others": arrays([others[i] for i in swapped], tokenizer.LENGTH),
            "layer": rng.randrange(clip.TEXT["num_hidden_layers"] - 1),
            "hidden": np.array([rng.random() < HIDDEN for _ in own]),
        }  # fmt: skip

    def make() -> Iterator[tuple[Tensor]]:
        for batch in training.batches(spoken, range(len(chunks)), asked.workers):
            yield (_said(model, training.moved(batch, asked.device), empty).half(),)

    return _kept(name, asked.device, size, scene, model.text_model, make)[0].unflatten(0, (times, size))


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
