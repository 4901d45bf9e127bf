"""Pages that are made while the site is built: the executed notebook, the settings of every method, public names."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import refact
from refact.methods.citations import PAPERS
from refact.methods.registry import BUILT_IN
from refact.methods.settings import settings_of

NOTEBOOK = Path(__file__).parent.parent / "examples" / "first_edit.ipynb"


def on_files(files: Files, config: Any) -> Files:
    """The site's files, with the two pages among them."""
    files.append(File.generated(config, "notebook.md", content="\n\n".join(cells(NOTEBOOK))))
    files.append(File.generated(config, "reference/methods.md", content="\n".join(methods())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The reference of Python, with a section for public names that the page does not arrange itself."""
    if page.file.src_uri != "reference/python.md":
        return markdown
    methods = {cls.__name__ for cls in BUILT_IN.values()}
    homes = {name: f"refact.{home}.{name}" for name, home in refact._HOMES.items() if name not in methods}
    rest = [where for where in homes.values() if f"::: {where}\n" not in markdown + "\n" and "errors." not in where]
    return "\n\n".join([markdown, "## Further names", *(f"::: {where}" for where in rest)]) if rest else markdown


def cells(notebook: Path) -> Iterator[str]:
    """The cells of a notebook as Markdown, each followed by its outputs; pictures are part of the page."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        yield text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                yield f"![what the cell above draws](data:image/png;base64,{''.join(data['image/png']).strip()})"
            elif said := "".join(output.get("text") or data.get("text/plain", "")):
                yield f"```text\n{said.rstrip()}\n```"


def methods() -> Iterator[str]:
    """A section for each method of this package: what it does, how it is called, a table of its settings."""
    yield "# Methods and their settings\n"
    yield "A method is a frozen dataclass whose fields are its settings. `refact edit --help` shows the same list, and"
    yield "`refact edit --method NAME` chooses a method. In Python: `refact.edit(model, edits, method=refact.UCE())`.\n"
    for name, cls in BUILT_IN.items():
        yield f"## {cls.__name__}\n\n{inspect.getdoc(cls)}\n"
        presets = "".join(f", `{name}:{preset}`" for preset in getattr(cls, "presets", ()))
        yield f"Names on the command line: `{name}`{presets}.\n"
        yield "| setting | default | meaning |\n|---|---|---|"
        for setting in settings_of(cls):
            default = f"`{setting.default!r}`" if len(repr(setting.default)) < 40 else "see the source"
            yield f"| `{setting.name}` | {default} | {setting.meaning.replace('|', '&#124;')} |"
        yield f"\n```bibtex\n{PAPERS[name]}\n```\n" if PAPERS[name] else ""
