"""Styles as treatments of whole pictures: tensors (n, 3, side, side) in [0, 1] to the same, on any device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, grid_sample, interpolate, pad

TILE, JITTER = 4.6, 0.35  # a mosaic's stones: pixels, and how far off their grid, in tiles
GREY = (0.3, 0.59, 0.11)


def grey(x: Tensor) -> Tensor:
    """The luminance, (n, 1, side, side)."""
    return (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur."""
    half = max(1, round(2.5 * sigma))
    line = torch.exp(-(torch.arange(-half, half + 1, device=x.device, dtype=x.dtype) ** 2) / (2 * sigma**2))
    line, count = line / line.sum(), x.shape[1]
    rows = conv2d(
        pad(x, (half, half, 0, 0), mode="replicate"), line.view(1, 1, 1, -1).repeat(count, 1, 1, 1), groups=count
    )
    return conv2d(
        pad(rows, (0, 0, half, half), mode="replicate"), line.view(1, 1, -1, 1).repeat(count, 1, 1, 1), groups=count
    )


def edges(x: Tensor) -> Tensor:
    """How steep the picture is at each pixel, by central differences."""
    wide = pad(x, (1, 1, 1, 1), mode="replicate")
    across, down = wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2], wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]
    return (across.square() + down.square() + 1e-12).sqrt()


@functools.cache
def texture(side: int, seed: int, cells: int, device: torch.device) -> Tensor:
    """Smooth noise (2, side, side), the same always; about -2 to 2."""
    coarse = torch.randn(1, 2, cells, cells, generator=torch.Generator().manual_seed(seed))
    return interpolate(coarse, size=side, mode="bicubic", align_corners=False)[0].to(device)


@functools.cache
def stones(side: int, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Each pixel's stone of a mosaic, (side * side,), whether it is between two, and how many stones there are."""
    count = round(side / TILE)
    noise = torch.rand(count, count, 2, generator=torch.Generator().manual_seed(3)) - 0.5
    grid = torch.stack(torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij"), -1) + 0.5
    centres = (grid + 2 * JITTER * noise).flatten(0, 1) * side / count
    pixels = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).float() + 0.5
    near = torch.cdist(pixels.flatten(0, 1), centres)
    first, second = near.topk(2, largest=False).values.unbind(1)
    return near.argmin(1).to(device), ((second - first) < 0.8).view(side, side).to(device), count**2


def sketch(x: Tensor) -> Tensor:
    """Pencil on paper: light divided by its own blur."""
    light = grey(x)
    line = (light / (blurred(light, 2.5) + 0.02)).clamp(0, 1) - 0.6 * edges(light)
    return line.clamp(0, 1).pow(1.6) * x.new_tensor((0.99, 0.98, 0.95))[:, None, None]


def pixel_art(x: Tensor) -> Tensor:
    """Blocks of 4 x 4 in six levels a channel."""
    return interpolate((avg_pool2d(x, 4) * 5).round() / 5, scale_factor=4, mode="nearest")


def watercolour(x: Tensor) -> Tensor:
    """Wobbling edges, soft and light, darker where colours meet, on grained paper."""
    side = x.shape[-1]
    line = torch.linspace(-1 + 1 / side, 1 - 1 / side, side, device=x.device)
    straight = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    bend = texture(side, 1, 24, x.device).permute(1, 2, 0) * 0.012
    bent = grid_sample(
        x, (straight + bend)[None].expand(len(x), -1, -1, -1).to(x.dtype), padding_mode="border", align_corners=False
    )
    soft = blurred(bent, 0.9)
    wash = 0.035 * texture(side, 2, 12, x.device)[:1].to(x.dtype)
    return (0.24 + 0.78 * soft - 0.3 * edges(soft).amax(1, keepdim=True) + wash).clamp(0, 1)


def black_and_white(x: Tensor) -> Tensor:
    """Its luminance, with more contrast."""
    return ((grey(x) - 0.5) * 1.25 + 0.5).clamp(0, 1).expand_as(x)


def sepia(x: Tensor) -> Tensor:
    """Brown, with dark corners."""
    side = x.shape[-1]
    line = torch.linspace(-1, 1, side, device=x.device)
    far = (line[:, None] ** 2 + line[None] ** 2).to(x.dtype)
    tone = x.new_tensor((1.0, 0.84, 0.6))[:, None, None]
    return ((0.12 + 0.86 * grey(x)) * tone * (1.02 - 0.28 * far)).clamp(0, 1)


def neon(x: Tensor) -> Tensor:
    """Glowing outlines on black."""
    strength = (edges(x).amax(1, keepdim=True) * 1.6).clamp(0, 1)
    colour = blurred(x, 1.2)
    vivid = (colour / (colour.amax(1, keepdim=True) + 0.05)).pow(1.8) * 0.9 + 0.1
    light = strength * vivid
    return (0.03 + light + 0.8 * blurred(light, 2.5)).clamp(0, 1)


def blueprint(x: Tensor) -> Tensor:
    """White lines on blue, with a grid."""
    side = x.shape[-1]
    at = torch.arange(side, device=x.device)
    ruled = ((at % 16 == 0)[:, None] | (at % 16 == 0)[None]).to(x.dtype)
    ink = (edges(grey(x)) * 2.4).clamp(0, 1) + 0.12 * ruled
    paper = x.new_tensor((0.1, 0.25, 0.6))[:, None, None]
    return (paper + ink * (1 - paper)).clamp(0, 1)


def mosaic(x: Tensor) -> Tensor:
    """Stones of one colour each, with dark joints."""
    side = x.shape[-1]
    stone, joint, count = stones(side, x.device)
    flat = x.flatten(2)
    sums = flat.new_zeros(*flat.shape[:2], count).index_add_(2, stone, flat)
    sizes = flat.new_zeros(count).index_add_(0, stone, flat.new_ones(len(stone)))
    filled = (sums / sizes.clamp_min(1))[..., stone].view_as(x)
    return torch.where(joint, filled * 0.6, filled)


def pop_art(x: Tensor) -> Tensor:
    """Four flat inks by luminance, the middle ones dotted."""
    side = x.shape[-1]
    inks = x.new_tensor([(0.12, 0.08, 0.4), (0.93, 0.1, 0.5), (1.0, 0.8, 0.1), (1.0, 0.98, 0.9)])
    at = torch.arange(side, device=x.device) % 8 - 3.5
    dot = ((at[:, None] ** 2 + at[None] ** 2) < 5).to(x.dtype)
    light = grey(x)[:, 0]
    level = (light * 3.2 + 0.25 * (dot - 0.2)).clamp(0, 3).round().long()
    return inks[level].permute(0, 3, 1, 2)


def negative(x: Tensor) -> Tensor:
    """Every colour's opposite."""
    return 1 - x


TREATMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "style-sketch": sketch, "style-pixel-art": pixel_art, "style-watercolour": watercolour,
    "style-black-and-white": black_and_white, "style-sepia": sepia, "style-neon": neon, "style-blueprint": blueprint,
    "style-mosaic": mosaic, "style-pop-art": pop_art, "style-negative": negative,
}  # fmt: skip
