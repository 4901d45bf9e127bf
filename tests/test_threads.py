"""Patches and weights: from many threads, in any order, in every precision, the bits come back."""

from __future__ import annotations

import random
import sys
import threading

import pytest
import tiny
import torch

from refact.errors import PatchError
from refact.patch import Patch

ONE, TWO = (tiny.CLIP_FC2.format(layer) for layer in (1, 2))


def bits(model) -> bytes:
    return b"".join(w.weight.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for w in model.layers.values())


@pytest.fixture
def impatient():
    """Threads change places after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(count: int, work) -> list[BaseException]:
    """Run `work(number)` in threads that begin at the same moment; what they raised."""
    begun, failed = threading.Barrier(count), []

    def one(number: int) -> None:
        begun.wait()
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_in_many_threads_leave_the_weights(dtype, impatient):
    model = tiny.Linears(dtype, shape=(60, 80))
    patches = [tiny.patch(model, {"x": {ONE: 2, TWO: 1}}, seed=seed) for seed in range(4)]
    before = bits(model)

    def work(number: int) -> None:
        for _ in range(10):
            with patches[number].applied(model, strength=0.5):
                model[ONE].weight.sum()

    for _ in range(10):
        assert together(4, work) == []
        assert bits(model) == before
    assert not any(hasattr(linear, "_refact_stack") for linear in model.layers.values())


def test_an_exception_in_one_threads_block_leaves_the_others_alone(impatient):
    model = tiny.Linears(shape=(60, 80))
    patch, before = tiny.patch(model, {"x": {ONE: 2, TWO: 1}}), bits(model)

    def work(number: int) -> None:
        for turn in range(10):
            with patch.applied(model):
                if (turn + number) % 2:
                    raise KeyError("broken")

    assert {type(error) for error in together(4, work)} == {KeyError}
    assert bits(model) == before


def test_a_model_is_recognised_while_other_threads_patch_it(impatient):
    """The hash of unpatched weights is never taken of patched ones."""
    import refact

    model = refact.load("pocket")
    encoder = model.encoders["text_encoder"]
    linears = {encoder.site(layer): encoder.linear(layer) for layer in (3, 5)}
    before = {site: linear.weight.detach().clone() for site, linear in linears.items()}
    ranks = {"x": dict.fromkeys(linears, 1)}
    patches = [tiny.patch(model, ranks, seed=seed, scale=0.01) for seed in range(3)]

    def work(number: int) -> None:
        for _ in range(4):
            with patches[number].applied(model):
                pass

    assert together(3, work) == []
    assert all(torch.equal(linear.weight, before[site]) for site, linear in linears.items())


def orders(dtype: torch.dtype, count: int) -> int:
    """How many of so many random orders over five patches leave other bits than there were; the law says none."""
    model, draw, lost = tiny.Linears(dtype), random.Random(5), 0
    patches = [tiny.patch(model, {"x": {(ONE, TWO)[seed % 2]: 1 + seed % 3}}, seed=seed) for seed in range(5)]
    before = bits(model)
    for _ in range(count):
        handles = {}
        for which in draw.sample([*range(5)] * 2, 8):  # the second time it is taken out again
            if which in handles:
                handles.pop(which).revert()
            else:
                handles[which] = patches[which].apply(model, draw.choice((1.0, 0.3, -2.0)))
        assert not handles or bits(model) != before
        for which in draw.sample(sorted(handles), len(handles)):
            handles.pop(which).revert()
        lost += bits(model) != before
    return lost


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_five_patches_come_and_go_in_any_order(dtype):
    assert orders(dtype, 60) == 0  # a thousand of each: python -m tests.campaign orders


def test_reverting_always_succeeds(model):
    """Two patches that cancel: without one of them the weight is too large for float16, and still comes back."""
    model = tiny.Linears(torch.float16)
    patch = tiny.patch(model, {"x": {ONE: 1}}, scale=1.0)
    largest = float(tiny.change(patch)[ONE].abs().max())
    before, high, low = bits(model), 50_000 / largest, -50_000 / largest
    first, second = patch.apply(model, high), patch.apply(model, low)
    third = patch.apply(model, high)
    with pytest.raises(PatchError, match="not finite"):
        patch.apply(model, high)
    second.revert()
    assert not torch.isfinite(model[ONE].weight).all()
    first.revert()
    third.revert()
    assert bits(model) == before


def test_an_interrupted_revert_can_be_repeated(model, monkeypatch):
    patch, before = tiny.patch(model, {"x": {ONE: 1, TWO: 1}}), bits(model)
    handle = patch.apply(model)
    from refact import stash

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stash, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        handle.revert()
    monkeypatch.undo()
    handle.revert()
    assert bits(model) == before


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 10**400, True, "1", 2e12])
def test_a_strength_is_a_sensible_number(model, strength):
    patch: Patch = tiny.patch(model, {"x": {ONE: 1}})
    for use in (lambda: patch.apply(model, strength), lambda: patch.scaled(strength)):
        with pytest.raises(PatchError, match="a strength is a finite number"):
            use()
