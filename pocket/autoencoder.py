"""The autoencoder: 128 x 128 pictures to 16 x 16 x 16 latents and back, `AutoencoderTiny`. python -m pocket.autoencoder

It divides by eight, so that each number stands for its own place and edges stay where they are. The decoder is also
trained against a critic and by the critic's features. The UNet gets fewer numbers (`pocket.coordinates`), and what
ships is the autoencoder of those, `pocket.narrow`, which begins with this one's weights.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn.functional import l1_loss, leaky_relu, mse_loss, relu

from . import scenes, training
from .render import compose, row_of

BATCH, PEAK, CPU_SHARE = 128, 6e-4, 1 / 4
CROP = 80  # pixels of a side of the squares that are learned from
WIDTH, LATENTS = 48, 16  # channels
NOISE = 0.05  # added to latents, so that the decoder forgives what the UNet gets slightly wrong
FLAT = 2.0  # beyond it latents are drawn back: the decoder squashes them at 3, where they would say yes or no only
FOOLED, FEATURES = 0.015, 0.4  # weights: of fooling the critic, of its features
LATE = 0.7  # of the first stage: before it there is no critic, which costs half as much again


def build() -> AutoencoderTiny:
    """The model with fresh weights."""
    torch.manual_seed(11)
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4, decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 3, 3), num_decoder_blocks=(8, 5, 1, 0), latent_channels=LATENTS,
    ).to(memory_format=torch.channels_last)  # fmt: skip


class Critic(nn.Module):
    """Tells patches of drawn pictures from decoded ones; its layers are features to compare by."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width, 4 * width]
        norm = nn.utils.parametrizations.spectral_norm
        self.layers = nn.ModuleList(
            norm(nn.Conv2d(a, b, 4, 2 if at < 3 else 1, 1)) for at, (a, b) in enumerate(pairwise(sizes))
        )
        self.last = norm(nn.Conv2d(sizes[-1], 1, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores of patches, and the features of each layer."""
        features = []
        for layer in self.layers:
            x = leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.last(x), features


def distance(out: Tensor, x: Tensor) -> Tensor:
    """L1 and squared error, and both for the differences of neighbouring pixels: edges count."""
    total = l1_loss(out, x) + 2 * mse_loss(out, x)
    for dim in (2, 3):
        total = total + 1.5 * l1_loss(out.diff(dim=dim), x.diff(dim=dim))
    return total


def apart(one: list[Tensor], other: list[Tensor]) -> Tensor:
    """The mean L1 distance of features, layer by layer; `other` is what they should be."""
    return torch.stack([l1_loss(a.float(), b.detach().float()) for a, b in zip(one, other)]).mean()


class Autoencoder:
    """The whole autoencoder as a part."""

    peak, decay, average, muon, cell = PEAK, 1e-4, 0.999, 6.0, 8  # cell: pixels of a latent
    cropped_to = (0, 48), (24, 48)  # from where to where a square's left and upper edge may lie

    def __init__(self, asked: training.Given) -> None:
        self.name, self.model, self.size = "autoencoder", build(), max(2, round(asked.batch * BATCH))
        torch.manual_seed(12)
        critic = Critic().to(memory_format=torch.channels_last)
        self.players: dict[str, nn.Module] = {"autoencoder": self.model, "critic": critic}
        self.clock: training.Clock | None = None
        self.kept: dict[str, float] = {}
        self.decode = training.compiled(self.model.decoder) if asked.compiled else self.model.decoder

    def begin(self, clock: training.Clock) -> None:
        """The loop's clock: it says when the critic comes in."""
        self.clock = clock

    @property
    def judged(self) -> bool:
        """Whether the critic has come in."""
        return self.clock is not None and self.clock.progress() >= LATE

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Rows of random scenes."""
        rng = training.rng_of(self.name, step)
        return {"rows": np.array([row_of(scenes.sample(rng), rng) for _ in range(self.size)])}

    def losses(self, player: str, batch: Any, noise: torch.Generator, memo: dict) -> dict[str, Tensor]:
        """First the autoencoder's, which leaves its pictures for the critic's."""
        if player == "critic":
            return self.criticism(memo)
        x = self.seen(compose(batch["rows"], noise.device) * 2 - 1, noise)
        x = x.contiguous(memory_format=torch.channels_last)
        z, losses = self.coded(x, noise)
        out = self.decode(z).float()
        memo |= {"x": x, "out": out.detach()}
        return {"pixels": distance(out, x)} | losses | (self.judgement(out, x) if self.judged else {})

    def seen(self, x: Tensor, noise: torch.Generator) -> Tensor:
        """A square of the pictures, by whole latents, where the things are: most of the rest is backdrop."""
        rng = random.Random(noise.initial_seed())
        left, top = (self.cell * rng.randint(low // self.cell, high // self.cell) for low, high in self.cropped_to)
        return x[..., top : top + CROP, left : left + CROP]

    def coded(self, x: Tensor, noise: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents as the decoder gets them, a little off; and what keeps them where it can read them."""
        z = self.model.encoder(x)
        losses = {
            "latents": (z.float().abs() - FLAT).clamp_min(0).square().mean(),
            "(spread)": z.detach().float().std(),
        }
        return z + NOISE * torch.randn(z.shape, generator=noise, device=z.device), losses

    def judgement(self, out: Tensor, x: Tensor) -> dict[str, Tensor]:
        """What the critic makes of the decoded pictures: by its score, and by its features."""
        critic = self.players["critic"]
        score, features = critic(out)
        with torch.no_grad():
            aim = critic(x)[1]
        return {"fooled": -FOOLED * score.float().mean(), "features": FEATURES * apart(features, aim)}

    def criticism(self, memo: dict) -> dict[str, Tensor]:
        """The hinge loss of the critic, once it has come in."""
        if not self.judged:
            return {}
        critic = self.players["critic"]
        real, made = (critic(memo[name])[0].float() for name in ("x", "out"))
        return {"critic": relu(1 - real).mean() + relu(1 + made).mean()}


if __name__ == "__main__":
    given = training.given(training.parser(__doc__).parse_args(), CPU_SHARE)
    training.train(Autoencoder(given), given)
