"""Studies that vary settings of one method: layers, early stop, the paper's ablations.

Every function takes the options of `bench.run` (judge, seeds, steps, ...) as they are and returns the run's folder,
which `results` and `report` read like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..edits import Edit
from ..errors import RefactError
from ..evidence.bench import opened, run
from ..methods.refact import ReFACT

THRESHOLDS = (
    0.5,
    0.7,
    0.9,
    0.95,
    0.99,
    0.999,
)  # around the paper's 0.99 (Figure 15)
TARGET_SEED = 1_000_000  # of pictures that stand for a target: far from any seed that a test uses


@dataclass(frozen=True)
class ByPictures:
    """A method whose targets are pictures, which the unedited model draws of each target's text (Appendix A)."""

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
    """A method that is given the fact alone, without aliases and without protected prompts."""

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
        "refact:paper": ReFACT.paper(),
        "contrastive": change(base, objective="contrastive"),
        "cosine": change(base, distance="cosine"),
        "image target": ByPictures(base),
        "pooled": ReFACT.pooled(),
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
    """The layers that take an edit in all of a model's CLIP encoders (else in all that there are)."""
    every = list(model.encoders.values())
    clips = [e for e in every if e.kind == "clip"]
    return list(range(min(e.n_layers - 1 if clips else e.effective.stop for e in clips or every)))


def thresholds(
    data: Any, model: Any, base: Any, out: str | Path, values: Iterable[float] = THRESHOLDS, **options: Any
) -> Path:
    """The early-stop study of Figure 15: how sure of the target the search must be."""
    return sweep(data, model, base, "stop", values, out, **options)
