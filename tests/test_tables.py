"""The tables of the pages are those of the runs, and nothing else of a page changes."""

from __future__ import annotations

import pytest
from test_strict import made  # noqa: F401  the fixture

from benchmarks import tables
from refact.evidence import results

PAGE = "Before.\n\n<!-- table: {} -->\nold\n<!-- /table -->\n\nAfter.\n"


@pytest.mark.parametrize("said", ["measures run", "runs run run", "differences run"])
def test_a_table_is_written_between_its_lines_and_the_same_again(made, said):  # noqa: F811
    page = tables.written(PAGE.format(said), made.path.parent)
    assert page.startswith(f"Before.\n\n<!-- table: {said} -->\n| ")
    assert page.endswith(" |\n<!-- /table -->\n\nAfter.\n")
    assert "old" not in page
    assert tables.written(page, made.path.parent) == page


def test_values_are_the_summarys_and_the_best_method_is_bold(made):  # noqa: F811
    head, _, *rows = tables.lines_of("measures", [made])
    cells = {row.split(" | ")[0].strip("| `"): row.strip("| ").split(" | ") for row in rows}
    found = results.summary(made)
    assert set(cells) == set(found)
    at = head.strip("| ").split(" | ").index("efficacy")
    best = max(found[label]["numbers"]["efficacy"]["value"] for label in found if label not in tables.UNEDITED)
    for label, row in cells.items():
        value = found[label]["numbers"]["efficacy"]["value"]
        assert row[at].strip("*").startswith(f"{100 * value:.1f}")
        assert row[at].startswith("**") == (label not in tables.UNEDITED and value == best)
    assert cells["oracle"][-1] == "0.0"


def test_differences_are_paired_with_the_first_method(made):  # noqa: F811
    rows = tables.lines_of("differences", [made])[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| run: `swap` less `{other}`" for other in ("fails", "oracle")]
    apart = results.paired(made, "swap", "fails")["named"]
    assert f"{100 * apart.value:.1f} [{100 * apart.low:.1f}, {100 * apart.high:.1f}]" in rows[0]


def test_a_table_whose_run_is_not_there_stays(made, capsys):  # noqa: F811
    page = PAGE.format("measures absent")
    assert tables.written(page, made.path.parent) == page
    assert "absent is no run" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="of the kind curves"):
        tables.written(PAGE.format("curves run"), made.path.parent)
