"""What a benchmark will take: a few of its units are done and timed, the rest is computed from them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import RefactError, counted
from ..models.parallel import Cluster, spread
from ..progress import Progress, plainly
from ..trust.disk import alone
from . import bench
from .bench import CLEAN, UNEDITED, Begun, Bench, Method, Outcome, Unit
from .cases import Case, probes_of

CASES = 2  # that are done: the first and the middle one
WORKERS = (1, 8, 64)


@dataclass(frozen=True)
class Estimate:
    """What was done, and what all of it takes; times in seconds, of one worker like the one that was timed."""

    folder: str
    cases: int
    units: int
    pictures: int
    timed_units: int  # done now, and kept in the folder
    timed_pictures: int
    timed: float  # seconds that they took, getting started included
    picture: float  # seconds, with judging and writing; of a unit beside its edit where nothing is drawn
    edits: dict[str, float]  # method: seconds
    start: float  # seconds that each worker needs before its first unit is as fast as the others
    work: float  # seconds of all units together
    longest: float  # seconds of the longest unit
    disk: float  # bytes

    def hours(self, workers: int) -> float:
        """From the beginning to the end."""
        return (self.start + max(self.work / workers, self.longest)) / 3600

    def device_hours(self, workers: int) -> float:
        """Of all workers together."""
        return (self.work + workers * self.start) / 3600

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        plans = [{"workers": n, "hours": self.hours(n), "device_hours": self.device_hours(n)} for n in WORKERS]
        return asdict(self) | {"plans": plans}

    def lines(self) -> list[str]:
        """The same for people."""
        edits = ", ".join(f"{label} {seconds:.2g} s" for label, seconds in self.edits.items())
        return [
            f"timed: {counted(self.timed_units, 'unit')} of {self.units}, {counted(self.timed_pictures, 'picture')}, "
            f"{self.timed:.0f} s; they are kept in {self.folder} and not done again",
            f"a {'picture' if self.pictures else 'unit'} {self.picture:.2g} s, with judging and writing; an edit: "
            f"{edits or 'none'}; getting started {self.start:.0f} s",
            f"all: {counted(self.cases, 'case')}, {self.pictures} pictures, {self.disk / 1e6:.0f} MB on disk",
            *(
                f"{counted(n, 'worker'):>10}: {_hours(self.hours(n))}, {_hours(self.device_hours(n))} of devices"
                for n in WORKERS
            ),
            "computed for workers like the one that was timed; a cluster's own start is not in it",
        ]


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


@alone
def estimated(
    data: str | Path | Sequence[Case],
    model: Any,
    methods: Mapping[str, Method] | Iterable[str],
    out: str | Path,
    *,
    cluster: Cluster | None = None,
    progress: Progress = plainly,
    **options: Any,
) -> Estimate:
    """What `bench.run` of the same arguments takes from an empty folder. Two cases are done with each method, and kept.

    Every unit's pictures and edit take as long as those of the last case did, when nothing was new any more.
    cluster: one of its workers does the cases.
    """
    job = bench.begun(data, model, methods, out, **options)
    sample, took, refused, begun = _sample(job), {}, set[Unit](), time.perf_counter()
    before = _bytes(Path(out), {unit.case.id for unit in sample})
    if not sample:
        raise RefactError(f"{out}: all is done already, so there is nothing to estimate")
    done = spread(functools.partial(timing, job.plan), job.parts, sample, cluster and replace(cluster, workers=1), _key)
    for unit, seconds, outcome in progress(done, "estimate", len(sample)):
        writing = time.perf_counter()
        bench.keep(Path(out), outcome)
        spent = (seconds + time.perf_counter() - writing, _edit(outcome, unit.label))
        if "error" in outcome.scores.get(unit.label, {}):
            refused.add(unit)
        else:
            took[unit.case.id, unit.label] = spent
    wall = time.perf_counter() - begun
    if not (useful := [unit for unit in sample if unit not in refused]):
        raise RefactError("every unit that was tried was refused, so there is nothing to estimate from")
    return _computed(job, useful, took, wall, Path(out), before)


def _key(unit: Unit) -> int:
    return 0  # one after the other, as they were chosen


def _sample(job: Begun) -> list[Unit]:
    """All that is pending of two cases, of those of which most is."""
    by_case: dict[str, list[Unit]] = {}
    for unit in job.units:
        by_case.setdefault(unit.case.id, []).append(unit)
    full = [units for units in by_case.values() if len(units) == max(map(len, by_case.values()))]
    return [unit for units in dict.fromkeys(map(tuple, (*full[:1], *full[len(full) // 2 :][:1]))) for unit in units]


def timing(plan: Any, model: Any, judge: Any) -> Callable[[Unit], tuple[Unit, float, Outcome]]:
    """A bench that says how long each unit took."""
    work = Bench(plan, model, judge, packed=True)

    def timed(unit: Unit) -> tuple[Unit, float, Outcome]:
        begun = time.perf_counter()
        outcome = work(unit)
        return unit, time.perf_counter() - begun, outcome

    return timed


def _edit(outcome: Outcome, label: str) -> float:
    return outcome.scores.get(label, {}).get("seconds", 0.0)


def _pictures(job: Begun, case: Case, label: str) -> int:
    """How many a unit draws."""
    ready, judge = job.parts
    seeds = len(job.plan.seeds) if judge else min(job.plan.keep_images, len(job.plan.seeds))
    if ready.family.name == "clip":
        return 0
    if label == CLEAN:
        given = Bench(job.plan, ready, judge).given(case)
        return len({text for texts in given.values() for text in texts}) * seeds
    return len({probe.prompt for probe in probes_of(case)}) * seeds


def _computed(job: Begun, sample: list[Unit], took: dict, wall: float, out: Path, before: int) -> Estimate:
    labels = [CLEAN, *(label for label in job.plan.methods if label not in UNEDITED)]
    drawn = {(case.id, label): _pictures(job, case, label) for case in job.cases for label in labels}
    warm = [unit for unit in sample if unit.case.id == sample[-1].case.id] if sample else []
    spent = [took[unit.case.id, unit.label] for unit in warm]
    edits = _done(out, warm[0].case, labels[1:])
    size = drawn if any(drawn.values()) else dict.fromkeys(drawn, 1)  # a bare CLIP draws nothing: its units are alike
    picture = sum(seconds - edit for seconds, edit in spent) / sum(size[unit.case.id, unit.label] for unit in warm)
    units = {key: edits.get(key[1], 0.0) + number * picture for key, number in size.items()}
    return Estimate(
        folder=str(out),
        cases=len(job.cases),
        units=len(units),
        pictures=sum(drawn.values()),
        timed_units=len(took),
        timed_pictures=sum(drawn[key] for key in took),
        timed=wall,
        picture=picture,
        edits=edits,
        start=max(0.0, wall - sum(units[key] for key in took)),
        work=sum(units.values()),
        longest=max(units.values(), default=0.0),
        disk=(_bytes(out, {case for case, _ in took}) - before) * sum(size.values()) / sum(size[key] for key in took),
    )


def _done(out: Path, case: Case, labels: Sequence[str]) -> dict[str, float]:
    """What the edits of a case took, by method, now or before."""
    scores = bench.read_case(out, case.id)["scores"]
    return {label: scores[label].get("seconds", 0.0) for label in labels if label in scores}


def _bytes(out: Path, cases: set[str]) -> int:
    """Of the files of some cases."""
    files = [out / "cases" / f"{case}.json" for case in cases]
    files += [file for case in cases for file in (out / "images" / case).rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())
