"""ComfyUI: its text-encoder classes, load_lora_for_models (what the node LoraLoader calls) and ModelPatcher."""

import sys

from common import main, reading, stand_in

sys.argv, given = sys.argv[:1], sys.argv
sys.path.insert(0, given[1])
stand_in("torchsde", "einops", "av", "torchaudio", "kornia", "spandrel", "alembic", "sqlalchemy")
stand_in(
    "comfy_aimdo", "aiohttp", "yaml", "scipy", "torchvision", "simpleeval", "blake3", "soundfile", "pydantic_settings"
)

import torch

torch.cuda.is_available = lambda: False
from comfy.cli_args import args

args.cpu = True
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.flux
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import comfy.utils

sys.argv = given
PARTS = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g"), "sd3": ("clip_l", "clip_g")}
PARTS |= {"flux": ("clip_l",)}
CLASSES = {
    "sd1": lambda: comfy.sd1_clip.SD1ClipModel,
    "sd2": lambda: comfy.text_encoders.sd2_clip.SD2ClipModel,
    "sdxl": lambda: comfy.sdxl_clip.SDXLClipModel,
    "sd3": lambda: comfy.text_encoders.sd3_clip.sd3_clip(dtype_t5=torch.float16),
    "flux": lambda: comfy.text_encoders.flux.flux_clip(dtype_t5=torch.float16),
}
MODELS = {}


def opened(family, before):
    if family not in MODELS:
        MODELS.clear()
        model = CLASSES[family]()(device="cpu", dtype=torch.float32)
        clip = comfy.sd.CLIP(no_init=True)
        clip.cond_stage_model, clip.tokenizer, clip.layer_idx = model, None, None
        clip.use_clip_schedule, clip.apply_hooks_to_conds, clip.tokenizer_options = False, None, {}
        cpu = torch.device("cpu")
        clip.patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
        MODELS[family] = clip
    clip = MODELS[family]
    for site, weight in before.items():
        module(clip, family, site).weight.data = weight.clone()
    return clip


def module(clip, family, site):
    component, _, path = site.partition(".")
    part = PARTS[family][component == "text_encoder_2"]
    return clip.cond_stage_model.get_submodule(f"{part}.transformer.{path}")


def apply(family, file, before):
    clip = opened(family, before)
    lora = comfy.utils.load_torch_file(str(file), safe_load=True)
    _, changed = comfy.sd.load_lora_for_models(None, clip, lora, 1.0, 1.0)
    changed.patcher.patch_model()
    found = {site: module(clip, family, site).weight.detach().clone() for site in before}
    changed.patcher.unpatch_model()
    assert all(torch.equal(module(clip, family, site).weight, weight) for site, weight in before.items())
    return found


if __name__ == "__main__":
    main(apply, reading("comfyui_version.py", r'__version__ = "(.*?)"'), tuple(PARTS))
