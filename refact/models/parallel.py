"""Spread units of work over the workers of a Ray cluster, each with a model of its own. The only file that imports ray.

A unit is done here, or by any worker: what comes of it is the same, so the results of a cluster are those of one
process, in another order. A worker that dies costs the unit that it was at, which another does again.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import socket
import warnings
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..encoders.devices import chosen
from ..errors import ModelError, RefactError, quoted
from ..progress import plainly
from .model import Model, load

RETRIES = 3  # of one unit, when the worker that does it dies
ANSWER = 10  # seconds that a cluster has to answer
PATIENCE = 600  # seconds without any worker that has its model, after which a line says what is waited for
ENOUGH = 8  # units that fail before no more are begun

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Cluster:
    """Where the workers of a Ray cluster are, and what each of them gets."""

    address: str = "local"  # "local" starts a cluster on this machine; "auto", or HOST:PORT, joins one that runs
    workers: int | None = None  # None: as many as the cluster has room for
    gpus: float | None = None  # a worker, 0.5 for two on one; None: 1 where the cluster has any, else 0
    cpus: float | None = None  # a worker; None: 1 beside a GPU or where there are several, 2 where as many as fit
    device: str | None = None  # where a worker computes; None: on its GPU, where it has one
    send: bool = False  # the model goes through Ray's object store; else each worker opens it by its name or path


def spread(
    make: Callable[..., Callable[[T], R]],
    parts: Sequence[Any],
    units: Iterable[T],
    cluster: Cluster | None = None,
    key: Callable[[T], Hashable] | None = None,
) -> Iterator[R]:
    """make(*parts)(unit) of every unit, as they get done: here in order, on a cluster in any.

    parts: models, which each worker opens once for itself, and what else `make` needs, which is sent to them. make: a
    function of a module, so that workers find it. key: units with the same key go to the same worker, as long as there
    are other keys for the others. Raises RefactError at the end where units failed, after the results of all others.
    """
    if cluster is None:
        return map(make(*parts), units)
    sent = [_sent(part, cluster.send) for part in parts]
    return _on_ray(functools.partial(_made, make, sent), list(units), cluster, key)


def _sent(part: Any, whole: bool) -> Any:
    if isinstance(part, Model):
        return Sent.of(part, whole)
    return part.sent() if hasattr(part, "sent") and not whole else part


def of_encoder(model: Model, name: str, cluster: Cluster | None) -> Callable[..., Iterator]:
    """`spread` for a `make` that is given one encoder of the model."""
    return lambda make, units: spread(functools.partial(_of_encoder, make, name), [model], units, cluster)


def _of_encoder(make: Callable, name: str, model: Model) -> Callable:
    return make(model.encoders[name])


# -- what a worker opens -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A model on its way to workers: how to open it again, or the model itself."""

    name: str
    how: dict[str, Any]  # arguments of `load`
    whole: Model | None
    prints: dict[str, str]  # of the encoders, which the worker's must have
    words: dict[str, int]  # how many tokens each of their tokenizers knows

    @classmethod
    def of(cls, model: Model, whole: bool = False) -> Sent:
        """whole: the model itself goes, pipeline and all. One without a path always does."""
        prints = {name: encoder.hash() for name, encoder in model.encoders.items()}
        words = {name: len(encoder.tokenizer) for name, encoder in model.encoders.items()}
        source = model.source
        if whole or source is None:
            if model.compiled or model.offload:
                raise ModelError("a model that is sent to workers cannot be compiled or offloaded: give one of the two")
            if source is not None and not source.alone:
                assert model.pipe, "read before the model leaves its files"
            plain = copy.copy(model)
            plain.progress = plainly
            return cls(model.name, {}, plain, prints, words)
        there = Path(source.origin).expanduser().is_dir()  # else it came from the hub
        path = source.checkpoint or source.encoder_file or (source.folder if there else None)
        name = "pocket" if source.name == "pocket" else str(path.resolve()) if path else source.name
        how: dict[str, Any] = {
            "variant": source.variant, "revision": source.revision, "family": source.named,
            "config": source.config and str(source.config.resolve()), "component": source.component,
            "encoders": tuple(model.encoders), "dtype": model.dtype,
            "compiled": model.compiled, "offload": model.offload,
        }  # fmt: skip
        given = model._companion
        companion = str(Path(given).expanduser().resolve()) if isinstance(given, (str, Path)) else given
        return cls(name, how | {"companion": companion}, None, prints, words)

    def open(self, device: str) -> Model:
        """On a worker. Raises ModelError where what is found there is another model."""
        if self.whole is not None:
            model = self.whole
            for encoder in model.encoders.values():
                encoder.module.to(device)
            if model._pipe is not None:
                model._pipe.to(device)
            for clip in (model._companion, vars(model).get("companion")):  # as given, and opened already
                if clip is not None and hasattr(clip, "to"):
                    clip.to(device)
        else:
            try:
                model = load(self.name, device=device, **self.how)
            except ModelError as error:
                raise ModelError(
                    f"{socket.gethostname()}: {error}. Workers open the model by its name: keep it on a disk that all "
                    "machines share, or send it to them (--send-model)"
                ) from None
        there = {name: (encoder.hash(), len(encoder.tokenizer)) for name, encoder in model.encoders.items()}
        if there != {name: (self.prints[name], self.words[name]) for name in self.prints}:
            raise ModelError(f"{socket.gethostname()} has another model under the name {quoted(self.name)}")
        return model


def _made(make: Callable, parts: Sequence[Any], device: str) -> Callable[[Any], Any]:
    """On a worker: the models opened, the rest moved to where it computes."""
    return make(*(_opened(part, device) for part in parts))


def _opened(part: Any, device: str) -> Any:
    if hasattr(part, "open"):
        return part.open(device)
    return part.to(device) if hasattr(part, "to") else part


class _Worker:
    """Lives on the cluster and keeps its model between units."""

    def __init__(self, device: str | None, gpus: float):
        self._device = str(chosen(device)) if device or gpus else "cpu"

    def start(self, made: Any) -> None:
        """Open the model."""
        warnings.simplefilter("ignore")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._work = made(self._device)

    def work(self, unit: Any) -> Any:
        """The unit's result."""
        return self._work(unit)


# -- the driver --------------------------------------------------------------------------------------------------------


@contextmanager
def joined(cluster: Cluster | None) -> Iterator[None]:
    """Within the block the cluster is there; one that was started here ends with it."""
    if cluster is None:
        return (yield)
    try:
        import ray
    except ImportError:
        raise RefactError("spreading over a cluster needs Ray: pip install 'refact-edit[ray]'") from None
    if own := not ray.is_initialized():
        _join(ray, cluster)
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def _on_ray(made: Callable, units: list, cluster: Cluster, key: Callable | None) -> Iterator:
    if not units:
        return
    with joined(cluster):
        import ray

        crew = _Crew(ray, made, units, cluster, key)
        yield from crew.results()
    if crew.failed:
        unit, reason = crew.failed[0]
        if len(crew.failed) >= ENOUGH:
            reason = f"{reason} (after {ENOUGH} such units no more were begun)"
        raise RefactError(
            f"{len(crew.failed)} of {len(units)} units failed, the first of them {unit}: {reason}; what is done is "
            "kept, and the same command goes on"
        )


def _join(ray: Any, cluster: Cluster) -> None:
    """Start a cluster here or join one. RefactError where nobody answers, instead of waiting for ever."""
    address, own = cluster.address, cluster.address == "local"
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
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    ray._private.worker._worker_logs_enabled = False  # or it prints each death of a worker, and its stack, to stdout
    os.environ["RAY_ENABLE_WORKER_LOGS"] = "0"
    if own:  # the cluster ends with this command, and tells nobody of itself
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        how |= {"include_dashboard": False}
        if cluster.workers and not cluster.gpus:
            how |= {"num_cpus": max(os.cpu_count() or 1, math.ceil(cluster.workers * (cluster.cpus or 1)))}
    try:
        ray.init(address=address, **how)
    except (ConnectionError, RuntimeError, ValueError) as error:
        hint = "one that asks for a token needs RAY_AUTH_MODE=token and its token here too"
        raise RefactError(f"the Ray cluster {address} cannot be joined: {error}; {hint}") from None


class _Crew:
    """Workers and what each is at."""

    def __init__(self, ray: Any, made: Callable, units: list, cluster: Cluster, key: Callable | None):
        self._ray, self._units, self._cluster = ray, units, cluster
        self._made = ray.put(made)
        self._queue = _Queue([key(unit) if key else at for at, unit in enumerate(units)])
        self._tries: Counter[int] = Counter()
        self._deaths = 0  # of workers that did not live to their first unit, one after the other
        self.failed: list[tuple[Any, str]] = []
        there = ray.cluster_resources()
        self._gpus = cluster.gpus if cluster.gpus is not None else min(1.0, there.get("GPU", 0.0))
        self._cpus = cluster.cpus if cluster.cpus is not None else min(self._usual_cpus(), there.get("CPU", 1.0))
        if cluster.address == "local" and not self._room():
            raise RefactError(f"this machine has no room for a worker of {self._gpus:g} GPUs and {self._cpus:g} CPUs")
        self._actor = ray.remote(_Worker).options(num_gpus=self._gpus, num_cpus=self._cpus)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}
        self._starting: dict[Any, Any] = {}
        self._grow()

    def _usual_cpus(self) -> float:
        return 1.0 if self._gpus or (self._cluster.workers or 0) > 1 else 2.0

    def _room(self) -> int:
        """How many workers fit on the nodes that are there by now."""
        there = self._ray.cluster_resources()
        each = [there.get(kind, 0.0) / one for kind, one in (("GPU", self._gpus), ("CPU", self._cpus)) if one]
        return int(min(each, default=1))

    def _grow(self) -> None:
        """Begin workers, as many as there are units for: those asked for, else as many as fit."""
        alive = len(self._idle) + len(self._busy) + len(self._starting)
        wanted = self._cluster.workers or max(1, self._room())
        for _ in range(min(wanted - alive, len(self._queue) - len(self._idle) - len(self._starting))):
            self._begin()

    def _begin(self) -> None:
        worker = self._actor.remote(self._cluster.device, self._gpus)
        self._starting[worker.start.remote(self._made)] = worker

    def results(self) -> Iterator[Any]:
        """Of each unit that does not fail; `failed` has the others."""
        while self._hand_out() or self._busy:
            if self._cluster.workers is None:
                self._grow()
            done, _ = self._ray.wait([*self._starting, *self._busy], timeout=PATIENCE)
            if not done and not self._busy:
                need = f"{self._cpus:g} CPUs and {self._gpus:g} GPUs"
                said = f"no worker has its model after {PATIENCE // 60} minutes: each needs {need}"
                warnings.warn(f"{said}; the cluster may be busy or smaller", stacklevel=1)
            for ref in done:
                if ref in self._starting:
                    self._started(self._starting.pop(ref), ref)
                    continue
                worker, at = self._busy.pop(ref)
                found, result = self._take(worker, at, ref)
                if found:
                    yield result

    def _hand_out(self) -> bool:
        """Give units to idle workers; whether any unit is left, or was given out."""
        while self._idle and self._queue and len(self.failed) < ENOUGH:
            worker = self._idle.pop()
            at = self._queue.next(worker)
            self._busy[worker.work.remote(self._units[at])] = worker, at
        return bool(self._queue) and len(self.failed) < ENOUGH

    def _started(self, worker: Any, ref: Any) -> None:
        """A worker that has its model; one that cannot open it ends the run, as no other could."""
        from ray.exceptions import RayActorError, RayError

        try:
            self._ray.get(ref)
        except RayActorError as error:
            self._deaths += 1
            if self._deaths > RETRIES:
                raise RefactError(
                    f"workers die while they open the model, {self._deaths} of them one after the other; is there "
                    f"memory for so many? {_reason(error)}"
                ) from None
            self._begin()
        except RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, RefactError):
                raise cause from None
            raise RefactError(f"a worker cannot open the model: {_reason(error)}") from None
        else:
            self._deaths = 0
            self._idle.append(worker)

    def _take(self, worker: Any, at: int, ref: Any) -> tuple[bool, Any]:
        """(True, the unit's result), or (False, None) where it failed or its worker died."""
        from ray.exceptions import RayActorError, RayError

        try:
            result = self._ray.get(ref)
        except RayActorError:
            self._queue.forget(worker)
            self._tries[at] += 1
            if self._tries[at] > RETRIES:
                self.failed.append((self._units[at], f"its worker died, and did in {RETRIES} more tries"))
            else:
                self._queue.back(at)
            if self._queue:
                self._begin()
            return False, None
        except RayError as error:
            self.failed.append((self._units[at], _reason(error)))
            self._idle.append(worker)
            return False, None
        self._idle.append(worker)
        return True, result


def _reason(error: Exception) -> str:
    """One line of an error of Ray: of the exception that a worker raised, its own."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or [""]
    return lines[0] if cause is error or isinstance(cause, RefactError) else f"{type(cause).__name__}: {lines[0]}"


class _Queue:
    """Numbers of units that wait, by their keys: a worker stays with its key, and takes a new one when it is done."""

    def __init__(self, keys: Sequence[Hashable]):
        self._keys = keys
        self._waiting: dict[Hashable, deque[int]] = {}
        self._of: dict[Any, Hashable] = {}  # the key that a worker is at
        for at, key in enumerate(keys):
            self._waiting.setdefault(key, deque()).append(at)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def next(self, worker: Any) -> int:
        """The next unit of the worker's own key, else of one that is nobody's, else of that with the most left."""
        key = self._of.get(worker)
        if key not in self._waiting:
            taken = set(self._of.values())
            free = next((k for k in self._waiting if k not in taken), None)
            key = free if free is not None else max(self._waiting, key=lambda k: len(self._waiting[k]))
            self._of[worker] = key
        units = self._waiting[key]
        at = units.popleft()
        if not units:
            del self._waiting[key]
        return at

    def back(self, at: int) -> None:
        """A unit that has to be done again, before the others of its key."""
        self._waiting.setdefault(self._keys[at], deque()).appendleft(at)

    def forget(self, worker: Any) -> None:
        """A worker that is gone."""
        self._of.pop(worker, None)
