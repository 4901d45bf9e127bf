"""How long work shows that it goes on: the caller wraps its loop; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Progress = Callable[[Iterable, str, int | None], Iterable]  # (items, what is done, how many) -> the same items


def plainly(items: Iterable, label: str, total: int | None) -> Iterable:
    """Shows nothing."""
    return items


def calling(callback: Callable[[str, int, int | None], Any]) -> Progress:
    """A progress that calls callback(what is done, steps done, of how many) before each step.

    An exception that the callback raises ends the work there and reaches the caller; the model is left as it was.
    """

    def progress(items: Iterable, label: str, total: int | None) -> Iterator:
        for done, item in enumerate(items):
            callback(label, done, total)
            yield item

    return progress
