"""A pretended accelerator: tensors that say they are on another device, while their numbers stay in the CPU's memory.

It refuses what a real one refuses: operations on tensors of two devices, numpy, and float64 where it is told to. It
counts how often numbers go over to the CPU, each of which a real one waits for.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
MIXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class There(torch.Tensor):
    """A tensor that says it is on the pretended device."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        made = torch.Tensor._make_subclass(cls, inner, inner.requires_grad)
        made.inner = inner
        return made

    @property
    def device(self):
        return Accelerator.device

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.cpu:
                func, args = torch.Tensor.to, (args[0], "cpu")
            if func == torch.Tensor.data.__set__ and isinstance(args[1], There):
                args[0].inner = args[1].inner
            if func is not torch.Tensor.to:
                return func(*args, **kwargs)
            return _moved(args[0], args[1:], kwargs)

    def numpy(self, *args, **more):
        raise TypeError(f"can't convert {Accelerator.device} tensor to numpy")

    def tolist(self):
        return self.cpu().tolist()

    def __repr__(self, **more):
        return f"There({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def _moved(x, args, kwargs):
    """x.to(...), whose arguments may be tensors of either place."""
    like = next((a for a in args if isinstance(a, torch.Tensor)), None)
    if like is not None:
        args = tuple(v for a in args for v in ((like.device, like.dtype) if a is like else (a,)))
    places = [torch.device(a) for a in (*args, kwargs.get("device")) if isinstance(a, (str, torch.device))]
    if isinstance(x, There) and places:
        args = tuple(a for a in args if isinstance(a, torch.dtype))
        kwargs.pop("device", None)
        if places[0].type == "cpu":
            Accelerator.active.seen["cpu"] += 1
            x = _Back.apply(x)
    return x.to(*args, **kwargs)


class _Back(torch.autograd.Function):
    """To the CPU, with the gradient's way back."""

    @staticmethod
    def forward(ctx, x):
        return x.inner.clone()

    @staticmethod
    def backward(ctx, gradient):
        return There(gradient)


def run(func, args, kwargs):
    """The operation on the numbers; its results are where its arguments were, or where they were asked to be."""
    accelerator, kwargs = Accelerator.active, dict(kwargs)
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    asked = kwargs.get("device")
    elsewhere = asked is not None and torch.device(asked).type == Accelerator.device.type
    if elsewhere:
        kwargs["device"] = torch.device("cpu")
    kwargs.pop("pin_memory", None)
    here = [x for x in tensors if not isinstance(x, There) and x.dim()]
    if there and here and func not in COPIES | MIXED:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {Accelerator.device} and cpu")
    if func in MIXED - {aten.index_put.default} and not isinstance(args[0], There) and there:
        raise RuntimeError(f"{func}: indices should be either on cpu or on the same device as the indexed tensor")
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if func is aten._local_scalar_dense.default and there:
        accelerator.seen["item"] += 1
    if func in (aten.nonzero.default, aten.masked_select.default) and there:
        accelerator.seen["nonzero"] += 1
    if func is aten.copy_.default:
        if isinstance(args[1], There) and not isinstance(args[0], There):
            accelerator.seen["cpu"] += 1
        return args[0]
    if func._schema.is_mutable and there and isinstance(args[0], There) and isinstance(found, torch.Tensor):
        return args[0]
    stays = elsewhere or (bool(there) and asked is None)
    return tree_map(accelerator.put, found) if stays else found


def _inner(x):
    return x.inner if isinstance(x, There) else x


class _Made(TorchFunctionMode):
    """torch.tensor(..., device=there), which no dispatch sees."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        return func(*args, **kwargs)


class _Stream:
    """Whose work is done at once."""

    def record_event(self):
        return self

    def synchronize(self): ...


class Accelerator(TorchDispatchMode):
    """Within the context there is such a device, and `torch.accelerator` knows of it."""

    device = torch.device("mps:0")
    active: Accelerator

    def __init__(self, monkeypatch, doubles: bool = True):
        super().__init__()
        Accelerator.active, self.doubles, self.seen = self, doubles, Counter()
        monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        monkeypatch.setattr(torch.mps, "empty_cache", lambda: self.seen.update(["freed"]))
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_stream", lambda device=None: _Stream())
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: self.device)

    def __enter__(self):
        self.made = _Made()
        self.made.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.made.__exit__(*error)

    def put(self, x):
        if not isinstance(x, torch.Tensor) or isinstance(x, There):
            return x
        if x.dtype == torch.float64 and not self.doubles:
            raise TypeError(f"{self.device} has no float64")
        return There(x)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})
