"""One attempt after another: what it ended in, how long it took, what it touched, what it would have printed."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from refact.errors import RefactError

SECONDS, MEGABYTES = 2.0, 500  # of processor time and of memory, an attempt
ENDLESS = 30  # seconds after which an attempt is given up
FORBIDDEN = (
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "pickle.find_class", "webbrowser.open", "exec"),
)
MARK = "FORGED"  # hostile texts put it at the start of lines of their own


class Watch:
    """What happened in a chunk of attempts. allowed: the folder in which files may be written."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = os.path.realpath(allowed)
        self.ends: Counter[str] = Counter()
        self.failures: list[str] = []
        self.slowest, self.peak = 0.0, 0.0
        self._watching, self._seen = False, []
        sys.addaudithook(self._hook)
        signal.signal(signal.SIGALRM, _give_up)

    def attempt(self, case: str, work: Callable[[], Any]) -> Any:
        """What the work gives; None where it was refused, or failed."""
        self._seen = []
        forget_peak()
        floor, begun, found = megabytes(), time.process_time(), None
        signal.alarm(ENDLESS)
        try:
            with self._watched():
                found = work()
            self.ends["result"] += 1
        except RefactError as error:
            self.ends["refused"] += 1
            self._check_message(case, str(error))
        except Endless:
            self.failures.append(f"{case}: no end in {ENDLESS} s")
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            name = f"{Path(where.filename).name}:{where.lineno}"
            self.failures.append(f"{case}: {type(error).__name__} at {name}: {str(error)[:150]!r}")
        finally:
            signal.alarm(0)
        self._check_cost(case, time.process_time() - begun, megabytes() - floor)
        self.failures += [f"{case}: {event}" for event in self._seen]
        return found

    def check_text(self, case: str, text: str) -> None:
        """A failure where a text for the terminal holds control characters or a line that a file forged."""
        if not text.replace("\n", "").isprintable():
            self.failures.append(f"{case}: control characters in {text[:200]!r}")
        if any(line.lstrip().startswith(MARK) for line in text.split("\n")):
            self.failures.append(f"{case}: a forged line in {text[:200]!r}")

    def form(self) -> dict:
        """All of it as JSON."""
        return {
            "ends": dict(self.ends),
            "failures": self.failures,
            "slowest": round(self.slowest, 2),
            "megabytes": round(self.peak),
        }

    def _check_message(self, case: str, message: str) -> None:
        self.check_text(case, message)
        if "\n" in message or len(message) > 1000 or not message:
            self.failures.append(f"{case}: a message of {len(message)} characters: {message[:200]!r}")

    def _check_cost(self, case: str, seconds: float, more: float) -> None:
        self.slowest = max(self.slowest, seconds)
        if seconds > SECONDS:
            self.failures.append(f"{case}: took {seconds:.1f} s")
        self.peak = max(self.peak, more)
        if more > MEGABYTES:
            self.failures.append(f"{case}: memory rose by {more:.0f} MB")

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def _hook(self, event: str, args: tuple) -> None:
        if not self._watching:
            return
        if event in FORBIDDEN and not (event == "exec" and _of_an_import(args)):
            self._seen.append(f"{event} {str(args)[:100]}")
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)) and _writes(args):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith(self.allowed) and not path.startswith(("/dev/", "/proc/")):
                self._seen.append(f"wrote {path}")


class Endless(BaseException):
    """An attempt that does not end."""


def _give_up(*_: object) -> None:
    raise Endless


def _of_an_import(args: tuple) -> bool:
    """Code of installed packages, which lazy imports run; code of a file's own has another name."""
    name = getattr(args[0], "co_filename", "")
    return name.startswith((sys.prefix, sys.base_prefix, "<frozen", "<string>", "<attrs")) or os.sep + "refact" in name


def _writes(args: tuple) -> bool:
    mode, flags = (*args[1:], None, None)[:2]
    if isinstance(mode, str) and any(letter in mode for letter in "wax+"):
        return True
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def forget_peak() -> None:
    """The largest memory so far is counted anew from now on, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def megabytes() -> float:
    """The process's largest memory since then."""
    if (status := Path("/proc/self/status")).is_file():
        return float(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
