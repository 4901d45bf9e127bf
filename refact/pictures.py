"""Pictures side by side, with a line of text over each row."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .errors import DataError
from .trust import disk

GAP, INK, PAPER = 6, (40, 40, 40), (255, 255, 255)


def grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], cell: int = 160, text: int = 15) -> Image.Image:
    """One picture: each row a line of text over its pictures, every picture `cell` pixels wide, all of one shape."""
    font = ImageFont.load_default(text)
    columns = max(len(pictures) for _, pictures in rows)
    first = rows[0][1][0]
    height = round(cell * first.height / first.width)
    line = text + 2 * GAP
    width = max(columns * (cell + GAP) + GAP, *(int(font.getlength(label)) + 2 * GAP for label, _ in rows), 1)
    sheet = Image.new("RGB", (width, len(rows) * (line + height) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (label, pictures) in enumerate(rows):
        top = number * (line + height)
        pen.text((GAP, top + GAP), label, font=font, fill=INK)
        for column, picture in enumerate(pictures):
            small = picture.convert("RGB")
            method = Image.Resampling.NEAREST if cell % small.width == 0 else Image.Resampling.LANCZOS
            sheet.paste(small.resize((cell, height), method), (GAP + column * (cell + GAP), top + line))
    return sheet


def save(picture: Image.Image, path: str | Path) -> Path:
    """Write a picture, making its folder where that is missing; the path is returned.

    Raises DataError where the path's ending is not that of a picture format.
    """
    path, content = check_name(path), io.BytesIO()
    try:
        picture.save(content, Image.registered_extensions()[path.suffix.lower()])
    except (OSError, ValueError, KeyError) as error:  # a format that Pillow only reads, or that is too small for it
        raise DataError(f"{path}: this picture cannot be written as {path.suffix}: {error}") from None
    disk.write(path, content.getvalue())
    return path


def check_name(path: str | Path) -> Path:
    """The path. Raises DataError for an ending that is no picture's."""
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise DataError(f"{path}: no picture's ending is {path.suffix!r}; .png and .webp are two")
    disk.check(path)
    return path


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size, in grey levels from 0 to 255."""
    a, b = (list(p.convert("RGB").tobytes()) for p in (one, other))
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)
