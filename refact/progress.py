"""How long work shows that it goes on: the caller wraps its loop; the library itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

Progress = Callable[[Iterable, str, int | None], Iterable]  # (items, what is done, how many) -> the same items


def plainly(items: Iterable, label: str, total: int | None) -> Iterable:
    """Shows nothing."""
    return items
