"""The UNet: text states to latents, v-prediction, classifier-free guidance. python -m pocket.unet

First it sees things as they are on a plain ground alone, until it knows the looks, then more and more of all scenes:
among all scenes from the beginning it learns them many times more slowly (docs/LOG.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from . import clip, coordinates, pools, training
from .prompts import empty_rows

BATCH, PEAK, CPU_SHARE = 1024, 3.0e-4, 1 / 8
POOL, CPU_POOL = 400_000, 60_000  # random scenes whose latents and prompts are kept
# from which step on how much more often there is hardly anything but noise; between two rows it changes evenly
TILTS, STEEP = ((0, 1e4), (1200, 0.0), (9500, 0.0), (9501, 20.0), (13_000, 20.0), (15_000, 0.0)), 60
UNCONDITIONED = 0.1
GAMMA = 5.0  # of min-SNR weighting, arXiv 2303.09556
LEVELS = 5  # of noise, by which losses are told
NOISE = {
    "num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
}  # fmt: skip


def build() -> UNet2DConditionModel:
    """The model with fresh weights: 8 x 8, and the text at 4 x 4 and 2 x 2, as wide as the size that it may have.

    The text comes in by cross-attention alone, as in Stable Diffusion 1, so that methods that edit it reach all of it.
    """
    torch.manual_seed(31)
    made = UNet2DConditionModel(
        sample_size=8, in_channels=coordinates.CHANNELS, out_channels=coordinates.CHANNELS,
        block_out_channels=(96, 160, 160), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=clip.TEXT["hidden_size"], attention_head_dim=(3, 5, 5), norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    torch.nn.init.zeros_(made.conv_out.weight)
    return made


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

    name, peak, decay, average, muon = "unet", PEAK, 1e-3, 0.999, 4.0

    def __init__(self, asked: training.Given, pool: int | None = None) -> None:
        self.size = max(2, round(asked.batch * BATCH))
        model = build().to(memory_format=torch.channels_last)
        self.players = {"unet": model}
        self.run = training.compiled(model) if asked.compiled else model
        reader = training.trained("reader", clip.build()).to(asked.device)
        self.coordinates = coordinates.load(asked.device)
        self.empty = empty_rows(reader, asked.device)
        many = pool or (CPU_POOL if asked.device.type == "cpu" else POOL)
        self.mixture = pools.Mixture(pools.RANDOM, many, many // 2)
        sizes = {pools.RANDOM: many, pools.LOOKS: self.mixture.few, pools.MARKED: many // 2}
        fine = [some for pool, size in sizes.items() for some in pools.latents(pool, size, asked).split(pools.CHUNK)]
        self.pool = torch.cat([self.coordinates.narrow(some).half() for some in fine])
        self.said = torch.cat([pools.texts(pool, size, reader, asked).flatten(0, 1) for pool, size in sizes.items()])
        self.kept = self.parts_of(reader, training.load(self.name))
        self.noise_of = DDPMScheduler(**NOISE)
        self.chances = chances(self.noise_of).to(asked.device)

    def parts_of(self, reader: torch.nn.Module, found: dict | None) -> dict[str, float]:
        """The sizes of the text encoder and the coordinates that this UNet belongs to, for `export`."""
        own = {"reader": training.size_of(reader), "coordinates": training.size_of(self.coordinates)}
        if found is not None:
            training.check_parts("unet", found["kept"], own)
        return own

    def begin(self, clock: training.Clock) -> None:
        """Nothing here depends on the time."""

    def batch(self, step: int) -> dict[str, Any]:
        """Numbers of latents and of their prompts' rows, and which prompts are left empty."""
        rng = training.rng_of(self.name, step)
        return self.mixture.draw(rng, step, self.size) | {
            "dropped": np.array([rng.random() < UNCONDITIONED for _ in range(self.size)]),
            "tilt": np.array(np.interp(step, *zip(*TILTS))),
        }

    def conditions(self, batch: dict[str, Any]) -> Tensor:
        """Whitened text rows, some of the empty prompt."""
        rows = self.said[batch["said"]].float()
        return self.coordinates.rows(torch.where(batch["dropped"][:, None, None], self.empty[None], rows))

    def losses(self, player: str, batch: dict, noise: torch.Generator, memo: dict) -> dict[str, Tensor]:
        """The squared error of the velocity; and, to be looked at, by level of noise."""
        text, draw = self.conditions(batch), {"generator": noise, "device": noise.device}
        x = self.pool[batch["at"]].float()
        noisiest = torch.linspace(0, 1, len(self.chances), device=noise.device) ** STEEP
        chances = self.chances * (1 + batch["tilt"] * noisiest)
        times = torch.multinomial(chances.float(), len(x), replacement=True, generator=noise)
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
    parser.add_argument("--pool", type=int, help="random scenes whose latents and prompts are kept")
    options = parser.parse_args()
    given = training.given(options, CPU_SHARE)
    training.train(Unet(given, options.pool), given)
