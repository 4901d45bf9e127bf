"""One edit after another on the same model (the paper's Figures 7 and 23)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EditError
from ..evidence.bench import (
    BASELINE,
    Bench,
    Outcome,
    Plan,
    begin,
    keep,
    log_of,
    names_for,
    opened,
    read_case,
)
from ..evidence.cases import Case, read_cases, texts_of, told_to
from ..evidence.judge import Judge
from ..evidence.provenance import settings_of
from ..evidence.strict import Names
from ..progress import Progress, plainly
from ..trust.disk import alone


@alone
def sequence(
    data: Any,
    model: Any,
    base: Any,
    out: str | Path,
    *,
    every: int = 10,
    orders: int = 3,
    hold: bool = True,
    seeds: Iterable[int] = range(1),
    judge: Judge | str | Path | None = None,
    keep_images: int = 0,
    limit: int | None = None,
    names: Names | None = None,
    progress: Progress = plainly,
    **drawing: Any,
) -> Path:
    """All edits one after another on the same model, in several orders; scored every `every` edits (Figures 7, 23).

    hold: the facts written before are held when the next is (False: each edit knows nothing of the others, as in
    the paper). Labels are "order 0, after 10", ...; each covers the cases edited so far. A killed study makes the
    edits of an unfinished order again, and scores only what is missing.
    """
    cases, problems = read_cases(data) if isinstance(data, (str, Path)) else (list(data), [])
    cases, name = cases[:limit], str(data) if isinstance(data, (str, Path)) else "cases"
    ready, judging = opened(model, judge)
    steps = {f"order {o}, after {k}": base for o in range(orders) for k in stops(len(cases), every)}
    asked = names_for(ready) if names is None else names
    plan = Plan({BASELINE: None, **steps}, tuple(seeds), keep_images, **drawing, names=asked)
    bench, out = Bench(plan, ready, judging), Path(out)
    study = {"study": {"name": "sequence", "every": every, "orders": orders, "hold": hold}}
    begin(out, settings_of(name, cases, ready, judging, plan) | study, problems)
    for case in cases:
        if BASELINE not in read_case(out, case.id)["scores"]:
            keep(out, bench.clean(case))
    work = (o for order in range(orders) for o in written(bench, base, out, cases, order, every, hold))
    for outcome in progress(work, "sequence", orders * sum(stops(len(cases), every))):
        keep(out, outcome)
    return out


def stops(count: int, every: int) -> list[int]:
    """After how many edits the model is scored: every `every`, and at the end."""
    return sorted({*range(every, count + 1, every), count} - {0})


def written(
    bench: Bench, base: Any, out: Path, cases: Sequence[Case], order: int, every: int, hold: bool
) -> Iterator[Outcome]:
    """The outcomes of one order that `out` does not have; the model is clean again afterwards."""
    turn = [cases[i] for i in np.random.default_rng(order).permutation(len(cases))]
    labels = {k: f"order {order}, after {k}" for k in stops(len(cases), every)}
    missing = {k: [c for c in turn[:k] if name not in read_case(out, c.id)["scores"]] for k, name in labels.items()}
    if not any(missing.values()):
        return
    before = {case.id: bench.embed(texts_of(case)) for case in turn}
    patches: list[Any] = []
    logs: dict[str, dict] = {}
    with ExitStack() as stack:
        for k, case in enumerate(turn, 1):
            try:
                edits = told_to(base, case.edits)
                patch = base(bench.model, edits, patches) if hold else base(bench.model, edits)
            except EditError as error:
                logs[case.id] = {"refused": str(error)}
            else:
                stack.enter_context(patch.applied(bench.model))
                patches.append(patch)
                logs[case.id] = log_of(patch)
            for done in missing.get(k, ()):
                scores, images = bench.scored(done, labels[k], before[done.id])
                yield Outcome(done, {labels[k]: scores | logs[done.id]}, images)
