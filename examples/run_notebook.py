"""Run a notebook and keep its outputs in it. python examples/run_notebook.py [NOTEBOOK] [OUTPUT]"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FIRST = Path(__file__).parent / "first_edit.ipynb"


def run(notebook: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs and nothing that depends on the time or the machine. Raises where a cell does."""
    form = nbformat.read(notebook, as_version=4)
    where = {"metadata": {"path": str(notebook.parent)}}
    NotebookClient(form, timeout=600, kernel_name="python3", resources=where).execute()
    for cell in form.cells:
        cell.metadata.pop("execution", None)
        outputs = cell.get("outputs", [])
        for output in outputs:
            output.get("data", {}).pop("image/jpeg", None)  # the same picture as the png beside it
        if outputs:
            cell.outputs = [output for output in outputs if output.get("name") != "stderr"]
    form.metadata = {"kernelspec": form.metadata["kernelspec"], "language_info": {"name": "python"}}
    return form


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else FIRST
    nbformat.write(run(source), Path(sys.argv[2]) if len(sys.argv) > 2 else source)
