"""The coordinates in which the UNet learns: principal components of latents, and text rows of even spread.

Of the 64 numbers of each 2 x 2 latents of the first autoencoder the UNet gets 32 principal components, so that it works
at 8 x 8, where it costs a third. And it gets text rows (32, 128) that are whitened: as the CLIP leaves them, names
differ in a few directions a thousand times more than in others, and a look that is told apart by the latter takes very
long to learn. Both maps are linear. `fold` puts the second into the weights; `pocket.narrow` has the first learned by
a stock autoencoder. python -m pocket.coordinates
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from . import autoencoder, clip, pools, training

FINE, CHANNELS = autoencoder.LATENTS, 32  # channels of the first autoencoder's latents, and of those that the UNet gets
EVENED = 0.3  # 0: components keep their spread; 1: all have the same
RIDGE = 1e-4  # of the largest variance: what is added before text rows are whitened
SEEN, MEASURED = pools.Pool("measured", "measured-texts", pools.scene_of), 4000  # scenes by which both are fitted
ENDS = 8  # last rows of a prompt, which are padding and have read all of it: whitening is by them


class Coordinates(nn.Module):
    """Both maps; frozen once they are fitted."""

    def __init__(self, width: int = clip.TEXT["hidden_size"]) -> None:
        super().__init__()
        sizes = {"centre": (4 * FINE,), "down": (4 * FINE, CHANNELS), "up": (CHANNELS, 4 * FINE)}
        sizes |= {"mean": (width,), "whiten": (width, width)}
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(size), requires_grad=False))

    def narrow(self, fine: Tensor) -> Tensor:
        """Latents (n, 16, 2h, 2w) as the UNet gets them (n, 32, h, w), of about unit spread."""
        patches = pixel_unshuffle(fine.float(), 2).permute(0, 2, 3, 1)
        return ((patches - self.centre) @ self.down).permute(0, 3, 1, 2).contiguous()

    def widen(self, latents: Tensor) -> Tensor:
        """The nearest latents of the first autoencoder."""
        patches = latents.float().permute(0, 2, 3, 1) @ self.up + self.centre
        return pixel_shuffle(patches.permute(0, 3, 1, 2), 2)

    def rows(self, text: Tensor) -> Tensor:
        """Text rows (n, m, d), whitened."""
        return (text.float() - self.mean) @ self.whiten


@torch.no_grad()
def fit(fine: Tensor, text: Tensor) -> Coordinates:
    """The coordinates by latents (n, 16, 2h, 2w) and text rows (n, m, d) of random scenes."""
    found = Coordinates()
    patches = pixel_unshuffle(fine.float(), 2).permute(0, 2, 3, 1).flatten(0, 2).double().cpu()
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    scale = values ** (-EVENED / 2)
    scale = scale / (values * scale**2).mean().sqrt()
    found.centre.copy_(patches.mean(0))
    found.down.copy_(vectors * scale)
    found.up.copy_((vectors / scale).T)
    for own, value in zip((found.mean, found.whiten), whitening(text[:, -ENDS:].flatten(0, 1))):
        own.copy_(value)
    return found


def whitening(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,) of rows (n, d) and the matrix (d, d) that gives rows less it about equal spread, float64."""
    rows = rows.double().cpu()
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    return rows.mean(0), vectors * (values + RIDGE * values.max()) ** -0.5 @ vectors.T


def load(device: torch.device) -> Coordinates:
    """They from their checkpoint."""
    return training.trained("coordinates", Coordinates()).to(device)


def main(asked: training.Given) -> None:
    """Fit them, where they are not yet, and keep them as a checkpoint."""
    if training.load("coordinates") is None:
        model = training.trained("clip", clip.build()).to(asked.device)
        fine, text = pools.latents(SEEN, MEASURED, asked), pools.texts(SEEN, MEASURED, model, asked)[0]
        weights = fit(fine, text).state_dict()
        said = {"step": 0, "seconds": 0.0, "samples": 0, "kept": {}}
        training.save("coordinates", said | {"players": {"coordinates": weights}, "average": weights})


@torch.no_grad()
def fold(unet: UNet2DConditionModel, coordinates: Coordinates) -> UNet2DConditionModel:
    """Give a UNet that was trained on whitened rows the weights by which it takes the text encoder's own, in place.

    Keys and values are linear in the rows: k(W (h - m)) is (k W) h less a constant, which moves all scores of a query
    alike, and v's constant is what the output layer's bias takes.
    """
    whiten, mean = coordinates.whiten.double().T, coordinates.mean.double()
    for name, block in unet.named_modules():
        if name.endswith("attn2"):
            for layer in (block.to_k, block.to_v):
                layer.weight.copy_(layer.weight.double() @ whiten)
            out = block.to_out[0]
            out.bias.sub_((out.weight.double() @ (block.to_v.weight.double() @ mean)).to(out.bias.dtype))
    return unet


if __name__ == "__main__":
    main(training.given(training.parser(__doc__).parse_args(), 1.0))
