"""What is not about files of strangers: orders of patches, many edits in one process, kills at random moments."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .watch import megabytes

QUICK = [
    "--contexts",
    "2",
    "--negatives",
    "2",
    "--max-steps",
    "30",
    "--layer",
    "1",
    "--tokens",
    "1500",
    "--hold",
    "0.9999",
    "--no-keep-ends",
]


def run(name: str, count: int | None, seed: int, command: str = "") -> int:
    """0 where the law held."""
    return {"orders": orders, "memory": memory, "kills": kills}[name](count, seed, command)


def orders(count: int | None, seed: int, _: str = "") -> int:
    """Random orders over five patches in three precisions: the bits come back."""
    import torch
    from test_threads import orders as lost_of

    count, bad = count or 1000, 0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        lost = lost_of(dtype, count)
        print(f"orders: {count} over five patches in {dtype}: {lost} left other bits", flush=True)
        bad += lost
    return 1 if bad else 0


def memory(count: int | None, seed: int, _: str = "") -> int:
    """Edits in one process, each applied and reverted: memory stays."""
    import refact

    count, model, marks = count or 500, refact.load("pocket"), []
    method = refact.ReFACT(max_steps=3, contexts=3, negatives=3)
    subjects = (
        [c["wordings"][0] for c in refact.pocket.world()["concepts"]] if hasattr(refact, "pocket") else ["a guitar"]
    )
    for number in range(count):
        patch = method(model, [refact.Edit(subjects[number % len(subjects)], new="a blue guitar and a taxi")])
        with patch.applied(model):
            pass
        if number in (count // 10, count - 1):
            gc.collect()  # what waits for the collector of cycles comes and goes with its rounds
            marks.append(_resident())
    print(f"memory: {count} edits in one process: {marks[0]:.0f} MB after {count // 10}, {marks[-1]:.0f} MB at the end")
    return 0 if marks[-1] < marks[0] + 50 else 1


def _resident() -> float:
    status = Path("/proc/self/status")
    if not status.is_file():
        return megabytes()
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1e3


# -- kills ------------------------------------------------------------------------------------------------------------


def _command(words: list[str]) -> None:
    """The command in this process; what it says is thrown away."""
    from refact.cli.main import main

    sys.argv = ["refact", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main()


def _child(words: list[str]) -> None:
    import threading

    import torch
    from tqdm import tqdm

    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own lock is shared with the parent, and a kill would leave it taken
    try:
        _command(words)
    except SystemExit as end:
        os._exit(end.code or 0)
    os._exit(0)


def commands(folder: Path, model: Path) -> dict[str, tuple[list[str], Callable[[Path], Any]]]:
    """name -> (its words with {out}, what its output is: None for nothing there, else something to compare)."""
    facts = folder / "facts.toml"
    rows = [("the flag of Canada", "a cat"), ("the king of france", "a lion"), ("a red car", "a dog")]
    facts.write_text("".join(f'[[edit]]\nprompt = "{prompt}"\nnew = "{new}"\n' for prompt, new in rows))
    patch = folder / "patch.safetensors"
    one = ["edit", "-m", str(model), "--prompt", "the flag of Canada", "--new", "a cat", *QUICK]
    _run([*one, "-o", str(patch)])
    data = folder / "data.csv"
    cells = "old,new,positive1,gt1,negative1,gn1\n"
    data.write_text(
        cells + "a cat,a dog,a red cat,a red dog,a lion,a dog\na lion,a car,a green lion,a car,a cat,a car\n"
    )
    bench = [
        "bench",
        str(data),
        "-m",
        str(model),
        "--methods",
        f"refact:{_settings()},baseline",
        "--seeds",
        "0",
        "--keep-images",
        "0",
    ]
    return {
        "edit": ([*one, "-o", "{out}/x.safetensors"], _patch),
        "build": (["build", str(facts), "-m", str(model), *QUICK, "-o", "{out}/x.safetensors"], _patch),
        "bake": (["bake", "-m", str(model), "--patch", str(patch), "-o", "{out}/baked"], _baked),
        "bench": ([*bench, "--out", "{out}/run"], _run_folder),
        "stats": (["stats", "-m", str(model), "--layer", "1", "--layer", "2", "--tokens", "20000"], _cache),
        "scale": (
            [
                "study",
                "scale",
                "-m",
                str(model),
                "--counts",
                "1,3",
                "--methods",
                f"refact:{_settings()}",
                "--out",
                "{out}/scale",
            ],
            _scale,
        ),
    }


def _settings() -> str:
    return "contexts=2:negatives=2:max_steps=20:layer=1:tokens=1500:hold=0.9999:keep_ends=False"


def _run(words: list[str], delay: float | None = None) -> float:
    """Seconds that the command took in a process of its own; killed after `delay`."""
    begun = time.perf_counter()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(words,))
    child.start()
    child.join(delay)
    if child.is_alive() and delay is not None:
        os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    return time.perf_counter() - begun


def kills(count: int | None, seed: int, command: str = "") -> int:
    """SIGKILL at random moments of each command; then it runs to its end, and gives what an unbroken run gives."""
    import transformers  # noqa: F401  forked children have the libraries already
    from diffusers import StableDiffusionPipeline  # noqa: F401

    import refact

    from .. import tiny

    count, bad = count or 100, 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["REFACT_CACHE"] = str(folder / "cache")
        model = tiny.folder("sd1", folder)
        refact.load(model)
        for name, (words, look) in commands(folder, model).items():
            if command in ("", name):
                bad += _kills(name, words, look, folder, count, random.Random(f"{seed} {name}"))
        if command in ("", "studio"):
            bad += _studio(folder, count, random.Random(f"{seed} studio"))
    return 1 if bad else 0


def _kills(
    name: str, words: list[str], look: Callable[[Path], Any], folder: Path, count: int, draw: random.Random
) -> int:
    whole, broken = folder / f"{name}-whole", folder / f"{name}-broken"
    seconds = _run(_placed(words, whole))
    expected, problems, started = look(whole), [], 0
    if expected is None:
        raise SystemExit(f"{name}: the unbroken run made nothing")
    seen: Any = None
    for number in range(count):
        if name == "bake" or draw.random() < 0.2:
            shutil.rmtree(broken, ignore_errors=True)
            seen = None
        started += _run(_placed(words, broken), draw.uniform(0.02, 1.05) * seconds) > 0
        try:
            found = look(broken)
        except Exception as error:  # whatever it is, a file was left that cannot be read
            problems.append(f"kill {number}: {type(error).__name__}: {str(error)[:200]}")
            continue
        if seen is not None and found is None:
            problems.append(f"kill {number}: what was there is gone")
        seen = found
    if name == "bake":
        shutil.rmtree(broken / "baked", ignore_errors=True)
    _run(_placed(words, broken))
    if look(broken) != expected:
        problems.append("what the killed runs end in is not what an unbroken run gives")
    left = [path.name for path in broken.rglob("*.part")]
    if left:
        problems.append(f"left behind: {left[:3]}")
    print(f"kills: {name}: {started} SIGKILLs within {seconds:.1f} s each: {len(problems)} failures", flush=True)
    for problem in problems[:10]:
        print("  " + problem, flush=True)
    return len(problems)


def _studio(folder: Path, count: int, draw: random.Random) -> int:
    """SIGKILL while facts are kept and weakened in a session: what the page was told of is there, nothing is torn."""
    from refact.studio.session import Session

    place, told, problems = folder / "session", folder / "told", []
    told.write_text("0")
    for number in range(count):
        child = multiprocessing.get_context("fork").Process(target=_keeps, args=(place, folder, told))
        before = told.stat().st_size
        child.start()
        while told.stat().st_size == before and child.is_alive():  # it may take a moment to begin
            time.sleep(0.001)
        child.join(draw.uniform(0.0, 0.3))
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        last = int(told.read_text().rpartition(" ")[2])
        try:
            session = Session(place)
            found = round(session.facts[0].strength * 1e6) if session.facts else 0
            for kept in session.facts:
                session.patch(kept)
        except Exception as error:  # whatever it is, something was left that cannot be read
            problems.append(f"kill {number}: {type(error).__name__}: {str(error)[:200]}")
            continue
        if not last <= found <= last + 1:
            problems.append(f"kill {number}: change {found} is on disk, {last} had been confirmed")
    if last < count:
        problems.append("a child changed nothing")
    print(f"kills: studio: {count} SIGKILLs, {last} changes confirmed: {len(problems)} failures", flush=True)
    for problem in problems[:10]:
        print("  " + problem, flush=True)
    return len(problems)


def _keeps(place: Path, folder: Path, told: Path) -> None:
    """Change after change of a session; each is confirmed in a file by its number once it has returned."""
    from refact.patch import Patch
    from refact.studio.session import Session

    session, patch = Session(place), Patch.load(folder / "patch.safetensors")
    number = round(session.facts[0].strength * 1e6) if session.facts else 0
    sink = os.open(told, os.O_WRONLY | os.O_APPEND)
    while True:
        number += 1
        if number % 3 and session.facts:
            session.change(session.facts[0].file, strength=number / 1e6)
        else:
            session.try_out(patch, number / 1e6)
            session.keep()
        os.write(sink, f" {number}".encode())


def _placed(words: list[str], out: Path) -> list[str]:
    out.mkdir(parents=True, exist_ok=True)
    os.environ["REFACT_CACHE"] = str(out / "cache" if words[0] == "stats" else out.parent / "cache")
    return [word.replace("{out}", str(out)) for word in words]


def _patch(out: Path) -> Any:
    """The patch's digest; None where there is none. An unreadable one raises."""
    from refact.patch import Patch

    path = out / "x.safetensors"
    return Patch.load(path).digest if path.exists() else None


def _baked(out: Path) -> Any:
    from safetensors.torch import load_file

    path = out / "baked"
    if not path.exists():
        return None
    weights = load_file(path / "text_encoder" / "model.safetensors")
    parts = sorted(file.name for file in path.rglob("*") if file.is_file())
    return parts, float(sum(weight.double().sum() for weight in weights.values()))


def _run_folder(out: Path) -> Any:
    """The run's numbers but for seconds; None before its run.json is there."""
    from refact.evidence import results

    if not (out / "run" / "run.json").is_file():
        return None
    run = results.read_run(out / "run")
    found = {label: entry["numbers"] for label, entry in results.summary(run, "text").items()}
    return "unfinished" if run.missing else json.dumps(found, sort_keys=True)  # NaN equals itself as text


def _scale(out: Path) -> Any:
    from refact.studies import scaling

    path = out / "scale"
    if not (path / scaling.FILE).is_file():
        return None
    return [(row.method, row.way, row.count, row.holds, row.drift) for row in scaling.read(path)][:4]


def _cache(out: Path) -> Any:
    from refact.models.covariance import Covariance

    files = sorted((out / "cache").rglob("*.safetensors")) if (out / "cache").is_dir() else []
    return [(file.name, Covariance.load(file).hash()) for file in files] or None
