"""A1111: load_network and network_apply_weights of its Lora extension, on modules with the names of its models."""

import sys

from common import Refused, main, stand_in

sys.path.insert(0, f"{sys.argv[1]}/extensions-builtin/Lora")
stand_in("!modules", "!gradio")

import modules.devices as devices
import modules.models.sd3.mmdit as mmdit
import modules.sd_models as sd_models
import modules.shared as shared
import torch
from safetensors.torch import load_file
from torch import nn

devices.cpu, devices.dtype = torch.device("cpu"), torch.float32
mmdit.QkvLinear = type("QkvLinear", (nn.Linear,), {})
shared.cmd_opts = type("Options", (), {"lora_dir": sys.argv[2], "lyco_dir_backcompat": sys.argv[2]})()
shared.walk_files = lambda *_, **__: []
sd_models.read_state_dict = lambda filename: load_file(filename)

import network
import networks

PATHS = {  # where each program's model keeps the fc2 of a layer
    "sd1": {"text_encoder": "transformer.text_model.encoder.layers.{}.mlp.fc2"},
    "sd2": {"text_encoder": "model.transformer.resblocks.{}.mlp.c_proj"},
    "sdxl": {
        "text_encoder": "transformer.text_model.encoder.layers.{}.mlp.fc2",
        "text_encoder_2": "model.transformer.resblocks.{}.mlp.c_proj",
    },
}


def tree(linears):
    """A module that has these modules at these dotted names."""
    root = nn.Module()
    for name, linear in linears.items():
        at = root
        for part in name.split(".")[:-1]:
            if part not in dict(at.named_children()):
                at.add_module(part, nn.Module())
            at = getattr(at, part)
        at.add_module(name.split(".")[-1], linear)
    return root


def model_of(family, before):
    linears, wrapped = {}, {}
    for site, weight in before.items():
        component, layer = site.partition(".")[0], site.split(".")[4]
        linear = linears[site] = nn.Linear(weight.shape[1], weight.shape[0], bias=False).requires_grad_(False)
        linear.weight.data = weight.clone()
        wrapped.setdefault(component, {})[PATHS[family][component].format(layer)] = linear
    encoders = [type("Wrapper", (), {"wrapped": tree(wrapped[name])})() for name in sorted(wrapped)]
    model = type("Model", (), {})()
    model.is_sdxl, model.model, model.cond_stage_model = family == "sdxl", nn.Module(), encoders[0]
    model.conditioner = type("Conditioner", (), {"embedders": encoders})()
    return model, linears


def apply(family, file, before):
    shared.sd_model, linears = model_of(family, before)
    networks.assign_network_names_to_compvis_modules(shared.sd_model)
    on_disk = type("OnDisk", (), {"filename": str(file)})()
    try:
        net = networks.load_network(file.stem, on_disk)
    except (AssertionError, KeyError, ValueError) as error:
        raise Refused(f"{type(error).__name__}: {error}") from None
    networks.loaded_networks[:] = [net]
    for linear in linears.values():
        networks.network_apply_weights(linear)
    return {site: linear.weight.detach().clone() for site, linear in linears.items()}


def version(checkout):
    import re

    return re.search(r"^## (\S+)", (checkout / "CHANGELOG.md").read_text(encoding="utf-8"), re.M).group(1)


if __name__ == "__main__":
    assert network.Network
    main(apply, version, tuple(PATHS))
