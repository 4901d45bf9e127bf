"""A short name for a set of weights: the same for a model and its fp16 variant, and not moved by active patches."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from ..stash import base_weight, sample


class Fingerprint:
    """sha256 over named weights rounded to fp16, 16 hex digits; each weight is read again only after it changes.

    PEFT fuses a LoRA through `weight.data`, which moves neither the memory nor torch's counter: a sample tells.
    """

    def __init__(self) -> None:
        self._digests: dict[str, tuple[tuple, str]] = {}

    def __call__(self, weights: dict[str, Tensor]) -> str:
        total = hashlib.sha256()
        for name, weight in sorted(weights.items()):
            total.update(f"{name}:{self._digest(name, weight)}\n".encode())
        return total.hexdigest()[:16]

    def _digest(self, name: str, weight: Tensor) -> str:
        unseen = weight.is_inference()  # such a tensor counts no changes: it is read each time
        state = (weight.data_ptr(), None if unseen else weight._version, weight.dtype, sample(weight))
        if unseen or self._digests.get(name, (None, ""))[0] != state:
            data = weight.detach().to("cpu", torch.float16).contiguous().numpy()
            digest = hashlib.sha256(repr(data.shape).encode())
            digest.update(data.tobytes())
            self._digests[name] = (state, digest.hexdigest())
        return self._digests[name][1]


def plain_weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, as they are without active patches and without PEFT's wrappers and LoRAs."""
    holders = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    stashed = {f"{name}.weight": base_weight(holder) for name, holder in holders.items()}
    named = {name: stashed.get(name, weight) for name, weight in module.named_parameters()}
    return {name.replace(".base_layer", ""): weight for name, weight in named.items() if "lora_" not in name}


def drawing_prints(pipe: Any, family: Any, fingerprint: Fingerprint, but: set[str] | None) -> dict[str, str]:
    """Of what a patch may change of what draws the pictures (cross-attention, the text's entrance); or, less the
    components `but`, of all their weights, loaded LoRAs among them."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    if but is not None:
        every = {n: {f"{n}.{k}": w for k, w in _all_weights(parts[n]).items()} for n in sorted(parts.keys() - but)}
        return {n: fingerprint(some) for n, some in every.items()}
    found: dict[str, str] = {}
    if "unet" in parts:
        read = {k: w for k, w in plain_weights(parts["unet"]).items() if ".attn2.to_" in k}
        found |= {"unet": fingerprint(read)} if read else {}
    if "transformer" in parts and family.entrance:
        name = f"{family.entrance}.weight"
        found["transformer"] = fingerprint({f"transformer.{name}": plain_weights(parts["transformer"])[name]})
    return found


def _all_weights(module: nn.Module) -> dict[str, Tensor]:
    return plain_weights(module) | {name: w for name, w in module.named_parameters() if "lora_" in name}
