"""The house: imports point down, heavy or optional libraries stay behind their one door, no device has a name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "refact"
LAYERS = [  # from the ground up; within a layer modules may import each other, but never in a circle
    "errors progress plots metrics hooks objectives descent solve corpus",
    "families stash fingerprints edits record lora patch",
    "encoders embeddings covariance sources models pocket pictures",
    "suffix bidirectional readings gap targets values",
    "methods editing multilayer crossattention finetune",
    "verification stores",
    "judge cases parallel results benchmark studies scaling probing tracing transfer strips report",
    "cli study commands",
    "__init__ __main__",
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
TREES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.glob("*.py")}


def imports(tree: ast.Module, whole: bool) -> set[str]:
    """Modules of ours that a module imports when it is imported; whole: within functions too."""
    nodes = ast.walk(tree) if whole else iter(tree.body)
    own = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 1]
    return {name for n in own for name in ([n.module] if n.module else [a.name for a in n.names])} & TREES.keys()


def libraries(tree: ast.Module) -> set[str]:
    """Other people's packages that a module names anywhere."""
    found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    found |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level == 0 and n.module}
    return {name.partition(".")[0] for name in found}


def test_every_module_has_its_layer() -> None:
    assert TREES.keys() == LEVEL.keys()


@pytest.mark.parametrize("name", sorted(TREES))
def test_imports_point_down(name) -> None:
    assert all(LEVEL[other] <= LEVEL[name] for other in imports(TREES[name], whole=False))


def test_no_imports_go_round() -> None:
    def below(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"{' -> '.join(above)} -> {name}"
        for other in imports(TREES[name], whole=False):
            below(other, (*above, name))

    for name in TREES:
        below(name, ())


@pytest.mark.parametrize(("library", "homes"), [("ray", {"parallel"}), ("matplotlib", set()), ("pocket", set())])
def test_optional_libraries_and_our_own_training_code_stay_behind_one_door(library, homes) -> None:
    assert {name for name, tree in TREES.items() if library in libraries(tree)} == homes


def test_no_device_is_named() -> None:
    texts = [
        n.value for t in TREES.values() for n in ast.walk(t) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    assert not [text for text in texts if text.startswith("cuda")]
