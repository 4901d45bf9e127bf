"""The house: imports point down and never round, rooms stay small, heavy or optional libraries stay behind one door."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "refact"
FLOORS = [  # from the ground up: a file imports files of its own floor or of those above it in this list
    "errors progress offered",
    "trust",
    "edits family language families stash record lora patch pocket pictures solve",
    "encoders",
    "models",
    "exports",
    "search",
    "writing",
    "methods",
    "editing verification stores",
    "evidence",
    "studies",
    "studio",
    "cli",
    "__main__",
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names.split()}
FILES = {  # "search.values" -> its syntax tree; the package's own names are looked up when used, so they import nothing
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in ROOT.rglob("*.py")
    if path != ROOT / "__init__.py"
}


def imports(name: str) -> set[str]:
    """Files of ours that a file imports, at its top or inside its functions."""
    home = name.split(".")[:-1]
    found = set()
    for node in ast.walk(FILES[name]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = home[: len(home) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                for parts in ([*base, alias.name], base, [*base, "__init__"]):
                    if (other := ".".join(parts)) in FILES:
                        found.add(other)
                        break
    return found - {name}


GRAPH = {name: imports(name) for name in FILES}


def libraries(name: str) -> set[str]:
    """Other people's packages that a file names anywhere."""
    found = {a.name for n in ast.walk(FILES[name]) if isinstance(n, ast.Import) for a in n.names}
    found |= {n.module for n in ast.walk(FILES[name]) if isinstance(n, ast.ImportFrom) and not n.level and n.module}
    return {library.partition(".")[0] for library in found}


def room(name: str) -> str:
    """ "search.values" -> "search", "edits" -> "edits"."""
    return name.partition(".")[0]


def test_the_graph_is_seen() -> None:
    assert "solve" in GRAPH["writing.held"]
    assert "writing.held" in GRAPH["methods.refact"], "an import inside a function counts too"


def test_every_file_has_its_floor() -> None:
    assert {room(name) for name in FILES} == FLOOR.keys()


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_point_down(name) -> None:
    assert not {other for other in GRAPH[name] if FLOOR[room(other)] > FLOOR[room(name)]}


def test_no_imports_go_round() -> None:
    done: set[str] = set()

    def below(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"{' -> '.join(above)} -> {name}"
        if name not in done:
            for other in GRAPH[name]:
                below(other, (*above, name))
            done.add(name)

    for name in FILES:
        below(name, ())


def test_rooms_stay_small() -> None:
    folders = [ROOT, *(path for path in ROOT.rglob("*") if path.is_dir() and any(path.glob("*.py")))]
    counts = {folder.relative_to(ROOT).as_posix(): len(list(folder.glob("*.py"))) for folder in folders}
    assert counts.pop(".") <= 20
    assert all(count <= 15 and "/" not in name for name, count in counts.items()), counts


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_and_functions_stay_short(name) -> None:
    tree = FILES[name]
    assert max((node.end_lineno for node in tree.body), default=0) <= 400
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [f.name for f in functions if f.end_lineno - f.lineno + 1 > 60]


@pytest.mark.parametrize("folder", [name for name in FLOOR if (ROOT / name).is_dir()])
def test_every_room_says_what_it_is_and_who_may_import_it(folder) -> None:
    told = ast.get_docstring(FILES[f"{folder}.__init__"])
    assert told is not None
    assert "Imported by" in told
    assert len(told.splitlines()) <= 5


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        ("ray", {"models.parallel"}),
        ("gradio", {f"studio.{part}" for part in ("page", "making", "keeping", "looking", "server")}),
        ("cryptography", {"trust.signatures"}),
        ("pydantic", {"trust.forms", "trust.schema", "trust.runs"}),
        ("matplotlib", set()),
        ("pocket", set()),
    ],
)
def test_optional_libraries_and_our_own_training_code_stay_behind_one_door(library, homes) -> None:
    assert {name for name in FILES if library in libraries(name)} == homes


def test_no_device_is_named() -> None:
    texts = [
        n.value for t in FILES.values() for n in ast.walk(t) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    assert not [text for text in texts if text.startswith("cuda")]
