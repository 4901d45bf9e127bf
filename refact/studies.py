"""The paper's studies, each a thin command over `benchmark.run`: settings, layers, thresholds, sequences, quality.

Every function takes `run`'s own options (judge, seeds, steps, ...) as they are and returns the run's folder, which
`results` and `report` read like any other.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import metrics, results
from .benchmark import (
    BASELINE,
    Bench,
    Outcome,
    Plan,
    begin,
    folder_name,
    form_of,
    keep,
    log_of,
    opened,
    read_case,
    run,
    settings_of,
    texts_of,
    write,
)
from .cases import Case, read_cases
from .edits import Edit
from .errors import EditError, RefactError
from .judge import Judge
from .methods import ReFACT, method
from .progress import Progress, plainly

THRESHOLDS = (0.5, 0.7, 0.9, 0.95, 0.99, 0.999)  # around the paper's 0.99 (Figure 15)
GRIDS: dict[str, list[dict[str, Any]]] = {
    "refact": [
        {"objective": "contrastive"},
        {"distance": "cosine"},
        {"reach": 0.6},
        {"reach": 0.8},
        {"reach": 1.0},
    ],
    "time": [{"strength": s} for s in (0.01, 1.0, 10.0, 100.0, 1000.0)],
    "uce": [{"strength": s} for s in (0.05, 5.0, 50.0, 200.0, 1000.0)],
    "finetune": [
        {"learning_rate": 5e-4, "bound": 5e-3},
        {"learning_rate": 1e-3, "bound": 1e-2},
        {"learning_rate": 2e-3, "bound": 2e-2},
        {"learning_rate": 5e-3, "bound": 5e-2},
        {"learning_rate": 5e-3, "bound": 1.0},
    ],
    "embedit": [
        {"learning_rate": 0.01},
        {"learning_rate": 0.02},
        {"learning_rate": 0.1},
        {"learning_rate": 0.2},
        {"max_steps": 50},
    ],
}
TARGET_SEED = 1_000_000  # of pictures that stand for a target: far from any seed that a test uses


@dataclass(frozen=True)
class ByPictures:
    """A method that is told its target by pictures: the unedited model's own, of the target's text (Appendix A)."""

    method: Any
    pictures: int = 4

    def __call__(self, model: Any, edits: Sequence[Edit], onto: Sequence[Any] = ()) -> Any:
        """The patch of edits whose targets are pictures."""
        seeds = range(TARGET_SEED, TARGET_SEED + self.pictures)
        shown = [
            dataclasses.replace(e, new=tuple(p.image for p in model.generate([e.new], seeds=list(seeds))))
            for e in edits
        ]
        return self.method(model, shown, onto)


@dataclass(frozen=True)
class Unaided:
    """A method that is told the fact alone: no other wordings of the subject, no prompts to protect."""

    method: Any

    def __call__(self, model: Any, edits: Sequence[Edit], onto: Sequence[Any] = ()) -> Any:
        """The patch of the bare edits."""
        return self.method(model, [dataclasses.replace(e, aliases=(), preserve=()) for e in edits], onto)


def variants() -> dict[str, Any]:
    """The variants of ReFACT that the paper and this project name, by label."""
    base = ReFACT()
    change = dataclasses.replace
    found = {
        "refact": base,
        "refact:paper": method("refact:paper"),
        "contrastive": change(base, objective="contrastive"),
        "cosine": change(base, distance="cosine"),
        "image target": ByPictures(base),
        "conditioning": change(base, embedding="conditioning"),
        "no covariance": change(base, covariance=False),
        "no hints": Unaided(change(base, keep_ends=False)),  # neither aliases nor protection
    }
    found |= {f"negatives={n}": change(base, negatives=n) for n in (0, 5, 50)}
    return found | {f"contexts={n}": change(base, contexts=n) for n in (1, 5)}


def sweep(data: Any, model: Any, base: Any, field: str, values: Iterable[Any], out: str | Path, **options: Any) -> Path:
    """A run with one method for each value of one of its settings, labelled "field=value"."""
    if field not in {f.name for f in dataclasses.fields(base)}:
        raise RefactError(f"{type(base).__name__} has no setting {field!r}")
    methods = {f"{field}={value}": dataclasses.replace(base, **{field: value}) for value in values}
    return run(data, model, methods, out, **options)


def layers(
    data: Any, model: Any, base: Any, out: str | Path, layers: Iterable[int] | None = None, **options: Any
) -> Path:
    """The layer search of Table 2, on pictures. layers: None for all that take an edit in every CLIP encoder."""
    ready, judge = opened(model, options.pop("judge", None))
    return sweep(data, ready, base, "layer", layers or editable(ready), out, judge=judge, **options)


def editable(model: Any) -> list[int]:
    """The layers that take an edit in all of a model's CLIP encoders."""
    encoders = [e for e in model.encoders.values() if e.kind == "clip"]
    return list(range(min(e.n_layers for e in encoders) - 1))


def thresholds(
    data: Any, model: Any, base: Any, out: str | Path, values: Iterable[float] = THRESHOLDS, **options: Any
) -> Path:
    """The early-stop study of Figure 15: how sure of the target the search must be."""
    return sweep(data, model, base, "stop", values, out, **options)


def grids(names: Iterable[str]) -> dict[str, list[Any]]:
    """Six settings of each of these methods, the published or default one first: what their figures are tuned over."""
    names = list(names)
    if unknown := [name for name in names if name not in GRIDS]:
        raise RefactError(f"no grid for {unknown[0]!r}: there are {', '.join(GRIDS)}")
    return {name: [method(name), *(method(name, **change) for change in GRIDS[name])] for name in names}


def tune(
    data: Any, model: Any, grids: Mapping[str, Sequence[Any]], out: str | Path, side: str = "image", **options: Any
) -> dict[str, Any]:
    """The best setting of each method on validation rows, by geometric F1 plus efficacy.

    grids: name -> settings to try; all must have the same length, the budget. `out`/tuning.json keeps every setting
    tried with its scores, and which was chosen; ties go to the earlier one.
    """
    if len({len(grid) for grid in grids.values()}) != 1:
        sizes = {name: len(grid) for name, grid in grids.items()}
        raise RefactError(f"every method gets the same number of settings to try, not {sizes}")
    tried = {f"{name} #{i}": made for name, grid in grids.items() for i, made in enumerate(grid)}
    out = run(data, model, tried, out, **options)
    scores = {
        label: {k: n["value"] for k, n in entry["numbers"].items()}
        for label, entry in results.summary(results.read_run(out), side).items()
    }

    def worth(label: str) -> float:
        return scores.get(label, {}).get("f1_geometric", 0) + scores.get(label, {}).get("efficacy", 0)

    best = {name: max((f"{name} #{i}" for i in range(len(grid))), key=worth) for name, grid in grids.items()}
    settings = {label: form_of(made) for label, made in tried.items()}
    found = {"chosen": best, "settings": settings, "scores": scores}
    write(out / "tuning.json", json.dumps(found, indent=1).encode())
    return {name: tried[label] for name, label in best.items()}


# -- one edit after another --------------------------------------------------------------------------------------------


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
    plan = Plan({BASELINE: None, **steps}, tuple(seeds), keep_images, **drawing)
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
                patch = base(bench.model, [case.edit], patches) if hold else base(bench.model, [case.edit])
            except EditError as error:
                logs[case.id] = {"refused": str(error)}
            else:
                stack.enter_context(patch.applied(bench.model))
                patches.append(patch)
                logs[case.id] = log_of(patch)
            for done in missing.get(k, ()):
                scores, images = bench.scored(done, labels[k], before[done.id])
                yield Outcome(done, {labels[k]: scores | logs[done.id]}, images)


# -- pictures of captions ----------------------------------------------------------------------------------------------


def quality(
    model: Any,
    captions: Sequence[str],
    patches: Mapping[str, Sequence[Any]],
    out: str | Path,
    judge: Judge | str | Path,
    *,
    reference: str | Path | None = None,
    seed: int = 0,
    batch: int = 64,
    progress: Progress = plainly,
    **drawing: Any,
) -> dict[str, dict[str, float]]:
    """CLIP score, FID, KID and CMMD on captions, unedited ("before") and under each set of patches.

    Distances are to the pictures in the folder `reference`, on the judge's features; without one, to the unedited
    model's own pictures of other seeds: then "before" shows the floor that chance alone gives. The features are kept
    in `out`, so a killed study goes on; `out`/quality.json holds what is returned.
    """
    ready, judging = opened(model, judge)
    assert judging
    out = Path(out)
    names = {"captions": list(captions), "seed": seed, "batch": batch, "reference": str(reference), **drawing}
    active = {label: [p.record for p in some] for label, some in patches.items()}
    made = {
        "judge": judging.hash,
        "model": ready.fingerprints(),
        "patches": json.loads(json.dumps(active, default=str)),
    }
    begin(out, {"form": 1, "study": "quality", **names, **made}, [])
    texts = judging.of_texts(list(captions))
    draw = _drawer(ready, judging, captions, out, batch, progress, drawing)
    target = _folder(judging, Path(reference)) if reference else draw("reference", TARGET_SEED + seed)
    found = {}
    for label, some in {"before": (), **patches}.items():
        with ExitStack() as stack:
            for patch in some:
                stack.enter_context(patch.applied(ready))
            features = draw(label, seed)
        distances = {f.__name__: f(features, target) for f in (metrics.fid, metrics.kid, metrics.cmmd)}
        found[label] = {"clip_score": metrics.clip_score(features, texts), **distances}
    form = {"judge": judging.name, "captions": len(captions), "reference": str(reference), "scores": found}
    write(out / "quality.json", json.dumps(form, indent=1).encode())
    return found


def _drawer(
    model: Any, judge: Judge, captions: Sequence[str], out: Path, batch: int, progress: Progress, drawing: dict
):
    """A function: the features of the captions' pictures as the model is now, kept by label in `out`."""

    def draw(label: str, seed: int) -> np.ndarray:
        parts = []
        for at in progress(range(0, len(captions), batch), label, -(-len(captions) // batch)):
            path = out / "features" / f"{folder_name(label)}-{at}.npy"
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                made = model.generate(list(captions[at : at + batch]), [seed], **drawing)
                _save(path, judge.of_images([p.image for p in made]))
            parts.append(np.load(path))
        return np.concatenate(parts)

    return draw


def _save(path: Path, rows: np.ndarray) -> None:
    beside = path.with_suffix(".tmp.npy")
    np.save(beside, rows)
    beside.replace(path)


def _folder(judge: Judge, folder: Path) -> np.ndarray:
    from PIL import Image

    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"})
    return judge.of_images([Image.open(file).convert("RGB") for file in files])
