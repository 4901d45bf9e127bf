"""docs/troubleshooting.md explains every message of the package and of the ComfyUI nodes, and none that is gone."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "refact").rglob("*.py"), *(ROOT / "comfyui").glob("*.py")])
DAMAGED = {"record.py", "lora.py"}  # the page has one paragraph about all of their messages
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def texts(node: ast.AST) -> list[str]:
    """What a piece of code can say, with an ellipsis for what only running it would tell."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [re.sub(r"\s+", " ", node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(parts) for parts in itertools.product(*map(texts, node.values))]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return ["".join(parts) for parts in itertools.product(texts(node.left), texts(node.right))]
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.IfExp | ast.JoinedStr):
        return texts(node.value)
    if isinstance(node, ast.IfExp):  # of two single words, such as CLIP and T5, the page names neither
        return [text if " " in text else "…" for branch in (node.body, node.orelse) for text in texts(branch)]
    return ["…"]


def fixed(text: str) -> list[str]:
    """The parts of a message that are the same in every case."""
    parts = (part.strip(" .:,;()`") for part in text.split("…"))
    return [part for part in parts if len(part) > 2]


def within(parts: list[str], text: str) -> bool:
    """Whether the text has all these parts, in this order."""
    at = 0
    for part in parts:
        if (found := text.find(part, at)) < 0:
            return False
        at = found + len(part)
    return True


def raised() -> list[tuple[str, str]]:
    """(where, what it says) of every error that a user can cause."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                kind = ast.unparse(node.exc.func).rpartition(".")[2]
                if path.name not in DAMAGED and kind not in {"AttributeError", "KeyError", "Exit"}:
                    where = f"{path.relative_to(ROOT)}:{node.lineno}"
                    found += [(where, text) for text in texts(node.exc.args[0]) if fixed(text)]
    return found


def explained() -> list[str]:
    """The messages in the tables' first columns."""
    rows = [line[2:].split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `")]
    return [
        (double or single).strip()
        for row in rows
        for double, single in re.findall(r"``(.+?)``(?!`)|(?<!`)`([^`]+)`(?!`)", row)
    ]


def said() -> list[str]:
    """Every text in the code."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    return [
        text
        for tree in trees
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant | ast.JoinedStr | ast.BinOp | ast.IfExp)
        for text in texts(n)
    ]


def test_every_message_is_explained() -> None:
    rows = explained()
    assert len(raised()) > 300
    assert not [(where, text) for where, text in raised() if not any(within(fixed(text), row) for row in rows)]


def test_no_message_is_explained_that_is_gone() -> None:
    code = [text for text in said() if len(text) > 5]
    assert len(explained()) > 250
    gone = [(row, part) for row in explained() for part in fixed(row) if not any(part in text for text in code)]
    assert not gone


def test_every_row_says_what_it_means_and_what_to_do() -> None:
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
            assert len(cells) == 3, line
            assert all(cells), line
