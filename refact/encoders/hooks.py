"""Read a module's input or output, or replace its output. The only file that registers hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class Stop(Exception):
    """Ends a forward pass once all that was asked for has been read."""


def _tensor(value: Tensor | tuple) -> Tensor:
    return value if isinstance(value, Tensor) else value[0]  # before transformers 5 a layer gave a tuple


@contextmanager
def read(module: nn.Module, which: str = "input", stop: bool = False) -> Iterator[list[Tensor]]:
    """A list to which each call of the module adds its input (or "output"); stop: end the forward pass there.

    With stop=True the caller's forward raises nothing: the block ends when `Stop` reaches it, so nothing
    may stand in the block after the forward.
    """
    seen: list[Tensor] = []

    def before(_: nn.Module, args: tuple) -> None:
        seen.append(args[0])
        if stop:
            raise Stop

    def after(_: nn.Module, __: tuple, output: Tensor | tuple) -> None:
        seen.append(_tensor(output))
        if stop:
            raise Stop

    handle = module.register_forward_pre_hook(before) if which == "input" else module.register_forward_hook(after)
    try:
        yield seen
    except Stop:
        pass
    finally:
        handle.remove()


@contextmanager
def replace(module: nn.Module, fn: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Within the block the module's output is fn(output, input)."""

    def after(_: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple:
        new = fn(_tensor(output), args[0])
        return new if isinstance(output, Tensor) else (new, *output[1:])

    handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def given(module: nn.Module, fn: Callable[[dict], dict]) -> Iterator[None]:
    """Within the block the module gets fn(its keyword arguments) for keyword arguments."""

    def before(_: nn.Module, args: tuple, more: dict) -> tuple[tuple, dict]:
        return args, fn(more)

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
