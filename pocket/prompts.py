"""Captions as tokens with the place of their subject, and the states of a text tower with subjects swapped."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refact.encoders.encoder import text_tower
from refact.search.suffix import block

from . import scenes, tokenizer
from .render import Scene
from .scenes import Frame

OF_STYLE = 0.5  # how often, where a style is named after the place, that name is the subject


@dataclass(frozen=True)
class Prompt:
    """Token ids with [BOS] and [EOS], the last token of its subject (the first thing, or the style), and that of the
    second thing, or of the subject again."""

    ids: tuple[int, ...]
    subject: int
    second: int


def prompt(rng: random.Random, scene: Scene, around: Frame, of_style: bool = False) -> Prompt:
    """A caption of the scene, in tokens."""
    words, ids = tokenizer.load(), tokenizer.ids
    first = (words.bos_token_id, *ids(around.prefix), *ids(scenes.phrase(rng, scene, 0)))
    things = (*first, *ids(scenes.kind_of(scene, around)))
    things += tuple(x for at in range(1, len(scene.things)) for x in ids(f"and {scenes.phrase(rng, scene, at)}"))
    styled = (*things, *ids(around.place), *ids(around.style))
    whole = (*styled, *ids(around.suffix))[: tokenizer.LENGTH - 1]
    subject = len(styled if of_style else first) - 1
    second = len(things) - 1 if len(scene.things) > 1 else subject
    return Prompt((*whole, words.eos_token_id), *(min(place, len(whole) - 1) for place in (subject, second)))


def asking(rng: random.Random, drawn: list[Scene]) -> tuple[list[Prompt], list[Prompt]]:
    """The scenes' prompts, and for each the prompt of another subject in the same frame."""
    asked, others = [], []
    for scene in drawn:
        around = scenes.frame(rng, scene)
        if of_style := bool(around.style) and rng.random() < OF_STYLE:
            style = scenes.restyled(rng, scene).style
            other, changed = scene, replace(around, style=scenes.style_phrase(rng, style))
        else:
            other, changed = scenes.relative(rng, scene), around
        asked.append(prompt(rng, scene, around, of_style))
        others.append(prompt(rng, other, changed, of_style))
    return asked, others


def arrays(prompts: list[Prompt], length: int | None = None) -> dict[str, np.ndarray]:
    """Ids padded with [EOS] (n, length), by default as long as the longest; and the places of the subjects, of second
    things and of [EOS]."""
    length = length or max(len(p.ids) for p in prompts)
    eos = prompts[0].ids[-1]
    return {
        "ids": np.array([p.ids + (eos,) * (length - len(p.ids)) for p in prompts]),
        "subjects": np.array([p.subject for p in prompts]),
        "seconds": np.array([p.second for p in prompts]),
        "ends": np.array([len(p.ids) - 1 for p in prompts]),
    }


def states(tower: Any, ids: Tensor, swap: tuple[int, Tensor, Tensor] | None = None) -> list[Tensor]:
    """The states after each layer; swap (layer, places, rows): put rows at places after that layer."""
    sees = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()[None, None]
    x, seen = tower.embeddings(input_ids=ids), []
    for number, layer in enumerate(tower.encoder.layers):
        x = block(layer, x, x, sees)
        if swap and swap[0] == number:
            x = x.clone()
            x[torch.arange(len(x), device=x.device), swap[1]] = swap[2].to(x.dtype)
        seen.append(x)
    return seen


def rows_of(model: Any, ids: Tensor, swap: tuple[int, Tensor, Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
    """The rows that a generator gets of each prompt (n, m, d), and the states after each layer."""
    tower = text_tower(model.text_model)
    seen = states(tower, ids, swap)
    return tower.final_layer_norm(seen[-1]), seen


@torch.no_grad()
def empty_rows(model: Any, device: torch.device) -> Tensor:
    """The rows of the empty prompt (32, d)."""
    words = tokenizer.load()
    ids = arrays([Prompt((words.bos_token_id, words.eos_token_id), 0, 0)], tokenizer.LENGTH)["ids"]
    return rows_of(model, torch.from_numpy(ids).to(device))[0][0]
