"""SD.Next: its native loader, load_safetensors, and the change that each matched module computes."""

import sys

from common import Refused, linear, main, stand_in, towers

sys.path.insert(0, sys.argv[1])
NAMES = "shared errors sd_models sd_models_compile files_cache devices logger hashes cache sd_checkpoint model_quant"
stand_in(*(f"!modules.{name}" for name in [*NAMES.split(), "json_helpers", "modelstats", "processing"]))
stand_in("rich", "installer", "torchvision", "gradio", "einops", "bitsandbytes", "nncf")

import modules.devices as devices
import modules.sd_models as sd_models
import modules.shared as shared
import torch
from safetensors.torch import load_file
from torch import nn

devices.cpu = devices.device = torch.device("cpu")
sd_models.read_state_dict = lambda filename, what=None: load_file(filename)
shared.sd_loaded = True

from modules.lora import lora_load

TYPES = {"sd1": "sd", "sd2": "sd", "sdxl": "sdxl", "sd3": "sd3", "flux": "f1"}


def apply(family, file, before):
    made = towers(family, before)
    pipe = type("Pipeline", (), {})()
    for name, module in made.items():
        setattr(pipe, name, module)
    if family == "flux":
        pipe.text_encoder_2 = nn.Module()  # T5: what tells SD.Next that CLIP is the first of two
    shared.sd_model, shared.sd_model_type = pipe, TYPES[family]
    lora_load.lora_cache.clear()
    on_disk = type("OnDisk", (), {"filename": str(file)})()
    try:
        net = lora_load.load_safetensors(file.stem, on_disk)
    except (AssertionError, KeyError, ValueError, AttributeError, RuntimeError) as error:
        raise Refused(f"{type(error).__name__}: {error}") from None
    found = {site: weight.clone() for site, weight in before.items()}
    if net is None:
        return found
    net.te_multiplier = net.unet_multiplier = net.dyn_dim = 1.0
    net.dyn_dim = None
    for site in before:
        module = net.modules.get(linear(made[site.partition(".")[0]], site).network_layer_name)
        if module is not None:
            found[site] += module.calc_updown(before[site])[0]
    return found


def version(checkout):
    import re

    found = re.search(r"^## Update for (\S+)", (checkout / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    return found.group(1) if found else "unknown"


if __name__ == "__main__":
    main(apply, version, tuple(TYPES))
