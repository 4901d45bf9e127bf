"""The model card of measured figures: python -m pocket.card EVALUATE.json GATE.json --made TEXT

It fills pocket/CARD.template.md and writes pocket/CARD.md and refact/data/pocket/README.md. Every number comes from
those two files, from the world, or from the checkpoints' own counts; a figure that is missing is an error.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Mapping
from pathlib import Path

from . import evaluate, training
from .glyphs import world

TEMPLATE, CARD = Path(__file__).parent / "CARD.template.md", Path(__file__).parent / "CARD.md"
SHIPPED = Path(__file__).parent.parent / "refact" / "data" / "pocket" / "README.md"
PARTS = ("clip", "reader", "judge", "autoencoder", "narrow", "unet")


def percent(share: float) -> str:
    """0.9312 -> 93.1 %."""
    return f"{100 * share:.1f} %"


def figures(found: Mapping[str, float]) -> str:
    """The table of what the judge names."""
    rows = []
    for name, goal in evaluate.GOALS.items():
        known = percent(found[f"rendered: {name}"]) if f"rendered: {name}" in found else ""
        rows.append(f"| {name} | {percent(found[name])} | {known} | {percent(goal)} |")
    head = "| what the judge puts first | share | of the rendered scenes | goal |"
    return "\n".join([head, "|---|--:|--:|--:|", *rows])


def gates(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The table of edits, a row for each layer and kind, then pictures."""
    rows = []
    for where, kinds in found.items():
        for kind, said in kinds.items():
            rows.append(
                f"| {where} | {kind} | " + ", ".join(f"{name} {value:.2f}" for name, value in said.items()) + " |"
            )
    return "\n".join(["| where | edits of | shares and relative moves |", "|---|---|---|", *rows])


def made() -> str:
    """Steps, samples and minutes of every part, by its checkpoint."""
    parts = [(part, found) for part in PARTS if (found := training.load(part))]
    rows = [
        f"| {part} | {f['step']} | {f.get('samples', 'not counted')} | {f['seconds'] / 60:.0f} |" for part, f in parts
    ]
    return "\n".join(["| part | steps | samples | minutes |", "|---|--:|--:|--:|", *rows])


def counts() -> dict[str, int]:
    """How many concepts there are of each kind, and how many pairs are held out."""
    form = world()
    kinds = [c["kind"] for c in form["concepts"]]
    found = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    found["office"] = sum(
        form["by_id"][c["depicts"]]["kind"] == "named" for c in form["concepts"] if c["kind"] == "role"
    )
    found["held_out"] = len(form["held_out"]) + len(form["held_out_colours"]) + len(evaluate.styles_held_out())
    return found | {"places": len(form["places"]), "colours": len(form["colours"])}


def text(evaluated: Mapping, gated: Mapping, machine: str) -> str:
    """The card."""
    parts = {"figures": figures(evaluated), "gates": gates(gated), "made": made(), "machine": machine}
    parts |= {"seconds": f"{evaluated['16 pictures, s']:.1f}", "threads": str(evaluated["threads"])}
    parts |= {"steps": str(evaluated["steps"]), "guidance": f"{evaluated['guidance']:g}"}
    parts |= {"seeds": str(evaluated["seeds"]), "share": percent(evaluated["share of concepts"])}
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(parts | counts())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluated", type=Path)
    parser.add_argument("gated", type=Path)
    parser.add_argument("--made", required=True, help="what it was trained on, as 'one H200 and 16 cores'")
    given = parser.parse_args()
    read = (json.loads(file.read_text(encoding="utf-8")) for file in (given.evaluated, given.gated))
    written = text(*read, given.made)
    for file in (CARD, SHIPPED):
        file.write_text(written, encoding="utf-8")
        print(file)
