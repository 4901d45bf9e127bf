"""Older versions of other people's libraries, in environments of their own below build/environments.

The edit at the floor of the dependencies, without diffusers; pictures, LoRA and PEFT at the floor; baked folders,
opened by old transformers and diffusers. An environment has the project's own torch, whose floor is therefore not
tried, and gets the rest from the package index, once.
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
from packaging.version import Version

import refact
from refact.exports import bake

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
HOME = ROOT / "build" / "environments"
OLDEST = ("transformers==4.44.2", "diffusers==0.30.3", "peft==0.12.0")
DRAWING = ("diffusers", "peft", "accelerate")  # what an edit does without
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


def floors() -> dict[str, str]:
    """The lowest version that pyproject.toml allows of each dependency; torch is on the shelf."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = dict(re.match(r"([\w.-]+)>=([\d.]+)", entry).groups() for entry in wanted)
    return {name: version for name, version in lowest.items() if name != "torch"}


@pytest.fixture(scope="module")
def floor() -> Path:
    return environment("floor", (*(f"{n}=={v}" for n, v in floors().items() if n not in DRAWING), "pytest"))


@pytest.fixture(scope="module")
def pythons(floor) -> dict[str, Path]:
    return {
        "oldest": environment("oldest", OLDEST),
        "middle": environment("middle", tuple(f"{name}=={floors()[name]}" for name in DRAWING), below=floor),
        "own": Path(sys.executable),
    }


# -- the edit ---------------------------------------------------------------------------------------------------------


VERSIONS = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"


def test_the_environments_are_at_the_floor(pythons):
    """What pip made of it: nothing newer stands before what was asked for."""
    told = run(pythons["middle"], "-c", VERSIONS, *floors()).split()
    assert dict(zip(floors(), map(Version, told), strict=True)) == {n: Version(v) for n, v in floors().items()}


def test_the_page_names_the_versions_that_are_tried():
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    oldest = dict(pin.split("==") for pin in OLDEST)
    for versions in (oldest, floors()):
        assert f"{versions['transformers']} and diffusers {versions['diffusers']}" in page


def test_the_edit_works_at_the_floor_without_diffusers(floor):
    assert run(floor, "-c", "import importlib.util as u; print(u.find_spec('diffusers'))").split() == ["None"]
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
patch.save({str(tmp_path)!r} + "/x.safetensors")
"""
    run(pythons["middle"], "-c", code)
    assert (tmp_path / "a.png").exists()
    assert (tmp_path / "baked" / "tokenizer" / "merges.txt").exists()
    words = ["generate", "--prompt", PROMPT, "--patch", tmp_path / "x.safetensors", "--steps", 2]
    run(pythons["middle"], "-m", "refact", *words, "-o", tmp_path / "grid.png")  # with words under the pictures
    assert (tmp_path / "grid.png").exists()


def test_an_older_diffusers_and_peft_load_what_is_saved(pythons, tmp_path):
    """The states of a patch that is applied, of its file as a LoRA, and of its PEFT adapter are the same."""
    code = f"""
import diffusers, peft, refact, refact.pocket, torch
from refact.exports import export
folder = {str(tmp_path)!r}
model = refact.load("pocket")
edit = refact.Edit("the national animal of Canada", old="a beaver", new="a penguin")
patch = refact.edit(model, edit, refact.ReFACT(max_steps=20))
patch.save(folder + "/x.safetensors")
export(patch, folder + "/adapters", program="peft")
pipe = diffusers.DiffusionPipeline.from_pretrained(refact.pocket.path())
words = pipe.tokenizer([{PROMPT!r}], return_tensors="pt", padding="max_length")
states = lambda: pipe.text_encoder(**words).last_hidden_state.detach()
plain = states()
with patch.applied(refact.load(pipe)):
    wanted = states()
assert (wanted - plain).abs().max() > 0.1
pipe.load_lora_weights(folder, weight_name="x.safetensors", adapter_name="x")
torch.testing.assert_close(states(), wanted, rtol=0, atol=1e-4)
pipe.unload_lora_weights()
assert torch.equal(states(), plain)
pipe.text_encoder = peft.PeftModel.from_pretrained(pipe.text_encoder, folder + "/adapters/transformers-4/text_encoder")
torch.testing.assert_close(states(), wanted, rtol=0, atol=1e-4)
"""
    run(pythons["middle"], "-c", code)


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
