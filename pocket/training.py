"""What all training loops share: pictures as tensors, checkpoints that survive a kill, a clock with time left."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import affine_grid, grid_sample, interpolate

from .render import Scene, render

WORK = Path(os.environ.get("POCKET_WORK", "build/pocket"))  # outside git


@contextmanager
def bfloat16() -> Iterator[None]:
    """Matrix products in bfloat16: 1.4 to 1.8 times faster where the CPU has avx512_bf16; flash attention is not."""
    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def pixels(scenes: list[Scene], rng: random.Random) -> Tensor:
    """(n, 3, 64, 64) in [-1, 1]."""
    stack = np.stack([np.asarray(render(scene, rng)) for scene in scenes])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def spoilt(pictures: Tensor, share: float = 0.7) -> Tensor:
    """A share of the pictures blurred, bent, noisy and off in colour, as a weak generator's are (n, 3, 64, 64)."""
    count, side = len(pictures), pictures.shape[-1]
    coarse = interpolate(pictures, size=(16, 24, 32, 48)[torch.randint(4, ()).item()], mode="bilinear", antialias=True)
    mixed = torch.lerp(pictures, interpolate(coarse, size=side, mode="bilinear"), torch.rand(count, 1, 1, 1))
    bend = interpolate(torch.randn(count, 2, 5, 5), size=side, mode="bicubic").permute(0, 2, 3, 1) * 0.04
    straight = affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(pictures.shape), align_corners=False)
    bent = grid_sample(mixed, straight + bend, padding_mode="border", align_corners=False)
    toned = bent * (1 + 0.15 * torch.randn(count, 3, 1, 1)) + 0.08 * torch.randn(count, 3, 1, 1)
    noisy = toned + 0.1 * torch.rand(count, 1, 1, 1) * torch.randn_like(toned)
    return torch.where(torch.rand(count, 1, 1, 1) < share, noisy, pictures).clamp(-1, 1)


def cosine(step: int, steps: int, peak: float, warm: int = 100) -> float:
    """A learning rate that rises over `warm` steps and falls to a hundredth of its peak."""
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm)))))


def save(name: str, **parts: object) -> None:
    """Write a checkpoint by rename."""
    WORK.mkdir(parents=True, exist_ok=True)
    torch.save(parts, WORK / f"{name}.part")
    (WORK / f"{name}.part").replace(WORK / f"{name}.pt")


def load(name: str) -> dict | None:
    """The checkpoint, or None where there is none yet."""
    path = WORK / f"{name}.pt"
    return torch.load(path, weights_only=True) if path.exists() else None


def clock(name: str, start: int, steps: int, every: int = 100) -> Iterator[int]:
    """Step numbers; prints speed and time left now and then."""
    begun = last = time.time()
    for step in range(start, steps):
        yield step
        if (step + 1) % every == 0:
            now = time.time()
            left = (now - begun) / (step + 1 - start) * (steps - step - 1)
            print(
                f"{name} {step + 1}/{steps}  {(now - last) / every:.3f} s a step, {left / 60:.1f} min left", flush=True
            )
            last = now
