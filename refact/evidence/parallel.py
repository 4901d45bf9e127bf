"""Spread units of work: here one after another, or over a Ray cluster. The only file that imports ray."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ..errors import RefactError, quoted

RETRIES = 3  # of one unit, when the worker that does it dies
ANSWER = 10  # seconds that a cluster has to answer

T = TypeVar("T")
R = TypeVar("R")


def spread(
    make: Callable[[], Callable[[T], R]], units: Iterable[T], ray: str | None = None, workers: int | None = None
) -> Iterator[R]:
    """make()(unit) of every unit, as they get done.

    ray: None works here, in order. "local" starts a cluster on this machine, "auto" or an address joins a running one;
    each worker then calls `make` once for itself, so `make` must be picklable, and the order of results is free.
    workers: how many; by default as many as the cluster has GPUs, or one for every two CPUs.
    """
    if ray is None:
        return map(make(), units)
    return _on_ray(make, list(units), ray, workers)


def _on_ray(make: Callable[[], Callable[[T], R]], units: list[T], address: str, workers: int | None) -> Iterator[R]:
    """A worker that is killed, or whose machine is lost, is started anew, and its unit is done again."""
    try:
        import ray
        from ray.exceptions import RayError
        from ray.util import ActorPool
    except ImportError:
        raise RefactError("spreading over a cluster needs Ray: pip install 'refact-edit[ray]'") from None
    if own := not ray.is_initialized():
        _join(ray, address, workers)
    try:
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        count = workers or gpus or max(1, cpus // 2)
        tries = {"max_restarts": RETRIES * len(units), "max_task_retries": RETRIES}
        actor = ray.remote(_Worker).options(num_gpus=1 if gpus else 0, num_cpus=1, **tries)
        pool = ActorPool([actor.remote(make) for _ in range(min(count, len(units)) or 1)])
        yield from pool.map_unordered(lambda worker, unit: worker.work.remote(unit), units)
    except RayError as error:
        if isinstance(cause := getattr(error, "cause", None), RefactError):
            raise cause from None
        reason = f"the cluster gave up after {RETRIES} tries: {str(error).strip().splitlines()[0]}"
        raise RefactError(f"{reason}; what is done is kept, and the same command goes on") from None
    finally:
        if own:
            ray.shutdown()


def _join(ray: Any, address: str, workers: int | None) -> None:
    """Start a cluster here or join one. RefactError where nobody answers, instead of waiting for ever."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address not in ("local", "auto"):
        if not host or not port.isdigit():
            raise RefactError(f"a cluster's address is local, auto or HOST:PORT, not {quoted(address)}")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
        except (OSError, OverflowError, UnicodeError) as error:
            raise RefactError(
                f"no Ray cluster answers at {address}: {error}; `ray start --head` tells its address"
            ) from None
    try:
        ray.init(address=None if address == "local" else address, num_cpus=workers if address == "local" else None)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RefactError(f"the Ray cluster {address} cannot be joined: {error}") from None


class _Worker:
    """Lives on the cluster and keeps its model between units."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]):
        self._work = make()

    def work(self, unit: Any) -> Any:
        """The unit's result."""
        return self._work(unit)
