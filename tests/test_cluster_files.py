"""The files in examples/cluster: what parses, what they name, and the Slurm script with stand-ins for Slurm."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from refact.cli.main import app

FOLDER = Path(__file__).parent.parent / "examples" / "cluster"
SBATCH = FOLDER / "slurm.sbatch"


def loaded(name: str) -> dict:
    return pytest.importorskip("yaml").safe_load((FOLDER / name).read_text())


def flags(command: str) -> set[str]:
    return {option for p in typer.main.get_command(app).commands[command].params for option in p.opts}


def test_the_rayjob_gives_a_command_that_exists_to_workers_with_a_gpu_each() -> None:
    job = loaded("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["refact", "bench"]
    assert {word for word in words if word.startswith("-")} <= flags("bench")
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    image = (FOLDER / "Dockerfile").read_text()
    assert f"rayproject/ray:{job['spec']['rayClusterSpec']['rayVersion']}-" in image


def test_the_cloud_cluster_fits_rays_own_schema() -> None:
    form = loaded("aws.yaml")
    assert form["head_node_type"] in form["available_node_types"]
    ray, jsonschema = pytest.importorskip("ray"), pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(form, schema)


def test_the_version_of_ray_is_the_tested_one() -> None:
    pinned = re.search(r"^ray==(\S+)$", (FOLDER.parents[1] / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert loaded("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def test_the_slurm_script_parses() -> None:
    subprocess.run(["bash", "-n", SBATCH], check=True)


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
RAY = f"""#!/bin/bash
[[ $1 == start ]] && set -- "$@" --num-cpus 1
exec {sys.executable} -m ray.scripts.scripts "$@"
"""


@pytest.mark.slow
def test_the_slurm_script_runs_the_command_on_all_nodes_and_ends(tmp_path) -> None:
    """Two nodes of Slurm, both on this machine; `srun` and `scontrol` are stand-ins."""
    pytest.importorskip("ray")
    programs = {"srun": SRUN, "scontrol": "#!/bin/bash\nprintf '127.0.0.1\\n127.0.0.1\\n'\n", "ray": RAY}
    programs["refact"] = f'#!/bin/bash\nexec {sys.executable} -m refact "$@"\n'
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RAY_TMPDIR": f"/tmp/s{os.getpid()}"}
    env |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "both", "SLURM_JOB_ID": str(os.getpid())}
    words = shlex.split(
        "bench pocket-road-validation --limit 2 --seeds 0 --methods refact,baseline --quiet --workers 2"
    )
    words += ["--cpus-per-worker", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(["bash", SBATCH, *words], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    logs = {path.name: path.read_text() for path in tmp_path.glob("*.log")}
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}\n{logs}"
    assert len(list((tmp_path / "run" / "cases").iterdir())) == 2
    assert "connect" in logs["ray-workers.log"].lower() or "Ray runtime started" in logs["ray-workers.log"]
