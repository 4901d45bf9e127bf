"""The whole model from nothing, in three runs: python -m pocket --minutes 9 [--pack FOLDER]

A run is one wave of parts. On a GPU the parts of a wave run beside each other, each in its process with its share of
the cores; on a CPU one after the other. Every run goes on where the last one stopped, and says what is next:

    python -m pocket --prepare             once, where the font is: glyphs, tokenizer and world, to travel along
    python -m pocket --minutes 9           wave 1: CLIP, judge, autoencoder
    python -m pocket --minutes 9           wave 2: UNet; beside it, for half the time, the decoder alone
    python -m pocket --minutes 9           wave 3: UNet to its end
    python -m pocket.export                and pocket.gate, pocket.evaluate, pocket.card

--pack FOLDER: take up checkpoints from the pieces there, if it has any, and leave such pieces there at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from . import glyphs, pack, tokenizer, training, world

# wave -> part -> minutes as a share of the run's; on a CPU these are made to add up to one
WAVES = (
    {"clip": 1.0, "judge": 0.95, "autoencoder": 1.0},
    {"unet": 1.0, "decoder": 0.5},
    {"unet": 1.0},
)
CORES = {"clip": 0.6, "judge": 0.3, "autoencoder": 0.1, "unet": 0.85, "decoder": 0.1}  # of a machine's, on a GPU
RESERVE = 0.4  # minutes of a run for what is around the training
MODULES = {"decoder": ("pocket.autoencoder", "--decoder-only")}


def minutes_of(wave: int, part: str, minutes: float, together: bool) -> float:
    """How long a part has in a wave of a run of so many minutes."""
    shares = WAVES[wave]
    if part not in shares:
        return 0.0
    return (minutes - RESERVE) * (shares[part] if together else shares[part] / sum(shares.values()))


def planned(wave: int, part: str, minutes: float, together: bool) -> float:
    """Minutes of all runs of a part: those spent, and as many as this run's for each wave to come."""
    found = training.load(part)
    spent = found["seconds"] / 60 if found else 0.0
    return spent + sum(minutes_of(later, part, minutes, together) for later in range(wave, len(WAVES)))


def command(wave: int, part: str, given: argparse.Namespace, together: bool) -> list[str]:
    """How a part is run in a wave."""
    workers = max(1, round(CORES[part] * (os.cpu_count() or 2))) if together else 0
    asked = {
        "--device": given.device, "--minutes": f"{minutes_of(wave, part, given.minutes, together):.2f}",
        "--planned": f"{planned(wave, part, given.minutes, together):.2f}", "--workers": str(workers),
    }  # fmt: skip
    more = ["--compiled"] if given.compiled and part in given.compiled.split(",") else []
    options = [word for pair in asked.items() for word in pair]
    return [sys.executable, "-m", *MODULES.get(part, (f"pocket.{part}",)), *options, *more]


def run(wave: int, given: argparse.Namespace) -> None:
    """Train the wave's parts; an error of one ends the run once the others are done."""
    together = training.device_of(given.device).type != "cpu"
    running = []
    for part in WAVES[wave]:
        print("wave", wave + 1, *command(wave, part, given, together)[2:], flush=True)
        running.append((part, subprocess.Popen(command(wave, part, given, together))))
        if not together:
            running[-1][1].wait()
    failed = [part for part, process in running if process.wait()]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; what has been saved is in {training.WORK}")


def waves_done(*folders: Path | None) -> int:
    """How many waves are behind, by a file beside the checkpoints or their pieces."""
    files = [folder / "waves.json" for folder in folders if folder]
    return max([json.loads(file.read_text())["done"] for file in files if file.exists()], default=0)


def prepare() -> None:
    """What needs the font, or takes a while and no GPU."""
    training.WORK.mkdir(parents=True, exist_ok=True)
    (training.WORK / "world.json").write_text(world.text(), encoding="utf-8")
    print(f"{glyphs.write(glyphs.folder())} glyphs, {len(tokenizer.load())} tokens in {training.WORK}")


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this run, all in all")
    parser.add_argument("--wave", type=int, help="1 to 3; by default the next one, and the last again after it")
    parser.add_argument("--compiled", help="parts to compile, as unet,autoencoder,decoder: needs a C++ compiler")
    parser.add_argument("--pack", type=Path, help="folder of checkpoints in pieces, read and written")
    parser.add_argument("--prepare", action="store_true", help="make glyphs, tokenizer and world, and stop")
    given = parser.parse_args()
    if given.prepare:
        return prepare()
    tokenizer.load()
    if given.pack and any(given.pack.glob("pack.*")):
        print("taken up:", pack.unpack(given.pack), flush=True)
    wave = min(given.wave - 1 if given.wave else waves_done(training.WORK, given.pack), len(WAVES) - 1)
    run(wave, given)
    if given.pack:
        print("left:", *pack.close(given.pack), flush=True)
    for folder in filter(None, (training.WORK, given.pack)):
        (folder / "waves.json").write_text(json.dumps({"done": wave + 1}))
    return print("next: wave", wave + 2) if wave + 1 < len(WAVES) else print("next: python -m pocket.export")


if __name__ == "__main__":
    main()
