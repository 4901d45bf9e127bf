"""Put other programs' own code to the test; write what became of it: programs.json, and a table in docs/families.md.

    python tests/programs/table.py RUN...      RUN is NAME=CHECKOUT or NAME=CHECKOUT:PYTHON
    python tests/programs/table.py             only writes the table again from programs.json

NAME is one of the drivers; PYTHON the interpreter that has the program's libraries (by default this one). Nothing is
fetched. A program may be given several times, in different versions; each run replaces the rows of its own version.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = HERE / "programs.json"
PAGE = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- programs: made by tests/programs/table.py -->", "<!-- /programs -->"
PROGRAMS = {  # driver: what a reader knows it as
    "diffusers_library": "diffusers",
    "comfyui": "ComfyUI",
    "forge": "Forge",
    "a1111": "A1111",
    "sdnext": "SD.Next",
    "sd_scripts": "sd-scripts",
    "invokeai": "InvokeAI",
    "onetrainer": "OneTrainer",
}
FAMILIES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "sd3": "SD 3.x", "flux": "FLUX.1"}
FORMS = {"as saved": "as saved", "kohya": "`--names kohya`", "invokeai": "`--for invokeai`"}


def run(name: str, checkout: Path, python: str, cases: Path) -> dict:
    """What the driver printed: {"version": ..., "results": ...}. RuntimeError with its last words where it broke."""
    words = [python, str(HERE / "drivers" / f"{name}.py"), str(checkout), str(cases)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(rows: list[dict]) -> str:
    """Markdown: a row for each program and version, a column for each family."""
    lines = [f"| program | version | {' | '.join(FAMILIES.values())} |", f"|---|---|{'---|' * len(FAMILIES)}"]
    order = list(PROGRAMS)
    for row in sorted(rows, key=lambda row: (order.index(row["program"]), _numbers(row["version"]))):
        cells = [_cell(row["results"].get(family)) for family in FAMILIES]
        lines.append(f"| {PROGRAMS[row['program']]} | {row['version']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _numbers(version: str) -> list[int]:
    """0.8.0 stands before 0.18.1."""
    return [int(number) for number in re.findall(r"\d+", version)]


def _cell(forms: dict | None) -> str:
    """The first form that loads, with the difference from what the patch should do; else what happens to the file."""
    if forms is None:
        return "not run"
    for form, title in FORMS.items():
        if forms.get(form, {}).get("result") == "loads":
            difference = forms[form]["difference"]
            return f"{title}, {difference:.0e}" if difference else f"{title}, 0"
    return f"no: {forms['as saved']['result']}"


def page(text: str, rows: list[dict]) -> str:
    """The page with the table put between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}"


def main(given: list[str]) -> None:
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        if given:
            sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]
            from cases import WIDTHS, make

            for family in WIDTHS:
                make(family, Path(folder) / family)
        for one in given:
            name, _, where = one.partition("=")
            checkout, _, python = where.partition(":")
            row = {"program": name, **run(name, Path(checkout), python or sys.executable, Path(folder))}
            rows = [r for r in rows if (r["program"], r["version"]) != (name, row["version"])] + [row]
            print(f"{PROGRAMS[name]} {row['version']}: {', '.join(map(_cell, row['results'].values()))}")
    rows.sort(key=lambda row: (row["program"], row["version"]))
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
