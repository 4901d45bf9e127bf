"""What is known of each family of models: its text encoders, what they send to the generator, and the names of a LoRA.

Sites are the names that published files use, on every version of transformers:
    text_encoder.text_model.encoder.layers.9.mlp.fc2
    text_encoder_3.encoder.block.4.layer.1.DenseReluDense.wo
    unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k
"""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any, Literal

from .errors import ModelError, PatchError
from .family import EncoderRow, Family, headers
from .language import LANGUAGE
from .offered import Offered

Part = Literal["down", "up", "alpha"]
Style = Literal["kohya", "diffusers"]


_STABILITY = "https://github.com/Stability-AI/generative-models"
_FLUX = "https://github.com/black-forest-labs/flux"

# Key style by family: kohya's names load in diffusers, ComfyUI, A1111, Forge and sd-scripts, except that diffusers
# silently ignores them on SD3 (and some versions refuse them on FLUX); `lora_linear_layer` loads there.
# A1111 shows a LoRA under the model versions that ss_base_model_version and ss_v2 name.
BUILT_IN: dict[str, Family] = {
    "sd1": Family(
        "sd1",
        "Stable Diffusion 1.x",
        (EncoderRow("text_encoder", "last", False, "lora_te"),),
        "kohya",
        headers("stable-diffusion-v1", ss_base_model_version="sd_v1", ss_v2="False"),
    ),
    "sd2": Family(
        "sd2",
        "Stable Diffusion 2.x",
        (EncoderRow("text_encoder", "last", False, "lora_te"),),
        "kohya",
        headers("stable-diffusion-v2-768-v", ss_base_model_version="sd_v2", ss_v2="True"),
    ),
    "sdxl": Family(
        "sdxl",
        "Stable Diffusion XL",
        (
            EncoderRow("text_encoder", "penultimate", False, "lora_te1"),
            EncoderRow("text_encoder_2", "penultimate", True, "lora_te2", projected=True),
        ),
        "kohya",
        headers("stable-diffusion-xl-v1-base", _STABILITY, ss_base_model_version="sdxl_base_v1-0", ss_v2="False"),
    ),
    "sd3": Family(
        "sd3",
        "Stable Diffusion 3.x",
        (
            EncoderRow("text_encoder", "penultimate", True, "lora_te1", projected=True),
            EncoderRow("text_encoder_2", "penultimate", True, "lora_te2", projected=True),
            EncoderRow("text_encoder_3", "last", False, "lora_te3", kind="t5", length=256, padding=True),
        ),
        "diffusers",
        headers("stable-diffusion-v3-medium"),
        note="T5 reads the prompt too, and an edit of the CLIP encoders leaves what T5 knows as it is.",
        transformer="SD3Transformer2DModel",
    ),
    "flux": Family(
        "flux",
        "FLUX.1",
        (
            EncoderRow("text_encoder", "none", True, "lora_te1"),
            EncoderRow("text_encoder_2", "last", False, "lora_te3", kind="t5", length=512, padding=True),
        ),
        "diffusers",
        headers("flux-1-dev", _FLUX, ss_base_model_version="flux1"),
        note="CLIP gives only one pooled vector; the words come from T5, and an edit of CLIP leaves what T5 knows.",
        transformer="FluxTransformer2DModel",
    ),
    "clip": Family(
        "clip",
        "a CLIP text encoder",
        (
            EncoderRow("text_encoder", "last", True, "lora_te"),
            EncoderRow("text_encoder_2", "last", True, "lora_te2"),
            EncoderRow("text_encoder_3", "last", True, "lora_te3"),
        ),
        "kohya",
        headers("clip"),
        note="Only the CLIP text encoder is known here; what its generator reads of it is not.",
    ),
} | LANGUAGE


GROUP = "refact.families"


def _wrong(point: EntryPoint, family: Any) -> str:
    fits = isinstance(family, Family) and family.name == point.name
    return "" if fits else "a refact.families.Family of that name"


FAMILIES: Offered[Family] = Offered(GROUP, BUILT_IN, ModelError, _wrong)


# -- which family -----------------------------------------------------------------------------------------------------


def detect(model_index: dict, text_encoder_config: dict | None = None) -> Family:
    """The family of a pipeline, from the components its model_index.json lists; only encoders that are there.

    model_index: {} for a bare CLIP folder. text_encoder_config: tells SD 1.x from 2.x (by the activation: OpenCLIP's
    is gelu, CLIP-L's quick_gelu) and a bare CLIP from anything else. Raises ModelError for what cannot be edited.
    """
    config = text_encoder_config or {}
    classes = {name: entry[1] for name, entry in model_index.items() if isinstance(entry, list) and entry[1:]}
    encoders = {name: _kind(cls) for name, cls in classes.items() if name.startswith("text_encoder")}
    if not model_index and str(config.get("model_type", "")).startswith("clip"):
        encoders = {"text_encoder": "clip"}
    name = _family_name(classes, encoders, config)
    rows = [row for row in FAMILIES[name].encoders if encoders.get(row.name) == row.kind] if name else []
    if not rows:
        raise ModelError(_unsupported(model_index, classes, config))
    if "Sigma" in str(model_index.get("_class_name")):
        rows = [replace(row, length=300) for row in rows]  # PixArt-Sigma reads longer prompts than PixArt-Alpha
    return replace(FAMILIES[name], encoders=tuple(rows))


DECODERS = re.compile(
    r"(Qwen2|Qwen3|Llama|Mistral|Gemma2?|Gemma3(Text)?)(Model|ForCausalLM)"
    r"|(Qwen2_5_VL|Qwen2VL|Mistral3|Gemma3)(Model|ForConditionalGeneration)"
)


def _kind(cls: str | None) -> str:
    known = {"CLIPTextModel": "clip", "CLIPTextModelWithProjection": "clip", "T5EncoderModel": "t5"}
    return known.get(cls or "", "decoder" if DECODERS.fullmatch(cls or "") else "")


def _family_name(classes: dict, encoders: dict, config: dict) -> str:
    """The name in the table; "" where nothing fits."""
    transformer = classes.get("transformer")
    by_transformer = {family.transformer: name for name, family in FAMILIES.items() if family.transformer}
    if transformer in by_transformer:
        dev = transformer == "Flux2Transformer2DModel" and str(classes.get("text_encoder")).startswith("Mistral3")
        return "flux2" if dev else by_transformer[transformer]
    if "clip" not in encoders.values():
        return ""
    if not classes.get("unet"):
        return "clip"
    if encoders.get("text_encoder_2") == "clip":
        return "sdxl"
    return "sd2" if config.get("hidden_act", "quick_gelu") == "gelu" else "sd1"


def _unsupported(model_index: dict, classes: dict, config: dict) -> str:
    found = ", ".join(
        f"{name}: {cls}" for name, cls in classes.items() if name.startswith(("text_enc", "unet", "tran"))
    )
    name = model_index.get("_class_name") or config.get("architectures") or config.get("model_type") or "this model"
    supported = ", ".join(family.title for family in FAMILIES.values())
    return f"{name} has no text encoder that is known here (found {found or 'none'}); supported: {supported}"


# -- sites and keys ---------------------------------------------------------------------------------------------------

_CLIP = r"encoder\.layers\.(?P<layer>\d+)\.mlp\.fc2"
_T5 = r"encoder\.block\.(?P<layer>\d+)\.layer\.1\.DenseReluDense\.wo"
_DECODER = r"layers\.(?P<layer>\d+)\.mlp\.down_proj"
_ENTRANCE = (
    r"(?:cap_embedder\.1|context_embedder|txt_in|time_caption_embed\.caption_embedder\.1"
    r"|caption_projection\.(?:\d+\.)?linear(?:_1)?)"
)
_UNET = r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.attentions\.\d+\.transformer_blocks\.\d+\.attn2\.to_[kv]"
_MIXED = r"encoder\.layers\.(?P<mixed>\d+)\.self_attn\.out_proj"  # of DiffQuickFix
_WORDS = r"embeddings\.token_embedding"  # of EmbEdit; no other program reads a LoRA of it
_TOWER = rf"{_CLIP}|{_MIXED}|{_WORDS}"
_SITES = [
    rf"(?P<clip>text_encoder(?:_[23])?)\.text_model\.(?:{_TOWER})",
    rf"(?P<t5>text_encoder(?:_[23])?)\.{_T5}",
    rf"(?P<decoder>text_encoder(?:_4)?)\.model\.{_DECODER}",
    rf"transformer\.(?P<entrance>{_ENTRANCE})",
    rf"(?P<unet>unet\.{_UNET})",
]
_SITE = re.compile(re.sub(r"\(\?P<(?:layer|mixed)>", "(?:", "|".join(_SITES)))


def _underscored(pattern: str) -> str:
    return pattern.replace(r"\.", "_")


# Every way of writing a stem that other tools are known to use; named groups say where the encoder is found.
_STEMS = [
    re.compile(rf"lora_te(?P<te>[123]?)_(?:text_model_)?{_underscored(_CLIP)}"),
    re.compile(rf"lora_te(?P<te5>[123])_{_underscored(_T5)}"),
    re.compile(rf"lora_unet_(?P<unet>{_underscored(_UNET)})"),
    re.compile(rf"lora_te(?P<te>[123]?)_(?:text_model_)?{_underscored(_MIXED)}"),
    re.compile(rf"(?P<component>text_encoder(?:_[23])?)\.(?:text_model\.)?{_CLIP}"),
    re.compile(rf"(?P<component>text_encoder(?:_[23])?)\.(?:text_model\.)?{_MIXED}"),
    re.compile(rf"lora_te(?P<te>[123]?)_text_model_(?P<words>{_underscored(_WORDS)})"),
    re.compile(rf"(?P<component>text_encoder(?:_[23])?)\.text_model\.(?P<words>{_WORDS})"),
    re.compile(rf"(?P<component5>text_encoder(?:_[23])?)\.{_T5}"),
    re.compile(rf"unet\.(?P<unet>{_UNET})"),
    re.compile(rf"base_model\.model\.(?:text_model\.)?{_CLIP}"),  # an adapter that PEFT saved from a bare encoder
    re.compile(rf"text_encoders\.(?P<comfy>clip_[lgh])\.transformer\.text_model\.{_CLIP}"),
    re.compile(rf"text_encoders\.(?P<comfy5>t5xxl)\.transformer\.{_T5}"),
    re.compile(rf"(?P<decoder>text_encoders\.(?:(?P<name>\w+)\.)?transformer)\.model\.{_DECODER}"),
    re.compile(rf"(?P<decoder>(?P<name>text_encoder(?:_4)?))\.(?:model\.)?(?:language_model\.)?{_DECODER}"),
    re.compile(rf"(?P<decoder>lora_te)_(?:model_)?{_underscored(_DECODER)}"),
    re.compile(rf"(?P<decoder>base_model\.model)\.(?:model\.)?(?:language_model\.)?(?:model\.)?{_DECODER}"),
    re.compile(rf"transformer\.(?P<entrance>{_ENTRANCE})"),
]
_SUFFIXES: dict[str, Part] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
}


def lora_keys(family: Family, site: str, style: Style | None = None) -> tuple[str, str, str | None]:
    """The names under which a LoRA of this family keeps the site's (down, up, alpha); alpha is None where none is kept.

    style: by default the family's own. In diffusers' style T5 keeps kohya's stem with the suffix of
    `lora_linear_layer`: ComfyUI reads it, and diffusers, which has no LoRA for T5, then still loads the CLIP part of
    the file (a `.lora_down.weight` in it makes diffusers drop that part). A decoder has ComfyUI's own name for its
    weight; the entrance of a transformer has PEFT's, which both read.
    """
    kohya = (style or family.style) == "kohya"
    match = _SITE.fullmatch(site)
    rows = {row.name: row for row in family.encoders}
    component, path = site.split(".", 1) if "." in site else (site, "")
    row = rows.get(component)
    kind = "" if match is None else str(match.lastgroup)
    if kind == "unet" and family.style == "kohya":  # the families that have a UNet
        return _kohya(f"lora_unet_{path}") if kohya else (f"{site}.lora_A.weight", f"{site}.lora_B.weight", None)
    if kind == "entrance" and family.entrance:
        return f"{site}.lora_A.weight", f"{site}.lora_B.weight", None
    if row is None or row.kind != kind:
        sites = ", ".join(f"{r.name} ({_LINEARS[r.kind]})" for r in family.encoders)
        raise PatchError(
            f"{site!r} is no site of {family.title}: its sites are the second matrices and, of a CLIP, the "
            f"self_attn.out_proj of {sites}"
        )
    if kind == "decoder":
        stem = f"{row.prefix}.{path}"
        return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"
    if kohya and (kind == "clip" or style):
        return _kohya(f"{row.prefix}_{path}")
    return _linear_layer(f"{row.prefix}_{path.replace('.', '_')}" if kind == "t5" else site)


_LINEARS = {"clip": "fc2", "t5": "wo", "decoder": "down_proj"}


def _kohya(stem: str) -> tuple[str, str, str]:
    stem = stem.replace(".", "_")
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def _linear_layer(stem: str) -> tuple[str, str, None]:
    return f"{stem}.lora_linear_layer.down.weight", f"{stem}.lora_linear_layer.up.weight", None


def site_of(key: str, family: str | None = None) -> tuple[str, Part] | None:
    """(site, part) of a tensor's name in any style that is known; None for all other names.

    family: decides which encoder a T5 name of FLUX means (text_encoder_2, elsewhere text_encoder_3).
    """
    for suffix, part in _SUFFIXES.items():
        if key.endswith(suffix):
            for pattern in _STEMS:
                if match := pattern.fullmatch(key.removesuffix(suffix)):
                    return _site(match, family), part
    return None


def _site(match: re.Match, family: str | None) -> str:
    found = match.groupdict()
    if found.get("unet"):
        return f"unet.{_dotted(found['unet'])}"
    if found.get("entrance"):
        return f"transformer.{found['entrance']}"
    if found.get("decoder"):
        fourth = family == "hidream" or found.get("name") in {"llama", "text_encoder_4"}
        return f"text_encoder{'_4' if fourth else ''}.model.layers.{found['layer']}.mlp.down_proj"
    if found.get("te5") or found.get("component5") or found.get("comfy5"):
        number = "" if family == "pixart" or found.get("te5") == "1" else "_2" if family == "flux" else "_3"
        component = found.get("component5") or f"text_encoder{'_2' if found.get('te5') == '2' else number}"
        return f"{component}.encoder.block.{found['layer']}.layer.1.DenseReluDense.wo"
    second = {"2": "_2", "3": "_3", "clip_g": "_2"}.get(found.get("te") or found.get("comfy") or "", "")
    component = found.get("component") or f"text_encoder{second}"
    if found.get("mixed"):
        return f"{component}.text_model.encoder.layers.{found['mixed']}.self_attn.out_proj"
    if found.get("words"):
        return f"{component}.text_model.embeddings.token_embedding"
    return f"{component}.text_model.encoder.layers.{found['layer']}.mlp.fc2"


def _dotted(name: str) -> str:
    """down_blocks_0_attentions_1_..._attn2_to_k -> down_blocks.0.attentions.1.....attn2.to_k."""
    words = "down_blocks|mid_block|up_blocks|transformer_blocks|to_[kv]"
    return ".".join(re.findall(rf"{words}|[^_.]+", name))


def on_disk(key: str) -> str:
    """A weight's name as published files have it: transformers >= 5.6 leaves `text_model.` out of CLIPTextModel's."""
    flat = ("encoder.layers.", "embeddings.", "final_layer_norm.")
    return f"text_model.{key}" if key.startswith(flat) else key
