"""Which colours are no news for a thing. python -m pocket.tints writes pocket/own_colours.json, from the glyphs.

A colour is a thing's own when its emoji is less than 90 (of 441) from its own tint, or more than 30 % of it has the
tint's hue. Benchmarks and tests read the file, so that they need no font.
"""

from __future__ import annotations

import colorsys
import json

import numpy as np
import torch

from .benchmark import OWN_FILE, USED
from .glyphs import glyph, world
from .render import TINTS, tinted

NEAR, SAME, HUE = 90.0, 0.3, 0.1


def own(concept: str) -> list[str]:
    """The used colours that are near to what a thing is anyhow."""
    rgba = torch.from_numpy(np.array(glyph(concept))).permute(2, 0, 1).float() / 255
    ink = rgba[3] > 0.5
    found = []
    for number, name in enumerate(TINTS):
        toned = tinted(rgba[None, :3], torch.tensor([number]))[0]
        far = float(((toned - rgba[:3]) * 255).square().sum(0).sqrt()[ink].mean())
        if name in USED and (far < NEAR or share(rgba[:3, ink].T.numpy(), name) > SAME):
            found.append(name)
    return found


def share(pixels: np.ndarray, colour: str) -> float:
    """How many of the pixels (n, 3) have the hue of a colour, of those that are neither pale nor dark."""
    hue = colorsys.rgb_to_hsv(*(x / 255 for x in TINTS[colour]))[0]
    top, low = pixels.max(1), pixels.min(1)
    vivid = (top - low > 0.25 * top) & (top > 0.25)
    hues = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels[vivid][::7]])
    away = np.abs(hues - hue)
    return float((np.minimum(away, 1 - away) < HUE).sum() * 7 / len(pixels)) if len(hues) else 0.0


if __name__ == "__main__":
    things = [c["id"] for c in world()["concepts"] if c["kind"] == "object"]
    OWN_FILE.write_text(json.dumps({thing: own(thing) for thing in things}, indent=0) + "\n", encoding="utf-8")
    print(OWN_FILE)
