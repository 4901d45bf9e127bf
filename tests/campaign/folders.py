"""Corrupted folders of runs and studies through report, strips and going on; and corrupted caches."""

from __future__ import annotations

import dataclasses
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

from refact.evidence import bench, report, results, strips
from refact.models import covariance
from refact.studies.pages import SECTIONS
from refact.studies.scaling import Row

from .. import pretend, tiny
from ..test_benchmark import CASES, METHODS
from . import mutations
from .watch import Watch


class Live(HTMLParser):
    """The tags and attributes of a page that would do something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "base", "meta", "link", "form"):
            self.found.append(tag)
        for name, given in attrs:
            outside = name in ("src", "href", "action") and not str(given).startswith(("data:image/", "#"))
            if name.startswith("on") or outside:
                self.found.append(f"{tag} {name}={given}")


def live(page: str) -> list[str]:
    """What would do something in a page."""
    parser = Live()
    parser.feed(page)
    return sorted(parser.found)


def bases(folder: Path) -> tuple[Path, Path]:
    """A run's folder with pictures, and one of studies."""
    run, study = folder / "run", folder / "study"
    how: dict[str, Any] = {"seeds": [0, 1], "judge": pretend.judge(), "keep_images": 1}
    bench.run(CASES, pretend.PretendModel(), METHODS, run, **how)
    study.mkdir()
    rows = [dataclasses.asdict(Row("refact", "at once", count, holds=1.0, drift=0.1)) for count in (1, 10)]
    (study / "scale.json").write_text(json.dumps(rows))
    return run, study


def run(watch: Watch, folder: Path, first: int, last: int, seed: int) -> None:
    """The folders of these numbers."""
    whole = bases(folder)
    usual = [live(_page(folder, base)) for base in whole]
    for number in range(first, last):
        draw = Random(f"{seed} folders {number}")
        which = draw.choice((0, 0, 0, 1))
        spoiled = folder / "spoiled"
        shutil.rmtree(spoiled, ignore_errors=True)
        shutil.copytree(whole[which], spoiled)
        file = draw.choice(sorted(path for path in spoiled.rglob("*") if path.is_file() and path.name != ".lock"))
        file.write_bytes(_spoiled(file.read_bytes(), draw, file.suffix))
        _use(watch, f"folders {number}", folder, spoiled, usual[which])


def _spoiled(content: bytes, draw: Random, suffix: str) -> bytes:
    how = draw.random()
    if how < 0.1:
        return b""
    if suffix == ".json" and how < 0.8:
        return mutations.dumped(mutations.spoil_json(json.loads(content), draw, draw.choice((1, 1, 3))))
    return mutations.spoil_bytes(content, draw)


def _page(folder: Path, given: Path) -> str:
    return report.write(given, folder / "report.html", studies=SECTIONS).read_text(encoding="utf-8")


def _use(watch: Watch, case: str, folder: Path, spoiled: Path, usual: list[str]) -> None:
    page = watch.attempt(f"{case} report", lambda: _page(folder, spoiled))
    if page is not None and set(live(page)) - set(usual):
        watch.failures.append(f"{case}: live in the page: {sorted(set(live(page)) - set(usual))[:3]}")
    watch.attempt(f"{case} strip", lambda: strips.strip(spoiled, 2))
    if (spoiled / "run.json").is_file():
        watch.attempt(f"{case} table", lambda: results.markdown(results.summary(results.read_run(spoiled))))
        how: dict[str, Any] = {"seeds": [0, 1], "judge": pretend.judge(), "keep_images": 1}
        model = pretend.PretendModel()
        watch.attempt(f"{case} go on", lambda: bench.run(CASES, model, METHODS, spoiled, **how))


def run_caches(watch: Watch, folder: Path, first: int, last: int, seed: int) -> None:
    """Corrupted covariances: refused, or the very numbers that were kept."""
    import refact

    encoder = refact.load(tiny.folder("sd1", folder)).encoders["text_encoder"]
    made = covariance.collect(encoder, [1], ["the flag of france", "a dog and a cat"], corpus_name="x")[1]
    path = folder / "cache.safetensors"
    made.save(path)
    whole = path.read_bytes()
    for number in range(first, last):
        draw = Random(f"{seed} caches {number}")
        spoil = draw.choice((mutations.spoil_bytes, mutations.spoil_header, mutations.spoil_tensors))
        path.write_bytes(spoil(whole, draw))
        found = watch.attempt(f"caches {number}", lambda: covariance.Covariance.load(path, encoder=made.encoder))
        if found is not None and found.hash() != made.hash():
            watch.failures.append(f"caches {number}: other numbers were read")
