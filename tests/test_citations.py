"""`refact show --cite`: each method names its paper, merged patches name all, and no torch is needed to tell."""

from __future__ import annotations

import re

import pytest

from refact.methods.citations import cite
from refact.methods.registry import BUILT_IN, METHODS

KEYS = {
    "ReFACT": ["arad2024refact", "refact_software"],
    "MEMIT": ["arad2024refact", "meng2023memit", "refact_software"],
    "AlphaEdit": ["arad2024refact", "fang2025alphaedit", "refact_software"],
    "TIME": ["arad2024refact", "orgad2023time", "refact_software"],
    "SPEED": ["arad2024refact", "li2026speed", "refact_software"],
    "UCE": ["arad2024refact", "gandikota2024uce", "refact_software"],
    "Entrance": ["arad2024refact", "gandikota2024uce", "refact_software"],
    "FineTune": ["arad2024refact", "refact_software"],
    "EMCID": ["arad2024refact", "xiong2024emcid", "refact_software"],
    "DiffQuickFix": ["arad2024refact", "basu2024diffquickfix", "refact_software"],
    "EmbEdit": ["arad2024refact", "he2024embedit", "refact_software"],
    "import": ["refact_software"],
    "import + UCE + TIME": ["arad2024refact", "gandikota2024uce", "orgad2023time", "refact_software"],
}


def keys(text: str) -> list[str]:
    return re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE)


def test_every_built_in_method_is_in_the_table():
    assert {cls.__name__ for cls in BUILT_IN.values()} <= KEYS.keys()


@pytest.mark.parametrize("name", KEYS)
def test_a_patch_names_its_papers_and_this_software(name):
    told = cite({"method": {"name": name}})
    assert keys(told) == KEYS[name]
    assert told.count("{") == told.count("}")


def test_a_method_of_another_package_names_its_own(monkeypatch):
    theirs = {"other": type("Other", (), {"citation": "@misc{other,\n}"}), "silent": type("Silent", (), {})}
    monkeypatch.setattr(METHODS, "built_in", BUILT_IN | theirs)
    assert keys(cite({"method": {"name": "Other"}})) == ["arad2024refact", "other", "refact_software"]
    for name in ("Silent", "Gone"):
        assert f"% The method {name} names no paper" in cite({"method": {"name": name}})
