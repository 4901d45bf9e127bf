"""OneTrainer: its conversion of a foreign file's names, and LoRAModuleWrapper, which trains on from it."""

import sys

from common import Refused, linear, main, stand_in, towers

sys.path.insert(0, sys.argv[1])
stand_in(
    "parse",
    "torchvision",
    "einops",
    "cv2",
    "mgds",
    "bitsandbytes",
    "optimum",
    "customtkinter",
    "scalene",
    "dadaptation",
)
stand_in(
    "!modules.util.config.TrainConfig", "gguf", "tqdm", "!modules.util.quantization_util", "!modules.module.quantized"
)
stand_in(
    "!modules.util.ModuleFilter", "!modules.module.FusedModule", "!modules.module.oft_utils", "!modules.util.lokr_utils"
)

import torch
from modules.module import LoRAModule as lora_module
from modules.util.enum.ModelType import PeftType
from modules.util.load_lora_util import lora_module_names, normalize_various, to_canonical
from safetensors.torch import load_file
from torch import nn

PREFIXES = {"sd1": "lora_te", "sd2": "lora_te"}
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")
lora_module.get_weight_shape = lambda module: module.weight.shape
lora_module.get_unquantized_weight = lambda module, *_: module.weight


class Config:
    """The settings that the wrapper reads."""

    peft_type, lora_rank, lora_alpha, lokr_dim = PeftType.LORA, 2, 1.0, 1
    layer_filter_regex = lora_decompose = lora_decompose_norm_epsilon = lora_decompose_output_axis = False
    train_device = "cpu"


def canonical(family, tensors, made):
    component = "unet" if family in ("sd1", "sd2", "sdxl") else "transformer"
    names = {name: (PREFIXES.get(family) or f"lora_te{1 + at}") for at, name in enumerate(sorted(made))}
    return to_canonical(
        normalize_various(tensors),
        component=component,
        original_conversion=None,
        comfy_conversion=None,
        fusion_groups=None,
        text_encoders=list(names.items()),
        legacy_conversion=None,
        kohya_conversion=None,
        module_names={component: lora_module_names(nn.Module())}
        | {name: lora_module_names(module) for name, module in made.items()},
        comfy_te_prefixes={},
    )


def apply(family, file, before):
    made = towers(family, before)
    try:
        state = canonical(family, load_file(file), made)
        found = {}
        for name, module in made.items():
            wrapper = lora_module.LoRAModuleWrapper(module, name, Config())
            wrapper.load_state_dict(state)
            for site in before:
                if site.startswith(f"{name}."):
                    found[site] = before[site] + change(wrapper, linear(module, site), site)
    except (KeyError, ValueError, RuntimeError) as error:
        raise Refused(f"{type(error).__name__}: {error}") from None
    return found


def change(wrapper, original, site):
    """What OneTrainer's module adds to this Linear's weight: read off its own forward, on the unit vectors."""
    (mine,) = [one for one in wrapper.lora_modules.values() if one.orig_module is original]
    if not isinstance(mine, lora_module.LoRAModule) or getattr(mine, "lora_up", None) is None:
        return torch.zeros_like(original.weight)
    with torch.no_grad():
        scale = float(mine.alpha) / mine.rank
        return mine.lora_up.weight @ mine.lora_down.weight * scale


def version(checkout):
    return checkout.absolute().name  # it states none: name the folder after the commit


if __name__ == "__main__":
    main(apply, version, FAMILIES)
