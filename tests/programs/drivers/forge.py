"""Forge: its key maps, load_lora and merge_lora_to_weight, on the names that its text encoders have."""

import sys

from common import Refused, main, stand_in

sys.argv, given = sys.argv[:1], sys.argv
sys.path.insert(0, given[1])
stand_in("gguf", "psutil", "einops", "diffusers", "huggingface_hub", "torchvision", "bitsandbytes")

import torch

torch.cuda.is_available = lambda: False
from backend.args import args

args.always_cpu = True
from backend.patcher.lora import load_lora, merge_lora_to_weight, model_lora_keys_clip
from safetensors.torch import load_file

sys.argv = given
PARTS = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g"), "sd3": ("clip_l", "clip_g")}
PARTS |= {"flux": ("clip_l",)}


class Encoders:
    """What Forge asks of its text encoders here: their weights by name."""

    def __init__(self, family, before):
        self.names = {}
        for site in before:
            component, _, path = site.partition(".")
            part = PARTS[family][component == "text_encoder_2"]
            self.names[f"{part}.transformer.{path}.weight"] = site
        self.before = before

    def state_dict(self):
        return {name: self.before[site].clone() for name, site in self.names.items()}


def apply(family, file, before):
    encoders = Encoders(family, before)
    try:
        patches, _ = load_lora(load_file(file), model_lora_keys_clip(encoders, {}))
    except (KeyError, ValueError, RuntimeError) as error:
        raise Refused(f"{type(error).__name__}: {error}") from None
    found = {}
    for name, site in encoders.names.items():
        weight = before[site].clone()
        if name in patches:
            weight = merge_lora_to_weight([[1.0, patches[name], 1.0, None, None]], weight, name)
        found[site] = weight.clone()
    return found


def version(checkout):
    import re

    text = (checkout / "modules_forge" / "forge_version.py").read_text(encoding="utf-8")
    return re.search(r"version = ['\"](.*?)['\"]", text).group(1)


if __name__ == "__main__":
    main(apply, version, tuple(PARTS))
