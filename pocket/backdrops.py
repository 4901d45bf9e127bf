"""Where scenes stand: a drawn backdrop for each place, 128 x 128."""

from __future__ import annotations

import functools
import random

import numpy as np
from PIL import Image, ImageDraw

SIDE = 128


def _gradient(top: tuple, bottom: tuple, horizon: float = 1.0, ground: tuple | None = None) -> Image.Image:
    rows = np.linspace(0, 1, SIDE)[:, None]
    rgb = np.array(top) * (1 - rows) + np.array(bottom) * rows
    picture = np.repeat(rgb[:, None], SIDE, 1)
    if ground is not None:
        picture[int(SIDE * horizon) :] = ground
    return Image.fromarray(picture.astype(np.uint8))


def _dots(picture: Image.Image, colour: tuple, count: int, radius: int, seed: int, low: int = SIDE) -> Image.Image:
    pen, rng = ImageDraw.Draw(picture), random.Random(seed)
    for _ in range(count):
        x, y = rng.randrange(SIDE), rng.randrange(low)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def _plain() -> Image.Image:
    return Image.new("RGB", (SIDE, SIDE), (244, 242, 238))


def _beach() -> Image.Image:
    picture = _gradient((120, 195, 245), (200, 235, 250), 0.62, (240, 215, 150))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 60, 127, 81), fill=(45, 130, 200))
    for y in (64, 71, 78):
        pen.line((0, y, 127, y), fill=(110, 180, 225))
    return picture


def _night() -> Image.Image:
    picture = _gradient((8, 10, 40), (30, 35, 85), 0.85, (20, 35, 30))
    picture = _dots(picture, (255, 250, 210), 40, 1, 1, 88)
    ImageDraw.Draw(picture).ellipse((6, 8, 26, 28), fill=(250, 240, 190))
    return picture


def _forest() -> Image.Image:
    picture = _gradient((150, 205, 160), (190, 225, 180), 0.8, (70, 110, 55))
    pen = ImageDraw.Draw(picture)
    for x in (4, 34, 94, 124):
        pen.rectangle((x - 3, 80, x + 4, 106), fill=(95, 65, 40))
        for top, wide in ((16, 12), (36, 16), (56, 20)):
            pen.polygon([(x - wide, top + 30), (x + wide, top + 30), (x, top)], fill=(30, 95, 50))
    return picture


def _snow() -> Image.Image:
    picture = _gradient((170, 195, 220), (225, 235, 245), 0.75, (250, 252, 255))
    return _dots(picture, (255, 255, 255), 45, 2, 2)


def _desert() -> Image.Image:
    picture = _gradient((250, 225, 170), (250, 240, 205), 0.6, (225, 175, 95))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((-40, 64, 80, 130), fill=(215, 160, 80))
    pen.ellipse((60, 72, 190, 150), fill=(232, 185, 105))
    return picture


def _sunset() -> Image.Image:
    picture = _gradient((90, 45, 115), (255, 150, 70), 0.8, (60, 35, 60))
    ImageDraw.Draw(picture).pieslice((40, 78, 88, 126), 180, 360, fill=(255, 220, 110))
    return picture


def _sea() -> Image.Image:
    picture = _gradient((40, 130, 190), (10, 45, 110), 0.88, (195, 180, 120))
    return _dots(picture, (150, 205, 235), 22, 3, 3, 104)


def _city() -> Image.Image:
    picture = _gradient((170, 190, 210), (215, 220, 225), 0.85, (95, 95, 100))
    pen = ImageDraw.Draw(picture)
    for x, top in ((0, 36), (22, 16), (44, 48), (68, 28), (90, 10), (110, 40)):
        pen.rectangle((x, top, x + 17, 108), fill=(110, 120, 140))
        for y in range(top + 5, 102, 10):
            for left in (x + 3, x + 11):
                pen.rectangle((left, y, left + 3, y + 4), fill=(250, 230, 150))
    return picture


def _kitchen() -> Image.Image:
    picture = _gradient((235, 228, 210), (235, 228, 210), 0.75, (165, 115, 70))
    pen = ImageDraw.Draw(picture)
    for at in range(0, SIDE, 16):
        pen.line((at, 0, at, 95), fill=(205, 196, 175))
        pen.line((0, min(at, 95), 127, min(at, 95)), fill=(205, 196, 175))
    return picture


def _rain() -> Image.Image:
    picture = _gradient((105, 115, 130), (150, 158, 168), 0.85, (90, 100, 95))
    pen, rng = ImageDraw.Draw(picture), random.Random(5)
    for _ in range(44):
        x, y = rng.randrange(SIDE), rng.randrange(SIDE)
        pen.line((x, y, x - 4, y + 12), fill=(190, 205, 225))
    return picture


def _meadow() -> Image.Image:
    picture = _gradient((140, 205, 250), (215, 240, 255), 0.6, (110, 190, 70))
    pen, rng = ImageDraw.Draw(picture), random.Random(4)
    for _ in range(40):
        x, y = rng.randrange(SIDE), rng.randrange(80, SIDE)
        pen.ellipse((x - 1, y - 1, x + 1, y + 1), fill=rng.choice([(250, 240, 120), (255, 255, 255)]))
    return picture


def _space() -> Image.Image:
    picture = _dots(_gradient((5, 3, 15), (25, 8, 45)), (230, 230, 255), 60, 0, 6)
    pen = ImageDraw.Draw(picture)
    pen.ellipse((4, 92, 30, 118), fill=(190, 110, 70))
    pen.line((-2, 110, 36, 100), fill=(230, 190, 150), width=2)
    return picture


def _stage() -> Image.Image:
    picture = _gradient((120, 15, 25), (80, 5, 15), 0.8, (130, 85, 45))
    pen = ImageDraw.Draw(picture)
    for x in range(0, SIDE, 16):
        pen.line((x, 0, x, 101), fill=(60, 0, 8), width=3)
    return picture


DRAWN = {
    "on the beach": _beach, "at night": _night, "in the forest": _forest, "in the snow": _snow,
    "in the desert": _desert, "at sunset": _sunset, "under the sea": _sea, "in the city": _city,
    "in the kitchen": _kitchen, "in the rain": _rain, "on a meadow": _meadow, "in space": _space, "on a stage": _stage,
}  # fmt: skip


@functools.cache
def backdrop(place: str | None) -> Image.Image:
    """The backdrop of a place; off-white where none is named."""
    return DRAWN[place]() if place else _plain()
