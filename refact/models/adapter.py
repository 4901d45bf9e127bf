"""A patch as PEFT adapters, which a live text encoder takes by its own `load_adapter`.

The pipelines of the families in `language.py` load LoRAs into their transformer only, so this is how a patch gets into
their text encoders without this package. Names follow the class of the model's own encoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from ..encoders.encoder import TextEncoder
from ..errors import PatchError
from ..patch import Patch
from ..trust.disk import write
from .model import Model


def save_adapter(patch: Patch, model: Model, folder: str | Path) -> list[Path]:
    """Write FOLDER/<text encoder>, an adapter for each text encoder that the patch changes; the folders written.

    `pipe.text_encoder.load_adapter(FOLDER/text_encoder)` loads one, `delete_adapter` takes it out. Raises PatchError
    where the patch changes something else, or was made for another model.
    """
    if mismatch := patch.mismatch(model):
        raise PatchError(f"made for {patch.record['model']['name']}, not for {model.name}: {'; '.join(mismatch)}")
    components = sorted({site.partition(".")[0] for site in patch.factors})
    if strange := [name for name in components if name not in model.encoders]:
        raise PatchError(f"an adapter is for a text encoder that is loaded, and this patch changes the {strange[0]}")
    return [_one(patch, model, model.encoders[name], Path(folder) / name) for name in components]


def _one(patch: Patch, model: Model, encoder: TextEncoder, folder: Path) -> Path:
    names = {id(module): name for name, module in encoder.module.named_modules()}
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for site, (left, right) in patch.factors.items():
        if site.partition(".")[0] != encoder.name:
            continue
        if not isinstance(linear := model[site], nn.Linear):
            raise PatchError(f"a PEFT adapter changes matrices of layers only, and this patch changes {site}")
        name = names[id(linear)].removesuffix(".base_layer")
        tensors[f"base_model.model.{name}.lora_A.weight"] = right.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = left.contiguous()
        ranks[name] = len(right)
    most = max(ranks.values())
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    config |= {"r": most, "lora_alpha": most, "rank_pattern": ranks, "alpha_pattern": ranks}
    config |= {"inference_mode": True, "target_modules": sorted(ranks), "bias": "none", "lora_dropout": 0.0}
    write(folder / "adapter_config.json", json.dumps(config, indent=1).encode())
    write(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    return folder
