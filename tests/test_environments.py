"""Older versions of other people's libraries, in environments of their own below build/environments.

The edit at the floor of the dependencies, without diffusers; baked folders, opened by old transformers and diffusers.
An environment has torch and numpy of the project's own and gets the rest from the package index, once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import numpy as np
import pytest
import tiny

import refact
from refact.exports import bake

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
HOME = ROOT / "build" / "environments"
OLDEST = ("transformers==4.44.2", "diffusers==0.30.3", "peft==0.12.0")
FLOOR_TRANSFORMERS = "transformers==4.57.6"
MIDDLE_DIFFUSERS = "diffusers==0.35.2"
PROMPT = "the national animal of Canada on the beach"


# -- environments -----------------------------------------------------------------------------------------------------


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _closure(*roots: str) -> list[importlib.metadata.Distribution]:
    """These distributions of the running environment and all that they need."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(roots)
    while waiting:
        name = _normal(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on another platform only
        needs = [r for r in found[name].requires or [] if "extra ==" not in r]
        waiting += [re.match(r"[\w.-]+", need).group() for need in needs]
    return list(found.values())


def _shelf() -> Path:
    """A folder with links to torch, numpy and what they need: big, and the same in every environment."""
    torch = importlib.metadata.version("torch")
    shelf = HOME / f"shelf-{hashlib.sha256(f'{torch}{sys.prefix}'.encode()).hexdigest()[:8]}"
    shelf.mkdir(parents=True, exist_ok=True)
    for distribution in _closure("torch", "numpy"):
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (shelf / top).exists():
                (shelf / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    return shelf


def environment(name: str, pins: tuple[str, ...], below: Path | None = None) -> Path:
    """The python of an environment with these versions, made where it is not there yet; below: one to build upon."""
    key = hashlib.sha256("\n".join([*sorted(pins), str(below), sys.version]).encode()).hexdigest()[:8]
    folder = HOME / f"{name}-{key}"
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    venv.create(folder, clear=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    links = [
        str(_shelf()),
        *([str(site) for site in below.parent.parent.glob("lib/python*/site-packages")] if below else []),
    ]
    (packages / "below.pth").write_text("\n".join(reversed(links)) + "\n")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    done = subprocess.run([*install, *pins], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), done.stderr[-300:]
        )
        pytest.skip(f"the environment {name} cannot be made here: {reason}")
    (folder / "ready").touch()
    return python


def run(python: Path, *words: object, cwd: Path = ROOT) -> str:
    """What a program printed in that environment; its errors are the test's."""
    surroundings = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    surroundings |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(python), *map(str, words)], capture_output=True, text=True, check=False, cwd=cwd, env=surroundings
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def floors() -> tuple[str, ...]:
    """The lowest versions that pyproject.toml allows, of all that the edit needs; torch and numpy are on the shelf."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = dict(re.match(r"([\w.-]+)>=([\d.]+)", entry).groups() for entry in wanted)
    kept = lowest.keys() - {"torch", "numpy", "diffusers", "peft", "accelerate", "transformers", "huggingface_hub"}
    return (FLOOR_TRANSFORMERS, *sorted(f"{name}=={lowest[name]}" for name in kept), "pytest")


@pytest.fixture(scope="module")
def floor() -> Path:
    return environment("floor", floors())


@pytest.fixture(scope="module")
def pythons(floor) -> dict[str, Path]:
    return {
        "oldest": environment("oldest", OLDEST),
        "middle": environment("middle", (MIDDLE_DIFFUSERS,), below=floor),
        "own": Path(sys.executable),
    }


# -- the edit ---------------------------------------------------------------------------------------------------------


def test_the_floor_is_the_one_that_the_project_states():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert "transformers>=4.57,<6" in wanted
    assert FLOOR_TRANSFORMERS.startswith("transformers==4.57.")


def test_the_edit_works_at_the_floor_without_diffusers(floor):
    told = run(
        floor, "-c", "import importlib.util as u, transformers as t; print(t.__version__, u.find_spec('diffusers'))"
    )
    assert told.split() == [FLOOR_TRANSFORMERS.split("==")[1], "None"]
    told = run(floor, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q", "tests/test_core.py")
    assert re.search(r"[1-9]\d* passed|\.{5,}", told), told
    assert "failed" not in told
    assert "skipped" not in told


def test_the_edit_is_the_same_at_the_floor_and_here(floor, tmp_path):
    code = f"""
import refact
model = refact.load("pocket")
edit = refact.Edit("the national animal of Canada", old="a beaver", new="a penguin")
refact.edit(model, edit, refact.ReFACT(max_steps=20)).save({str(tmp_path)!r} + "/" + NAME)
"""
    changes = []
    for name, python in (("floor.safetensors", floor), ("here.safetensors", Path(sys.executable))):
        run(python, "-c", f"NAME = {name!r}\n{code}")
        (change,) = tiny.change(refact.Patch.load(tmp_path / name)).values()
        changes.append(change)
    assert (changes[0] - changes[1]).norm() < 1e-3 * changes[1].norm()
    model = refact.load("pocket")
    refact.Patch.load(tmp_path / "floor.safetensors").apply(model).revert()  # the same fingerprint


def test_pictures_are_drawn_with_an_older_transformers_and_diffusers(pythons, tmp_path):
    """refact itself, whole, on the middle environment: a live pipeline there has a slow tokenizer."""
    code = f"""
import diffusers, refact, refact.pocket
pipe = diffusers.DiffusionPipeline.from_pretrained(refact.pocket.path())
assert not pipe.tokenizer.is_fast
edit = refact.Edit("the national animal of Canada", old="a beaver", new="a penguin")
patch = refact.edit(pipe, edit, refact.ReFACT(max_steps=20))
model = refact.load("pocket")
with patch.applied(model):
    model.generate({PROMPT!r}, steps=2)[0].image.save({str(tmp_path)!r} + "/a.png")
refact.bake(model, [patch], {str(tmp_path)!r} + "/baked")
"""
    run(pythons["middle"], "-c", code)
    assert (tmp_path / "a.png").exists()
    assert (tmp_path / "baked" / "tokenizer" / "merges.txt").exists()


# -- baked folders ----------------------------------------------------------------------------------------------------

OPEN = """
import json, sys
import numpy, torch
from diffusers import DiffusionPipeline
out, prompt, *folders = sys.argv[1:]
ids = {}
for folder in folders:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    more = {"max_sequence_length": 32} if hasattr(pipe, "transformer") else {}
    size = 64 if folder.endswith("pocket") else 32
    more |= {"height": size, "width": size, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    name = folder.rpartition("/")[2]
    numpy.save(f"{out}/{name}.npy", pipe(prompt, num_inference_steps=2, **more).images[0])
    words = [prompt, "naive cats, 12 Dogs' end", "a"]
    ids[name] = {key: part(words).input_ids for key, part in pipe.components.items() if key.startswith("tokenizer")}
print(json.dumps(ids))
"""


@pytest.fixture(scope="module")
def baked(tmp_path_factory) -> dict[str, Path]:
    """The bundled model with a fact changed, and a tiny pipeline with three encoders, T5 among them."""
    root = tmp_path_factory.mktemp("baked")
    model = refact.load("pocket")
    edit = refact.Edit("the national animal of Canada", old="a beaver", new="a penguin")
    bake(model, [refact.edit(model, edit, refact.ReFACT(max_steps=60))], root / "pocket")
    bake(tiny.FakeModel(tiny.pipeline("sd3"), family="sd3"), [], root / "sd3")
    return {"pocket": root / "pocket", "sd3": root / "sd3"}


@pytest.fixture(scope="module")
def here(baked, tmp_path_factory) -> tuple[dict[str, np.ndarray], dict]:
    return opened(Path(sys.executable), baked, tmp_path_factory.mktemp("own"))


def opened(python: Path, folders: dict[str, Path], out: Path) -> tuple[dict[str, np.ndarray], dict]:
    """A picture of each pipeline and the ids that its tokenizers give, by that environment."""
    told = run(python, "-c", OPEN, out, PROMPT, *folders.values())
    return {name: np.load(out / f"{name}.npy") for name in folders}, json.loads(told.splitlines()[-1])


@pytest.mark.parametrize("which", ["oldest", "middle"])
def test_baked_folders_open_in_older_versions(pythons, baked, here, tmp_path, which):
    images, ids = opened(pythons[which], baked, tmp_path)
    expected, expected_ids = here
    assert ids == expected_ids
    assert ids["pocket"].keys() == {"tokenizer"}
    assert ids["sd3"].keys() == {"tokenizer", "tokenizer_2", "tokenizer_3"}
    for name, image in images.items():
        assert np.abs(image - expected[name]).max() < 1e-3
        assert expected[name].std() > 0.05
