"""The autoencoder: 64 x 64 pictures to 32 x 8 x 8 latents and back, `AutoencoderTiny`. python -m pocket.autoencoder"""

from __future__ import annotations

import argparse
import random

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from . import scenes, training

BATCH, PEAK = 32, 1.2e-3
WIDTH, LATENTS = 48, 32  # channels; with 8 or 16 latent ones pictures stayed blurred
NOISE = 0.05  # added to latents, so that the decoder forgives what the UNet gets slightly wrong
FLAT = 2.0  # beyond it latents are drawn back: the decoder squashes them at 3, where they would say yes or no only


def build() -> AutoencoderTiny:
    """The model with fresh weights."""
    torch.manual_seed(11)
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4, decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 3, 3), num_decoder_blocks=(8, 5, 1, 0), latent_channels=LATENTS,
    ).to(memory_format=torch.channels_last)  # fmt: skip


def loss_of(out: Tensor, x: Tensor) -> Tensor:
    """L1 and squared error, and both for the differences of neighbouring pixels: edges count."""
    total = l1_loss(out, x) + 2 * mse_loss(out, x)
    for dim in (2, 3):
        total = total + 1.5 * l1_loss(out.diff(dim=dim), x.diff(dim=dim))
    return total


def train(steps: int, frozen: bool = False) -> None:
    """Train to `steps`, from the last checkpoint; frozen: the decoder only, so that latents stay what they are."""
    model, rng = build(), random.Random(1)
    parameters = list((model.decoder if frozen else model).parameters())
    optimiser = torch.optim.AdamW(parameters, lr=PEAK, weight_decay=1e-4, betas=(0.9, 0.98))
    start = 0
    if found := training.load("autoencoder"):
        model.load_state_dict(found["model"])
        start = found["step"]
        if found.get("frozen") == frozen:  # a restored checkpoint has no optimiser, and says nothing of this
            optimiser.load_state_dict(found["optimiser"])
        rng = random.Random(start)
    for step in training.clock("autoencoder", start, steps):
        x = training.pixels([scenes.sample(rng) for _ in range(BATCH)], rng).contiguous(
            memory_format=torch.channels_last
        )
        for group in optimiser.param_groups:
            group["lr"] = training.cosine(step, steps, PEAK)
        with training.bfloat16():
            with torch.set_grad_enabled(not frozen):
                z = model.encoder(x)
            out = model.decoder(z + NOISE * torch.randn_like(z))
        loss = loss_of(out.float(), x) + (z.float().abs() - FLAT).clamp_min(0).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0:
            print(f"  loss {loss.item():.4f}", flush=True)
        if (step + 1) % 300 == 0 or step + 1 == steps:
            training.save(
                "autoencoder", model=model.state_dict(), optimiser=optimiser.state_dict(), step=step + 1, frozen=frozen
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train(given.steps, given.decoder_only)
