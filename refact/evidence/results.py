"""A run's folder read back: margins, tallies and tables, with nothing but its JSON files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..trust import forms, limits, runs
from . import metrics
from .metrics import Tally

COLUMNS = ("efficacy", "generality", "specificity", "f1_geometric", "f1_harmonic")
STRICTER = {"generality_75": 0.75, "generality_90": 0.90}
STRICT = ("named", "named_generality", "named_specificity")  # the judge's first name among all, see strict.py
ADAPTIVE = ("adaptive", "adaptive_generality", "adaptive_specificity")  # as near to its text as the oracle's pictures
FEWEST = 6  # seeds that a threshold needs
SIGMAS = 2  # of the oracle's pictures, below their mean (CAKE, arXiv 2409.17928)
UNTOLD = "generality_untold"  # positives in wordings of the subject that no method was told


@dataclass(frozen=True)
class Run:
    """A run: its settings and its cases, as their files have them."""

    path: Path
    settings: dict
    problems: list[str]
    cases: list[dict]

    @cached_property
    def labels(self) -> list[str]:
        """The methods, in the order asked for."""
        present = {label for case in self.cases for label in case["scores"]}
        return [m for m in self.settings["methods"] if m in present]

    @property
    def kind(self) -> str | None:
        """ "road", "timed", "abstract", "composite", or the study's."""
        return self.settings["data"]["kind"]

    @property
    def missing(self) -> int:
        """How many units are still to be done."""
        return self.settings["data"]["cases"] * len(self.settings["methods"]) - sum(
            len(case["scores"].keys() & self.settings["methods"].keys()) for case in self.cases
        )


def read_run(path: str | Path) -> Run:
    """The run of a folder."""
    path = Path(path)
    if not (path / "run.json").is_file():
        raise DataError(f"{path}: no run.json there; `refact bench` makes such a folder")
    form = runs.run(read_json(path / "run.json"), str(path / "run.json"))
    files = sorted((path / "cases").glob("*.json"))
    cases = [read_case(file) for file in files]
    runs.check_widths(cases, str(path))
    return Run(path, form["settings"], form["problems"], cases)


def read_case(path: Path) -> dict:
    """The checked file of one case. Raises DataError that names it."""
    return runs.case(read_json(path), str(path))


def read_json(path: Path, again: str = "that part of the run is done again") -> Any:
    """The JSON of a run's or a study's file. Raises DataError that names it, and says what deleting it costs."""
    try:
        if path.stat().st_size > limits.JSON_FILE:
            raise DataError(f"{path}: larger than {limits.JSON_FILE / 1e6:.0f} MB, so it is none of ours")
        return forms.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except DataError as error:
        raise DataError(f"{error}; delete it, and {again}") from None


def groups(run: Run) -> dict[str, Run]:
    """The run's parts by their cases' kind; most runs have one."""
    kinds = dict.fromkeys(case["kind"] for case in run.cases)
    return {kind: replace(run, cases=[c for c in run.cases if c["kind"] == kind]) for kind in kinds}


def scores_of(case: Mapping, label: str, side: str) -> Mapping | None:
    """A method's scores on a case; the unedited model's where the edit could not be made; None if not run.

    side: "image" (the judge's logits) or "text" (minus the distances of embeddings).
    """
    scores = case["scores"].get(label)
    if scores is not None and "error" in scores:
        scores = case["scores"].get("baseline")
    return scores and scores.get(side)


def edits_of(case: Mapping) -> list[Mapping]:
    """The case's edit, or both where it has two."""
    return [case["edit"], *([case["second"]] if case.get("second") else [])]


def parts_of(case: Mapping) -> dict[str, slice]:
    """Which of a case's probes are the edited prompts' own, the positives and the negatives."""
    first = len(edits_of(case))
    last = first + len(case["positives"])
    return {"efficacy": slice(0, first), "generality": slice(first, last), "specificity": slice(last, None)}


def margins(case: Mapping, scores: Mapping) -> dict[str, np.ndarray]:
    """Right less wrong, (prompts, seeds), of the edited prompts, the positives, the negatives and the untold.

    Untold is a positive that holds no wording that a method was told, of one of its subjects at least.
    """
    gap, parts = np.array(scores["new"]) - np.array(scores["old"]), parts_of(case)
    told = [[w.casefold() for w in (e["subject"] or e["prompt"], *e["aliases"])] for e in edits_of(case)]

    def untold(prompt: str) -> bool:
        return any(not any(w in prompt.casefold() for w in words) for words in told)

    positives = range(len(case["probes"]))[parts["generality"]]
    rows = [i for i in positives if untold(case["probes"][i]["prompt"])]
    found = {name: -gap[rows] if name == "specificity" else gap[rows] for name, rows in parts.items()}
    return found | {UNTOLD: gap[rows]}


def tallies(cases: Iterable[Mapping], label: str, side: str = "image") -> dict[str, Tally]:
    """What a method got right on those of the cases on which it has scores; {} when there is none."""
    scored = [(case, scores) for case in cases if (scores := scores_of(case, label, side))]
    found = [margins(case, scores) for case, scores in scored]
    if not found:
        return {}
    parts = {name: metrics.tally([m[name] for m in found]) for name in found[0]}
    if side == "image" and all(scores.get("named") and clean_names(case) for case, scores in scored):
        strictly = [names_right(case, scores) for case, scores in scored]
        parts |= {name: metrics.tally([m[name] for m in strictly]) for name in STRICT}
    if side == "image" and all(bounds(case) is not None for case, _ in scored):
        within = [as_near(case, scores) for case, scores in scored]
        parts |= {name: metrics.tally([m[name] for m in within]) for name in ADAPTIVE}
    return parts | {name: metrics.tally([m["generality"] for m in found], p) for name, p in STRICTER.items()}


def finished(scores: Mapping[str, Mapping], oracle: bool) -> set[str]:
    """The methods of a case that need not be tried: not those that ended in an error, which the user may have mended,
    nor, with the oracle, those whose distance to its pictures was not taken."""
    found = {label for label, said in scores.items() if "error" not in said}
    far = {m for m in found if oracle and (image := scores[m].get("image")) and "distance" not in image}
    return found - far


def bounds(case: Mapping) -> np.ndarray | None:
    """How near a picture of each probe must be to its right text: CAKE's adaptive threshold, (probes,).

    The mean of the same score over the oracle's pictures of this run, less SIGMAS sample deviations. (CAKE takes 50
    seeds; here they are the run's.) None without the oracle's scores, or with fewer than six seeds: of five numbers
    none can lie two deviations below their mean, so that the oracle could not fail.
    """
    oracle = (case["scores"].get("oracle") or {}).get("image")
    if not oracle or len(oracle["new"][0]) < FEWEST:
        return None
    of = right_text(case, oracle)
    return of.mean(1) - SIGMAS * of.std(1, ddof=1)


def right_text(case: Mapping, scores: Mapping) -> np.ndarray:
    """The score of each probe's pictures for its right text, (probes, seeds): the new one, of negatives the old."""
    kept = parts_of(case)["specificity"]
    return np.array([*scores["new"][: kept.start], *scores["old"][kept]])


def as_near(case: Mapping, scores: Mapping) -> dict[str, np.ndarray]:
    """1 where a picture is as near to its right text as CAKE asks, else -1, (prompts, seeds)."""
    near = bounds(case)
    assert near is not None
    found = np.where(right_text(case, scores) >= near[:, None], 1.0, -1.0)
    return {name: found[rows] for name, rows in zip(ADAPTIVE, parts_of(case).values())}


def clean_names(case: Mapping) -> list[list[str]] | None:
    """What the unedited model's pictures of a case were named, (probes, seeds); None where nobody named them."""
    return ((case["scores"].get("baseline") or {}).get("image") or {}).get("named")


def names_right(case: Mapping, scores: Mapping) -> dict[str, np.ndarray]:
    """1 where a picture's first name is right, else -1, (prompts, seeds).

    Of the edit's prompt and the positives the new text is right; negatives are to be named as on the unedited model.
    """
    parts, clean = parts_of(case), clean_names(case)
    last = parts["specificity"].start
    right = [[p["new"]] * len(row) for p, row in zip(case["probes"][:last], scores["named"])] + (clean or [])[last:]
    hits = [[1 if a == b else -1 for a, b in zip(*rows)] for rows in zip(scores["named"], right, strict=True)]
    found = np.array(hits, dtype=float)
    return {name: found[rows] for name, rows in zip(STRICT, parts.values())}


def distances(run: Run, label: str) -> dict[str, metrics.Number]:
    """Mean distance of a method's pictures to the oracle's, of edited prompts and positives; {} where not measured.

    "pixels" in grey levels of 255, "features" as one minus the cosine of the judge's features.
    """
    cases = [(case, scores_of(case, label, "image")) for case in run.cases]
    if not (known := [(c, s["distance"]) for c, s in cases if s and "distance" in s]):
        return {}
    parts = {
        kind: np.array([np.mean(np.array(d[kind][: parts_of(c)["specificity"].start]), 0) for c, d in known])
        for kind in ("pixels", "features")
    }
    return {kind: metrics.mean(rows) for kind, rows in parts.items()}


def summary(run: Run, side: str = "image") -> dict[str, dict]:
    """label -> numbers (name -> {value, seed_mean, seed_std, low, high}), cases, seconds, steps, errors, validity."""
    found = {}
    for label in run.labels:
        if not (parts := tallies(run.cases, label, side)):
            continue
        scores = [case["scores"][label] for case in run.cases if label in case["scores"]]
        valid = [metrics.validity(np.array(s["validity"])) for s in scores if s.get("validity")]
        found[label] = {
            "numbers": {name: asdict(n) for name, n in metrics.numbers(parts).items()},
            "distances": {name: asdict(n) for name, n in distances(run, label).items()} if side == "image" else {},
            "cases": len(next(iter(parts.values())).counts),
            "seconds": _mean(s.get("seconds") for s in scores),
            "steps": _mean(s.get("steps") for s in scores),
            "errors": sum("error" in s for s in scores),
            "validity": _mean(valid),
        }
    return found


def _mean(values: Iterable[Any]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def paired(run: Run, one: str, other: str, side: str = "image") -> dict[str, metrics.Difference]:
    """one - other, on the cases that both have."""
    both = [c for c in run.cases if scores_of(c, one, side) and scores_of(c, other, side)]
    return metrics.compare(tallies(both, one, side), tallies(both, other, side)) if both else {}


def wrong(case: Mapping, label: str) -> bool | None:
    """Whether an edited prompt, most positives or most negatives were judged wrong; None without pictures' scores."""
    if not (scores := scores_of(case, label, "image")):
        return None
    parts = margins(case, scores)
    return any(m.size and (m > 0).mean() <= 0.5 for name, m in parts.items() if name != UNTOLD)


def markdown(found: Mapping[str, Mapping]) -> str:
    """A summary as a table of percentages: value, and the half width of its 95 % interval.

    Strict measures, adaptive thresholds and distances have columns where they were taken.
    """
    strict = [name for name in (*STRICT, *ADAPTIVE) if any(name in entry["numbers"] for entry in found.values())]
    far = ["pixels"] if any(entry.get("distances") for entry in found.values()) else []
    heads = [*COLUMNS, *strict, *(f"oracle {name}" for name in far), "s/edit"]
    lines = ["| method | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for label, entry in found.items():
        cells = [percent(entry["numbers"].get(name)) for name in (*COLUMNS, *strict)]
        cells += [percent(entry["distances"].get(name), 1) for name in far]
        seconds = "" if entry["seconds"] is None else f"{entry['seconds']:.2f}"
        lines.append(f"| {label} | " + " | ".join([*cells, seconds]) + " |")
    return "\n".join(lines)


def percent(number: Mapping | None, scale: float = 100) -> str:
    """ "93.4 ± 2.1", or a dash. scale: 100 for a share."""
    if number is None or math.isnan(number["value"]):
        return "-"
    half = (number["high"] - number["low"]) / 2
    return f"{scale * number['value']:.1f} ± {scale * half:.1f}"
