"""The real code of other programs loads exported patches; which of them are run is said by environment variables.

REFACT_COMFYUI=/path/to/ComfyUI (and so on: REFACT_ and the driver's name in capitals) points to a checkout, and
REFACT_COMFYUI_PYTHON to the interpreter that has its libraries, where that is not this one. Nothing is fetched.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import cases
import table

RECORDED = json.loads(table.RESULTS.read_text(encoding="utf-8"))
WORKING = {  # the form that each program takes of each family; what is not named here is not claimed
    "comfyui": dict.fromkeys(table.FAMILIES, "as saved"),
    "forge": dict.fromkeys(table.FAMILIES, "as saved"),
    "a1111": dict.fromkeys(("sd1", "sd2", "sdxl"), "as saved"),
    "sdnext": dict.fromkeys(("sd1", "sd2", "sdxl"), "as saved") | dict.fromkeys(("sd3", "flux"), "kohya"),
    "sd_scripts": dict.fromkeys(("sd1", "sd2", "sdxl"), "as saved") | dict.fromkeys(("sd3", "flux"), "kohya"),
    "invokeai": dict.fromkeys(("sd1", "sd2", "sdxl", "flux"), "invokeai"),
    "diffusers_library": dict.fromkeys(table.FAMILIES, "as saved"),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("cases")
    for family in cases.WIDTHS:
        cases.make(family, root / family)
    return root


@pytest.mark.parametrize("name", [name for name in WORKING if name != "diffusers_library"])
def test_a_program_loads_what_is_made_for_it(name, request):
    checkout = os.environ.get(f"REFACT_{name.upper()}")
    if not checkout:
        pytest.skip(f"set REFACT_{name.upper()} to a checkout of {table.PROGRAMS[name]} to run its code")
    python = os.environ.get(f"REFACT_{name.upper()}_PYTHON", sys.executable)
    found = table.run(name, Path(checkout), python, request.getfixturevalue("folder"))["results"]
    for family, form in WORKING[name].items():
        assert found[family][form]["result"] == "loads", (family, found[family])
        assert found[family][form]["difference"] < 1e-5 < 1e-2 < found[family][form]["effect"]


@pytest.mark.slow
def test_the_installed_diffusers_loads_every_family(folder):
    found = table.run("diffusers_library", Path(), sys.executable, folder)["results"]
    assert {forms["as saved"]["result"] for forms in found.values()} == {"loads"}
    assert found.keys() == table.FAMILIES.keys()
    assert found["sd3"]["kohya"]["result"] == "ignored"  # why kohya's names are not the default there


def test_what_was_recorded_is_what_is_claimed():
    """Every version that was run took the form named above; and every program was run."""
    assert {row["program"] for row in RECORDED} >= WORKING.keys()
    for row in RECORDED:
        for family, form in WORKING.get(row["program"], {}).items():
            assert row["results"][family][form]["result"] == "loads", (row["program"], row["version"], family)
            assert row["results"][family][form]["difference"] < 1e-5


def test_the_page_shows_what_was_recorded():
    text = table.PAGE.read_text(encoding="utf-8")
    assert table.page(text, RECORDED) == text


def test_a_cell_tells_the_first_form_that_loads():
    loads, ignored = {"result": "loads", "difference": 0.0}, {"result": "ignored", "difference": 1.0}
    assert table._cell({"as saved": loads, "kohya": loads}) == "as saved, 0"
    assert table._cell({"as saved": ignored, "kohya": loads | {"difference": 2e-7}}) == "`--names kohya`, 2e-07"
    assert table._cell({"as saved": {"result": "refused"}, "kohya": ignored}) == "no: refused"
    assert table._cell(None) == "not run"
