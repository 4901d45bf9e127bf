"""Some cases of a run as one picture: each method's answer to the edited prompt, a positive and a negative."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .. import pictures
from ..errors import DataError
from ..trust import limits
from . import results
from .bench import BASELINE, ORACLE, folder_name
from .results import Run

SHOWN = "edit", "positive", "negative"


def strip(folder: str | Path, count: int = 4, cell: int = 128) -> Image.Image:
    """A row of pictures for each of SHOWN of some cases, spread evenly: unedited, by each method, by the oracle's text.

    Raises DataError where the run kept no pictures.
    """
    run = results.read_run(folder)
    rows = [row for case in evenly(run.cases, count) for row in _rows(run, case)]
    if not rows:
        raise DataError(f"{folder}: no pictures were kept")
    return pictures.grid(rows, cell, text=13)


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """So many of the items, or all, at equal distances."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _rows(run: Run, case: Mapping) -> Iterator[tuple[str, list[Image.Image]]]:
    labels = [BASELINE, *(m for m in run.labels if m not in (BASELINE, ORACLE)), ORACLE]
    for kind, at in zip(SHOWN, (part.start for part in results.parts_of(case).values())):
        found = {label: file for label in labels if (file := kept(run, case["id"], label, at))}
        own = case["probes"][results.parts_of(case)["efficacy"]]
        change = (
            " and ".join(f"{p['prompt']} -> {p['new']}" for p in own)
            if kind == "edit"
            else f"{kind}: {case['probes'][at]['prompt']}"
        )
        columns = f"     [{' | '.join(found)}]" if kind == "edit" else ""
        if found:
            yield change + columns, [opened(file) for file in found.values()]


def opened(file: Path) -> Image.Image:
    """A kept picture. Raises DataError that names the file."""
    try:
        with Image.open(file, formats=["WEBP"]) as image:
            if max(image.size) > limits.PIXELS:
                raise DataError(f"{file}: {image.width} x {image.height} pixels, so it is no picture that a run keeps")
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error) if isinstance(error, DataError) else f"{file}: no picture that can be read: {error}"
        raise DataError(f"{reason}; delete it, and the report leaves it out") from None


def kept(run: Run, case_id: str, label: str, index: int) -> Path | None:
    """The file of the first seed's kept picture of a case's prompt under a method."""
    file = run.path / "images" / case_id / folder_name(label) / f"{index}-{run.settings['seeds'][0]}.webp"
    return file if file.is_file() else None
