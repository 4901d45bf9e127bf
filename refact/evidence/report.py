"""A run's folder as one HTML page that needs nothing beside it: tables, plots, and every case's pictures."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from ..errors import DataError, counted
from ..trust.disk import write as write_file
from . import plots, results
from .bench import BASELINE, ORACLE, folder_name
from .plots import Point
from .results import Run
from .strips import kept, opened

THUMBNAIL = 96  # pixels a side of a picture in the page
HEADS = {
    "efficacy": "Efficacy",
    "generality": "Generality",
    "generality_75": "p > .75",
    "generality_90": "p > .90",
    results.UNTOLD: "Untold",
    "specificity": "Specificity",
    "f1_geometric": "F1 geo",
    "f1_harmonic": "F1 harm",
    "named": "Named",
    "named_generality": "Named, positives",
    "named_specificity": "Named as before, negatives",
    "adaptive": "Adaptive",
    "adaptive_generality": "Adaptive, positives",
    "adaptive_specificity": "Adaptive, negatives",
}
NEAR = "At least as near to the right text as the oracle's pictures on average less two deviations (arXiv 2409.17928)"
FAR = "Root mean square difference to the oracle's picture of the same seed, in grey levels of 255."
CURVES = ("efficacy", "generality", "specificity", "f1_geometric")
PUBLISHED = {  # Stable Diffusion 1.4, 25 seeds, LAION ViT-bigG/14 as the judge (arXiv 2306.00738v3)
    "timed": {
        "baseline": (4.27, 6.21, 95.68, 24.37),
        "oracle": (97.04, 93.26, 95.68, 94.46),
        "TIME": (83.23, 64.08, 75.95, 69.76),
        "ReFACT": (98.19, 88.02, 79.18, 83.48),
    },
    "road": {
        "baseline": (1.15, 3.76, 99.36, 19.32),
        "oracle": (98.13, 96.68, 99.36, 98.01),
        "TIME": (52.18, 42.74, 75.36, 56.75),
        "ReFACT": (93.38, 86.80, 95.44, 91.01),
    },
}
SETS = {"timed": "TIMED", "road": "RoAD"}


def write(
    folders: Sequence[str | Path] | str | Path,
    out: str | Path,
    title: str | None = None,
    studies: Mapping[str, Callable[[Path], str]] | None = None,
) -> Path:
    """One page about the runs in these folders, written to `out`; pictures are the ones that the runs kept.

    studies: sections for folders that hold something else than a run, by the file that tells them (studies/pages.py).
    """
    folders = [folders] if isinstance(folders, (str, Path)) else list(folders)
    if not folders:
        raise DataError("a report needs the folder of a run")
    parts = [section(Path(folder), f"r{i}", studies) for i, folder in enumerate(folders)]
    name = title or " and ".join(Path(folder).resolve().name for folder in folders)
    page = Template((Path(__file__).parents[1] / "data" / "report.html").read_text(encoding="utf-8"))
    out = Path(out)
    write_file(out, page.substitute(title=escape(name), body="\n".join(parts)).encode())
    return out


def section(folder: Path, key: str, studies: Mapping[str, Callable[[Path], str]] | None = None) -> str:
    """All about one folder: a run, or a study that has a section of its own."""
    for file, made in (studies or {}).items():
        if (folder / file).is_file():
            return made(folder)
    run = results.read_run(folder)
    if not run.cases:
        raise DataError(f"{folder}: no case is done yet")
    groups = results.groups(run)
    parts = [group(part, f"{key}-{i}", kind, len(groups) > 1) for i, (kind, part) in enumerate(groups.items())]
    return f"<section>{head(run)}{''.join(parts)}{remarks(run)}</section>"


def head(run: Run) -> str:
    """What was run."""
    s = run.settings
    judge = f"judge {s['judge']['name']} ({s['judge']['hash']})" if s["judge"] else "no judge: text side only"
    seeds = s["seeds"]
    counted = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
    facts = [f"model {s['model']['name']}", judge, f"{len(run.cases)} of {s['data']['cases']} cases", counted]
    if "study" in s:
        facts.append(", ".join(f"{k} {v}" for k, v in s["study"].items()))
    items = "".join(f"<li>{escape(str(fact))}</li>" for fact in facts)
    return f'<h2>{escape(str(s["data"]["name"]))}</h2><ul class="facts">{items}</ul>'


def group(run: Run, key: str, kind: str, named: bool) -> str:
    """Tables, plots and pictures of the cases of one kind."""
    parts = [f"<h3>{escape(kind)}</h3>" if named else ""]
    shown, said = results.summary(run, "image"), results.summary(run, "text")
    if shown:
        many = x_of(m for m in shown if m not in (BASELINE, ORACLE)) or "study" in run.settings
        parts += [table(shown, "study" if many else kind), plot(shown, run, "image"), differences(run, shown)]
    if said:
        parts.append(
            "<h4>Text side</h4><p class='note'>Whether the edited encoder's embedding of each prompt is nearer "
            "to the clean one of its new text than to that of its old one. Success here is not yet a picture.</p>"
        )
        parts += [table(said, None), "" if shown else plot(said, run, "text")]
    return "".join(parts) + gallery(run, key)


# -- tables ------------------------------------------------------------------------------------------------------------


def table(found: Mapping[str, Mapping], kind: str | None) -> str:
    """The methods' numbers in percent with 95 % intervals over cases, the paper's rows below if there are any.

    kind None: the text side, whose distances are no logits, so that shares above a probability would mean nothing.
    """
    names = [h for h in HEADS if kind is not None or h not in results.STRICTER]
    used = [h for h in names if any(not math.isnan(_value(entry, h)) for entry in found.values())]
    best = {h: _best(found, h) for h in used}
    far = any(entry.get("distances") for entry in found.values())
    rows = [_row(label, entry, used, best, far) for label, entry in found.items()]
    tips = dict.fromkeys(results.ADAPTIVE, f' title="{escape(NEAR)}"')
    heads = "".join(f"<th{tips.get(h, '')}>{HEADS[h]}</th>" for h in used)
    if kind in PUBLISHED:
        source = f"Published: {SETS[kind]}, Stable Diffusion 1.4, another judge, 25 seeds"
        rows.append(f'<tr class="rule"><th colspan="{len(used) + far + 4}">{source}</th></tr>')
        rows += [_published(label, values, used, far) for label, values in PUBLISHED[kind].items()]
    rest = f"<th title='{FAR}'>To oracle</th>" if far else ""
    rest += "<th>Steps</th><th>s/edit</th><th>Refused</th>"
    valid = found.get(BASELINE, {}).get("validity")
    note = "" if valid is None else f"<p class='note'>Validity of the unedited pictures: {100 * valid:.1f} %.</p>"
    return f"<div class='wide'><table><tr><th></th>{heads}{rest}</tr>{''.join(rows)}</table></div>{note}"


def _value(entry: Mapping, name: str) -> float:
    return entry["numbers"].get(name, {"value": math.nan})["value"]


def _best(found: Mapping[str, Mapping], name: str) -> float:
    """The best method's value; nan where all are equal, so that nothing is set in bold."""
    values = [_value(entry, name) for label, entry in found.items() if label not in (BASELINE, ORACLE)]
    known = {v for v in values if not math.isnan(v)}
    return max(known) if len(known) > 1 else math.nan


def _row(label: str, entry: Mapping, used: Sequence[str], best: Mapping[str, float], far: bool) -> str:
    cells = []
    for name in used:
        number = entry["numbers"].get(name)
        if number is None or math.isnan(number["value"]):
            cells.append("<td>–</td>")
            continue
        half, spread = 50 * (number["high"] - number["low"]), number["seed_std"]
        seeds = "" if math.isnan(spread) else f"; over seeds {100 * number['seed_mean']:.1f} ± {100 * spread:.1f}"
        tip = f"95 % over cases: {100 * number['low']:.1f} to {100 * number['high']:.1f}{seeds}"
        mark = ' class="best"' if label not in (BASELINE, ORACLE) and number["value"] == best[name] else ""
        cells.append(f'<td{mark} title="{tip}">{100 * number["value"]:.1f}<small> ±{half:.1f}</small></td>')
    steps = "" if entry["steps"] is None else f"{entry['steps']:.0f}"
    seconds = "" if entry["seconds"] is None else f"{entry['seconds']:.2f}"
    refused = f"{entry['errors']}/{entry['cases']}" if entry["errors"] else ""
    away = [results.percent(entry["distances"].get("pixels"), 1)] if far else []
    tail = "".join(f"<td>{cell}</td>" for cell in (*away, steps, seconds, refused))
    quiet = ' class="reference"' if label in (BASELINE, ORACLE) else ""
    return f"<tr{quiet}><th>{escape(label)}</th>{''.join(cells)}{tail}</tr>"


def _published(label: str, values: Sequence[float], used: Sequence[str], far: bool) -> str:
    known = dict(zip(("efficacy", "generality", "specificity", "f1_geometric"), values))
    cells = "".join(f"<td>{known[name]:.1f}</td>" if name in known else "<td></td>" for name in used)
    return f'<tr class="published"><th>{escape(label)}</th>{cells}{"<td></td>" * (far + 3)}</tr>'


def differences(run: Run, found: Mapping[str, Mapping]) -> str:
    """The first method less each other, paired over cases; not for studies of one method's settings."""
    methods = [m for m in found if m not in (BASELINE, ORACLE)]
    if len(methods) < 2 or x_of(methods):
        return ""
    rows = []
    for other in methods[1:]:
        cells = "".join(_difference(results.paired(run, methods[0], other).get(name)) for name in CURVES)
        rows.append(f"<tr><th>{escape(methods[0])} − {escape(other)}</th>{cells}</tr>")
    heads = "".join(f"<th>{HEADS[name]}</th>" for name in CURVES)
    note = "Paired differences in points over the same cases, 95 % bootstrap intervals; bold where 0 lies outside."
    return f"<h4>Compared</h4><p class='note'>{note}</p><table><tr><th></th>{heads}</tr>{''.join(rows)}</table>"


def _difference(d: results.metrics.Difference | None) -> str:
    if d is None or math.isnan(d.value):
        return "<td>–</td>"
    mark = ' class="best"' if d.low > 0 or d.high < 0 else ""
    interval = f"<small> [{100 * d.low:+.1f}, {100 * d.high:+.1f}]</small>"
    return f'<td{mark} title="p = {d.p:.3f}">{100 * d.value:+.1f}{interval}</td>'


def remarks(run: Run) -> str:
    """What the data's reader and the methods complained of."""
    refused = [
        f"{label}, {case['edit']['prompt']}: {scores['error']}"
        for case in run.cases
        for label, scores in case["scores"].items()
        if "error" in scores
    ]
    items = "".join(f"<li>{escape(text)}</li>" for text in [*run.problems, *refused])
    count = f"<summary>{counted(len(run.problems) + len(refused), 'remark')}</summary>"
    return f"<details class='remarks'>{count}<ul>{items}</ul></details>" if items else ""


# -- plots -------------------------------------------------------------------------------------------------------------


def x_of(labels: Iterable[str]) -> tuple[str, dict[str, float]] | None:
    """("layer", {"layer=3": 3.0, ...}) where all labels are values of one setting; None where they are methods."""
    found = {label: re.fullmatch(r"(\w+)=([-+.\deE]+)", label) for label in labels}
    names = {match[1] for match in found.values() if match}
    if len(names) != 1 or not all(found.values()) or len(found) < 2:
        return None
    return names.pop(), {label: float(match[2]) for label, match in found.items() if match}


def plot(found: Mapping[str, Mapping], run: Run, side: str) -> str:
    """What suits the labels: curves over a setting's values or over a sequence, else the methods side by side."""
    labels = [m for m in found if m not in (BASELINE, ORACLE)]
    orders = {m: re.fullmatch(r"order (\d+), after (\d+)", m) for m in labels}
    if labels and all(orders.values()):
        at = {m: float(match[2]) for m, match in orders.items() if match}
        return figure(plots.lines(_curves(found, at), "edits so far", "%", (0, 100)), "Means over the orders.")
    if axis := x_of(labels):
        if run.cases[0]["kind"] == "concepts":
            return figure(*_concepts(run, axis, side))
        return figure(plots.lines(_curves(found, axis[1]), axis[0], "%", (0, 100)), "Bands: 95 % over cases.")
    rows = {m: {HEADS[n]: _point(0, e["numbers"][n]) for n in CURVES if n in e["numbers"]} for m, e in found.items()}
    return figure(plots.intervals(rows), "Percent, with 95 % intervals over cases.")


def figure(drawing: str, caption: str) -> str:
    """A drawing (SVG) with its caption (plain text), as HTML."""
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _point(x: float, number: Mapping) -> Point:
    return Point(x, 100 * number["value"], 100 * number["low"], 100 * number["high"])


def _curves(found: Mapping[str, Mapping], at: Mapping[str, float]) -> dict[str, list[Point]]:
    curves: dict[str, list[Point]] = {}
    for name in CURVES:
        for x in dict.fromkeys(at.values()):
            entries = [found[m]["numbers"][name] for m in found if at.get(m) == x and name in found[m]["numbers"]]
            if entries:
                keys = ("value", "low", "high")
                mean = {k: float(np.mean([e[k] for e in entries])) for k in keys}
                curves.setdefault(HEADS[name], []).append(_point(x, mean))
    return {name: points for name, points in curves.items() if any(not math.isnan(p.y) for p in points)}


def _concepts(run: Run, axis: tuple[str, dict[str, float]], side: str) -> tuple[str, str]:
    """How much nearer to the target than to the source each concept's pictures are, by layer."""
    curves: dict[str, list[Point]] = {}
    for case in run.cases:
        for label, x in axis[1].items():
            if scores := results.scores_of(case, label, side):
                gaps = results.margins(case, scores)["efficacy"]
                mean, error = float(gaps.mean()), 1.96 * float(gaps.std()) / math.sqrt(gaps.size)
                curves.setdefault(str(case["edit"]["new"]), []).append(Point(x, mean, mean - error, mean + error))
    every = [y for points in curves.values() for p in points for y in (p.low, p.high)] or [0.0, 1.0]
    caption = "Score of the target less that of the source, mean over seeds."
    return plots.lines(curves, axis[0], "target − source", (min(every), max(every))), caption


# -- pictures ----------------------------------------------------------------------------------------------------------


def gallery(run: Run, key: str) -> str:
    """Every case's strip of kept pictures, with a filter by failures and by words."""
    cards = [card(run, case) for case in run.cases]
    if not any(cards):
        return "<p class='note'>No pictures were kept.</p>"
    options = "".join(
        f'<option value="{folder_name(m)}">{escape(m)}</option>' for m in run.labels if m not in (BASELINE, ORACLE)
    )
    tools = (
        f'<div class="tools" data-for="{key}"><label><input type="checkbox" class="only"> failures only, of</label>'
        f'<select class="method"><option value="">any method</option>{options}</select>'
        '<input type="search" class="words" placeholder="words in a case"><output></output></div>'
    )
    note = (
        "First kept seed. The bar is the judge's verdict: ✓ the picture is nearer to the right text, ✗ to the wrong "
        "one, with the probability of the right one. Right is the new text for the edited prompt and its positives, "
        "the prompt itself for the negatives."
    )
    return f"<h4>Cases</h4><p class='note'>{note}</p>{tools}<div class='cards' id='{key}'>{''.join(cards)}</div>"


def card(run: Run, case: Mapping) -> str:
    """One case: a row for each method, a column for each prompt. Empty when none of its pictures were kept."""
    labels = [
        m for m in (BASELINE, *(m for m in run.labels if m not in (BASELINE, ORACLE)), ORACLE) if m in case["scores"]
    ]
    rows = [_strip(run, case, label) for label in labels]
    if not any("<img" in row for row in rows):
        return ""
    failed = [folder_name(m) for m in labels if m not in (BASELINE, ORACLE) and (results.wrong(case, m))]
    edits, counts = results.edits_of(case), (len(case["positives"]), len(case["negatives"]))
    kinds = [*["edit"] * len(edits), *["positive"] * counts[0], *["negative"] * counts[1]]
    heads = "".join(f'<th class="{kind}">{escape(p["prompt"])}</th>' for kind, p in zip(kinds, case["probes"]))
    aliases = [alias for edit in edits for alias in edit["aliases"]]
    told = f"<p class='note'>also told: {escape('; '.join(aliases))}</p>" if aliases else ""
    title = " and ".join(_change(edit, case["oracle"]) for edit in edits)
    return (
        f'<article data-failed="{" ".join(failed)}"><h5>{title}</h5>{told}'
        f"<div class='wide'><table class='strip'><tr><th></th>{heads}</tr>{''.join(rows)}</table></div></article>"
    )


def _change(edit: Mapping, oracle: str) -> str:
    """An edit in words, as HTML."""
    new = edit["new"] if isinstance(edit["new"], str) else oracle
    old = edit["old"] if isinstance(edit["old"], str) else ""
    return f"{escape(edit['prompt'])}: {escape(old)} <b>→ {escape(new)}</b>"


def _strip(run: Run, case: Mapping, label: str) -> str:
    scores = results.scores_of(case, label, "image")
    right = _right(case, scores) if scores else None
    if "error" in case["scores"][label]:
        reason = escape(case["scores"][label]["error"])
        cell = f'<td class="refused" colspan="{len(case["probes"])}">refused: {reason}</td>'
        return f"<tr><th>{escape(label)}</th>{cell}</tr>"
    cells = []
    given = case["scores"][label].get("given") or [
        probe["oracle" if label == ORACLE else "prompt"] for probe in case["probes"]
    ]
    for i, prompt in enumerate(given[: len(case["probes"])]):
        cells.append(_cell(picture(run, case["id"], label, i), prompt, None if right is None else float(right[i][0])))
    return f"<tr><th>{escape(label)}</th>{''.join(cells)}</tr>"


def _right(case: Mapping, scores: Mapping) -> np.ndarray:
    """The probability of the right text, (probes, seeds)."""
    parts = results.margins(case, scores)
    gaps = np.concatenate([parts[name] for name in ("efficacy", "generality", "specificity")])
    return 1 / (1 + np.exp(-gaps))


def _cell(data: str | None, prompt: str, right: float | None) -> str:
    if data is None:
        return "<td></td>"
    image = f'<img src="{data}" alt="{escape(prompt, quote=True)}" title="{escape(prompt, quote=True)}" loading="lazy">'
    if right is None:
        return f"<td>{image}</td>"
    good = right > 0.5
    bar = f'<span class="{"yes" if good else "no"}">{"✓" if good else "✗"} {right:.2f}</span>'
    return f"<td>{image}{bar}</td>"


def picture(run: Run, case_id: str, label: str, index: int) -> str | None:
    """A kept picture of the first seed as a data URI, made small."""
    if (path := kept(run, case_id, label, index)) is None:
        return None
    small, stream = opened(path), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    small.save(stream, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()
