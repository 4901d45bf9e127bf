"""Checkpoints small enough to travel: averages in float16, no optimisers, in pieces. python -m pocket.pack FOLDER

Of each part its weights' average is kept (and of a critic its weights), as safetensors, cut into files of at most
15 MiB: about 45 MB in all. What goes on from them warms up again with a fresh optimiser (`training.WARM` steps).
`python -m pocket.pack FOLDER --open` makes checkpoints of the pieces; one that is there and has come as far is kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load, save

from . import training

PIECE = 15 * 2**20
PARTS = ("clip", "judge", "autoencoder", "coordinates", "reader", "narrow", "unet")


def halved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Float weights in float16, contiguous."""
    return {name: (w.half() if w.is_floating_point() else w).contiguous().clone() for name, w in weights.items()}


def close(folder: Path) -> list[Path]:
    """Write the pieces of all checkpoints that are there."""
    tensors: dict[str, torch.Tensor] = {}
    said: dict[str, dict] = {}
    for part in PARTS:
        if found := training.load(part):
            said[part] = {key: found[key] for key in ("step", "seconds", "samples", "kept") if key in found}
            said[part]["players"] = list(found["players"])
            for at, (player, weights) in enumerate(found["players"].items()):
                best = {**weights, **found["average"]} if at == 0 else weights
                tensors |= {f"{part}/{player}/{name}": w for name, w in halved(best).items()}
    blob = save(tensors, metadata={"parts": json.dumps(said)})
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("pack.*"):
        old.unlink()
    pieces = []
    for at in range(0, len(blob), PIECE):
        pieces.append(folder / f"pack.{at // PIECE:03d}")
        pieces[-1].write_bytes(blob[at : at + PIECE])
    return pieces


def metadata(blob: bytes) -> dict[str, dict]:
    """What the pieces say of each part: step, seconds, kept, and its players, the averaged one first."""
    length = int.from_bytes(blob[:8], "little")
    return json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["parts"])


def unpack(folder: Path) -> dict[str, int]:
    """Make checkpoints of the pieces; the steps of those made."""
    blob = b"".join(piece.read_bytes() for piece in sorted(folder.glob("pack.*")))
    tensors, made = load(blob), {}
    for part, said in metadata(blob).items():
        here = training.load(part)
        if here is not None and here["step"] >= said["step"]:
            continue
        # safetensors gives no order of its tensors, and the first player is the one that was averaged
        players: dict[str, dict[str, torch.Tensor]] = {player: {} for player in said["players"]}
        for key, w in tensors.items():
            owner, player, name = key.split("/", 2)
            if owner == part:
                players[player][name] = w.float() if w.is_floating_point() else w
        first = players[said["players"][0]]
        training.save(part, {**said, "fresh": said["step"], "players": players, "average": first})
        made[part] = said["step"]
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--open", action="store_true")
    given = parser.parse_args()
    if given.open:
        print("checkpoints made:", unpack(given.folder))
    else:
        for file in close(given.folder):
            print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
