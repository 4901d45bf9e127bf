"""Files that are there whole or not at all, and folders in which one process works at a time."""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import socket
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from ..errors import DataError

P, R = ParamSpec("P"), TypeVar("R")
LOCK = ".lock"  # of a folder that one process writes at a time


def write(path: str | Path, content: bytes) -> None:
    """The file with this content, its folder made where missing; on any failure what was there before.

    The bytes are on the disk before the file has its name. The file gets the permissions of the one that it replaces,
    else those of the user's umask; where the path is a symbolic link, the file that it leads to is replaced. What
    killed processes of this machine left beside it is removed. Raises OSError as Python's own functions do.
    """
    path = _real(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    partial = _beside(path)
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.is_file():
            partial.chmod(path.stat().st_mode & 0o777)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise _named(error, path) from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _settle(path.parent)


def check(path: str | Path) -> None:
    """Raises DataError where no file can be written under this name, so that hours of work do not end in it."""
    path = _real(path)
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        reason = "is a folder" if path.is_dir() else f"{there} {'is no folder' if there.is_file() else 'is read-only'}"
        raise DataError(f"{path} cannot be written: {reason}; give another name")


@contextmanager
def folder(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path`, which gets that name when the block ends well and is removed when it does not.

    `path` itself must not exist, or be an empty folder. Its files get the permissions of the user's umask, as the
    folder does: safetensors writes files that nobody else may read.
    """
    path = _real(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    partial = _beside(path)
    partial.mkdir()
    try:
        yield partial
        readable = partial.stat().st_mode & 0o666
        for file in partial.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(readable)
            _settle(file)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _settle(path.parent)


@contextmanager
def locked(path: str | Path, what: str = "") -> Iterator[None]:
    """The folder is this process's alone within the block; the system frees it even where the process is killed.

    Raises DataError at once where another process has it. what: what a person is told that the folder is.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK).open("a+b") as file:
        if not _take(file.fileno()):
            raise DataError(f"another process is working in {what or path}: wait for it to end, or give another folder")
        yield


def alone(work: Callable[P, R]) -> Callable[P, R]:
    """The function, while whose calls run no other process may work in the folder that is its argument `out`."""

    @functools.wraps(work)
    def locking(*given: P.args, **named: P.kwargs) -> R:
        out = Path(inspect.signature(work).bind(*given, **named).arguments["out"])
        with locked(out):
            try:
                return work(*given, **named)
            finally:
                if [*out.iterdir()] == [out / LOCK]:  # nothing came of it
                    shutil.rmtree(out, ignore_errors=True)

    return locking


def _take(handle: int) -> bool:
    """Whether the lock of an open file is ours now."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _take_on_windows(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_on_windows(handle: int) -> bool:
    import msvcrt

    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True


# -- names and leftovers ----------------------------------------------------------------------------------------------


def _real(path: str | Path) -> Path:
    """Where a path leads; a link is followed, so that it stays a link."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def _beside(path: Path) -> Path:
    """A hidden name beside a path, which tells whose it is."""
    return path.with_name(f"{_stem(path)}{os.getpid()}.{uuid.uuid4().hex[:8]}.part")


class Behind:
    """Work done in order on a thread beside the caller, a few calls behind it; a failure is raised at a later call.

    A context: at its end all is done, and a failure that nobody saw yet is raised.
    """

    def __init__(self, work: Callable[..., object], most: int = 2):
        self._work, self._most, self._pool = work, most, ThreadPoolExecutor(1)
        self._waiting: deque[Future] = deque()

    def __call__(self, *given: object) -> None:
        self._waiting.append(self._pool.submit(self._work, *given))
        while self._waiting and (len(self._waiting) > self._most or self._waiting[0].done()):
            self._waiting.popleft().result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._pool.shutdown(wait=True)
        while self._waiting and kind is None:
            self._waiting.popleft().result()


def _stem(path: Path) -> str:
    host = "".join(c for c in socket.gethostname() if c.isalnum())[:20]
    return f".{path.name[:100]}.{host or 'here'}-"


def _sweep(path: Path) -> None:
    """Remove what processes of this machine that no longer run left beside a path."""
    stem = _stem(path)
    for left in path.parent.iterdir():
        if left.name.startswith(stem) and left.name.endswith(".part"):
            owner = left.name.removeprefix(stem).partition(".")[0]
            if owner.isdigit() and not _runs(int(owner)):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    if os.name == "nt":
        return True  # os.kill would end it; leftovers stay there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _settle(path: Path) -> None:
    """The file's bytes, or the folder's names, are on the disk; nothing where the system has no such call."""
    if os.name == "nt" or path.is_symlink():
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return  # some network folders refuse it; the rename itself has been done
    finally:
        os.close(handle)


def _named(error: OSError, path: Path) -> OSError:
    """The error with the name that the user gave, not that of the partial file."""
    return type(error)(error.errno, error.strerror, str(path)) if error.errno else error
