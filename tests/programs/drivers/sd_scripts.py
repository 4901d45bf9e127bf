"""sd-scripts: create_network_from_weights and merge_to of its networks for SD, SDXL, FLUX and SD3."""

import sys

from common import Refused, main, stand_in, towers, weights

sys.path.insert(0, sys.argv[1])
stand_in(
    "cv2", "torchvision", "einops", "imagesize", "toml", "rich", "accelerate", "voluptuous", "ftfy", "bitsandbytes"
)

import torch
from safetensors.torch import load_file
from torch import nn

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux")


def network_of(family):
    if family == "flux":
        from networks import lora_flux

        return lora_flux
    if family == "sd3":
        from networks import lora_sd3

        return lora_sd3
    from networks import lora

    return lora


def apply(family, file, before):
    made = towers(family, before)
    encoders = [made[name] for name in sorted(made)]
    if family in ("sd3", "flux"):
        encoders += [None] * (3 - len(encoders)) if family == "sd3" else [None]
    given = encoders if len(encoders) > 1 else encoders[0]
    unet, tensors = nn.Module(), load_file(file)
    try:
        network, _ = network_of(family).create_network_from_weights(
            1.0, str(file), None, given, unet, for_inference=True
        )
        network.merge_to(given, unet, tensors, torch.float32, "cpu")
    except (KeyError, ValueError, AssertionError, RuntimeError) as error:
        raise Refused(f"{type(error).__name__}: {error}") from None
    return weights(made, before)


def version(checkout):
    import re

    found = re.search(r"Version (\d+\.\d+\.\d+)|v(\d+\.\d+\.\d+)", (checkout / "README.md").read_text(encoding="utf-8"))
    return (found.group(1) or found.group(2)) if found else "unknown"


if __name__ == "__main__":
    main(apply, version, FAMILIES)
