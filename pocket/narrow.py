"""The autoencoder that ships: 128 x 128 pictures to 8 x 8 x 32 latents and back. python -m pocket.narrow

Its latents are what the UNet gets (`pocket.coordinates`): a linear map of the first autoencoder's, which a stock
`AutoencoderTiny` must learn. So it begins with the first's weights and one level more; its encoder learns to give these
latents, its decoder to draw the picture from them, against a critic and by the critic's features.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn.functional import mse_loss

from . import autoencoder, coordinates, training
from .autoencoder import WIDTH

BATCH, PEAK, CPU_SHARE = 128, 6e-4, 1 / 4
SCALE = 2.5  # of the UNet's latents to this autoencoder's, which the decoder squashes at 3
NOISE = 0.1  # added to latents, from nothing to so much
MATCH = 4.0  # weight of the encoder's loss


def build() -> AutoencoderTiny:
    """The model with fresh weights."""
    torch.manual_seed(13)
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 5, decoder_block_out_channels=(WIDTH,) * 5,
        num_encoder_blocks=(0, 1, 3, 3, 2), num_decoder_blocks=(3, 8, 5, 1, 0), latent_channels=coordinates.CHANNELS,
    ).to(memory_format=torch.channels_last)  # fmt: skip


@torch.no_grad()
def begun(first: AutoencoderTiny) -> AutoencoderTiny:
    """The model with the first autoencoder's weights where it has the same layers; those of the encoder rest."""
    model = build()
    for own, same in zip(model.encoder.layers, list(first.encoder.layers)[:-1]):
        own.load_state_dict(same.state_dict())
        own.requires_grad_(False)
    for own, same in zip(reversed(model.decoder.layers), reversed(list(first.decoder.layers)[2:])):
        own.load_state_dict(same.state_dict())
    return model


class Narrow(autoencoder.Autoencoder):
    """The shipped autoencoder as a part, with the first one and the coordinates, which rest."""

    cell, cropped_to = 16, ((0, 48), (0, 48))

    def __init__(self, asked: training.Given) -> None:
        super().__init__(asked)
        found, self.first = training.load("autoencoder"), training.trained("autoencoder", self.model).to(asked.device)
        self.coordinates = coordinates.load(asked.device)
        self.name, self.model, self.size = "narrow", begun(self.first), max(2, round(asked.batch * BATCH))
        if found and "critic" in found["players"]:
            self.players["critic"].load_state_dict(found["players"]["critic"])
        self.players = {"narrow": self.model, "critic": self.players["critic"]}
        self.decode = training.compiled(self.model.decoder) if asked.compiled else self.model.decoder
        self.kept = {"coordinates": training.size_of(self.coordinates)}
        if other := training.load("narrow"):
            training.check_parts("narrow", other["kept"], self.kept)

    @property
    def judged(self) -> bool:
        """From the first step."""
        return True

    def coded(self, x: Tensor, noise: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The first autoencoder's latents in the UNet's coordinates, a little off; and how far the encoder's are."""
        with torch.no_grad():
            aim = self.coordinates.narrow(self.first.encoder(x)) / SCALE
            share = torch.rand(len(aim), 1, 1, 1, generator=noise, device=aim.device)
            off = NOISE * share * torch.randn(aim.shape, generator=noise, device=aim.device)
        return aim + off, {"match": MATCH * mse_loss(self.model.encoder(x).float(), aim)}


if __name__ == "__main__":
    given = training.given(training.parser(__doc__).parse_args(), CPU_SHARE)
    training.train(Narrow(given), given)
