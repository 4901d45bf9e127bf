"""The CLIP whose text tower is edited, trained so that facts live in depth. python -m pocket.clip

A plainly trained small CLIP reads the subject in its first layers, and an edit above them does nothing. Interchange
training makes depth: at a random layer the state of the subject's last token (of a thing, person, office or face, or of
a style or artist) is replaced by that of another prompt's subject, and the sentence must then match *that* subject's
picture. The model at inference is a stock one. In every step a roll call, too: prompts against pictures of every look.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPModel

from refact.encoders.encoder import text_tower

from . import scenes, tokenizer, training
from .backdrops import SIDE
from .glyphs import shown_ids, world
from .prompts import arrays, asking, states
from .render import Scene, compose, row_of, shown

PAIRS, ASKED, CPU_SHARE = 768, 320, 1 / 12  # scenes, prompts of the roll call; the share of them that a CPU takes
STYLED_ROLL = 0.3  # how often a roll call is in a style
PEAK = 1.0e-3
HOTTEST = 4.6052  # log of the logit scale: 100
TEXT = {"hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4}
IMAGE = {
    "hidden_size": 160, "intermediate_size": 480, "num_hidden_layers": 4, "num_attention_heads": 5, "patch_size": 16,
}  # fmt: skip


def build(text: dict = TEXT, image: dict = IMAGE, seed: int = 21) -> CLIPModel:
    """The model with fresh weights."""
    words = tokenizer.load()
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={
            **text, "vocab_size": len(words), "max_position_embeddings": tokenizer.LENGTH, "hidden_act": "quick_gelu",
            "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.eos_token_id,
        },
        vision_config={**image, "image_size": SIDE, "hidden_act": "quick_gelu"},
        projection_dim=128,
    )  # fmt: skip
    return CLIPModel(config)


def pairs(rng: random.Random, size: int) -> list[Scene]:
    """Scenes beside relatives of theirs: another thing, emotion or style."""
    drawn: list[Scene] = []
    while len(drawn) < size:
        scene = scenes.sample(rng)
        near = scenes.restyled(rng, scene) if scene.style and rng.random() < 0.4 else scenes.relative(rng, scene)
        drawn += [scene, near]
    return drawn


def roll_call(rng: random.Random, asked: int, share: float) -> list[Scene]:
    """Every look, or a share of them, at one place and in one style; the first `asked` by any concept that shows it."""
    place = rng.choice([None, *world()["places"]])
    style = rng.choice(scenes.kinds()["style"]) if rng.random() < STYLED_ROLL else None
    free = [c for c in shown_ids() if not scenes.is_held_out(c, place) and not scenes.is_held_out(c, style)]
    free = rng.sample(free, max(2, round(share * len(free))))
    called: dict[str, str] = {}
    for concept in (scenes.pick(rng) for _ in range(8 * asked)):
        if shown(concept) in free and len(called) < asked:
            called.setdefault(shown(concept), concept)
    called |= {c: c for c in free[: max(0, asked - len(called))] if c not in called}
    things = (*called.values(), *(c for c in free if c not in called))
    return [Scene(((c, None),), "normal", place, style) for c in things]


def signatures(drawn: list[Scene]) -> np.ndarray:
    """Equal numbers for scenes that show the same."""
    seen: dict[tuple, int] = {}
    return np.array([seen.setdefault(scenes.signature(scene), len(seen)) for scene in drawn])


def told(rng: random.Random, drawn: list[Scene], count: int) -> dict[str, Any]:
    """What a step needs of some scenes, the first `count` of which are asked for."""
    asked, others = asking(rng, drawn[:count])
    rows = np.array([row_of(scene, rng) for scene in drawn])
    layer = rng.randrange(TEXT["num_hidden_layers"] - 1)
    found = {"rows": rows, "alike": signatures(drawn), "asked": arrays(asked), "others": arrays(others)}
    return found | {"layer": layer}


def contrast(texts: Tensor, images: Tensor, scale: Tensor, alike: Tensor) -> Tensor:
    """The symmetric contrastive loss of the first texts; pairs that show the same are no negatives."""
    target = torch.arange(len(texts), device=texts.device)
    with torch.autocast(texts.device.type, enabled=False):  # at a scale of 100, bfloat16 is off by half a logit
        logits = scale.float() * normalize(texts.float(), dim=1) @ normalize(images.float(), dim=1).T
    same = (alike[: len(texts), None] == alike[None]) & (target[:, None] != torch.arange(len(images)).to(target)[None])
    logits = logits.masked_fill(same, -torch.inf)
    return (cross_entropy(logits, target) + cross_entropy(logits[:, : len(texts)].T, target)) / 2


class Clip:
    """A CLIP as a part; without swaps (the judge) pictures are spoilt: what it names shall not hang on crispness."""

    peak, decay, average, muon = PEAK, 0.02, 0.999, 1.0

    def __init__(self, asked: training.Given, name: str = "clip", swaps: bool = True, **shape: Any) -> None:
        self.name, self.swaps, self.share = name, swaps, min(1.0, asked.batch)
        self.sizes = [max(2, round(asked.batch * size)) for size in (PAIRS, ASKED)]
        self.size = sum(self.sizes)
        self.players = {name: build(**shape)}
        self.kept: dict[str, float] = {}

    def begin(self, clock: training.Clock) -> None:
        """Nothing here depends on the time."""

    def batch(self, step: int) -> tuple[dict, dict]:
        """Pairs of relatives, and a roll call."""
        rng = training.rng_of(self.name, step)
        drawn = pairs(rng, self.sizes[0])
        called = roll_call(rng, self.sizes[1], self.share)
        return told(rng, drawn, len(drawn)), told(rng, called, min(len(called), self.sizes[1]))

    def losses(self, player: str, batch: tuple[dict, dict], noise: torch.Generator, memo: dict) -> dict[str, Tensor]:
        """The plain and, with swaps, the interchange loss of both."""
        model = self.players[player]
        scale = model.logit_scale.clamp(max=HOTTEST).exp()
        found = {}
        for name, part in zip(("pairs", "roll"), batch):
            pictures = compose(part["rows"], noise.device) * 2 - 1
            images = self.images(model, pictures if self.swaps else training.spoilt(pictures, noise))
            layer = part["layer"]
            pooled, subjects = self.texts(model, part["asked"], layer if self.swaps else 0)
            found[name] = contrast(pooled, images, scale, part["alike"])
            if self.swaps:
                swapped = self.texts(model, part["others"], layer, subjects)[0]
                found[f"{name}, swapped"] = contrast(swapped, images, scale, part["alike"])
        return found

    @staticmethod
    def images(model: CLIPModel, pictures: Tensor) -> Tensor:
        """Projected pictures."""
        return model.visual_projection(model.vision_model(pictures).pooler_output)

    @staticmethod
    def texts(
        model: CLIPModel, told: dict[str, Tensor], layer: int, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Projected [EOS] states and the subjects' states after `layer`, where `rows` are put if given."""
        tower, at = text_tower(model.text_model), torch.arange(len(told["ids"]), device=told["ids"].device)
        swap = None if rows is None else (layer, told["subjects"], rows)
        seen = states(tower, told["ids"], swap)
        pooled = model.text_projection(tower.final_layer_norm(seen[-1][at, told["ends"]]))
        return pooled, seen[layer][at, told["subjects"]]


if __name__ == "__main__":
    given = training.given(training.parser(__doc__).parse_args(), CPU_SHARE)
    training.train(Clip(given), given)
