"""The tables of README and docs/, written from the folders of runs: python -m benchmarks.tables RUNS [FILE ...]

A page says where a table stands, and everything between the two lines is written anew:

    <!-- table: runs road timed -->          F1 and the strict measures of several runs side by side, a row a method
    <!-- table: measures road -->            every measure of one run
    <!-- table: differences road timed -->   the first method less each other, paired over the cases
    <!-- /table -->

Names are folders below RUNS, which `refact bench --out` or a study made. Values are per cent with the half-width of
their 95 % bootstrap interval; the best method of a column is bold, the unedited model's rows aside.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from refact.evidence import results
from refact.evidence.bench import UNEDITED
from refact.evidence.results import STRICT, Run

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- table: (\w+) ([^>]*?) -->\n).*?(<!-- /table -->)", re.DOTALL)
HEADS = {
    "efficacy": "efficacy", "generality": "generality", "specificity": "specificity", "f1_geometric": "F1",
    "named": "strict: edited prompt", "named_generality": "strict: other prompts with the fact",
    "named_specificity": "strict: prompts that must not change", "pixels": "distance to the oracle's picture",
}  # fmt: skip
SHORT = ("f1_geometric", *STRICT)


def measures(runs: Sequence[Run], columns: Sequence[str] = tuple(HEADS)) -> list[str]:
    """A row for each method that all runs have, with the columns of one run after those of the other."""
    found = [results.summary(run) for run in runs]
    labels = [label for label in found[0] if all(label in one for one in found)]
    heads = [f"{run.path.name}: {HEADS[name]}" if len(runs) > 1 else HEADS[name] for run in runs for name in columns]
    rows = [[cell for one in found for cell in column_cells(one, labels, columns, at)] for at in range(len(labels))]
    return table(["method", *heads], [[f"`{label}`", *row] for label, row in zip(labels, rows)])


def column_cells(found: Mapping[str, Mapping], labels: Sequence[str], columns: Sequence[str], at: int) -> list[str]:
    """One method's cells of a run."""
    said = []
    for name in columns:
        numbers = {
            label: found[label]["numbers" if name in results.COLUMNS + STRICT else "distances"] for label in labels
        }
        known = {label: n[name] for label, n in numbers.items() if name in n and not math.isnan(n[name]["value"])}
        scale = 1.0 if name == "pixels" else 100.0
        shown = {label: round(scale * number["value"], 1) for label, number in known.items()}
        edited = [value for label, value in shown.items() if label not in UNEDITED]
        best = (min if name == "pixels" else max)(edited, default=None)
        text = results.percent(known.get(labels[at]), scale).replace(" ± 0.0", "")
        mine = labels[at] not in UNEDITED and shown.get(labels[at]) == best is not None
        said.append(f"**{text}**" if mine else text)
    return said


def differences(runs: Sequence[Run]) -> list[str]:
    """The first method less each other that is a method, in points with 95 % intervals."""
    rows = []
    for run in runs:
        first, *others = [label for label in run.labels if label not in UNEDITED]
        for other in [*others, *(["oracle"] if "oracle" in run.labels else [])]:
            apart = results.paired(run, first, other)
            cells = [_difference(apart.get(name)) for name in SHORT]
            rows.append([f"{run.path.name}: `{first}` less `{other}`", *cells])
    return table(["", *(HEADS[name] for name in SHORT)], rows)


def _difference(found: results.metrics.Difference | None) -> str:
    if found is None or math.isnan(found.value):
        return "-"
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "--:|" * (len(heads) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def lines_of(kind: str, runs: Sequence[Run]) -> list[str]:
    """The table of a kind. SystemExit where there is no such kind."""
    if kind == "runs":
        return measures(runs, SHORT)
    made = {"measures": measures, "differences": differences}
    if kind not in made:
        raise SystemExit(f"no table is of the kind {kind}: there are runs, {', '.join(made)}")
    return made[kind](runs)


def written(text: str, folder: Path) -> str:
    """A page with its tables written anew from the runs in the folder; one whose run is not there stays."""

    def block(found: re.Match) -> str:
        names = found[3].split()
        if missing := [name for name in names if not (folder / name / "run.json").is_file()]:
            print(f"left as it was, since {folder / missing[0]} is no run: {found[1].strip()}")
            return found[0]
        return found[1] + "\n".join(lines_of(found[2], [results.read_run(folder / n) for n in names])) + "\n" + found[4]

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("files", type=Path, nargs="*", help="by default README.md and the pages of docs/")
    given = parser.parse_args()
    for file in given.files or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = file.read_text(encoding="utf-8")
        if (after := written(before, given.runs)) != before:
            file.write_text(after, encoding="utf-8")
            print(file)
