"""InvokeAI: it recognises the file (LoRA configs of the model manager), converts it, and patches the text encoder."""

import sys

from common import Refused, main, stand_in, towers, weights

sys.path.insert(0, sys.argv[1])
LIBRARIES = "bitsandbytes compel gguf mediapipe onnx onnxruntime cv2 imageio spandrel torchsde torchvision fastapi"
LIBRARIES += " fastapi_events pydantic_settings socketio uvicorn blake3 bcrypt dns dynamicprompts einops"
LIBRARIES += " picklescan semver omegaconf accelerate psutil tqdm pywavelets requests python_multipart prompt_toolkit"
stand_in(*LIBRARIES.split())

import torch
from safetensors.torch import load_file

PREFIXES = {
    "sd1": {"text_encoder": "lora_te_"},
    "sd2": {"text_encoder": "lora_te_"},
    "sdxl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
}


def recognised(file):
    """The base model that the model manager takes the file for. Refused where it takes it for none."""
    import invokeai.backend.model_manager.load  # noqa: F401  first, as the application does: else imports go round
    from invokeai.backend.model_manager.configs import lora
    from invokeai.backend.model_manager.model_on_disk import ModelOnDisk

    kinds = {
        "sd1": lora.LoRA_LyCORIS_SD1_Config,
        "sd2": lora.LoRA_LyCORIS_SD2_Config,
        "sdxl": lora.LoRA_LyCORIS_SDXL_Config,
        "flux": lora.LoRA_LyCORIS_FLUX_Config,
    }
    found, whys = [], []
    for family, kind in kinds.items():
        mod = ModelOnDisk(file)
        try:
            kind._validate_looks_like_lora(mod)
            kind._validate_base(mod)
            found.append(family)
        except lora.NotAMatchError as error:
            whys.append(str(error))
    if not found:
        raise Refused(whys[0])
    return found


def converted(family, file):
    from invokeai.backend.patches.lora_conversions import flux_kohya_lora_conversion_utils as flux
    from invokeai.backend.patches.lora_conversions.flux_diffusers_lora_conversion_utils import (
        is_state_dict_likely_in_flux_diffusers_format,
    )
    from invokeai.backend.patches.lora_conversions.sd_lora_conversion_utils import lora_model_from_sd_state_dict
    from invokeai.backend.patches.lora_conversions.sdxl_lora_conversion_utils import (
        convert_sdxl_keys_to_diffusers_format,
    )

    tensors = load_file(file)
    if family == "flux":
        assert not is_state_dict_likely_in_flux_diffusers_format(state_dict=tensors)
        return flux.lora_model_from_flux_kohya_state_dict(state_dict=tensors)
    if family == "sdxl":
        tensors = convert_sdxl_keys_to_diffusers_format(tensors)
    return lora_model_from_sd_state_dict(state_dict=tensors)


def apply(family, file, before):
    base = recognised(file)
    if base != [family]:
        raise Refused(f"taken for {', '.join(base)}")
    from invokeai.backend.patches.layer_patcher import LayerPatcher
    from invokeai.backend.patches.lora_conversions.flux_lora_constants import FLUX_LORA_CLIP_PREFIX

    made, lora = towers(family, before), converted(family, file)
    prefixes = PREFIXES.get(family) or {"text_encoder": FLUX_LORA_CLIP_PREFIX}
    with torch.no_grad():
        for name, module in made.items():
            LayerPatcher.apply_smart_model_patch(
                model=module, prefix=prefixes[name], patch=lora, patch_weight=1.0, **rest()
            )
    return weights(made, before)


def rest():
    import inspect

    from invokeai.backend.patches.layer_patcher import LayerPatcher
    from invokeai.backend.util.original_weights_storage import OriginalWeightsStorage

    have = inspect.signature(LayerPatcher.apply_smart_model_patch).parameters
    given = {
        "original_weights": OriginalWeightsStorage(),
        "original_modules": {},
        "dtype": torch.float32,
        "force_direct_patching": True,
        "force_sidecar_patching": False,
    }
    return {key: value for key, value in given.items() if key in have}


def version(checkout):
    import re

    text = (checkout / "invokeai" / "version" / "invokeai_version.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "(.*?)"', text).group(1)


if __name__ == "__main__":
    main(apply, version, ("sd1", "sd2", "sdxl", "flux"))
