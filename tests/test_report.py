"""The page: whole, self-contained, escaped, and true to the run it shows."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pretend
import pytest
from test_benchmark import CASES, METHODS, case, run

from refact.edits import Edit
from refact.errors import DataError
from refact.evidence import plots, report, results, strips
from refact.evidence.cases import Case, Probe
from refact.evidence.plots import Point
from refact.studies import probing, quality, scaling, sequence, variants
from refact.studies.pages import SECTIONS

VOID = {"meta", "img", "input", "br", "circle", "line", "polygon", "polyline", "link"}


class Checker(HTMLParser):
    """Collects the elements; fails where tags do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attributes) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def parsed(path: Path) -> tuple[str, list[tuple[str, dict]]]:
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return text, checker.found


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[Path, str, list[tuple[str, dict]]]:
    folder = tmp_path_factory.mktemp("report")
    out = report.write(run(folder / "run"), folder / "page" / "report.html")
    return folder / "run", *parsed(out)


def test_the_page_needs_nothing_beside_it(page) -> None:
    _, text, found = page
    links = [v for _, attributes in found for k, v in attributes.items() if k in ("src", "href")]
    assert links
    assert all(link.startswith("data:image/webp;base64,") for link in links)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "$" not in text


def test_every_kept_picture_is_shown_with_its_verdict(page) -> None:
    _, text, found = page
    pictures = [a for tag, a in found if tag == "img"]
    probes = 1 + len(CASES[0].positives) + len(CASES[0].negatives)
    assert len(pictures) == len(CASES) * 3 * probes  # baseline, swap, oracle; "fails" made none
    verdicts = [a for tag, a in found if tag == "span" and a.get("class") in ("yes", "no")]
    assert len(verdicts) == len(pictures)
    assert text.count("refused: EditError: the subject is absent") == len(CASES)


def test_a_verdict_is_that_of_the_margin(page) -> None:
    """The shown marks of each method are the signs of its margins, in the order of the probes."""
    folder, text, _ = page
    for form, card in zip(results.read_run(folder).cases, re.findall(r"<article.*?</article>", text, re.S)):
        for label in ("baseline", "swap", "oracle"):
            row = re.search(rf"<th>{label}</th>(.*?)</tr>", card, re.S)[1]
            parts = results.margins(form, results.scores_of(form, label, "image"))
            first = [float(m[0]) for name in ("efficacy", "generality", "specificity") for m in parts[name]]
            assert re.findall(r'<span class="(yes|no)">', row) == ["yes" if m > 0 else "no" for m in first]


def test_the_table_says_what_the_summary_says(page) -> None:
    folder, text, _ = page
    for label, entry in results.summary(results.read_run(folder)).items():
        row = re.search(rf"<th>{label}</th>(.*?)</tr>", text)[1]
        first = re.search(r">(\d+\.\d)<small>", row)[1]
        assert float(first) == pytest.approx(100 * entry["numbers"]["efficacy"]["value"], abs=0.05)


def test_failures_are_marked_for_the_filter(page) -> None:
    folder, _, found = page
    cards = [a["data-failed"].split() for tag, a in found if tag == "article"]
    cases = results.read_run(folder).cases
    assert cards == [[m for m in ("swap", "fails") if results.wrong(c, m)] for c in cases]
    assert all("fails" in card and "swap" not in card for card in cards)


def test_the_papers_rows_stand_beside_data_of_its_form_only(page, tmp_path) -> None:
    assert "98.2" in page[1]  # ReFACT's efficacy on TIMED
    other = [replace(c, kind="companions") for c in CASES]
    text, _ = parsed(report.write(run(tmp_path / "run", cases=other), tmp_path / "r.html"))
    assert "Published" not in text


def test_prompts_and_names_are_escaped(tmp_path) -> None:
    bad = "<script>alert(\"x\")</script> & 'y'"
    hostile = Case("h", Edit(bad, old=f"old {bad}", new=f"new {bad}"), (Probe(bad, bad, "n", "n"),), (), "o", "road")
    methods = {bad: pretend.Swap(), "no <i>": pretend.Fails(bad)}
    text, found = parsed(
        report.write(run(tmp_path / "run", cases=[hostile], methods=methods), tmp_path / "r.html", title=bad)
    )
    assert "<script>alert" not in text
    assert [tag for tag, _ in found].count("script") == 1
    assert "i" not in [tag for tag, _ in found]


def test_a_run_without_a_judge_says_so(tmp_path) -> None:
    text, found = parsed(report.write(run(tmp_path / "run", judge=None, keep_images=0), tmp_path / "r.html"))
    assert "no judge: text side only" in text
    assert "No pictures were kept" in text
    assert "img" not in [tag for tag, _ in found]


def test_an_unfinished_run_is_shown_as_far_as_it_is(tmp_path) -> None:
    out = run(tmp_path / "run")
    (out / "cases" / f"{CASES[0].id}.json").unlink()
    assert "1 of 2 cases" in parsed(report.write(out, tmp_path / "r.html"))[0]
    (out / "cases" / f"{CASES[1].id}.json").unlink()
    with pytest.raises(DataError, match="no case"):
        report.write(out, tmp_path / "r.html")
    with pytest.raises(DataError, match=r"run\.json"):
        report.write(tmp_path, tmp_path / "r.html")
    with pytest.raises(DataError, match="needs the folder"):
        report.write([], tmp_path / "r.html")


def test_several_folders_and_studies_make_one_page(tmp_path) -> None:
    short = {"judge": pretend.judge(), "seeds": [0]}
    model = pretend.PretendModel()
    folders = [
        variants.sweep(CASES, model, pretend.Swap(), "strength", [0.1, 0.5, 1.0], tmp_path / "sweep", **short),
        sequence.sequence(CASES, model, pretend.Swap(), tmp_path / "sequence", every=1, orders=2, **short),
        variants.sweep(
            probing.concepts("a cat", ["a dog", "a cow"]),
            model,
            pretend.Swap(),
            "strength",
            [1, 2],
            tmp_path / "c",
            **short,
        ),
        run(tmp_path / "mixed", cases=[*CASES, replace(case("a b", "c", "d"), kind="inverse")], methods=METHODS),
    ]
    quality.quality(model, ["a wolf", "a cat"], {}, tmp_path / "quality", short["judge"])
    text, found = parsed(report.write([*folders, tmp_path / "quality"], tmp_path / "r.html", studies=SECTIONS))
    assert [tag for tag, _ in found].count("section") == 5
    assert [tag for tag, _ in found].count("polyline") >= 10
    assert "edits so far" in text
    assert "<h3>inverse</h3>" in text
    assert "CMMD" in text


def test_the_scale_study_is_curves_over_the_number_of_facts(tmp_path) -> None:
    rows = [
        scaling.Row("refact", "at once", 1, holds=1.0, drift=0.1),
        scaling.Row("refact", "at once", 100, holds=0.9, drift=0.2),
        scaling.Row("<b>", "at once", 100, holds=0.5, drift=0.3, pictures=0.4),
        scaling.Row("memit", "at once", 100, refused="too many"),
    ]
    (tmp_path / "scale.json").write_text(json.dumps([asdict(row) for row in rows]))
    text, found = parsed(report.write(tmp_path, tmp_path / "r.html", studies=SECTIONS))
    tags = [tag for tag, _ in found]
    assert tags.count("figure") == 2  # pictures are known at one number of facts only: no curve
    assert tags.count("polyline") == 4
    assert tags.count("tr") == 1 + len(rows)
    assert "<td>90.0 %</td>" in text
    assert "too many" in text
    assert "<b>" not in text


# -- plots -------------------------------------------------------------------------------------------------------------


def test_a_line_is_drawn_where_its_numbers_are() -> None:
    points = [Point(0, 0, 0, 0), Point(1, 50, 40, 60), Point(2, 100, 90, 100)]
    drawing = plots.lines({"a": points}, "x", "y", (0, 100))
    marks = [tuple(map(float, pair.split(","))) for pair in re.search(r'polyline points="([^"]+)"', drawing)[1].split()]
    (x0, y0), (x1, y1), (x2, y2) = marks
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert (y0, y2) == (plots.HEIGHT - plots.BOTTOM, plots.TOP)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 20, 40, 60, 80, 100]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 4, [-2, 0, 2, 4])],
)
def test_ticks_are_round_numbers(low, high, expected) -> None:
    assert plots.ticks(low, high) == expected


def test_settings_are_told_from_methods_by_their_labels() -> None:
    assert report.x_of(["layer=0", "layer=10"]) == ("layer", {"layer=0": 0.0, "layer=10": 10.0})
    assert report.x_of(["stop=0.5", "stop=1e-3"])[0] == "stop"
    assert report.x_of(["refact", "layer=1"]) is None
    assert report.x_of(["layer=1", "stop=2"]) is None
    assert report.x_of(["layer=1"]) is None


def test_a_strip_shows_the_kept_pictures_of_cases_spread_evenly(page, tmp_path) -> None:
    """Three rows a case, a column a method; the pixels are those that the run kept."""
    run_folder, _, _ = page
    found = results.read_run(run_folder)
    sheet = strips.strip(run_folder, 1, cell=64)
    small = strips.strip(run_folder, 2, cell=64)
    assert small.height > 1.9 * sheet.height
    assert strips.evenly(range(10), 4) == [0, 2, 5, 7]
    assert strips.evenly(range(2), 4) == [0, 1]
    columns = [m for m in found.labels if m != "fails"]
    assert sheet.width >= len(columns) * 64
    with pytest.raises(DataError, match="no pictures"):
        strips.strip(run(tmp_path / "bare", keep_images=0))
