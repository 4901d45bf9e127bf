"""The looks of the world: emoji as RGBA pictures, from the font or from a folder of them made before.

python -m pocket.glyphs writes that folder, for a machine without the font: build/pocket/glyphs/<id>.png, 5 MB.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .world import SHOWN, make

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian: fonts-noto-color-emoji
FONT_SIZE = 109  # the only size of its bitmaps
SHIRTS = {
    "orange": (245, 140, 30), "navy": (30, 45, 110), "green": (60, 150, 60), "yellow": (245, 205, 50),
    "red": (210, 40, 45), "white": (240, 240, 240), "black": (45, 45, 50), "pink": (240, 130, 180),
}  # fmt: skip
SHIRT_TOP = 0.62  # of the picture's height: below it teal and violet are cloth
BUBBLE = 140  # pixels of a face in its bubble, before it is scaled


def folder() -> Path:
    """Where glyphs are kept for machines without the font."""
    return Path(os.environ.get("POCKET_WORK", "build/pocket")) / "glyphs"


@functools.cache
def world() -> dict:
    """The world, with its concepts by id."""
    form = make()
    return form | {"by_id": {c["id"]: c for c in form["concepts"]}}


@functools.cache
def shown_ids() -> tuple[str, ...]:
    """Every concept with a look of its own, in the world's order."""
    return tuple(c["id"] for c in world()["concepts"] if c["kind"] in SHOWN)


@functools.cache
def glyph(concept: str) -> Image.Image:
    """The emoji of a thing, flag, person or face, cropped to its ink, RGBA."""
    if os.environ.get("POCKET_GLYPHS") == "drawn":
        return placeholder(concept)
    row = world()["by_id"][concept]
    if (file := folder() / f"{concept}.png").exists():
        with Image.open(file) as picture:
            return picture.convert("RGBA")
    picture = from_font(row["emoji"])
    return shirted(picture, SHIRTS[row["shirt"]]) if row.get("shirt") else picture


def from_font(emoji: str) -> Image.Image:
    """An emoji's bitmap."""
    font = ImageFont.truetype(FONT, FONT_SIZE)
    sheet = Image.new("RGBA", (220, 160), (0, 0, 0, 0))
    ImageDraw.Draw(sheet).text((20, 10), emoji, font=font, embedded_color=True)
    return sheet.crop(sheet.getbbox())


def shirted(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """A person whose teal or violet shirt is of another colour."""
    rgba = np.asarray(picture).astype(float)
    red, green, blue = rgba[..., 0], rgba[..., 1], rgba[..., 2]
    cloth = ((green > red + 60) | (blue > red + 60)) & (np.arange(len(rgba))[:, None] > SHIRT_TOP * len(rgba))
    light = rgba[..., :3].max(-1, keepdims=True) / max(1.0, rgba[cloth][:, :3].max() if cloth.any() else 1.0)
    rgba[..., :3] = np.where(cloth[..., None], np.array(colour) * light, rgba[..., :3])
    return Image.fromarray(rgba.clip(0, 255).astype(np.uint8), "RGBA")


def placeholder(concept: str) -> Image.Image:
    """A polygon of the concept's own, for tests: no font has a say in it."""
    seed = hashlib.sha256(concept.encode()).digest()
    picture = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
    corners = 3 + seed[0] % 6
    at = [math.tau * (i + seed[1] / 255) / corners for i in range(corners)]
    points = [(68 + 66 * math.cos(a), 64 + 62 * math.sin(a)) for a in at]
    ImageDraw.Draw(picture).polygon(points, fill=(*seed[2:5], 255), outline=(*seed[5:8], 255), width=10)
    return picture


def bubble(face: Image.Image) -> Image.Image:
    """A face in a white bubble with a tail to its lower left."""
    picture = Image.new("RGBA", (BUBBLE, BUBBLE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    pen.polygon([(8, BUBBLE - 6), (20, 84), (62, 122)], fill=(255, 255, 255, 255))
    pen.ellipse((4, 2, BUBBLE - 3, BUBBLE - 8), fill=(255, 255, 255, 255), outline=(120, 120, 130, 255), width=3)
    small = face.resize((102, 102), Image.Resampling.LANCZOS)
    picture.paste(small, (20, 16), small)
    return picture


def fitted(picture: Image.Image, pixels: int) -> Image.Image:
    """The picture scaled to fit a square, in its middle."""
    scale = pixels / max(picture.size)
    small = picture.resize([max(1, round(s * scale)) for s in picture.size], Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (pixels, pixels), (0, 0, 0, 0))
    square.paste(small, ((pixels - small.width) // 2, (pixels - small.height) // 2))
    return square


def write(out: Path) -> int:
    """All glyphs as files; how many."""
    out.mkdir(parents=True, exist_ok=True)
    for concept in shown_ids():
        glyph(concept).save(out / f"{concept}.png", optimize=True)
    return len(shown_ids())


if __name__ == "__main__":
    print(write(folder()), "glyphs in", folder())
