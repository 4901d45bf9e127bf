"""What all parts share: the loop with its clock, averages and checkpoints, and batches made in other processes.

A batch depends on the part's name and the number of its step only, and so does all noise: a run that was stopped
goes on, bit for bit, where its last full checkpoint was. A run is given either `steps` or `minutes`; with
minutes, the learning rate follows the minutes spent of those planned, so that several runs make one schedule.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import affine_grid, grid_sample, interpolate
from torch.utils.data import DataLoader, Dataset

from .muon import Pair

WORK = Path(os.environ.get("POCKET_WORK", "build/pocket"))  # outside git
WARM = 100  # steps in which the rate rises, also after a checkpoint without its optimiser
ROUNDED = 1e-4  # what float16 may change of the mean size of weights
FALL, FLOOR = 0.4, 0.01  # the last part of a run, in which the rate falls; where it ends, of the peak


@dataclass(frozen=True)
class Given:
    """What a run is given. planned: minutes of all runs of this part together; None: this run's."""

    device: torch.device
    bfloat16: bool = False
    steps: int | None = None
    minutes: float | None = None
    planned: float | None = None
    workers: int = 0
    batch: float = 1.0  # the part's batch sizes are multiplied by it
    compiled: bool = False
    save_every: float = 120.0  # seconds
    began: float = field(default_factory=time.monotonic)  # when the minutes began: with the process, not the first step


class Part(Protocol):
    """What the loop trains: players take turns in each step, each with its own loss and optimiser."""

    name: str
    players: dict[str, nn.Module]  # the first is the part itself and has an average
    peak: float
    decay: float  # of weights
    average: float  # what the average keeps of itself each step
    muon: float  # of Muon's rate to AdamW's
    size: int  # samples of a step
    kept: dict[str, float]  # numbers that its checkpoint keeps

    def begin(self, clock: Clock) -> None:
        """Called with the loop's clock before the first step."""

    def batch(self, step: int) -> Any:
        """What a step is made of, on the CPU; called in other processes."""

    def losses(self, player: str, batch: Any, noise: torch.Generator, memo: dict) -> dict[str, Tensor]:
        """Named losses whose sum this player minimises, but for those named with a "(" in front; none: it rests."""


def device_of(name: str) -> torch.device:
    """auto is the GPU where there is one."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that all parts have."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--device", default="auto")
    made.add_argument("--float32", action="store_true", help="no bfloat16, also where the device is quick with it")
    made.add_argument("--steps", type=int, help="train to this step")
    made.add_argument("--minutes", type=float, help="stop after so long")
    made.add_argument("--planned", type=float, help="minutes of all runs together; by default what --minutes says")
    made.add_argument("--workers", type=int, help="processes that make batches; by default all cores but one on a GPU")
    made.add_argument("--batch", type=float, help="times the usual batch; by default 1 on a GPU, less on a CPU")
    made.add_argument("--compiled", action="store_true", help="torch.compile the networks: needs a C++ compiler")
    made.add_argument("--threads", type=int, help="of a CPU")
    made.add_argument("--save-every", type=float, default=120.0, help="seconds between checkpoints")
    return made


def given(options: argparse.Namespace, small: float) -> Given:
    """The run that the options ask for; small: the share of a GPU's batch that a CPU takes."""
    device = device_of(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    on_gpu = device.type != "cpu"
    spare = max(1, (os.cpu_count() or 2) - 1) if on_gpu else 0
    return Given(
        device, not options.float32 and quick_bfloat16(device), options.steps, options.minutes, options.planned,
        spare if options.workers is None else options.workers, options.batch or (1.0 if on_gpu else small),
        options.compiled, options.save_every,
    )  # fmt: skip


def quick_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; a CPU that cannot is ten times slower with it."""
    return device.type != "cpu" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))


@contextmanager
def low(asked: Given) -> Iterator[None]:
    """Matrix products in bfloat16; on a CPU without flash attention, whose backward pass is slow there."""
    attention = sdpa_kernel(SDPBackend.MATH) if asked.device.type == "cpu" else nullcontext()
    with torch.autocast(asked.device.type, torch.bfloat16, enabled=asked.bfloat16), attention:
        yield


def seed_of(*words: object) -> int:
    """A seed of words and numbers, the same in every process."""
    return zlib.crc32("/".join(map(str, words)).encode())


def rng_of(*words: object) -> random.Random:
    """Python's generator of them."""
    return random.Random("/".join(map(str, words)))


# -- batches -----------------------------------------------------------------------------------------------------------


class Steps(Dataset):
    """Batches by the number of their step."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Any:
        return self.make(step)


def batches(make: Callable[[int], Any], steps: Sequence[int], workers: int) -> Iterator[Any]:
    """Batches in the order of steps, made ahead in other processes if there are any."""
    more = {"prefetch_factor": 4, "multiprocessing_context": "fork"} if workers else {}
    yield from DataLoader(Steps(make), None, sampler=steps, num_workers=workers, collate_fn=_as_it_is, **more)


def _as_it_is(batch: Any) -> Any:
    return batch  # arrays, not tensors, which would each take a file descriptor on their way


def moved(batch: Any, device: torch.device) -> Any:
    """The batch's arrays as tensors on a device; scenes' rows stay, for the renderer sorts them on the CPU."""
    if isinstance(batch, np.ndarray):
        return torch.from_numpy(batch).to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: moved(value, torch.device("cpu") if key == "rows" else device) for key, value in batch.items()}
    return tuple(moved(value, device) for value in batch) if isinstance(batch, tuple) else batch


# -- the loop ----------------------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """How far a run is: steps done, seconds spent in all runs, and when this one must end."""

    asked: Given
    step: int = 0
    before: float = 0.0  # seconds of earlier runs
    fresh: int = 0  # the step at which the optimiser began

    @property
    def spent(self) -> float:
        """Seconds of all runs."""
        return self.before + time.monotonic() - self.asked.began

    def progress(self) -> float:
        """From 0 to 1: of the steps, or of the minutes planned."""
        if self.asked.steps is not None:
            return min(1.0, self.step / max(1, self.asked.steps))
        planned = self.asked.planned or self.asked.minutes or 1.0
        return min(1.0, self.spent / (60 * planned))

    def over(self) -> bool:
        """Whether the run is done."""
        if self.asked.steps is not None and self.step >= self.asked.steps:
            return True
        return self.asked.minutes is not None and time.monotonic() - self.asked.began >= 60 * self.asked.minutes

    def rate(self, peak: float) -> float:
        """A learning rate that rises over some steps, stays, and falls: a run that stays can still be made longer.

        Warmup, stable, decay: arXiv 2405.18392.
        """
        fall = max(FLOOR, min(1.0, (1 - self.progress()) / FALL))
        return peak * fall * min(1.0, (self.step - self.fresh + 1) / WARM)


class State:
    """A part on its device with optimisers, average and clock; it is read from, and written to, its checkpoint."""

    def __init__(self, part: Part, asked: Given) -> None:
        self.part, self.asked, self.clock, self.samples = part, asked, Clock(asked), 0
        for model in part.players.values():
            model.to(asked.device).train()
        self.optimisers = {name: Pair(model, part.peak, part.decay, part.muon) for name, model in part.players.items()}
        if found := load(part.name):
            self.restore(found)
        part.begin(self.clock)
        self.shadow = [w.detach().clone() for w in self.own]
        if found and "average" in found:
            self.shadow = [found["average"][name].to(w) for name, w in self.named()]

    @property
    def model(self) -> nn.Module:
        """The part itself: its first player."""
        return next(iter(self.part.players.values()))

    def named(self) -> list[tuple[str, Tensor]]:
        """The weights that are averaged."""
        return [(name, w) for name, w in self.model.named_parameters()]

    @property
    def own(self) -> list[Tensor]:
        """They without their names."""
        return [w for _, w in self.named()]

    def restore(self, found: dict) -> None:
        """Go on from a checkpoint; one without optimisers warms up again."""
        self.clock.step, self.clock.before, self.clock.fresh = found["step"], found["seconds"], found["step"]
        self.samples = found.get("samples", found["step"] * self.part.size)
        for name, model in self.part.players.items():
            if name in found["players"]:
                own = model.state_dict()
                model.load_state_dict({key: w.to(own[key].dtype) for key, w in found["players"][name].items()})
        for name, state in found.get("optimisers", {}).items():
            self.optimisers[name].load_state_dict(state)
            self.clock.fresh = found["fresh"]

    def form(self) -> dict:
        """What a full checkpoint holds."""
        averaged = dict(zip((name for name, _ in self.named()), self.shadow))
        return {
            "step": self.clock.step, "seconds": self.clock.spent, "fresh": self.clock.fresh, "kept": self.part.kept,
            "samples": self.samples,
            "players": {name: model.state_dict() for name, model in self.part.players.items()},
            "average": averaged, "optimisers": {name: o.state_dict() for name, o in self.optimisers.items()},
        }  # fmt: skip

    def advance(self, batch: Any) -> dict[str, Tensor]:
        """One step of every player; the losses by name."""
        noise = torch.Generator(self.asked.device).manual_seed(seed_of(self.part.name, "noise", self.clock.step))
        memo: dict = {}
        seen: dict[str, Tensor] = {}
        for name, model in self.part.players.items():
            with low(self.asked):
                losses = self.part.losses(name, batch, noise, memo)
            if not losses:
                continue
            optimiser = self.optimisers[name]
            optimiser.zero_grad()
            sum(loss for key, loss in losses.items() if not key.startswith("(")).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step(self.clock.rate(self.part.peak))
            seen |= {key: loss.detach() for key, loss in losses.items()}
        keep = min(self.part.average, (self.clock.step + 1) / (self.clock.step + 10))
        torch._foreach_lerp_(self.shadow, [w.detach() for w in self.own], 1 - keep)
        self.clock.step += 1
        self.samples += self.part.size
        return seen


def train(part: Part, asked: Given) -> State:
    """Train a part until its run is over, from its last checkpoint."""
    state = State(part, asked)
    report, saved = Report(state), time.monotonic()
    if state.clock.over():
        return state
    for batch in batches(part.batch, range(state.clock.step, asked.steps or 10**9), asked.workers):
        report.add(state.advance(moved(batch, asked.device)))
        if time.monotonic() - saved > asked.save_every:
            save(part.name, state.form())
            saved = time.monotonic()
        if state.clock.over():
            break
    report.say()
    save(part.name, state.form())
    return state


class Report:
    """Mean losses every so often: a line to read, and one of JSON in log/<part>.jsonl."""

    def __init__(self, state: State, every: float = 20.0) -> None:
        self.state, self.every, self.last = state, every, time.monotonic()
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.since = state.clock.step

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count a step's losses."""
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss
            self.counts[name] = self.counts.get(name, 0) + 1
        if time.monotonic() - self.last > self.every:
            self.say()

    def say(self) -> None:
        """Print and write the means since the last time."""
        clock, steps = self.state.clock, self.state.clock.step - self.since
        if not steps:
            return
        means = {name.strip("()"): round(float(s) / self.counts[name], 4) for name, s in self.sums.items()}
        speed = steps / (time.monotonic() - self.last)
        row = {"step": clock.step, "seconds": round(clock.spent, 1), "steps a second": round(speed, 3), **means}
        file = WORK / "log" / f"{self.state.part.name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(self.state.part.name, f"{clock.progress():.0%}", row, flush=True)
        self.sums, self.counts, self.since, self.last = {}, {}, clock.step, time.monotonic()


# -- checkpoints -------------------------------------------------------------------------------------------------------


def save(name: str, form: dict) -> None:
    """Write a checkpoint by rename."""
    WORK.mkdir(parents=True, exist_ok=True)
    torch.save(form, WORK / f"{name}.part")
    (WORK / f"{name}.part").replace(WORK / f"{name}.pt")


def load(name: str) -> dict | None:
    """The checkpoint, or None where there is none yet."""
    path = WORK / f"{name}.pt"
    return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None


def size_of(model: nn.Module) -> float:
    """The mean size of its weights, by which parts are told apart also after they were rounded to float16."""
    weights = [w.detach().double().abs() for w in model.parameters()]
    return float(sum(w.sum() for w in weights) / sum(w.numel() for w in weights))


def check_parts(name: str, made_with: Mapping[str, float], there: Mapping[str, float]) -> None:
    """SystemExit where a part was trained with other parts than those that are there."""
    for part, size in there.items():
        if abs(made_with.get(part, size) / size - 1) > ROUNDED:
            raise SystemExit(f"{name} was trained with another {part} than the one in {WORK}")


def compiled(model: nn.Module) -> nn.Module:
    """The model compiled, with its upsampling written as copies: what torch 2.13 makes of interpolation for a CPU has
    no gradient."""
    for part in model.modules():
        if isinstance(part, Upsample2D):
            part.interpolate = False
            part.register_forward_pre_hook(lambda _, given: (twice(given[0]), *given[1:]))
        elif isinstance(part, nn.Upsample):
            part.forward = twice
    return torch.compile(model)


def twice(x: Tensor) -> Tensor:
    """Pictures (n, c, h, w) at twice the size, every pixel four times."""
    n, c, h, w = x.shape
    made = x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)
    return made.contiguous(memory_format=torch.channels_last)


def trained(name: str, model: nn.Module) -> nn.Module:
    """The model with its checkpoint's average, frozen."""
    found = load(name)
    if found is None:
        raise SystemExit(f"train {name} first: python -m pocket.{name}")
    own = model.state_dict()
    first = next(iter(found["players"].values()))
    model.load_state_dict({key: w.to(own[key].dtype) for key, w in first.items()})
    with torch.no_grad():  # by parameter: a weight that two layers share has one name here and two in the state
        for key, w in model.named_parameters():
            w.copy_(found["average"][key])
    return model.eval().requires_grad_(False)


# -- pictures ----------------------------------------------------------------------------------------------------------


def spoilt(pictures: Tensor, noise: torch.Generator, share: float = 0.7) -> Tensor:
    """A share of the pictures blurred, bent, noisy and off in colour, as a weak generator's are (n, 3, s, s)."""
    count, side, device = len(pictures), pictures.shape[-1], pictures.device
    draw = {"generator": noise, "device": device}
    coarse_side = side // 8 * (2, 3, 4, 6)[noise.initial_seed() % 4]
    coarse = interpolate(pictures, size=coarse_side, mode="bilinear", antialias=True)
    mixed = torch.lerp(pictures, interpolate(coarse, size=side, mode="bilinear"), torch.rand(count, 1, 1, 1, **draw))
    bend = interpolate(torch.randn(count, 2, 5, 5, **draw), size=side, mode="bicubic").permute(0, 2, 3, 1) * 0.04
    flat = torch.eye(2, 3, device=device).expand(count, 2, 3)
    straight = affine_grid(flat, list(pictures.shape), align_corners=False)
    bent = grid_sample(mixed, straight + bend, padding_mode="border", align_corners=False)
    toned = bent * (1 + 0.15 * torch.randn(count, 3, 1, 1, **draw)) + 0.08 * torch.randn(count, 3, 1, 1, **draw)
    noisy = toned + 0.1 * torch.rand(count, 1, 1, 1, **draw) * torch.randn(toned.shape, **draw)
    return torch.where(torch.rand(count, 1, 1, 1, **draw) < share, noisy, pictures).clamp(-1, 1)
