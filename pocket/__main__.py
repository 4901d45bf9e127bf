"""The whole model from nothing, in four waves: python -m pocket [--minutes M] [--waves N]

On a GPU the parts of a wave run beside each other, each in its process with its share of the cores; on a CPU one after
the other. Every run goes on where the last one stopped, and says what is next:

    python -m pocket --prepare             once, where the font is: glyphs and tokenizer, to travel along
    python -m pocket --waves 1             wave 1: CLIP, judge, autoencoder
    python -m pocket --waves 1             wave 2: the text encoder's upper half, the judge, the autoencoder that ships
    python -m pocket --waves 1             wave 3: UNet
    python -m pocket --waves 1             wave 4: UNet to its end
    python -m pocket.export                and pocket.gate, pocket.evaluate, pocket.card

--minutes are of a wave, all in all: 9 on a GPU, a night on a CPU. Where nothing stays on the machine between runs,
--pack FOLDER leaves checkpoints there in pieces (pocket.pack), and --take FOLDER goes on from such pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from . import glyphs, pack, tokenizer, training

# wave -> part -> minutes as a share of the run's; on a CPU these are made to add up to one
WAVES = (
    {"clip": 1.0, "judge": 0.6, "autoencoder": 1.0},
    {"reader": 0.3, "judge": 0.5, "narrow": 1.0},
    {"unet": 1.0},
    {"unet": 1.0},
)
# of a machine's, on a GPU
CORES = {"clip": 0.6, "judge": 0.3, "autoencoder": 0.1, "reader": 0.4, "unet": 0.85, "narrow": 0.1}
RESERVE = 0.6  # minutes of a wave for what is around the training
MINUTES = {True: 9.0, False: 600.0}  # of a wave, by whether its parts run together


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
    return [sys.executable, "-m", f"pocket.{part}", *options, *more]


def run(wave: int, given: argparse.Namespace, together: bool) -> None:
    """Train the wave's parts; an error of one ends the run once the others are done."""
    running, quiet = [], {"TOKENIZERS_PARALLELISM": "false"} | ({"OMP_NUM_THREADS": "2"} if together else {})
    if "reader" in WAVES[wave]:
        subprocess.run([sys.executable, "-m", "pocket.coordinates", "--device", given.device], check=True)
    for part in WAVES[wave]:
        print("wave", wave + 1, *command(wave, part, given, together)[2:], flush=True)
        running.append((part, subprocess.Popen(command(wave, part, given, together), env=os.environ | quiet)))
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
    print(f"{glyphs.write(glyphs.folder())} glyphs, {len(tokenizer.load())} tokens in {training.WORK}")


def leave(folder: Path, done: int) -> None:
    """Checkpoints in pieces, what has been logged, and how many waves are behind."""
    print("left:", *pack.close(folder), flush=True)
    logs = sorted((training.WORK / "log").glob("*.jsonl"))
    rows = [json.dumps({"part": log.stem} | json.loads(line)) for log in logs for line in log.read_text().splitlines()]
    (folder / "log.jsonl").write_text("".join(row + "\n" for row in rows))
    (folder / "waves.json").write_text(json.dumps({"done": done}))


def main() -> None:
    """The waves to come, or as many of them as are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, help="of a wave, all in all")
    parser.add_argument("--waves", type=int, default=len(WAVES), help="at most so many")
    parser.add_argument("--wave", type=int, help="1 to 4, to begin with; by default the next one, or the last again")
    parser.add_argument("--compiled", help="parts to compile, as unet,autoencoder,narrow: needs a C++ compiler")
    parser.add_argument("--take", type=Path, help="folder of checkpoints in pieces, to go on from if they are further")
    parser.add_argument("--pack", type=Path, help="folder to leave checkpoints in, in pieces")
    parser.add_argument("--prepare", action="store_true", help="make glyphs and tokenizer, and stop")
    given = parser.parse_args()
    if given.prepare:
        return prepare()
    tokenizer.load()
    if given.take and any(given.take.glob("pack.*")):
        print("taken up:", pack.unpack(given.take), flush=True)
    together = training.device_of(given.device).type != "cpu"
    given.minutes = given.minutes or MINUTES[together]
    first = min(given.wave - 1 if given.wave else waves_done(training.WORK, given.take), len(WAVES) - 1)
    for wave in range(first, min(first + given.waves, len(WAVES))):
        run(wave, given, together)
        (training.WORK / "waves.json").write_text(json.dumps({"done": wave + 1}))
        if given.pack:
            leave(given.pack, wave + 1)
        print("next:", f"wave {wave + 2}" if wave + 1 < len(WAVES) else "python -m pocket.export", flush=True)
    return None


if __name__ == "__main__":
    main()
