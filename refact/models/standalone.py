"""A text encoder's own file, such as ComfyUI's clip_l.safetensors, clip_g.safetensors and t5xxl_fp16.safetensors.

Its names are those of transformers or of OpenCLIP, with or without the prefix of a whole checkpoint; its shape is read
from its tensors, unless a folder with a config.json says more. CLIP's tokenizer is in this package; T5's is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import ModelError
from ..families import EncoderRow
from . import tokenizers

# The second matrix of the first MLP, by which the kind of names is told, after any prefix.
_MARKS = {
    "clip": re.compile(r"(?P<prefix>.*?)(?:text_model\.)?encoder\.layers\.0\.mlp\.fc2\.weight"),
    "open_clip": re.compile(r"(?P<prefix>.*?)transformer\.resblocks\.0\.mlp\.c_proj\.weight"),
    "t5": re.compile(r"(?P<prefix>.*?)encoder\.block\.0\.layer\.1\.DenseReluDense\.wo\.weight"),
}
_PICTURES = re.compile(r"visual\.|(?:.*\.)?visual\.|(?:.*\.)?vision_model\.")  # the other tower of a whole CLIP
_GENERATORS = re.compile(
    r"(?:model\.diffusion_model|unet|transformer_blocks|double_blocks|joint_blocks|first_stage_model|vae)\."
)
OPENAI_WIDTH = 768  # CLIP-L, in every family the one of OpenAI: quick_gelu, padded with [EOS]
BIG_WIDTH = 1280  # OpenCLIP bigG, in every family the second encoder


def form_of(path: Path) -> tuple[str, str] | None:
    """("clip", "open_clip" or "t5", the prefix of its names) of a file with one text encoder; None for any other."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: no safetensors file: {error}") from None
    if any(_GENERATORS.match(name) for name in names):
        return None
    found = [
        (kind, match["prefix"])
        for name in names
        if not _PICTURES.match(name)
        for kind, mark in _MARKS.items()
        if (match := mark.fullmatch(name))
    ]
    return found[0] if len(found) == 1 else None


def width_of(path: Path) -> int:
    """The width of the encoder's states."""
    kind, prefix = _form(path)
    tail = {"clip": "final_layer_norm.weight", "open_clip": "ln_final.weight", "t5": "final_layer_norm.weight"}[kind]
    with safe_open(path, "pt") as file:
        names = [n for n in file.keys() if n.startswith(prefix) and n.endswith(tail) and ".layers." not in n]  # noqa: SIM118
        widths = {file.get_slice(name).get_shape()[0] for name in names if not _PICTURES.match(name)}
    if len(widths) != 1:
        raise ModelError(f"{path.name}: a text encoder's {tail} is missing")
    return widths.pop()


def _form(path: Path) -> tuple[str, str]:
    if (form := form_of(path)) is None:
        raise ModelError(f"{path.name} is not the file of one text encoder")
    return form


def kind_of(path: Path) -> str:
    """ "clip" or "t5"."""
    return "t5" if _form(path)[0] == "t5" else "clip"


def read(path: Path, row: EncoderRow, config: Path | None, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """The module and the tokenizer. config: a folder with a tokenizer, a config.json, or both in diffusers' layout."""
    kind, prefix = _form(path)
    if (row.kind == "t5") != (kind == "t5"):
        raise ModelError(f"{path.name} is a {'T5' if kind == 't5' else 'CLIP'}, and {row.name} of this family is not")
    tensors = _tensors(path, kind, prefix)
    module = _module(path.name, tensors, row, _json(config, row), dtype)
    return module, tokenizer(path.name, row, config, module)


# -- tensors ----------------------------------------------------------------------------------------------------------


def _tensors(path: Path, kind: str, prefix: str) -> dict[str, Tensor]:
    """The text encoder's tensors by transformers' names."""
    found: dict[str, Tensor] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  a safetensors handle is no mapping
            if name.startswith(prefix) and not _PICTURES.match(name):
                found[name.removeprefix(prefix)] = file.get_tensor(name)
    if scaled := [name for name in found if "scale_weight" in name or "scaled_fp8" in name or "weight_scale" in name]:
        raise ModelError(f"{path.name} is a scaled fp8 file ({scaled[0]}): give the fp16 or bf16 one")
    if kind == "open_clip":
        return dict(_from_open_clip(found))
    if kind == "t5":
        return {name: tensor for name, tensor in found.items() if name.startswith(("encoder.", "shared."))}
    kept = ("text_model.", "text_projection.", "encoder.", "embeddings.", "final_layer_norm.")
    return {name: tensor for name, tensor in found.items() if name.startswith(kept) and "position_ids" not in name}


_OPEN_CLIP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(?P<layer>\d+)\.(?P<part>[\w.]+)")
_PARTS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
_PARTS |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


def _from_open_clip(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """OpenCLIP keeps queries, keys and values in one matrix, and the projection transposed."""
    for name, tensor in tensors.items():
        if name in _OPEN_CLIP:
            yield f"text_model.{_OPEN_CLIP[name]}", tensor
        elif name == "text_projection":
            yield "text_projection.weight", tensor.T.contiguous()
        elif name == "text_projection.weight":
            yield name, tensor
        elif match := _BLOCK.fullmatch(name):
            layer, part = f"text_model.encoder.layers.{match['layer']}", match["part"]
            if part.startswith("attn.in_proj_"):
                for which, third in zip("qkv", tensor.chunk(3)):
                    yield f"{layer}.self_attn.{which}_proj.{part.removeprefix('attn.in_proj_')}", third.contiguous()
            else:
                stem, _, leaf = part.rpartition(".")
                yield f"{layer}.{_PARTS.get(stem, stem)}.{leaf}", tensor


# -- the module -------------------------------------------------------------------------------------------------------


def _json(config: Path | None, row: EncoderRow) -> dict | None:
    """The config.json of this encoder in a folder; None where there is none."""
    for file in (config / row.name / "config.json", config / "config.json") if config else ():
        if file.is_file():
            try:
                form = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ModelError(f"{file} is not JSON: {error}") from None
            return form.get("text_config", form)
    return None


def _module(name: str, tensors: dict[str, Tensor], row: EncoderRow, form: dict | None, dtype: torch.dtype) -> nn.Module:
    try:
        kind, config = _t5(tensors, form) if row.kind == "t5" else _clip(tensors, row, form)
    except (KeyError, StopIteration) as error:
        raise ModelError(f"{name}: the text encoder has no {error}") from None
    state = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    try:
        module, report = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    except RuntimeError as error:  # shapes that do not fit the config
        raise ModelError(f"{name} does not fit its config: {str(error).splitlines()[0]}") from None
    missing = sorted(key for key in report["missing_keys"] if key != "encoder.embed_tokens.weight")
    if missing:
        raise ModelError(f"{name}: the text encoder has no {missing[0]}")
    return module


def _clip(tensors: dict[str, Tensor], row: EncoderRow, form: dict | None) -> tuple[Any, Any]:
    """The class and the config of a CLIP; heads are 64 wide in all that were published."""
    from transformers.models.clip import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def named(tail: str) -> Tensor:
        return next(tensors[key] for key in (f"text_model.{tail}", tail) if key in tensors)

    words, width = named("embeddings.token_embedding.weight").shape
    layers = {key.split("layers.")[1].split(".")[0] for key in tensors if "layers." in key}
    projected = "text_projection.weight" in tensors and row.projected
    shape = {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": len(named("encoder.layers.0.mlp.fc1.weight")),
        "num_hidden_layers": len(layers),
        "max_position_embeddings": len(named("embeddings.position_embedding.weight")),
        "num_attention_heads": max(1, width // 64),
        "hidden_act": "quick_gelu" if width == OPENAI_WIDTH else "gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1 if width == OPENAI_WIDTH else 0,
    }
    if projected:
        shape["projection_dim"] = len(tensors["text_projection.weight"])
    else:
        tensors.pop("text_projection.weight", None)
    config = CLIPTextConfig.from_dict(shape | (form or {}))
    return (CLIPTextModelWithProjection if projected else CLIPTextModel), config


def _t5(tensors: dict[str, Tensor], form: dict | None) -> tuple[Any, Any]:
    from transformers.models.t5 import T5Config, T5EncoderModel

    tensors.setdefault("shared.weight", tensors.get("encoder.embed_tokens.weight", torch.empty(0)))
    attention = "encoder.block.0.layer.0.SelfAttention"
    heads = tensors[f"{attention}.relative_attention_bias.weight"].shape
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in tensors
    inner = "wi_0" if gated else "wi"
    shape = {
        "vocab_size": len(tensors["shared.weight"]),
        "d_model": tensors["shared.weight"].shape[1],
        "d_ff": len(tensors[f"encoder.block.0.layer.1.DenseReluDense.{inner}.weight"]),
        "num_layers": len({key.split(".")[2] for key in tensors if key.startswith("encoder.block.")}),
        "num_heads": heads[1],
        "d_kv": len(tensors[f"{attention}.q.weight"]) // heads[1],
        "relative_attention_num_buckets": heads[0],
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }
    return T5EncoderModel, T5Config.from_dict(shape | (form or {}))


# -- the tokenizer ----------------------------------------------------------------------------------------------------


def tokenizer(name: str, row: EncoderRow, config: Path | None, module: Any) -> Any:
    """The tokenizer in the folder that was given, else CLIP's own. Raises ModelError where neither fits."""
    folders = [config / row.name.replace("text_encoder", "tokenizer"), config] if config else []
    for folder in folders:
        if tokenizers.there(folder):
            try:
                return tokenizers.class_of(row.kind).from_pretrained(folder, local_files_only=True)
            except (OSError, ValueError) as error:
                raise ModelError(f"the tokenizer in {folder} cannot be read: {error}") from None
    if config:
        raise ModelError(f"{config} has no tokenizer (tokenizer.json, vocab.json or spiece.model) for {name}")
    if row.kind == "t5":
        raise ModelError(
            f"{name} has no tokenizer, and T5's is not in this package: give config=FOLDER (--config), for example "
            "the tokenizer_3 folder of any Stable Diffusion 3 or the tokenizer_2 folder of any FLUX"
        )
    if module.config.vocab_size != tokenizers.CLIP_SIZE:
        raise ModelError(
            f"{name} knows {module.config.vocab_size} tokens, CLIP's own tokenizer {tokenizers.CLIP_SIZE}: give the "
            "folder of its tokenizer as config=FOLDER (--config)"
        )
    return tokenizers.clip(tokenizers.EOS if module.config.hidden_size == OPENAI_WIDTH else "!")
