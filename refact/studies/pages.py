"""The studies' own sections of a report: what `report.write` shows of a folder that holds no run."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ..evidence import metrics, plots
from ..evidence.plots import Point
from ..evidence.report import figure
from ..evidence.results import read_json
from ..trust.runs import quality as quality_form
from . import quality, scaling


def quality_section(folder: Path) -> str:
    """The quality study's table."""
    path, name = folder / quality.FILE, folder.name
    form = quality_form(read_json(path, "the study writes it again"), str(path), tuple(metrics.SHOWN))
    rows = "".join(
        f"<tr><th>{escape(label)}</th>"
        + "".join(f"<td>{scale * scores[k]:.2f}</td>" for k, (_, scale) in metrics.SHOWN.items())
        + "</tr>"
        for label, scores in form["scores"].items()
    )
    against = "pictures of other seeds" if form["reference"] == "None" else form["reference"]
    facts = f"{form['captions']} captions; features and scores by {form['judge']}; distances to {against}"
    titles = "".join(f"<th>{text}</th>" for text, _ in metrics.SHOWN.values())
    table = f"<table><tr><th></th>{titles}</tr>{rows}</table>"
    return f"<section><h2>{escape(name)}</h2><p class='note'>{escape(facts)}</p>{table}</section>"


def scale_section(folder: Path) -> str:
    """The scale study: a curve over the number of facts for each measure, and all of it as a table."""
    rows, name = scaling.read(folder), folder.name
    figures = []
    for measure, (_, title) in scaling.SHARES.items():
        curves: dict[str, list[Point]] = {}
        for row in rows:
            if (share := getattr(row, measure)) is not None:
                curves.setdefault(f"{row.method}, {row.way}", []).append(Point(row.count, *[100 * share] * 3))
        if title and len({point.x for points in curves.values() for point in points}) > 1:
            figures.append(figure(plots.lines(curves, "facts", "%", (0, 100)), title))
    heads, *body = scaling.cells(rows)
    table = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in body
    )
    titles = "".join(f"<th>{escape(head)}</th>" for head in heads)
    facts = f"<div class='wide'><table><tr>{titles}</tr>{table}</table></div>"
    return f"<section><h2>{escape(name)}</h2><div class='figures'>{''.join(figures)}</div>{facts}</section>"


SECTIONS = {quality.FILE: quality_section, scaling.FILE: scale_section}
