"""The UNet: text states to latents, v-prediction, classifier-free guidance. python -m pocket.unet

It must not read a fact past an edit: in a part of the samples the text states are those of *another* subject's prompt
into which the subject's state was swapped at a random layer (as in pocket.clip), or rows before the subject are those
of the empty prompt. So it leans on the rows from the subject's last token on.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from refact.models.encoders import text_tower

from . import autoencoder, clip, scenes, tokenizer, training
from .render import shown

BATCH, PEAK, POOL, PART = 64, 8e-4, 80_000, 250
SCENES, FLAGS = 5, 0.4  # the pool's seed; how often a flag is drawn, of a thing
SWAPPED, HIDDEN, UNCONDITIONED, EMA = 0.4, 0.2, 0.1, 0.998
NOISE = {
    "num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
}  # fmt: skip


def build() -> UNet2DConditionModel:
    """The model with fresh weights."""
    torch.manual_seed(31)
    return UNet2DConditionModel(
        sample_size=8, in_channels=autoencoder.LATENTS, out_channels=autoencoder.LATENTS,
        block_out_channels=(96, 192), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=clip.TEXT["hidden_size"], attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


def trained(name: str, model: torch.nn.Module) -> torch.nn.Module:
    """The model with its checkpoint's weights (their moving average where there is one), frozen."""
    found = training.load(name)
    if found is None:
        raise SystemExit(f"train {name} first: python -m pocket.{name}")
    model.load_state_dict(found.get("average", found["model"]))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def rows_of(model, prompts: list[clip.Prompt], swap: tuple | None = None) -> tuple[Tensor, list[Tensor]]:
    """The 32 rows that the UNet gets of each prompt, and the states after each layer."""
    full = [clip.Prompt(p.ids + (p.ids[-1],) * (tokenizer.LENGTH - len(p.ids)), p.subject) for p in prompts]
    ids, _, _ = clip.pad(full)
    tower = text_tower(model.text_model)
    seen = clip.states(tower, ids, swap)
    return tower.final_layer_norm(seen[-1]), seen


def empty_rows(model) -> Tensor:
    """The rows of the empty prompt."""
    words = tokenizer.load()
    return rows_of(model, [clip.Prompt((words.bos_token_id, words.eos_token_id), 0)])[0][0]


def conditions(model, rng: random.Random, shown: list, empty: Tensor) -> Tensor:
    """Text states of the scenes, some swapped into another subject's prompt, some with hidden rows."""
    frames = [scenes.frame(rng, scene) for scene in shown]
    asked = [clip.prompt(rng, scene, around) for scene, around in zip(shown, frames)]
    rows, seen = rows_of(model, asked)
    count = int(SWAPPED * len(shown))
    layer = rng.randrange(len(seen) - 1)
    others = [clip.prompt(rng, scenes.relative(rng, s), f) for s, f in zip(shown[:count], frames)]
    subjects = torch.tensor([p.subject for p in asked[:count]])
    swap = (layer, torch.tensor([p.subject for p in others]), seen[layer][torch.arange(count), subjects])
    rows[:count] = rows_of(model, others, swap)[0]
    for at, asking in enumerate(others + asked[count:]):
        if rng.random() < HIDDEN:
            rows[at, : asking.subject] = empty[: asking.subject]
    return rows


def pool(size: int = POOL) -> dict[str, Tensor]:
    """Latents and text states of random scenes, made once: (n, 32, 8, 8) and (n, 32, d), float16."""
    made = texts(size) | latents(size)
    return made | {"scale": 1 / made["latents"].float().std(), "weights": weights(size)}


def weights(size: int) -> Tensor:
    """How often each scene is drawn: every thing alike, though many have no role that shows it; flags, which are
    learnt soonest, less."""
    scenes_of, flags = random.Random(SCENES), set(scenes.kinds()["flag"])
    drawn = [[shown(c) for c, _ in scenes.sample(scenes_of).things] for _ in range(size)]
    often = Counter(thing for things in drawn for thing in things)
    share = {thing: (FLAGS if thing in flags else 1) / count for thing, count in often.items()}
    return torch.tensor([sum(share[thing] for thing in things) / len(things) for things in drawn])


def _pooled(name: str, size: int, rows: Callable[[random.Random, list], Tensor]) -> Tensor:
    """One half of the pool, from its checkpoint or made: the same scenes for both."""
    if found := training.load(name):
        return found["rows"]
    scenes_of, rng = random.Random(SCENES), random.Random(6)
    steps = training.clock(name, 0, size // PART, every=20)
    made = torch.cat([rows(rng, [scenes.sample(scenes_of) for _ in range(PART)]).half() for _ in steps])
    training.save(name, rows=made)
    return made


@torch.no_grad()
def texts(size: int = POOL) -> dict[str, Tensor]:
    """What the UNet is told of each scene, and the empty prompt's rows."""
    model = trained("clip", clip.build())
    empty = empty_rows(model)
    return {"texts": _pooled("texts", size, lambda rng, shown: conditions(model, rng, shown, empty)), "empty": empty}


@torch.no_grad()
def latents(size: int = POOL) -> dict[str, Tensor]:
    """The scenes' latents."""
    vae = trained("autoencoder", autoencoder.build())
    return {"latents": _pooled("latents", size, lambda rng, shown: vae.encoder(training.pixels(shown, rng)))}


def train(steps: int, compiled: bool = False) -> None:
    """Train to `steps`, from the last checkpoint; compiled: faster, with a C++ compiler."""
    data, model, start = pool(), build().to(memory_format=torch.channels_last), 0
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=1e-3, betas=(0.9, 0.98), fused=True)
    average = {name: w.clone() for name, w in model.state_dict().items()}
    if found := training.load("unet"):
        model.load_state_dict(found["model"])
        if "optimiser" in found:
            optimiser.load_state_dict(found["optimiser"])
        average, start = found["average"], found["step"]
    noise_of = DDPMScheduler(**NOISE)
    random_of = torch.Generator().manual_seed(start)
    run = torch.compile(model) if compiled else model
    for step in training.clock("unet", start, steps):
        for group in optimiser.param_groups:
            group["lr"] = training.cosine(step, steps, PEAK)
        loss = loss_of(run, data, noise_of, random_of)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        keep = min(EMA, (step + 1) / (step + 10))
        for name, w in model.state_dict().items():
            average[name].lerp_(w, 1 - keep)
        if (step + 1) % 100 == 0:
            print(f"  loss {loss.item():.4f}", flush=True)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            training.save(
                "unet", model=model.state_dict(), average=average, optimiser=optimiser.state_dict(), step=step + 1
            )


def loss_of(model, data: dict[str, Tensor], noise_of: DDPMScheduler, random_of: torch.Generator) -> Tensor:
    """The mean squared error of the velocity, over random scenes and times."""
    at = torch.multinomial(data["weights"], BATCH, generator=random_of)
    x, text = data["latents"][at].float() * data["scale"], data["texts"][at].float()
    text[torch.rand(BATCH, generator=random_of) < UNCONDITIONED] = data["empty"]
    noise = torch.randn(x.shape, generator=random_of)
    times = torch.randint(NOISE["num_train_timesteps"], (BATCH,), generator=random_of)
    noisy = noise_of.add_noise(x, noise, times).contiguous(memory_format=torch.channels_last)
    aim = noise_of.get_velocity(x, noise, times)
    with training.bfloat16():
        out = model(noisy, times, text).sample
    return torch.nn.functional.mse_loss(out.float(), aim)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compiled", action="store_true", help="by torch.compile; needs a C++ compiler")
    parser.add_argument("--pool-only", choices=["texts", "latents"], help="make one half of the pool and stop")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.pool_only:
        {"texts": texts, "latents": latents}[given.pool_only]()
    else:
        train(given.steps, given.compiled)
