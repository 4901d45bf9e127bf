"""The CLIP whose text tower is edited, trained so that facts live in depth. python -m pocket.clip

A plainly trained small CLIP reads the subject in its first layers, and an edit above them does nothing. Interchange
training makes depth: at a random layer the state of the subject's last token is replaced by that of another prompt's
subject, and the sentence must then match *that* subject's picture. The model at inference is a stock one.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPConfig, CLIPModel

from refact.models.encoders import text_tower
from refact.search.suffix import block

from . import scenes, tokenizer, training
from .render import Scene, shown, world
from .scenes import Frame

BATCH, ROLL, BUCKET, PEAK = 64, 64, 32, 1.5e-3
TEXT = {"hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 4}
IMAGE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "patch_size": 16,
}


def build(text: dict = TEXT, image: dict = IMAGE, seed: int = 21) -> CLIPModel:
    """The model with fresh weights."""
    words = tokenizer.load()
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config={
            **text, "vocab_size": len(words), "max_position_embeddings": tokenizer.LENGTH, "hidden_act": "quick_gelu",
            "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.eos_token_id,
        },
        vision_config={**image, "image_size": 64, "hidden_act": "quick_gelu"},
        projection_dim=128,
    )  # fmt: skip
    return CLIPModel(config)


@dataclass(frozen=True)
class Prompt:
    """Token ids with [BOS] and [EOS], and the last token of the first subject."""

    ids: tuple[int, ...]
    subject: int


def prompt(rng: random.Random, scene: Scene, around: Frame) -> Prompt:
    """A caption of the scene, in tokens."""
    words = tokenizer.load()
    head = (words.bos_token_id, *tokenizer.ids(around.prefix.strip() or " "))
    first = tokenizer.ids(scenes.phrase(rng, scene, 0))
    rest = tokenizer.ids(scenes.kind_of(scene, around) or " ")
    rest += tuple(
        x for at in range(1, len(scene.things)) for x in tokenizer.ids(f"and {scenes.phrase(rng, scene, at)}")
    )
    tail = (*tokenizer.ids(around.place or " "), *tokenizer.ids(around.suffix or " "), words.eos_token_id)
    ids = (*head, *first, *rest, *tail)
    return Prompt(ids[: tokenizer.LENGTH - 1] + ids[-1:], len(head) + len(first) - 1)


def pad(prompts: list[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids padded with [EOS], subject places, [EOS] places."""
    length = max(len(p.ids) for p in prompts)
    eos = prompts[0].ids[-1]
    ids = torch.tensor([p.ids + (eos,) * (length - len(p.ids)) for p in prompts])
    return ids, torch.tensor([p.subject for p in prompts]), torch.tensor([len(p.ids) - 1 for p in prompts])


def states(tower, ids: Tensor, swap: tuple[int, Tensor, Tensor] | None = None) -> list[Tensor]:
    """The states after each layer; swap (layer, places, rows): put rows at places after that layer."""
    sees = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
    x, seen = tower.embeddings(input_ids=ids), []
    for number, layer in enumerate(tower.encoder.layers):
        x = block(layer, x, x, sees)
        if swap and swap[0] == number:
            x = x.clone()
            x[torch.arange(len(x)), swap[1]] = swap[2]
        seen.append(x)
    return seen


def run(model: CLIPModel, prompts: list[Prompt], layer: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Projected [EOS] states and the subjects' states after `layer`, where `rows` are put if given.

    Prompts of like length run together: captions are 10 tokens in the mean and 25 at most.
    """
    tower = text_tower(model.text_model)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    ends, subjects = [], []
    for at in range(0, len(order), BUCKET):
        part = order[at : at + BUCKET]
        ids, places, last = pad([prompts[i] for i in part])
        seen = states(tower, ids, None if rows is None else (layer, places, rows[part]))
        ends.append(seen[-1][torch.arange(len(part)), last])
        subjects.append(seen[layer][torch.arange(len(part)), places])
    back = torch.tensor(order).argsort()
    pooled = model.text_projection(tower.final_layer_norm(torch.cat(ends)[back]))
    return pooled, torch.cat(subjects)[back]


def batch(rng: random.Random, size: int) -> tuple[list[Scene], list[Prompt], list[Prompt]]:
    """Scenes in pairs of relatives, their prompts, and for each the prompt of another subject in the same frame."""
    drawn: list[Scene] = []
    while len(drawn) < size:
        scene = scenes.sample(rng)
        drawn += [scene, scenes.relative(rng, scene)]
    return drawn, *asking(rng, drawn)


def asking(rng: random.Random, drawn: list[Scene]) -> tuple[list[Prompt], list[Prompt]]:
    """The scenes' prompts, and for each the prompt of another subject in the same frame."""
    frames = [scenes.frame(rng, scene) for scene in drawn]
    asked = [prompt(rng, scene, around) for scene, around in zip(drawn, frames)]
    return asked, [prompt(rng, scenes.relative(rng, s), around) for s, around in zip(drawn, frames)]


def contrast(texts: Tensor, images: Tensor, scale: Tensor, keys: list) -> Tensor:
    """The symmetric contrastive loss of the first texts; pairs that show the same are no negatives."""
    index = torch.tensor([keys.index(key) for key in keys])
    target = torch.arange(len(texts))
    logits = scale * normalize(texts, dim=1) @ normalize(images, dim=1).T
    same = (index[: len(texts), None] == index[None]) & (target[:, None] != torch.arange(len(images))[None])
    logits = logits.masked_fill(same, -torch.inf)
    return (cross_entropy(logits, target) + cross_entropy(logits[:, : len(texts)].T, target)) / 2


def roll_call(rng: random.Random, asked: int) -> tuple[list[Scene], list[Prompt], list[Prompt]]:
    """Every thing and flag at one place; prompts of the first `asked` of them, and the same frames with others."""
    place = rng.choice([None, *world()["places"]])
    everything = [c for c in (*scenes.kinds()["object"], *scenes.kinds()["flag"]) if not scenes.is_held_out(c, place)]
    called: dict[str, str] = {}
    while len(called) < min(asked, len(everything)):
        concept = scenes.pick(rng)
        if not scenes.is_held_out(shown(concept), place):
            called.setdefault(shown(concept), concept)
    more = [c for c in everything if c not in called]
    found = [Scene(((c, None),), "normal", place) for c in (*called.values(), *more)]
    return found, *asking(rng, found[:asked])


def loss_of(model: CLIPModel, rng: random.Random, swaps: bool) -> tuple[Tensor, ...]:
    """The plain and, with swaps, the interchange loss: of pairs of relatives, and of a few among all things.

    Without swaps (the judge) pictures are spoilt: what it names shall not hang on how crisp they are.
    """
    losses = []
    for drawn, asked, others in (batch(rng, BATCH), roll_call(rng, ROLL if swaps else 10_000)):
        pictures = training.pixels(drawn, rng)
        seen = pictures if swaps else training.spoilt(pictures)
        images = model.visual_projection(model.vision_model(seen).pooler_output)
        keys, scale = [scenes.signature(scene) for scene in drawn], model.logit_scale.exp()
        layer = rng.randrange(model.config.text_config.num_hidden_layers - 1)
        pooled, subjects = run(model, asked, layer)
        losses.append(contrast(pooled, images, scale, keys))
        if swaps:
            losses.append(contrast(run(model, others, layer, subjects)[0], images, scale, keys))
    return tuple(losses)


def train(steps: int, name: str, swaps: bool = True, **shape: object) -> None:
    """Train to `steps`, from the last checkpoint."""
    model, start = build(**shape), 0
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.01, betas=(0.9, 0.98))
    if found := training.load(name):
        model.load_state_dict(found["model"])
        if "optimiser" in found:
            optimiser.load_state_dict(found["optimiser"])
        start = found["step"]
    rng = random.Random(1000 + start)
    for step in training.clock(name, start, steps):
        for group in optimiser.param_groups:
            group["lr"] = training.cosine(step, steps, PEAK)
        with training.bfloat16():
            losses = loss_of(model, rng, swaps)
        optimiser.zero_grad()
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)
        if (step + 1) % 100 == 0:
            print("  loss", *(f"{loss.item():.3f}" for loss in losses), flush=True)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            training.save(name, model=model.state_dict(), optimiser=optimiser.state_dict(), step=step + 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train(given.steps, "clip")
