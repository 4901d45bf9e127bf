"""Over a Ray cluster: the same results as here, to the last bit; a worker that is killed costs its unit only."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from typer.testing import CliRunner

import refact
from refact.cli.main import app
from refact.errors import ModelError, RefactError
from refact.models import parallel
from refact.models.parallel import Cluster, Sent, spread
from refact.studies import scaling

TWO = Cluster("local", workers=2)


def made(folder: Path, always: bool = False):
    """Squares; a unit that is named in `folder` kills its worker, the first time or always; 13 is unlucky."""

    def make():  # nested, so that workers get it by value: they cannot import the tests
        def work(unit: int) -> int:
            if unit == 13:
                raise ArithmeticError("thirteen\nand a long traceback")
            bomb = folder / str(unit)
            if bomb.exists():
                if not always:
                    bomb.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return unit * unit

        return work

    return make


@pytest.fixture
def ray(monkeypatch, tmp_path):
    """Skipped where there is none; the environment marks the workers of this test."""
    monkeypatch.setenv("REFACT_CACHE", str(tmp_path / "cache"))
    return pytest.importorskip("ray")


@contextmanager
def one_killed(tmp_path):
    """Within the block the first worker of this test that is seen at work is killed; yields whom."""
    marker, killed, over = f"REFACT_CACHE={tmp_path / 'cache'}".encode(), [], threading.Event()

    def watch() -> None:
        while not killed and not over.wait(0.02):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    at_work = b"_Worker.work" in (process / "cmdline").read_bytes()
                    if at_work and marker in (process / "environ").read_bytes():
                        os.kill(int(process.name), signal.SIGKILL)
                        killed.append(process.name)
                        return
                except OSError:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_a_worker_stays_with_its_key_and_helps_the_longest_when_none_is_free() -> None:
    queue = parallel._Queue(list("aaabb"))
    taken = [(worker, queue.next(worker)) for worker in (1, 2, 1, 2, 2)]
    assert taken == [(1, 0), (2, 3), (1, 1), (2, 4), (2, 2)]
    assert not queue
    queue.back(1)
    assert queue.next(3) == 1


def test_without_a_cluster_units_are_done_here_in_order() -> None:
    assert list(spread(lambda factor: lambda unit: factor * unit, [3], [1, 2])) == [3, 6]


def test_workers_are_not_spoken_of_where_there_is_no_cluster(tmp_path) -> None:
    words = ["bench", "pocket-road", "--out", str(tmp_path / "run"), "--workers", "2"]
    said = CliRunner().invoke(app, words).exception
    assert isinstance(said, RefactError)
    assert str(said) == "--workers is about the workers of a cluster: name it with --ray"


def test_a_model_is_opened_again_by_its_path_and_another_there_is_refused(tmp_path) -> None:
    folder = tiny.folder("sd1", tmp_path)
    model = refact.load(folder, encoders=["text_encoder"])
    sent = Sent.of(model)
    assert (sent.whole, sent.name) == (None, str(folder.resolve()))
    assert sent.open("cpu").fingerprints() == model.fingerprints()
    changed = Sent(sent.name, sent.how, None, {"text_encoder": "0" * 16}, sent.words)
    with pytest.raises(ModelError, match="has another model under the name"):
        changed.open("cpu")
    with pytest.raises(ModelError, match="send it to them"):
        Sent("/no/such/folder", sent.how, None, sent.prints, sent.words).open("cpu")
    assert Sent.of(refact.load(tiny.pipeline("sd1"))).whole is not None, "a live pipeline has no path"


@pytest.mark.slow
def test_killed_workers_are_replaced_and_no_unit_is_lost(ray, tmp_path) -> None:
    for unit in (2, 5):
        (tmp_path / str(unit)).touch()
    found = sorted(spread(made(tmp_path), [], range(8), TWO))
    assert found == [n * n for n in range(8)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_units_that_cannot_be_done_cost_themselves_only_and_are_told_in_one_line(ray, tmp_path, capfd) -> None:
    (tmp_path / "1").touch()
    found: list[int] = []
    said = "2 of 6 units failed, the first of them 13: ArithmeticError: thirteen; what is done is kept"
    with pytest.raises(RefactError, match=said):
        found.extend(spread(made(tmp_path, always=True), [], [0, 13, 1, 2, 3, 4], TWO))
    assert sorted(found) == [0, 4, 9, 16]
    assert capfd.readouterr() == ("", ""), "neither logs nor tracebacks of workers"
    with pytest.raises(RefactError, match="the first of them 1: its worker died, and did in 3 more tries"):
        list(spread(made(tmp_path, always=True), [], [0, 1], TWO))


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "no.such.host.invalid:6379"])
def test_a_wrong_address_is_said_to_be_one_soon(ray, address) -> None:
    begun = time.monotonic()
    with pytest.raises(RefactError, match="cluster"):
        list(spread(made(Path()), [], range(2), Cluster(address)))
    assert time.monotonic() - begun < 20


@pytest.mark.slow
def test_a_model_that_workers_cannot_open_ends_the_run_at_once(ray, tmp_path) -> None:
    folder = tiny.folder("sd1", tmp_path)
    model = refact.load(folder, encoders=["text_encoder"])
    folder.rename(tmp_path / "gone")
    with pytest.raises(RefactError, match="keep it on a disk that all machines share"):
        list(spread(given_model, [model], range(3), TWO))
    (tmp_path / "gone").rename(folder)
    assert list(spread(given_model, [model], [4], Cluster("local", workers=1, send=True))) == [4]


def given_model(model):
    return lambda unit: unit


given_model.__module__ = "__main__"  # so that workers get it by value


@pytest.fixture
def two_machines(ray, tmp_path):
    """A cluster of two nodes as `ray start` makes it, each with one CPU: its address, and what to set to join it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
    head = ["--head", "--port", address.rpartition(":")[2], "--node-ip-address=127.0.0.1"]
    head += ["--include-dashboard=false", "--temp-dir", f"/tmp/r{os.getpid()}"]  # a socket's name in it is short
    nodes, how = [], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | token}
    try:
        for role in (head, ["--address", address]):
            nodes.append(subprocess.Popen([*start, *role], **how))
            time.sleep(8)
        yield address, os.environ | token
    finally:
        for node in reversed(nodes):
            node.terminate()
            node.wait(timeout=30)


def untimed(form: dict) -> dict:
    """Without what differs from run to run."""
    return {key: value for key, value in form.items() if key != "seconds"}


@pytest.mark.slow
def test_a_cluster_of_two_machines_is_joined_by_its_address(two_machines, tmp_path) -> None:
    address, env = two_machines
    words = [sys.executable, "-m", "refact", "bench", "pocket-road-validation", "--limit=2", "--seeds=0", "--json"]
    words += ["--methods", "refact,baseline", "--quiet"]
    found = []
    for name, more in (("here", []), ("there", ["--ray", address, "--cpus-per-worker", "1"])):
        command = [*words, "--out", str(tmp_path / name), *more]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert (result.returncode, result.stderr) == (0, "")
        found.append(json.dumps(json.loads(result.stdout, object_hook=untimed)))
    assert found[0] == found[1]
    count = f"import ray; ray.init('{address}', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
    nodes = subprocess.run([sys.executable, "-c", count], env=env, capture_output=True, text=True, timeout=100)
    assert nodes.stdout.strip() == "2"


def matrices(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_stats_are_the_same_to_the_last_bit_though_a_worker_is_killed(ray, tmp_path, monkeypatch, workers) -> None:
    words = ["stats", "-m", "pocket", "--layer", "2", "--layer", "3", "--tokens", "60000", "--rarity", "0.5"]
    monkeypatch.setenv("REFACT_CACHE", str(tmp_path / "here"))
    assert CliRunner().invoke(app, words).exit_code == 0
    monkeypatch.setenv("REFACT_CACHE", str(tmp_path / "cache"))
    with one_killed(tmp_path) as killed:
        result = CliRunner().invoke(app, [*words, "--ray", "local", "--workers", str(workers)])
    assert result.exit_code == 0, result.output
    assert killed
    assert len(matrices(tmp_path / "here")) == 2
    assert matrices(tmp_path / "cache") == matrices(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_a_build_writes_the_same_bytes_though_a_worker_is_killed(ray, tmp_path, workers) -> None:
    facts = [f.to_json() for f in scaling.roles(refact.pocket.world())[:8]]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    words = ["build", str(tmp_path / "facts.json"), "--batch", "2", "--quiet"]
    for name, more in (("here", []), ("there", ["--ray", "local", "--workers", str(workers)])):
        with one_killed(tmp_path) as killed:
            result = CliRunner().invoke(app, [*words, "-o", str(tmp_path / f"{name}.safetensors"), *more])
        assert result.exit_code in (0, 3), result.output
    assert killed
    assert (tmp_path / "here.safetensors").read_bytes() == (tmp_path / "there.safetensors").read_bytes()


@pytest.mark.slow
def test_the_scale_study_has_the_same_rows_but_for_times_though_a_worker_is_killed(ray, tmp_path) -> None:
    words = ["study", "scale", "--counts", "1,4", "--methods", "refact", "--json", "--keep"]
    found = []
    for name, more in (("here", []), ("there", ["--ray", "local", "--workers", "2"])):
        with one_killed(tmp_path) as killed:
            result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / name), *more])
        assert result.exit_code == 0, result.output
        rows = json.loads(result.stdout)
        found.append([{k: v for k, v in row.items() if k not in ("seconds", "megabytes")} for row in rows])
    assert killed
    assert len(found[0]) == 4
    assert found[0] == found[1]
    assert matrices(tmp_path / "here") == matrices(tmp_path / "there")


def test_sums_of_groups_are_added_in_their_order_whichever_is_done_first() -> None:
    from refact.models import covariance

    parts = [(at * covariance.GROUP, {0: torch.full((1, 1), 10.0 ** (17 * (at == 1)) * (-1) ** at)}) for at in range(4)]
    expected = covariance._added(parts)[0]
    assert torch.equal(covariance._added(parts[::-1])[0], expected)
