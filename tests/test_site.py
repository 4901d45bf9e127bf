"""The documentation as a site, the notebook and the wheel: what `make docs`, `make wheel` and the slow tier build."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
import test_house
import yaml

import refact
from refact.methods.citations import REFACT

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOK = ROOT / "examples" / "first_edit.ipynb"
MADE = {"notebook.md", "reference/methods.md"}  # by docs/hooks.py
FETCHING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
}
LOOKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


class Fetched(HTMLParser):
    """What a browser fetches for a page, without being asked to by a click."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        if tag in FETCHING:
            self.found.append(own.get(FETCHING[tag]) or "")
        if tag == "link" and LOOKS & set((own.get("rel") or "").split()):
            self.found.append(own.get("href") or "")
        self.found += re.findall(r"url\(([^)]+)\)", own.get("style") or "")


def fetched(text: str) -> list[str]:
    parser = Fetched()
    parser.feed(text)
    return parser.found


def far(address: str) -> bool:
    return bool(re.match(r"\s*['\"]?(https?:)?//", address))


def pages(nav: object) -> list[str]:
    """The files that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def configuration() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def test_every_page_is_in_the_navigation_and_the_other_way_round():
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | MADE
    assert there == set(pages(configuration()["nav"]))


def test_the_site_asks_for_nothing_from_elsewhere():
    form = configuration()
    assert form["theme"]["font"] is False
    assert {"site_url", "repo_url", "extra_javascript", "extra_css"}.isdisjoint(form)


def test_links_between_pages_of_the_repository_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            target = page.parent / link
            made = any(target.resolve() == (DOCS / name).resolve() for name in MADE)
            assert far(link) or made or target.exists(), f"{page.name}: {link}"


def test_the_search_for_far_addresses_finds_them():
    assert [far(a) for a in ("https://x.org/a.js", "//x.org/a", "a.js", "../a.css")] == [True, True, False, False]
    page = (
        '<link rel="icon" href="//x/i"><script src="s.js"></script><a href="https://x.org">x</a><img src="https://x/p">'
    )
    assert [a for a in fetched(page) if far(a)] == ["//x/i", "https://x/p"]


def test_the_notebook_was_run():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
    assert NOTEBOOK.stat().st_size < 400 * 1024


def clean_environment(**more: str) -> dict[str, str]:
    """Without network for the libraries of the model hub, and with one thread."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"} | more


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    pytest.importorskip("nbclient")
    command = [sys.executable, ROOT / "examples" / "run_notebook.py", NOTEBOOK, tmp_path / "again.ipynb"]
    subprocess.run(command, check=True, env=clean_environment(PYTHONPATH=str(ROOT)))
    one, other = (json.loads(path.read_text())["cells"] for path in (NOTEBOOK, tmp_path / "again.ipynb"))
    assert [cell["source"] for cell in one] == [cell["source"] for cell in other]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, env=clean_environment(PYTHONPATH=str(ROOT)))
    return folder


@pytest.mark.slow
def test_the_site_reads_offline(site):
    built = list(site.rglob("*.html"))
    assert len(built) >= len(pages(configuration()["nav"]))
    for page in built:
        text = page.read_text()
        assert not [address for address in fetched(text) if far(address)], page
        assert 'class="mermaid"' not in text, "mermaid would be fetched from elsewhere"
    for style in site.rglob("*.css"):
        assert not [u for u in re.findall(r"(?:url\(|@import )\s*([^)\s;]+)", style.read_text()) if far(u)], style


@pytest.mark.slow
def test_the_reference_has_every_public_name_and_every_setting(site):
    text = (site / "reference" / "python.html").read_text()
    homes = ast.literal_eval(
        re.search(r"_HOMES = (\{.*?\n\})", (ROOT / "refact/__init__.py").read_text(), re.DOTALL)[1]
    )
    methods = (site / "reference" / "methods.html").read_text()
    for name in homes:
        assert f">{name}<" in text.replace("<wbr>", "") or f'id="{name.lower()}"' in methods, name
    assert "weight_decay" in methods


@pytest.mark.slow
def test_the_wheel_works_from_an_empty_folder(tmp_path):
    """Built as `make wheel` does, installed without the repository in sight, it edits the bundled model."""
    pytest.importorskip("build")
    source = tmp_path / "source"  # setuptools builds beside the sources, and packs what an earlier build left there
    shutil.copytree(ROOT / "refact", source / "refact", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    data = {
        f.relative_to(ROOT).as_posix()
        for f in (ROOT / "refact").rglob("*")
        if f.is_file() and "__pycache__" not in str(f)
    }
    assert data <= packed
    assert not [name for name in packed if name.startswith(("tests/", "pocket/", "examples/"))]
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (own,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (home,) = {Path(p) for p in sys.path if p.endswith("site-packages") and (Path(p) / "torch").is_dir()}
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(own)
    hidden = tmp_path / "libraries"  # the project's packages, without the project's own editable installation
    hidden.mkdir()
    for entry in home.iterdir():
        if not re.search(r"refact|\.pth$", entry.name):
            (hidden / entry.name).symlink_to(entry)
    (own / "libraries.pth").write_text(f"{hidden}\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    python = tmp_path / "venv" / "bin" / "python"

    def run(*words: str) -> str:
        environment = {key: value for key, value in clean_environment().items() if key != "PYTHONPATH"}
        return subprocess.run(
            [python, *words], check=True, cwd=empty, env=environment, capture_output=True, text=True
        ).stdout

    assert run("-c", "import refact; print(refact.__file__)").startswith(str(own))
    fact = ["--prompt", "the national animal of Canada", "--old", "a beaver", "--new", "a penguin"]
    assert "holds" in run("-m", "refact", "edit", *fact, "-o", "canada.safetensors")
    assert (empty / "canada.safetensors").stat().st_size < 20_000
    assert "a penguin" in run("-m", "refact", "show", "canada.safetensors")


def test_the_architecture_names_files_that_exist():
    named = re.findall(r"`([\w/]+\.py)`", (DOCS / "architecture.md").read_text())
    assert len(named) > 40
    assert not [name for name in named if not (ROOT / "refact" / name).is_file() and not (ROOT / name).is_file()]


def test_the_tree_in_the_architecture_has_every_room_and_file_of_the_package():
    tree = re.search(r"```text\nrefact/\n(.*?)```", (DOCS / "architecture.md").read_text(), re.DOTALL)[1]
    rooms = {path.parent.name + "/" for path in (ROOT / "refact").glob("*/__init__.py")}
    files = {path.name for path in (ROOT / "refact").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert not {name for name in rooms | files if name not in tree}


def test_the_drawing_in_the_architecture_has_every_room_and_its_imports_point_down():
    boxes = re.findall(r'<text x="\d+" y="(\d+)">([\w, ]+)</text>', (DOCS / "architecture.svg").read_text())
    height = {name: int(y) for y, names in boxes for name in names.split(", ")}
    assert height.keys() == test_house.FLOOR.keys() - {"__main__"}
    rooms = {(test_house.room(a), test_house.room(b)) for a, found in test_house.GRAPH.items() for b in found}
    assert not [(a, b) for a, b in rooms if a != "__main__" and height[a] > height[b]]


def test_citation_and_hooks_are_what_they_should_be():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == refact.__version__
    assert cited["preferred-citation"]["doi"] in REFACT
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"], "others would be fetched"
