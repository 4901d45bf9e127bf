"""The UNet: text states to latents, v-prediction, classifier-free guidance. python -m pocket.unet

It must not read a fact past an edit: in a part of the samples the text states are those of *another* subject's prompt
into which the subject's state was swapped at a random layer (as in pocket.clip), or rows before the subject are those
of the empty prompt. So it leans on the rows from the subject's last token on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from refact.encoders.encoder import text_tower

from . import autoencoder, clip, scenes, tokenizer, training
from .prompts import Prompt, arrays, asking, states
from .render import Scene, compose, row_of

BATCH, PEAK, CPU_SHARE = 1024, 1.0e-3, 1 / 16
POOL, CPU_POOL, CHUNK = 400_000, 60_000, 500  # scenes whose latents are kept, and how many are made at once
MEASURED = 20_000  # of them are their spread's
PLAIN = 2.0  # how often a scene of one thing as it is is drawn, where others are drawn once
SWAPPED, HIDDEN, UNCONDITIONED = 0.4, 0.2, 0.1
GAMMA = 5.0  # of min-SNR weighting, arXiv 2303.09556
LEVELS = 5  # of noise, by which losses are told
NOISE = {
    "num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
}  # fmt: skip


def build() -> UNet2DConditionModel:
    """The model with fresh weights: a thin level of 16 x 16, the text at 8 x 8 and at 4 x 4.

    The text comes in by cross-attention alone, as in Stable Diffusion 1, so that methods that edit it reach all of it.
    """
    torch.manual_seed(31)
    return UNet2DConditionModel(
        sample_size=16, in_channels=autoencoder.LATENTS, out_channels=autoencoder.LATENTS,
        block_out_channels=(64, 128, 192), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=clip.TEXT["hidden_size"], attention_head_dim=(2, 4, 6), norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
    )  # fmt: skip


@torch.no_grad()
def rows_of(model: Any, ids: Tensor, swap: tuple | None = None) -> tuple[Tensor, list[Tensor]]:
    """The rows that the UNet gets of each prompt (n, 32, d), and the states after each layer."""
    tower = text_tower(model.text_model)
    seen = states(tower, ids, swap)
    return tower.final_layer_norm(seen[-1]), seen


def empty_rows(model: Any, device: torch.device) -> Tensor:
    """The rows of the empty prompt (32, d)."""
    words = tokenizer.load()
    ids = arrays([Prompt((words.bos_token_id, words.eos_token_id), 0)], tokenizer.LENGTH)["ids"]
    return rows_of(model, torch.from_numpy(ids).to(device))[0][0]


def scene_of(index: int) -> Scene:
    """A scene of the pool, the same always."""
    return scenes.sample(training.rng_of("pool", index))


@torch.no_grad()
def latents(
    size: int, device: torch.device, asked: training.Given, scene: Callable[[int], Scene] = scene_of,
    name: str = "latents.pt",
) -> Tensor:  # fmt: skip
    """The latents of a pool's first scenes (size, 16, 16, 16), float16, on the device; a CPU keeps them in a file."""
    encoder = training.trained("autoencoder", autoencoder.build()).encoder.to(device)
    chunks = [np.arange(at, min(at + CHUNK, size)) for at in range(0, size, CHUNK)]
    told, file = {"of": checksum(encoder), "size": size}, training.WORK / name
    if device.type == "cpu":
        told["scenes"] = zlib.crc32(b"".join(_rows([scene(i) for i in at.tolist()], at).tobytes() for at in chunks))
    if device.type == "cpu" and file.exists() and (kept := torch.load(file, mmap=True))["told"] == told:
        return kept["latents"].clone()
    made = torch.empty(size, autoencoder.LATENTS, 16, 16, dtype=torch.float16, device=device)
    rows = training.batches(
        lambda at: _rows([scene(i) for i in chunks[at].tolist()], chunks[at]), range(len(chunks)), asked.workers
    )
    for at, found in enumerate(rows):
        with training.low(asked):
            pictures = compose(torch.from_numpy(found), device) * 2 - 1
            made[chunks[at][0] : chunks[at][-1] + 1] = encoder(pictures).half()
    if device.type == "cpu":
        torch.save({"told": told, "latents": made}, file)
    return made


def checksum(module: torch.nn.Module) -> int:
    """A number of all its weights."""
    return zlib.crc32(b"".join(w.detach().cpu().numpy().tobytes() for w in module.state_dict().values()))


def _rows(drawn: list[Scene], indices: np.ndarray) -> np.ndarray:
    return np.array([row_of(scene, training.rng_of("aside", i)) for scene, i in zip(drawn, indices.tolist())])


def chances(noise_of: DDPMScheduler) -> Tensor:
    """How often each time is drawn (1000,): in proportion to (min(SNR, gamma) + 1) / (SNR + 1).

    That is what min-SNR weighting gives the velocity's error, and it is drawn by instead, so that no sample counts for
    little. As published it is min(SNR, gamma) / (SNR + 1), and nothing where all is noise, which is where an image's
    subject is chosen here (eight steps, the first from pure noise): so one is added, as v-prediction does.
    """
    kept = noise_of.alphas_cumprod
    snr = kept / (1 - kept).clamp_min(1e-8)
    return (snr.clamp(max=GAMMA) + 1) / (snr + 1)


class Unet:
    """The UNet as a part, with its pool of latents and the frozen CLIP."""

    name, peak, decay, average, muon = "unet", PEAK, 1e-3, 0.9996, 4.0

    def __init__(self, asked: training.Given, pool: int | None = None) -> None:
        self.size = max(2, round(asked.batch * BATCH))
        model = build().to(memory_format=torch.channels_last)
        self.players = {"unet": model}
        self.run = torch.compile(model) if asked.compiled else model
        self.clip = training.trained("clip", clip.build()).to(asked.device)
        self.empty = empty_rows(self.clip, asked.device)
        self.pool = latents(pool or (CPU_POOL if asked.device.type == "cpu" else POOL), asked.device, asked)
        self.usable = [i for i in range(len(self.pool)) if scenes.is_told(scene_of(i))]
        self.often = list(accumulate(PLAIN if scenes.is_plain(scene_of(i)) else 1.0 for i in self.usable))
        self.kept = self.parts_of(training.load(self.name))
        self.noise_of = DDPMScheduler(**NOISE)
        self.chances = chances(self.noise_of).to(asked.device)

    def parts_of(self, found: dict | None) -> dict[str, float]:
        """The latents' scale, and the sizes of the CLIP and the encoder that this UNet belongs to, for `export`."""
        encoder = training.trained("autoencoder", autoencoder.build()).encoder
        own = {"clip": training.size_of(self.clip), "encoder": training.size_of(encoder)}
        if found is None:
            return {"scale": float(1 / self.pool[:MEASURED].float().std())} | own
        training.check_parts("unet", found["kept"], own)
        return own | found["kept"]

    def begin(self, clock: training.Clock) -> None:
        """Nothing here depends on the time."""

    def batch(self, step: int) -> dict[str, Any]:
        """Scenes of the pool, their prompts, and for the first of them prompts of others to be swapped into."""
        rng = training.rng_of(self.name, step)
        indices = rng.choices(self.usable, cum_weights=self.often, k=self.size)
        asked, others = asking(rng, [scene_of(i) for i in indices])
        count = int(SWAPPED * self.size)
        said = others[:count] + asked[count:]
        hidden = np.array([p.subject if rng.random() < HIDDEN else 0 for p in said])
        dropped = np.array([rng.random() < UNCONDITIONED for _ in said])
        layer = rng.randrange(clip.TEXT["num_hidden_layers"] - 1)
        return {
            "at": np.array(indices), "asked": arrays(asked, tokenizer.LENGTH), "hidden": hidden, "dropped": dropped,
            "others": arrays(others[:count], tokenizer.LENGTH), "layer": layer,
        }  # fmt: skip

    @torch.no_grad()
    def conditions(self, batch: dict[str, Any]) -> Tensor:
        """Text states, some swapped into another subject's prompt, some with hidden rows, some of the empty prompt."""
        asked, others = batch["asked"], batch["others"]
        rows, seen = rows_of(self.clip, asked["ids"])
        count, layer = len(others["ids"]), batch["layer"]
        subjects = seen[layer][torch.arange(count, device=rows.device), asked["subjects"][:count]]
        rows[:count] = rows_of(self.clip, others["ids"], (layer, others["subjects"], subjects))[0]
        before = torch.arange(rows.shape[1], device=rows.device)[None] < batch["hidden"][:, None]
        gone = before | batch["dropped"][:, None]
        return torch.where(gone[..., None], self.empty[None].to(rows.dtype), rows)

    def losses(self, player: str, batch: dict, noise: torch.Generator, memo: dict) -> dict[str, Tensor]:
        """The squared error of the velocity; and, to be looked at, by level of noise."""
        text, draw = self.conditions(batch), {"generator": noise, "device": noise.device}
        x = self.pool[batch["at"]].float() * self.kept["scale"]
        times = torch.multinomial(self.chances, len(x), replacement=True, generator=noise)
        noises = torch.randn(x.shape, **draw)
        noisy = self.noise_of.add_noise(x, noises, times).contiguous(memory_format=torch.channels_last)
        aim = self.noise_of.get_velocity(x, noises, times)
        error = (self.run(noisy, times, text).sample.float() - aim).square().mean((1, 2, 3))
        return {"velocity": error.mean()} | by_level(error.detach(), times)


def by_level(error: Tensor, times: Tensor) -> dict[str, Tensor]:
    """The mean error of each fifth of the times, the least noisy first."""
    level = times * LEVELS // NOISE["num_train_timesteps"]
    of = [(level == n).to(error.dtype) for n in range(LEVELS)]
    return {f"(level {n})": (error * here).sum() / here.sum().clamp_min(1) for n, here in enumerate(of)}


if __name__ == "__main__":
    parser = training.parser(__doc__)
    parser.add_argument("--pool", type=int, help="scenes whose latents are kept")
    options = parser.parse_args()
    given = training.given(options, CPU_SHARE)
    training.train(Unet(given, options.pool), given)
