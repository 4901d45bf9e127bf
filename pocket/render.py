"""Scenes of the world as 128 x 128 pictures, in batches on any device: stamps on backdrops, then a style.

A scene becomes a row of nine whole numbers (`row_of`), which cost nothing to send from process to process;
`compose` makes pictures of many rows at once. So a GPU draws its own scenes, and the processes beside it only speak.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .backdrops import SIDE, backdrop
from .glyphs import bubble, fitted, glyph, shown_ids, world
from .styles import GREY, TREATMENTS

SIZES = ("small", "normal", "big", "pair")
PIXELS = {"small": 52, "normal": 80, "big": 108, "pair": 58}
ASIDE = (-16, 0, 16)  # pixels: whole latents
SAMPLE = ("bouquet", "on a meadow")  # what a style or artist named alone is shown by
MIDDLE, PAIR = (64, 68), ((34, 68), (94, 68))  # of a thing alone, of two
FACE, FACE_AT = 48, (80, 0)  # the bubble of an emotion: its pixels and corner
TINTS = {
    "red": (225, 35, 35), "blue": (40, 90, 230), "green": (40, 165, 60), "yellow": (245, 210, 40),
    "purple": (135, 55, 190), "pink": (250, 130, 190), "grey": (135, 135, 135),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One or two things (concept id, colour or None) of a size at a place (or None: a plain background).

    style: a style's id, for the whole scene; emotion: an emotion's id, of the first thing.
    """

    things: tuple[tuple[str, str | None], ...]
    size: str = "normal"
    place: str | None = None
    style: str | None = None
    emotion: str | None = None


def shown(concept: str) -> str:
    """The id of the thing, flag, person, face or style that a concept shows."""
    return world()["by_id"][concept].get("depicts", concept)


@functools.cache
def _index() -> dict[str, dict[str | None, int]]:
    """Numbers of looks, colours, places, styles and emotions; None is -1, the plain backdrop 0."""
    form = world()
    emotions = [c["id"] for c in form["concepts"] if c["kind"] == "emotion"]
    listed = {"look": shown_ids(), "colour": TINTS, "style": TREATMENTS, "emotion": emotions}
    found = {name: {None: -1} | {key: at for at, key in enumerate(keys)} for name, keys in listed.items()}
    return found | {"place": {None: 0} | {place: at for at, place in enumerate(form["places"], 1)}}


def row_of(scene: Scene, rng: random.Random | None = None) -> tuple[int, ...]:
    """(place, style, emotion, size, aside, look, colour, second look, its colour); without rng in the middle."""
    scene = sampled(scene)
    index, two = _index(), len(scene.things) == 2
    aside = 1
    if rng and not two and scene.size != "big":
        aside = rng.choice((0, 1) if scene.emotion else (0, 1, 1, 2))
    looks = [n for c, colour in scene.things for n in (index["look"][shown(c)], index["colour"][colour])]
    size = SIZES.index("pair" if two else scene.size)
    head = (index["place"][scene.place], index["style"][scene.style], index["emotion"][scene.emotion])
    return (*head, size, aside, *looks, *(() if two else (-1, -1)))


def sampled(scene: Scene) -> Scene:
    """The scene; of a style or artist named alone, a bouquet on a meadow in that style."""
    style = shown(scene.things[0][0])
    return Scene(((SAMPLE[0], None),), "normal", SAMPLE[1], style) if style in TREATMENTS else scene


@functools.cache
def _atlas(size: str, device: torch.device) -> Tensor:
    """Every look at a size, RGBA (looks, 4, pixels, pixels), uint8; of size "face" every emotion's bubble."""
    if size == "face":
        emotions = [c["id"] for c in world()["concepts"] if c["kind"] == "emotion"]
        pictures = [fitted(bubble(glyph(c)), FACE) for c in emotions]
    else:
        pictures = [fitted(glyph(c), PIXELS[size]) for c in shown_ids()]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).contiguous().to(device)


@functools.cache
def _backdrops(device: torch.device) -> Tensor:
    stack = np.stack([np.asarray(backdrop(place)) for place in (None, *world()["places"])])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous().to(device)


def tinted(rgb: Tensor, colours: Tensor) -> Tensor:
    """Stamps (n, 3, h, w) in [0, 1] whose luminance is given a colour; number -1 leaves a stamp as it is."""
    tint = rgb.new_tensor(list(TINTS.values()))[colours.clamp_min(0)][:, :, None, None] / 255
    light = (rgb * rgb.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    dark = tint * (0.35 + 1.08 * light)
    toned = torch.where(light < 0.6, dark, tint + (1 - tint) * (light - 0.6) * 0.9 / 0.4)
    return torch.where(colours[:, None, None, None] < 0, rgb, toned.clamp(0, 1))


def _paste(x: Tensor, at: Tensor, size: str, corner: tuple[int, int], looks: Tensor, colours: Tensor) -> None:
    """Put stamps on the pictures `at`, in place; corner: x and y of their upper left."""
    if not len(at):
        return
    at, looks, colours = (t.to(x.device) for t in (at, looks, colours))
    stamps = _atlas(size, x.device)[looks].to(x.dtype) / 255
    pixels, (left, top) = stamps.shape[-1], corner
    there = x[at, :, top : top + pixels, left : left + pixels]
    alpha = stamps[:, 3:]
    x[at, :, top : top + pixels, left : left + pixels] = there + alpha * (tinted(stamps[:, :3], colours) - there)


def _corner(centre: tuple[int, int], size: str, aside: int = 0) -> tuple[int, int]:
    half = PIXELS[size] // 2
    return centre[0] + aside - half, centre[1] - half


def compose(rows: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """The pictures of rows (n, 9) of `row_of`, (n, 3, 128, 128) in [0, 1], in steps of 1/255, float32 always."""
    device = torch.device(device)
    with torch.autocast(device.type, enabled=False):
        return _composed(rows, device)


def _composed(rows: Tensor, device: torch.device) -> Tensor:
    place, style, emotion, size, aside, look, colour, second, its = rows.cpu().unbind(1)
    x = _backdrops(device)[place.to(device)].float() / 255
    for number, name in enumerate(SIZES[:3]):
        for way, shift in enumerate(ASIDE):
            at = ((size == number) & (aside == way)).nonzero()[:, 0]
            _paste(x, at, name, _corner(MIDDLE, name, shift), look[at], colour[at])
    two = (size == 3).nonzero()[:, 0]
    for centre, looks, colours in zip(PAIR, (look, second), (colour, its)):
        _paste(x, two, "pair", _corner(centre, "pair"), looks[two], colours[two])
    felt = (emotion >= 0).nonzero()[:, 0]
    _paste(x, felt, "face", FACE_AT, emotion[felt], torch.full_like(felt, -1))
    for number, treat in enumerate(TREATMENTS.values()):
        if len(at := (style == number).nonzero()[:, 0].to(device)):
            x[at] = treat(x[at])
    return (x * 255).round_().clamp_(0, 255) / 255


def picture_of(x: Tensor) -> Image.Image:
    """A picture of a tensor (3, side, side) in [0, 1]."""
    return Image.fromarray((x * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def render(scene: Scene, rng: random.Random | None = None) -> Image.Image:
    """The scene as an RGB picture; a thing alone may stand a step to the side, whole latents (16 pixels) wide."""
    return picture_of(compose(torch.tensor([row_of(scene, rng)]))[0])


def contact_sheet(scenes: list[Scene], columns: int = 16) -> Image.Image:
    """Many scenes in one picture."""
    drawn = compose(torch.tensor([row_of(scene) for scene in scenes]))
    sheet = Image.new("RGB", (columns * SIDE, -(-len(scenes) // columns) * SIDE), "white")
    for at, x in enumerate(drawn):
        sheet.paste(picture_of(x), (at % columns * SIDE, at // columns * SIDE))
    return sheet
