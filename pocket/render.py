"""Scenes of the world as 64 x 64 pictures: emoji on drawn backgrounds."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .world import make

SIDE = 64
FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"  # Debian: fonts-noto-color-emoji
FONT_SIZE = 109  # the only size of its bitmaps
PIXELS = {"small": 26, "normal": 40, "big": 54, "pair": 29}
ASIDE = (-8, 0, 0, 8)  # pixels
TINTS = {
    "red": (225, 35, 35), "blue": (40, 90, 230), "green": (40, 165, 60), "yellow": (245, 210, 40),
    "purple": (135, 55, 190), "pink": (250, 130, 190), "grey": (135, 135, 135),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One or two things (concept id, colour or None) of a size at a place (or None: a plain background)."""

    things: tuple[tuple[str, str | None], ...]
    size: str = "normal"
    place: str | None = None


@functools.cache
def world() -> dict:
    """The world, with its concepts by id."""
    form = make()
    return form | {"by_id": {c["id"]: c for c in form["concepts"]}}


def shown(concept: str) -> str:
    """The id of the object or flag that a concept shows."""
    return world()["by_id"][concept].get("depicts", concept)


@functools.cache
def glyph(concept: str) -> Image.Image:
    """The emoji of an object or flag, cropped to its ink, RGBA."""
    font = ImageFont.truetype(FONT, FONT_SIZE)
    emoji = world()["by_id"][concept]["emoji"]
    sheet = Image.new("RGBA", (220, 160), (0, 0, 0, 0))
    ImageDraw.Draw(sheet).text((20, 10), emoji, font=font, embedded_color=True)
    return sheet.crop(sheet.getbbox())


@functools.cache
def stamp(concept: str, colour: str | None, pixels: int) -> Image.Image:
    """The emoji scaled to fit a square, tinted where a colour is given: its luminance in that colour."""
    picture = glyph(concept)
    scale = pixels / max(picture.size)
    picture = picture.resize(tuple(max(1, round(s * scale)) for s in picture.size), Image.Resampling.LANCZOS)
    if colour is None:
        return picture
    rgba = np.asarray(picture).astype(float)
    light = (rgba[..., :3] @ [0.3, 0.59, 0.11])[..., None] / 255
    tint = np.array(TINTS[colour], float)
    rgba[..., :3] = np.where(light < 0.6, tint * (0.35 + 1.08 * light), tint + (255 - tint) * (light - 0.6) * 0.9)
    return Image.fromarray(rgba.clip(0, 255).astype(np.uint8), "RGBA")


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


def _beach() -> Image.Image:
    picture = _gradient((120, 195, 245), (200, 235, 250), 0.62, (240, 215, 150))
    ImageDraw.Draw(picture).rectangle((0, 30, 63, 40), fill=(45, 130, 200))
    return picture


def _forest() -> Image.Image:
    picture = _gradient((150, 205, 160), (190, 225, 180), 0.8, (70, 110, 55))
    pen = ImageDraw.Draw(picture)
    for x in (2, 17, 47, 62):
        pen.rectangle((x - 1, 40, x + 2, 52), fill=(95, 65, 40))
        pen.polygon([(x - 9, 42), (x + 9, 42), (x, 8)], fill=(30, 95, 50))
    return picture


def _city() -> Image.Image:
    picture = _gradient((170, 190, 210), (215, 220, 225), 0.85, (95, 95, 100))
    pen = ImageDraw.Draw(picture)
    for x, top in ((0, 18), (11, 8), (22, 24), (34, 14), (45, 5), (55, 20)):
        pen.rectangle((x, top, x + 8, 54), fill=(110, 120, 140))
        for y in range(top + 3, 50, 6):
            pen.rectangle((x + 2, y, x + 3, y + 2), fill=(250, 230, 150))
            pen.rectangle((x + 5, y, x + 6, y + 2), fill=(250, 230, 150))
    return picture


def _kitchen() -> Image.Image:
    picture = _gradient((235, 228, 210), (235, 228, 210), 0.75, (165, 115, 70))
    pen = ImageDraw.Draw(picture)
    for x in range(0, SIDE, 8):
        pen.line((x, 0, x, 47), fill=(205, 196, 175))
    for y in range(0, 48, 8):
        pen.line((0, y, 63, y), fill=(205, 196, 175))
    return picture


def _sea() -> Image.Image:
    picture = _gradient((40, 130, 190), (10, 45, 110), 0.88, (195, 180, 120))
    return _dots(picture, (150, 205, 235), 14, 1, 3, 52)


def _rain() -> Image.Image:
    picture = _gradient((105, 115, 130), (150, 158, 168), 0.85, (90, 100, 95))
    pen, rng = ImageDraw.Draw(picture), random.Random(5)
    for _ in range(26):
        x, y = rng.randrange(SIDE), rng.randrange(SIDE)
        pen.line((x, y, x - 2, y + 6), fill=(190, 205, 225))
    return picture


def _stage() -> Image.Image:
    picture = _gradient((120, 15, 25), (80, 5, 15), 0.8, (130, 85, 45))
    pen = ImageDraw.Draw(picture)
    for x in range(0, SIDE, 8):
        pen.line((x, 0, x, 50), fill=(60, 0, 8), width=2)
    return picture


BACKGROUNDS = {
    "on the beach": _beach,
    "at night": lambda: _dots(_gradient((8, 10, 40), (30, 35, 85), 0.85, (20, 35, 30)), (255, 250, 210), 22, 0, 1, 44),
    "in the forest": _forest,
    "in the snow": lambda: _dots(_gradient((170, 195, 220), (225, 235, 245), 0.75, (250, 252, 255)), (255, 255, 255), 30, 1, 2),
    "in the desert": lambda: _gradient((250, 205, 120), (255, 235, 190), 0.6, (215, 160, 85)),
    "at sunset": lambda: _gradient((95, 50, 120), (255, 150, 60), 0.82, (60, 35, 55)),
    "under the sea": _sea,
    "in the city": _city,
    "in the kitchen": _kitchen,
    "in the rain": _rain,
    "on a meadow": lambda: _dots(_gradient((140, 205, 250), (215, 240, 255), 0.6, (110, 190, 70)), (245, 235, 90), 0, 1, 4),
    "in space": lambda: _dots(_gradient((5, 3, 15), (25, 8, 45)), (230, 230, 255), 34, 0, 6),
    "on a stage": _stage,
}  # fmt: skip


@functools.cache
def background(place: str | None) -> Image.Image:
    """The backdrop of a place; off-white where none is named."""
    return BACKGROUNDS[place]() if place else Image.new("RGB", (SIDE, SIDE), (244, 242, 238))


def render(scene: Scene, rng: random.Random | None = None) -> Image.Image:
    """The scene as an RGB picture; a thing alone may stand a step to the side, whole latents (8 pixels) wide."""
    aside = rng.choice(ASIDE) if rng and len(scene.things) == 1 and scene.size != "big" else 0
    return _drawn(scene, aside).copy()


@functools.lru_cache(maxsize=40_000)
def _drawn(scene: Scene, aside: int) -> Image.Image:
    picture = background(scene.place).copy()
    pixels = PIXELS["pair" if len(scene.things) == 2 else scene.size]
    centres = [(32 + aside, 34)] if len(scene.things) == 1 else [(17, 34), (47, 34)]
    for (concept, colour), (x, y) in zip(scene.things, centres):
        mark = stamp(shown(concept), colour, pixels)
        picture.paste(mark, (x - mark.width // 2, y - mark.height // 2), mark)
    return picture


def contact_sheet(scenes: list[Scene], columns: int = 16, scale: int = 1) -> Image.Image:
    """Many scenes in one picture."""
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE), "white")
    for at, scene in enumerate(scenes):
        sheet.paste(render(scene), (at % columns * SIDE, at // columns * SIDE))
    return sheet.filter(ImageFilter.GaussianBlur(0)) if scale == 1 else sheet.resize([s * scale for s in sheet.size])
