"""A method of another package, installed in a folder of its own: found by name in the command line, bench and laws."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from refact.evidence import results
from refact.patch import Patch

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "third_party_method"
FACT = ["--prompt", "the national animal of Canada", "--old", "a beaver", "--new", "a penguin"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment of a process that sees the example's package, which is installed nowhere else."""
    folder = tmp_path_factory.mktemp("third-party")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    pip = [sys.executable, "-m", "pip", "install", "--target", str(folder / "site"), *offline]
    subprocess.run([*pip, str(folder / "source")], check=True, capture_output=True)
    return os.environ | {"PYTHONPATH": f"{folder / 'site'}{os.pathsep}{HERE.parent}"}


def refact(installed, *words: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "refact", *map(str, words)]
    return subprocess.run(command, env=installed, cwd=cwd, capture_output=True, text=True, check=False)


def test_edit_makes_a_patch_by_it(installed, tmp_path):
    done = refact(installed, "edit", "--method", "rome", *FACT, "-o", "p.safetensors", "--once", cwd=tmp_path)
    assert done.returncode in (0, 3), done.stderr
    assert Patch.load(tmp_path / "p.safetensors").record["method"]["name"] == "ROME"


def test_bench_runs_it_beside_our_own(installed, tmp_path):
    words = [
        "bench",
        "pocket-road-validation",
        "--methods",
        "rome,rome:layer=0",
        "--limit",
        1,
        "--seeds",
        0,
    ]
    done = refact(installed, *words, "--out", "run", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"rome", "rome:layer=0"} <= results.summary(results.read_run(tmp_path / "run")).keys()


def test_it_keeps_the_laws(installed):
    options = ["-v", "-o", "addopts=--strict-markers", "-p", "no:cacheprovider", "-k", "rome"]
    laws = [sys.executable, "-m", "pytest", *options, str(HERE / "test_laws.py")]
    done = subprocess.run(laws, env=installed, cwd=HERE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("[rome] PASSED") > 5, done.stdout


def test_without_the_package_there_is_no_such_method(tmp_path):
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": str(HERE.parent)}
    done = refact(plain, "edit", "--method", "rome", *FACT, cwd=tmp_path)
    assert done.returncode == 2
    assert "no method 'rome'" in done.stderr
