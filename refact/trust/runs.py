"""What a run's folder must look like before anything is read of it: run.json, cases, the studies' rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, JsonValue

from ..errors import DataError, quoted, shown
from . import limits
from .forms import Count, FileName, Form, Number, Seed, checked, made
from .schema import Images

Rows = Annotated[list[Annotated[list[Number], Field(min_length=1)]], Field(max_length=limits.LIST)]


class Distances(Form):
    """How far pictures are from the oracle's."""

    pixels: Rows
    features: Rows


class Sides(Form):
    """Scores of a case's probes for the old and the new text; what strict measures add."""

    old: Rows
    new: Rows
    named: list[list[str]] | None = None
    distance: Distances | None = None


class Scores(Form):
    """What one method got on one case."""

    error: str = ""
    text: Sides | None = None
    image: Sides | None = None
    given: list[str] | None = None
    validity: Rows | None = None
    seconds: Number | None = None
    steps: Number | None = None


class Asked(Form):
    """A probe of a case."""

    prompt: str
    old: str
    new: str
    oracle: str
    halves: list[str] = []


class Told(Form):
    """A case's edit."""

    prompt: str
    new: str | Images
    old: str | Images | None
    subject: str | None
    aliases: list[str]


class Case(Form):
    """A case's file."""

    id: FileName
    kind: str
    oracle: str
    edit: Told
    second: Told | None = None
    positives: list[Asked]
    negatives: list[Asked]
    probes: list[Asked]
    scores: dict[str, Scores]


class Named(Form):
    """A model or a judge of a run."""

    name: str
    hash: str = ""


class Data(Form):
    """What was asked."""

    name: str
    cases: Count
    kind: str | None


class Settings(Form):
    """All that a run's scores depend on."""

    data: Data
    model: Named
    judge: Named | None
    seeds: Annotated[list[Seed], Field(min_length=1)]
    methods: dict[str, JsonValue]
    study: dict[str, JsonValue] = {}


class Run(Form):
    """A run's own file."""

    settings: Settings
    problems: list[str]


def run(form: Any, where: str) -> dict:
    """A run.json. Raises DataError."""
    return checked(Run, form, where, DataError)


def _whole(found: dict, probes: int, told: int) -> bool:
    """Whether a side has a row for each probe, and distances for the edits' own probes and the positives at least."""
    rows = [found["old"], found["new"], *([found["named"]] if found.get("named") else [])]
    far = list(found["distance"].values()) if found.get("distance") else []
    far = [part for part in far if isinstance(part, list)]
    widths = {len(row) for part in (*rows, *far) for row in part}
    return len(widths) == 1 and {len(part) for part in rows} == {probes} and all(len(part) >= told for part in far)


class Begun(Form):
    """The run.json of any study: what it was begun with."""

    settings: dict[str, JsonValue]


def settings(form: Any, where: str) -> dict:
    """The run.json of a run or a study that goes on. Raises DataError."""
    checked(Begun, form, where, DataError)
    if not isinstance(form["settings"].get("methods", {}), dict):
        raise DataError(f"{where}: its methods are no JSON object")
    return form


def case(form: Any, where: str) -> dict:
    """A case's file; each method's scores have a row for each probe, as many seeds in each. Raises DataError."""
    checked(Case, form, where, DataError)
    probes, told = len(form["probes"]), (2 if form.get("second") else 1) + len(form["positives"])
    if probes != told + len(form["negatives"]):
        raise DataError(f"{where} has {probes} probes, which are not those of its positives and negatives")
    for label, scores in form["scores"].items():
        for side in ("text", "image"):
            if (found := scores.get(side)) and not _whole(found, probes, told):
                raise DataError(f"{where}: the scores of {quoted(label)} do not have a row for each probe")
    return form


def check_widths(cases: Sequence[dict], where: str) -> None:
    """DataError where cases have scores of different numbers of seeds, so that they are not of one run."""
    for side in ("text", "image"):
        found = {
            len(scores[side]["new"][0]): case["id"]
            for case in cases
            for scores in case["scores"].values()
            if scores.get(side)
        }
        if len(found) > 1:
            raise DataError(f"{where}: {' and '.join(map(shown, found.values()))} have different numbers of seeds")


def rows(kind: type, form: Any, where: str) -> list:
    """A list of dataclasses of this kind, of their JSON form. Raises DataError."""
    return made(list[kind], form, where, DataError)  # type: ignore[valid-type]


class Quality(Form):
    """The quality study's table."""

    judge: str
    captions: Count
    reference: str
    scores: dict[str, dict[str, Number]]


def quality(form: Any, where: str, measures: Sequence[str]) -> dict:
    """A quality.json, whose rows have these measures. Raises DataError."""
    checked(Quality, form, where, DataError)
    for label, scores in form["scores"].items():
        if missing := [name for name in measures if name not in scores]:
            raise DataError(f"{where}: {quoted(label)} has no {missing[0]}")
    return form
