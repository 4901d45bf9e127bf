"""What the README and the pages in docs/ tell a reader to type: it runs, in order, in an empty folder for each page.

A fenced block is run in the default tier, or in the slow tier after a line `<!-- slow -->`, or not at all after a line
`<!-- not run: the reason -->`. A block with title="NAME" is written to that file first. Every `refact` command, also
one that is not run, must have subcommands and flags that exist.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from refact.cli import main as cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SHELL, PYTHON = {"bash", "console", "sh", "shell"}, {"python"}
DATA = {"", "text", "toml", "yaml", "json", "bibtex"}
FENCE = re.compile(r"^(?P<indent> *)```(?P<head>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (?P<mark>slow|not run: [^\n]+?) -->\n\s*$")
TITLE = re.compile(r'title="([^"]+)"')
SNIPPET = re.compile(r'^--8<-- "([^"]+)"$|^--8<--\n(\S+)\n--8<--$', re.MULTILINE)  # ruff mends the first in Python


@dataclass(frozen=True)
class Block:
    """A fenced block. mark: "", "slow" or "not run: ..."; title: the file that it is written to."""

    language: str
    body: str
    mark: str
    title: str

    @property
    def commands(self) -> list[str]:
        """A shell block's lines, those that end in a backslash joined, without comments."""
        lines = self.body.replace("\\\n", " ").splitlines()
        return [" ".join(words) for line in lines if (words := _words(line))]


def _words(line: str) -> list[str]:
    return [shlex.quote(word) if re.search(r"[\s'\"]", word) else word for word in shlex.split(line, comments=True)]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        mark, title = MARK.search(text[: match.start()]), TITLE.search(match["head"])
        body = SNIPPET.sub(lambda m: (ROOT / (m[1] or m[2])).read_text(encoding="utf-8"), match["body"])
        language = (match["head"].split() or [""])[0]
        found.append(Block(language, body, mark["mark"] if mark else "", title[1] if title else ""))
    return found


def wanted(page: Path, slow: bool) -> list[Block]:
    """The blocks that a tier runs: the slow tier all of a page, as its slow blocks need what stands before them."""
    mine = [b for b in blocks(page) if not b.mark.startswith("not run") and (slow or b.mark != "slow")]
    return [b for b in mine if b.language in SHELL | PYTHON or b.title]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


QUICK = [page for page in PAGES if any(b.language in SHELL | PYTHON for b in wanted(page, False))]
SLOW = [page for page in PAGES if any(b.mark == "slow" for b in blocks(page))]


class Folder:
    """An empty folder in which blocks run, `refact` in this process and other programs in a shell."""

    def __init__(self, monkeypatch, path: Path):
        self.names: dict = {"__name__": "page"}
        self.patch = monkeypatch
        monkeypatch.chdir(path)
        (path / "bin").mkdir()
        (path / "bin" / "python").symlink_to(sys.executable)
        monkeypatch.setenv("PATH", f"{path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(self, block: Block) -> None:
        if block.title:
            Path(block.title).write_text(block.body, encoding="utf-8")
        elif block.language in PYTHON:
            exec(compile(block.body, "a block of Python", "exec"), self.names)
        else:
            for command in block.commands:
                self.command(command)

    def command(self, command: str) -> None:
        words = shlex.split(command)
        if words[0] != "refact":
            subprocess.run(command, shell=True, check=True)
            return
        self.patch.setattr(sys, "argv", words)
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        assert code == 0, f"exit code {code}: {command}"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    return Folder(monkeypatch, tmp_path)


@pytest.mark.parametrize("page", QUICK, ids=name)
def test_what_a_page_says_to_type_runs(page, folder):
    for block in wanted(page, slow=False):
        folder.run(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=name)
def test_what_takes_longer_runs_too(page, folder):
    for block in wanted(page, slow=True):
        folder.run(block)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_say_what_they_are(page):
    for block in blocks(page):
        assert block.language in SHELL | PYTHON | DATA, f"a block in {block.language!r}"
        assert not re.search(r"--\s*8\s*<", block.body), "a file that is to be shown here is not found"
        if block.language in DATA and not block.title:
            assert not re.search(r"^(\$ )?refact [a-z]", block.body, re.MULTILINE), "commands belong into a bash block"


def lines(page: Path) -> list[str]:
    found = [command for b in blocks(page) if b.language in SHELL for command in b.commands]
    return [command for command in found if command.startswith("refact ")]


@pytest.mark.parametrize("page", [page for page in PAGES if lines(page)], ids=name)
def test_every_command_has_subcommands_and_flags_that_exist(page):
    root = typer.main.get_command(cli.app)
    for line in lines(page):
        command, words = root, shlex.split(line)[1:]
        while hasattr(command, "commands"):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        command.make_context(line, words)  # raises for a flag or a value that is not possible


def test_blocks_are_found_and_a_failing_one_fails(folder):
    assert sum(len(wanted(page, slow=True)) for page in PAGES) > 20
    with pytest.raises(AssertionError):
        folder.command("refact show no-such-file.safetensors")
    with pytest.raises(subprocess.CalledProcessError):
        folder.command("python -c 'raise SystemExit(1)'")
    with pytest.raises(NameError):
        folder.run(Block("python", "undefined_name", "", ""))
