"""Runs: every method on every case, judged and kept in a folder that any kill leaves usable.

A run is a folder: `run.json` with its settings, `cases/ID.json` with all scores of a case, `images/ID/METHOD/` with
the pictures that were to be kept. A unit of work is one method on one case; "clean" is the unit that makes the
unedited model's pictures, for the baseline, the oracle and Rewrite at once. Numbers are made of a run by `results.py`.
"""

from __future__ import annotations

import functools
import io
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import pocket
from ..errors import DataError, RefactError
from ..methods.registry import method
from ..models.model import load
from ..models.parallel import Cluster, spread
from ..progress import Progress, plainly
from ..trust import runs
from ..trust.disk import Behind, alone, write
from . import results, strict
from .cases import Case, Probe, probes_of, read_cases, texts_of, told_to
from .judge import Judge, check_independent, load_judge
from .provenance import differing, known_then, settings_of, versions
from .rewriting import rewritten
from .strict import NONE, Names

CLEAN, BASELINE, ORACLE, REWRITE = "clean", "baseline", "oracle", "rewrite"
UNEDITED = (BASELINE, ORACLE, REWRITE)  # rows of the model as it is: given the prompt, the target's texts, a new prompt
LOSSLESS = 128  # pictures up to this many pixels a side are kept without loss

Method = Callable[[Any, Sequence], Any]


@dataclass(frozen=True)
class Plan:
    """What is done with every case."""

    methods: Mapping[str, Method | None]  # by label; None: the unedited model's
    seeds: tuple[int, ...]
    keep_images: int = 1  # of how many seeds the pictures are kept; 0: none
    steps: int | None = None  # of the sampler; None: the pipeline's own
    guidance: float | None = None
    size: int | None = None  # pixels
    autocast: str | None = None  # the generator's precision, "bfloat16"; None: that of its weights
    batch_size: int = 16  # pictures through the UNet at once; part of the settings, as it moves the last digits
    names: Names = NONE  # among which a picture is named strictly; none: it is not


@dataclass(frozen=True)
class Unit:
    """One method (by its label), or "clean", on one case."""

    case: Case
    label: str

    def __str__(self) -> str:
        return f"{self.label} on {self.case.id}"


@dataclass(frozen=True)
class Outcome:
    """The scores of a unit by label, and its pictures by their place in the run's folder."""

    case: Case
    scores: dict[str, dict]
    images: dict[str, Any] = field(default_factory=dict)  # PIL, or its bytes where it came from another machine


@alone
def run(
    data: str | Path | Sequence[Case],
    model: Any,
    methods: Mapping[str, Method] | Iterable[str],
    out: str | Path,
    *,
    seeds: Iterable[int] = range(5),
    judge: Judge | str | Path | None = None,
    keep_images: int = 1,
    limit: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | None = None,
    autocast: str | None = None,
    batch_size: int = 16,
    names: Names | None = None,
    cluster: Cluster | None = None,
    progress: Progress = plainly,
) -> Path:
    """The folder `out`, holding the scores of every method on every case; what is there already is not done again.

    data      a csv file in RoAD's or TIMED's columns, a bundled benchmark's name, or cases
    model     a `Model`, or what `load` takes
    methods   label -> method, or names as `refact.method` takes them; "baseline" always runs, "oracle" and
              "rewrite" (the target in the subject's place in the prompt) when named
    judge     a `Judge` or its folder; None: the text side alone, and pictures only to be looked at
    names     what pictures are named among, strictly; None: all names of the world for the bundled model, else none
    cluster   None: here; else the workers of a Ray cluster, over which methods and cases are spread

    Raises DataError when `out` holds a run with other settings, naming those that differ; methods may be added to it.
    """
    how: dict[str, Any] = {"seeds": seeds, "judge": judge, "limit": limit, "names": names, "keep_images": keep_images}
    how |= {"steps": steps, "guidance": guidance, "size": size, "autocast": autocast, "batch_size": batch_size}
    job = begun(data, model, methods, out, **how)
    make = functools.partial(Bench, job.plan, packed=cluster is not None)
    done = spread(make, job.parts, job.units, cluster, key=lambda unit: unit.case.id)
    with Behind(functools.partial(keep, Path(out))) as kept:
        for outcome in progress(done, "benchmark", len(job.units)):
            kept(outcome)
    return Path(out)


@dataclass(frozen=True)
class Begun:
    """A run whose folder is there: what is done with which cases, and what of it is still to be done."""

    plan: Plan
    parts: tuple[Any, Judge | None]  # the model and the judge
    cases: list[Case]
    units: list[Unit]


def begun(
    data: str | Path | Sequence[Case],
    model: Any,
    methods: Mapping[str, Method] | Iterable[str],
    out: str | Path,
    *,
    seeds: Iterable[int] = range(5),
    judge: Judge | str | Path | None = None,
    limit: int | None = None,
    names: Names | None = None,
    **drawn: Any,
) -> Begun:
    """The run of these arguments, which are `run`'s. drawn: other fields of the plan."""
    cases, problems = read_cases(data) if isinstance(data, (str, Path)) else (list(data), [])
    cases = cases[:limit]
    ready, judging = opened(model, judge)
    plan = Plan(named(methods), tuple(seeds), names=names_for(ready) if names is None else names, **drawn)
    name = str(data) if isinstance(data, (str, Path)) else "cases"
    begin(Path(out), settings_of(name, cases, ready, judging, plan), problems)
    there = runs.settings(results.read_json(Path(out) / "run.json"), str(out))["settings"].get("methods", {})
    plan = replace(plan, methods={**plan.methods, **{label: None for label in UNEDITED if label in there}})
    return Begun(plan, (ready, judging), cases, list(pending(Path(out), cases, plan)))


def opened(model: Any, judge: Judge | str | Path | None) -> tuple[Any, Judge | None]:
    """A loaded model and a loaded judge that is another network."""
    if not hasattr(model, "encoders"):
        model = load(model)
    if isinstance(judge, (str, Path)):
        judge = load_judge(judge, getattr(model, "device", None))
    if judge is not None:
        check_independent(judge, model)
    return model, judge


def names_for(model: Any) -> Names:
    """What the pictures of a model may be named where nothing is said: all of the bundled world, for its model."""
    return strict.names_of_world(pocket.world()) if model.name == "pocket" else NONE


def named(methods: Mapping[str, Method] | Iterable[str]) -> dict[str, Any]:
    """label -> method, baseline first; the unedited model's labels stand for themselves."""
    if not isinstance(methods, Mapping):
        methods = {name: None if name in UNEDITED else method(name) for name in methods}
    found = {BASELINE: None, **methods}
    if len({folder_name(label) for label in found}) < len(found) or CLEAN in found:
        raise RefactError(f"labels of methods must differ in letters or digits, and not be {CLEAN!r}: {list(found)}")
    return found


def folder_name(label: str) -> str:
    """A label as a folder's name: "ReFACT, layer 3" -> "refact-layer-3"."""
    return re.sub(r"[^a-z0-9.=]+", "-", label.lower()).strip("-.")


# -- one unit ----------------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """A model and a judge, called with units of work."""

    plan: Plan
    model: Any
    judge: Judge | None
    packed: bool = False  # whether kept pictures are encoded where they are made
    _clean: tuple[str, strict.Seen] = ("", strict.Seen({}, {}))  # the last case's id, and its unedited pictures

    def __call__(self, unit: Unit) -> Outcome:
        """The unit's scores. An edit that cannot be made is recorded as an error; the model is then as it was."""
        if (method := self.plan.methods.get(unit.label)) is None:
            return self.clean(unit.case)
        began = time.perf_counter()
        try:
            patch = method(self.model, told_to(method, unit.case.edits))
        except RefactError as error:
            return Outcome(unit.case, {unit.label: {"error": f"{type(error).__name__}: {error}"}})
        log = log_of(patch) | {"seconds": time.perf_counter() - began}
        self.unedited(unit.case)
        before = self.embed(texts_of(unit.case))
        with patch.applied(self.model):
            scores, images = self.scored(unit.case, unit.label, before)
        return Outcome(unit.case, {unit.label: scores | log}, images)

    def clean(self, case: Case) -> Outcome:
        """The unedited model: the baseline, and the rows that are given other texts; pictures are made once."""
        before, of = self.embed(texts_of(case)), self.unedited(case)
        scores: dict[str, dict] = {}
        images: dict[str, Any] = {}
        for label, given in self.given(case).items():
            before |= self.embed(new) if (new := [text for text in given if text not in before]) else {}
            scores[label] = self.scores(case, given, before, before, of)
            images |= self.kept(case, label, given, of)
            if label == REWRITE:
                scores[label]["given"] = given  # which the report shows; the other rows' texts are in the probes
        if self.judge and of.pictures and case.kind == "timed":
            texts = [case.source, *(p.prompt for p in case.negatives)]
            scores[BASELINE]["validity"] = self.judge.logits(of.pictures[case.edit.prompt], texts).tolist()
        return Outcome(case, scores, images)

    def given(self, case: Case) -> dict[str, list[str]]:
        """label -> what the unedited model is asked for in the place of each probe's prompt; only rows of the plan."""
        probes = probes_of(case)
        asked = {
            BASELINE: [p.prompt for p in probes],
            ORACLE: [p.oracle for p in probes],
            REWRITE: [rewritten(p.prompt, case.edits) for p in probes],
        }
        return {label: texts for label, texts in asked.items() if label in self.plan.methods}

    def unedited(self, case: Case) -> strict.Seen:
        """The unedited model's pictures of all that it is asked for in this case; call it unpatched.

        The last case's are kept: every method is compared with them. They are always drawn in the same batches.
        """
        if self._clean[0] != case.id:
            asked = [text for texts in self.given(case).values() for text in texts]
            self._clean = (case.id, self.seen(asked))
        return self._clean[1]

    def scored(self, case: Case, label: str, before: dict[str, np.ndarray]) -> tuple[dict, dict[str, Any]]:
        """Scores and kept pictures of a case on the model as it is now; `before`: embeddings of the unedited one."""
        prompts = [p.prompt for p in probes_of(case)]
        of = self.seen(prompts)
        after = self.embed(texts_of(case))  # in the same batches as `before`: what is unchanged is equal to the bit
        return self.scores(case, prompts, after, before, of), self.kept(case, label, prompts, of)

    def scores(self, case: Case, prompts: list[str], after: dict, before: dict, of: strict.Seen) -> dict:
        """ "image": what the judge says of the pictures of `prompts`, one for each probe; "text": distances (None: the
        text encoders are unchanged at these prompts)."""
        probes = probes_of(case)
        same = after is not before and all((after[p] == before[p]).all() for p in prompts)
        text = None if same else text_scores(probes, prompts, after, before)
        return {"text": text, "image": self.image_scores(case, probes, prompts, of) if of.features else None}

    def image_scores(self, case: Case, probes: list[Probe], prompts: list[str], of: strict.Seen) -> dict[str, Any]:
        """The paper's logits; the first names, where names are given; distances, where the oracle is there."""
        assert self.judge
        found: dict[str, Any] = strict.binary(self.judge, probes, prompts, of)
        if self.plan.names.texts:
            last = len(case.edits) + len(case.positives)
            asked = [(p.new, *p.others) if i < last else (p.old, p.new) for i, p in enumerate(probes)]
            found["named"] = strict.named(self.judge, asked, prompts, of, self.plan.names)
        if ORACLE in self.plan.methods:
            found["distance"] = strict.distances(of, prompts, self.unedited(case), [p.oracle for p in probes])
        return found

    def embed(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """The pooled embedding of each text, those of all CLIP encoders side by side (else of all that there are)."""
        texts = list(dict.fromkeys(texts))
        every = list(self.model.encoders.values())
        encoders = [e for e in every if e.kind == "clip"] or every
        rows = np.concatenate([e.embed(texts).detach().cpu().double().numpy() for e in encoders], axis=1)
        return dict(zip(texts, rows))

    def seen(self, prompts: list[str]) -> strict.Seen:
        """Their pictures, one a seed, and what the judge makes of them; none when nobody looks or none can be drawn."""
        prompts = list(dict.fromkeys(prompts))
        plan = self.plan
        if self.model.family.name == "clip" or not (self.judge or plan.keep_images):
            return strict.Seen({}, {})
        seeds = list(plan.seeds) if self.judge else list(plan.seeds[: plan.keep_images])
        names = ("steps", "guidance", "size", "autocast", "batch_size")
        made = self.model.drawn(prompts, seeds, **{name: getattr(plan, name) for name in names})
        return strict.seen(self.judge, made, beside=torch.device(self.model.device).type != "cpu")

    def kept(self, case: Case, label: str, prompts: list[str], of: strict.Seen) -> dict[str, Any]:
        """The pictures of the first seeds, by their paths."""
        folder = f"images/{case.id}/{folder_name(label)}"
        return {
            f"{folder}/{index}-{seed}.webp": encoded(image) if self.packed else image
            for index, prompt in enumerate(prompts)
            for seed, image in list(zip(self.plan.seeds, of.pictures.get(prompt, [])))[: self.plan.keep_images]
        }


def text_scores(
    probes: list[Probe], prompts: list[str], after: dict[str, np.ndarray], before: dict[str, np.ndarray]
) -> dict[str, list[list[float]]]:
    """How near each prompt's embedding is to the clean ones of its old and its new text: minus the L2 distance.

    Where several texts stand against the new one, "old" is the nearest of them.
    """

    def near(prompt: str, texts: Sequence[str]) -> list[float]:
        return [max(-float(np.linalg.norm(after[prompt] - before[text])) for text in texts)]

    pairs = list(zip(probes, prompts))
    return {"old": [near(t, p.others) for p, t in pairs], "new": [near(t, [p.new]) for p, t in pairs]}


def log_of(patch: Any) -> dict:
    """What a patch tells of its making."""
    logs = [log.get("sites", {}) for log in patch.record.get("edits", ())]
    steps = [site["steps"] for sites in logs for site in sites.values() if site.get("steps") is not None]
    return {"steps": max(steps) if steps else None, "sites": logs[0] if logs else {}}


def encoded(image: Any) -> bytes:
    """WEBP, without loss where the picture is small."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", lossless=max(image.size) <= LOSSLESS, quality=90)
    return stream.getvalue()


# -- the folder --------------------------------------------------------------------------------------------------------


def begin(out: Path, settings: dict, problems: list[str]) -> None:
    """The folder with its run.json; DataError when it holds a run with other settings. Methods may be added to it."""
    path = out / "run.json"
    if path.is_file():
        form = runs.settings(results.read_json(path), str(path))
        there = form["settings"]
        had = there.get("methods", {})
        asked = {name: known_then(made, had.get(name)) for name, made in settings.get("methods", {}).items()}
        one, other = (there | {"methods": _shared(had, asked)}, settings | {"methods": _shared(asked, had)})
        if wrong := differing(one, other):
            lines = "; ".join(f"{key}: {a} there, {b} asked for" for key, (a, b) in sorted(wrong.items()))
            raise DataError(f"{out} holds a run with other settings ({lines}): give another folder, or these settings")
        if asked.keys() - had.keys():
            there["methods"] = had | asked
            write(path, json.dumps(form, indent=1).encode())
        return
    if out.is_dir() and any(p.suffix == ".json" for p in out.iterdir()):
        raise DataError(f"{out} holds other files and no run.json: give another folder")
    (out / "cases").mkdir(parents=True, exist_ok=True)
    write(path, json.dumps({"settings": settings, "problems": problems, "made_with": versions()}, indent=1).encode())


def _shared(one: dict, other: dict) -> dict:
    """What is in both, as the first has it."""
    return {name: value for name, value in one.items() if name in other}


def pending(out: Path, cases: Sequence[Case], plan: Plan) -> Iterator[Unit]:
    """What is not in the folder yet, case by case, the unedited model first."""
    for case in cases:
        done = results.finished(read_case(out, case.id)["scores"], ORACLE in plan.methods)
        if not set(UNEDITED) & plan.methods.keys() <= done:
            yield Unit(case, CLEAN)
        yield from (Unit(case, m) for m in plan.methods if m not in UNEDITED and m not in done)


def read_case(out: Path, case_id: str) -> dict:
    """A case's file, or the start of one."""
    path = out / "cases" / f"{case_id}.json"
    return results.read_case(path) if path.is_file() else {"scores": {}}


def keep(out: Path, outcome: Outcome) -> None:
    """The outcome in the folder: pictures first, then the case's file, each by rename."""
    for name, content in outcome.images.items():
        write(out / name, content if isinstance(content, bytes) else encoded(content))
    scores = read_case(out, outcome.case.id)["scores"] | outcome.scores
    form = outcome.case.to_json() | {"probes": [p.to_json() for p in probes_of(outcome.case)], "scores": finite(scores)}
    write(out / "cases" / f"{outcome.case.id}.json", json.dumps(form).encode())


def finite(scores: Any) -> Any:
    """The scores with 0 for what is not a finite number: where old and new are both 0, neither was right."""
    if isinstance(scores, dict):
        return {name: finite(value) for name, value in scores.items()}
    if isinstance(scores, (list, tuple)):
        return [finite(value) for value in scores]
    return 0.0 if isinstance(scores, float) and not math.isfinite(scores) else scores
