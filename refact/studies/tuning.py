"""The settings of each method chosen on validation rows, by grids of one size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError, RefactError
from ..evidence import results
from ..evidence.bench import UNEDITED, run
from ..evidence.provenance import form_of
from ..methods.registry import method
from ..trust.disk import write

FILE = "tuning.json"
GRIDS: dict[str, list[dict[str, Any]]] = {  # beside the default; on each benchmark's own validation rows
    "refact": [
        {"layer": 0},
        {"layer": 3},
        {"max_steps": 40},
        {"weight_decay": 0.01},
        {"modifiers": ()},
    ],
    "refact:many": [  # of hundreds of facts: `refact study scale --split`
        {"layer": 0},
        {"crowded": 0.1},
        {"crowded": 1.0},
        {"layer": 0, "crowded": 1.0},
        {"layer": 0, "contexts": 4},
    ],
    "memit": [
        {"ridge": 0.1},
        {"ridge": 0.5},
        {"depth": 1},
        {"layer": 0, "depth": 1},
        {"layer": 1, "depth": 2},
    ],
    "emcid": [
        {"ridge": 0.1},
        {"ridge": 0.02},
        {"align": 0.1},
        {"noise": False, "align": 1.0},
        {"residual": "released"},
    ],
    "alphaedit": [
        {"share": 0.001},
        {"share": 0.1},
        {"penalty": 0.1},
        {"depth": 3},
        {"depth": 3, "penalty": 0.1},
    ],
    "diffquickfix": [{"strength": s} for s in (0.001, 0.03, 0.1, 0.3, 1.0)],
    "time": [
        {"strength": 0.01},
        {"strength": 1.0},
        {"strength": 10.0},
        {"augmented": True},
        {"strength": 1.0, "augmented": True},
    ],
    "uce": [
        {"keep": 0.01},
        {"strength": 5.0},
        {"rows": "tail", "keep": 0.1},
        {"rows": "tail", "keep": 0.01},
        {"rows": "tail", "strength": 5.0, "keep": 0.01},
    ],
    "speed": [
        {"projections": "values"},
        {"scale": 0.001},
        {"scale": 0.1},
        {"threshold": 0.03},
        {"threshold": 0.3},
    ],
    "finetune": [
        {"learning_rate": 5e-4, "bound": 5e-3},
        {"learning_rate": 1e-3, "bound": 1e-2},
        {"learning_rate": 2e-3, "bound": 2e-2},
        {"learning_rate": 5e-3, "bound": 5e-2},
        {"learning_rate": 5e-3, "bound": 1.0},
    ],
    "entrance": [{"strength": s} for s in (0.05, 1.0, 5.0, 20.0, 100.0)],
    "embedit": [
        {"learning_rate": 0.02},
        {"learning_rate": 0.1},
        {"max_steps": 50},
        {"rows": "all"},
        {"rows": "all", "contexts": 1, "stop": 0.35},
    ],
}


def grids(names: Iterable[str]) -> dict[str, list[Any]]:
    """Six settings of each of these methods, the published or default one first: what their figures are tuned over."""
    names = list(names)
    if unknown := [name for name in names if name not in GRIDS]:
        raise RefactError(f"no grid for {unknown[0]!r}: there are {', '.join(GRIDS)}")
    return {name: [method(name), *(method(name, **change) for change in GRIDS[name])] for name in names}


def labelled(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The same settings by names that `refact.method` takes: "memit", "memit:ridge=0.1", ..."""
    found = {}
    for name, settings in grids(names).items():
        changes = [":".join(f"{key}={value}" for key, value in change.items()) for change in GRIDS[name]]
        found[name] = dict(zip([name, *(f"{name}:{change}" for change in changes)], settings))
    return found


def tune(
    data: Any,
    model: Any,
    grids: Mapping[str, Mapping[str, Any]],
    out: str | Path,
    side: str = "image",
    **options: Any,
) -> dict[str, Any]:
    """The best setting of each method on validation rows, by geometric F1 plus efficacy.

    grids: method -> label -> setting, as many for each method, which is the budget. `out`/tuning.json keeps every
    setting tried with its scores, and the label of the one that was chosen; ties go to the earlier one.
    """
    if len({len(grid) for grid in grids.values()}) != 1:
        sizes = {name: len(grid) for name, grid in grids.items()}
        raise RefactError(f"every method gets the same number of settings to try, not {sizes}")
    tried = {label: made for grid in grids.values() for label, made in grid.items()}
    out = run(data, model, tried, out, **options)
    scores = {
        label: {k: n["value"] for k, n in entry["numbers"].items()}
        for label, entry in results.summary(results.read_run(out), side).items()
    }

    def worth(label: str) -> float:
        return scores.get(label, {}).get("f1_geometric", 0) + scores.get(label, {}).get("efficacy", 0)

    best = {name: max(grid, key=worth) for name, grid in grids.items()}
    settings = {label: form_of(made) for label, made in tried.items()}
    found = {"chosen": best, "settings": settings, "scores": scores}
    write(Path(out) / FILE, json.dumps(found, indent=1).encode())
    return {name: tried[label] for name, label in best.items()}


def tuned(names: Iterable[str], folder: str | Path) -> dict[str, Any]:
    """Methods by name, each with the setting that the tuning in a folder chose for it, if any. Raises DataError."""
    path = Path(folder) / FILE
    form = results.read_json(path)
    chosen = form.get("chosen") if isinstance(form, dict) else None
    if not isinstance(chosen, dict) or any(" #" in str(label) for label in chosen.values()):
        raise DataError(f"{path}: not made by this version's `refact study tune`")
    return {name: None if name in UNEDITED else method(str(chosen.get(name, name))) for name in names}
