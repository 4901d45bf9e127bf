"""Spread units of work: here one after another, or over a Ray cluster. The only file that imports ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from ..errors import RefactError

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
    try:
        import ray
        from ray.util import ActorPool
    except ImportError:
        raise RefactError("spreading over a cluster needs Ray: pip install 'refact-edit[ray]'") from None
    own = not ray.is_initialized()
    if own:
        ray.init(address=None if address == "local" else address, num_cpus=workers if address == "local" else None)
    try:
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        count = workers or gpus or max(1, cpus // 2)
        actor = ray.remote(num_gpus=1 if gpus else 0, num_cpus=1)(_Worker)
        pool = ActorPool([actor.remote(make) for _ in range(min(count, len(units)) or 1)])
        yield from pool.map_unordered(lambda worker, unit: worker.work.remote(unit), units)
    finally:
        if own:
            ray.shutdown()


class _Worker:
    """Lives on the cluster and keeps its model between units."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]):
        self._work = make()

    def work(self, unit: Any) -> Any:
        """The unit's result."""
        return self._work(unit)
