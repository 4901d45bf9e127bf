"""Over a Ray cluster: workers that are killed are replaced, and an address where nobody answers is said to be one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from refact.errors import RefactError
from refact.evidence.parallel import spread


def made(folder: Path, always: bool = False):
    """Squares; a unit that is named in `folder` kills its worker, the first time or always."""

    def make():  # nested, so that workers get it by value: they cannot import the tests
        def work(unit: int) -> int:
            bomb = folder / str(unit)
            if bomb.exists():
                if not always:
                    bomb.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return unit * unit

        return work

    return make


@pytest.mark.slow
def test_killed_workers_are_replaced_and_no_unit_is_lost(tmp_path) -> None:
    pytest.importorskip("ray")
    for unit in (2, 5):
        (tmp_path / str(unit)).touch()
    found = sorted(spread(made(tmp_path), range(8), ray="local", workers=2))
    assert found == [n * n for n in range(8)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_unit_that_always_kills_its_worker_ends_in_one_line(tmp_path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "1").touch()
    with pytest.raises(RefactError, match="gave up after 3 tries"):
        list(spread(made(tmp_path, always=True), range(3), ray="local", workers=2))


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "no.such.host.invalid:6379"])
def test_a_wrong_address_is_said_to_be_one_soon(address) -> None:
    pytest.importorskip("ray")
    begun = time.monotonic()
    with pytest.raises(RefactError, match="cluster"):
        list(spread(made(Path()), range(2), ray=address))
    assert time.monotonic() - begun < 20
