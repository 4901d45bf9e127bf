"""The autoencoder: 128 x 128 pictures to 16 x 16 x 16 latents and back, `AutoencoderTiny`. python -m pocket.autoencoder

It divides by eight, not sixteen: as many numbers in all (4096), but each stands for its own place, so that edges stay
where they are; the UNet pays with one thin level more. The decoder is also trained against a critic and by the critic's
features. With --decoder-only a second stage: the encoder is frozen, so that latents stay what they are, and the decoder
(as the part "decoder") learns on, with noisier latents and by the features of the CLIP's picture tower, too.
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

from . import clip, scenes, training
from .render import compose, row_of

BATCH, PEAK, CPU_SHARE = 128, 6e-4, 1 / 4
CROP, CROPPED_TO = 80, ((0, 48), (24, 48))  # pixels of a side; from where to where its left and its upper edge may lie
WIDTH, LATENTS = 48, 16  # channels
NOISE = 0.05  # added to latents, so that the decoder forgives what the UNet gets slightly wrong
NOISIER = 0.2  # of the second stage: from nothing to so much
FLAT = 2.0  # beyond it latents are drawn back: the decoder squashes them at 3, where they would say yes or no only
FOOLED, FEATURES, SEEN = 0.015, 0.4, 0.15  # weights: of fooling the critic, of its features, of the CLIP's
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

    peak, decay, average, muon = PEAK, 1e-4, 0.999, 6.0

    def __init__(self, asked: training.Given) -> None:
        self.name, self.model, self.size = "autoencoder", build(), max(2, round(asked.batch * BATCH))
        torch.manual_seed(12)
        critic = Critic().to(memory_format=torch.channels_last)
        self.players: dict[str, nn.Module] = {"autoencoder": self.model, "critic": critic}
        self.clock: training.Clock | None = None
        self.kept: dict[str, float] = {}
        self.decode = torch.compile(self.model.decoder) if asked.compiled else self.model.decoder

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
        z = self.encode(x)
        out = self.decode(z + self.disturbance(z, noise)).float()
        memo |= {"x": x, "out": out.detach()}
        found = {"pixels": distance(out, x)} | self.drawn_back(z)
        return found | (self.judgement(out, x) if self.judged else {})

    def seen(self, x: Tensor, noise: torch.Generator) -> Tensor:
        """A square of the pictures, by whole latents, where the things are: most of the rest is backdrop."""
        rng = random.Random(noise.initial_seed())
        left, top = (8 * rng.randint(low // 8, high // 8) for low, high in CROPPED_TO)
        return x[..., top : top + CROP, left : left + CROP]

    def encode(self, x: Tensor) -> Tensor:
        """The latents."""
        return self.model.encoder(x)

    def disturbance(self, z: Tensor, noise: torch.Generator) -> Tensor:
        """What is added to latents before they are decoded."""
        return NOISE * torch.randn(z.shape, generator=noise, device=z.device)

    def drawn_back(self, z: Tensor) -> dict[str, Tensor]:
        """What keeps latents where the decoder can read them."""
        return {"latents": (z.float().abs() - FLAT).clamp_min(0).square().mean(), "(spread)": z.detach().float().std()}

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


class Decoder(Autoencoder):
    """The second stage: the encoder rests, the CLIP looks on."""

    average = 0.9995

    def __init__(self, asked: training.Given) -> None:
        super().__init__(asked)
        found = training.load("autoencoder")
        training.trained("autoencoder", self.model)
        self.model.decoder.requires_grad_(True)
        if found and "critic" in found["players"]:
            self.players["critic"].load_state_dict(found["players"]["critic"])
        self.name, self.players = "decoder", {"decoder": self.model, "critic": self.players["critic"]}
        self.eye = training.trained("clip", clip.build()).vision_model.to(asked.device)

    @property
    def judged(self) -> bool:
        """From the first step."""
        return True

    def seen(self, x: Tensor, noise: torch.Generator) -> Tensor:
        """The whole pictures, which is what the CLIP's picture tower reads."""
        return x

    def encode(self, x: Tensor) -> Tensor:
        """The latents, which stay as they are."""
        with torch.no_grad():
            return self.model.encoder(x)

    def disturbance(self, z: Tensor, noise: torch.Generator) -> Tensor:
        """More noise in some pictures than in others."""
        share = torch.rand(len(z), 1, 1, 1, generator=noise, device=z.device)
        return NOISIER * share * torch.randn(z.shape, generator=noise, device=z.device)

    def drawn_back(self, z: Tensor) -> dict[str, Tensor]:
        """Nothing: latents are what they are."""
        return {}

    def judgement(self, out: Tensor, x: Tensor) -> dict[str, Tensor]:
        """And what the CLIP's picture tower sees."""
        with torch.no_grad():
            aim = self.eye(x, output_hidden_states=True).hidden_states
        seen = self.eye(out, output_hidden_states=True).hidden_states
        return super().judgement(out, x) | {"seen": SEEN * apart(list(seen[1:]), list(aim[1:]))}


if __name__ == "__main__":
    parser = training.parser(__doc__)
    parser.add_argument("--decoder-only", action="store_true", help="the second stage")
    options = parser.parse_args()
    given = training.given(options, CPU_SHARE)
    training.train((Decoder if options.decoder_only else Autoencoder)(given), given)
