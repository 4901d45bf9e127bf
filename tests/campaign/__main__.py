"""python -m tests.campaign NAME [--count N] [--seed S]: the attempts, and what failed of them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

for place in (Path(__file__).parents[2], Path(__file__).parents[1]):  # the package, and `tiny` and `pretend`
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

CHUNK = {"patches": 2500, "facts": 5000, "folders": 1000, "caches": 5000}
SHORT = {"patches": 1500, "facts": 1000, "folders": 150, "caches": 300}
LONG = {"patches": 50_000, "facts": 10_000, "folders": 5000, "caches": 5000}


def main() -> int:
    """0 where nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument(
        "name", nargs="?", choices=(*CHUNK, "orders", "memory", "kills"), help="by default all four kinds of files"
    )
    parser.add_argument("--count", type=int, help="how many; by default as docs/trust.md has it")
    parser.add_argument("--first", type=int, default=0, help="the number of the first file")
    parser.add_argument("--short", action="store_true", help="the form of the slow tier")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--command", default="", help="kills: of this command alone")
    parser.add_argument("--chunk", help=argparse.SUPPRESS)  # FIRST-LAST: what a process of its own does
    given = parser.parse_args()
    if given.chunk:
        return _chunk(given.name, *map(int, given.chunk.split("-")), given.seed)
    if given.name in ("orders", "memory", "kills"):
        from . import laws

        return laws.run(given.name, given.count, given.seed, given.command)
    counts = SHORT if given.short else LONG
    names = [given.name] if given.name else list(counts)
    return max(_files(name, given.count or counts[name], given.seed, given.first) for name in names)


def _files(name: str, count: int, seed: int, start: int = 0) -> int:
    """Attempts in chunks, each in a process of its own; a table's row of what came of them."""
    begun, ends, failures, slowest, most = time.time(), Counter(), [], 0.0, 0
    for first in range(start, start + count, CHUNK[name]):
        chunk = f"{first}-{min(first + CHUNK[name], start + count)}"
        words = [sys.executable, "-m", "tests.campaign", name, "--seed", str(seed), "--chunk", chunk]
        done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        try:
            form = json.loads(done.stdout.strip().splitlines()[-1])
        except (IndexError, ValueError):
            failures.append(f"{name} {chunk}: the process died with {done.returncode}: {done.stderr[-600:]}")
            continue
        ends.update(form["ends"])
        failures += form["failures"]
        slowest, most = max(slowest, form["slowest"]), max(most, form["megabytes"])
    counted = f"{ends['result']} results, {ends['refused']} refused in one line, {len(failures)} failures"
    cost = f"at most {slowest:.2f} s and {most} MB each; {(time.time() - begun) / 60:.1f} minutes"
    print(f"{name}: {count} files from number {start}, seed {seed}: {counted}; {cost}", flush=True)
    for failure in failures[:40]:
        print("  " + failure, flush=True)
    return 1 if failures else 0


def _chunk(name: str, first: int, last: int, seed: int) -> int:
    import torch

    from . import facts, folders, patches
    from .watch import Watch

    torch.set_num_threads(1)
    runs = {"patches": patches.run, "facts": facts.run, "folders": folders.run, "caches": folders.run_caches}
    with tempfile.TemporaryDirectory() as place:
        watch = Watch(Path(place))
        runs[name](watch, Path(place), first, last, seed)
    print(json.dumps(watch.form()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
