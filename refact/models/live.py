"""A Model of what another program has in memory: its text encoders' state dict, in any common layout, or its modules.

For hosts such as ComfyUI. The weights are used where they lie (encoders/widened.py); only norms and biases are copied.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.encoder import TextEncoder, text_tower
from ..errors import ModelError
from ..families import FAMILIES, Family, on_disk
from ..family import EncoderRow
from .lent import decoder, decoders_in, fill
from .model import Model

KINDS = {768: "l", 1024: "h", 1280: "g"}  # the published CLIP text encoders by their width: CLIP-L, OpenCLIP-H and bigG
HEAD = 64  # width of an attention head in all of them
BY_KINDS = {("l",): "sd1", ("h",): "sd2", ("g", "l"): "sdxl"}
ROLES = {"l": "text_encoder", "h": "text_encoder", "g": "text_encoder_2"}
PROJECTED = {("sdxl", "text_encoder_2"), ("sd3", "text_encoder"), ("sd3", "text_encoder_2")}
SD2_LAYERS = 23  # SD 2 reads OpenCLIP-H after its last layer but one; published folders leave the last one out

_ENDINGS = (
    "text_model.embeddings.token_embedding.weight",
    "embeddings.token_embedding.weight",
    "token_embedding.weight",
)
_OPENCLIP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection.weight": "text_projection.weight",
}
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")


def from_state_dict(
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    name: str = "a live model",
    family: str | None = None,
    prefixes: Mapping[str, str] | None = None,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    device: str | torch.device | None = None,
    companion: Any = None,
) -> Model:
    """The model of text encoders in a state dict, whose tensors are used where they lie and never written.

    weights: may hold other things too (a whole checkpoint). Names of transformers and of OpenCLIP are known, behind
    any prefix; types are float32, float16, bfloat16 and the eight-bit floats, and all are computed with in float32.
    tokenizer: of transformers, or its folder; padding is set as each encoder's pipeline pads. family: by default told
    by the encoders' widths (768: SD 1; 1024: SD 2; 768 and 1280: SDXL); SD3, FLUX, Z-Image and FLUX.2 klein (the
    last two read Qwen3) must be named. prefixes: {component: what its names begin with}, where widths do not tell.
    configs: {component: fields of the config of transformers} that differ from the published encoders'. device: where
    to compute; by default where each encoder lies.
    """
    if family is not None and family in FAMILIES and FAMILIES[family].encoders_edited[0].kind == "decoder":
        return _language_model(weights, tokenizer, name, FAMILIES[family], prefixes, configs or {}, device, companion)
    found = _found(weights)
    placed = dict(prefixes) if prefixes is not None else _placed(weights, found)
    if strange := [p for p in placed.values() if p not in found]:
        raise ModelError(f"{name}: no CLIP text encoder begins with {strange[0]!r}; there are {found or 'none'}")
    rows = _rows(weights, found, placed, family, name)
    encoders = {}
    with torch.inference_mode(False):
        for row in rows.encoders:
            part = _named(weights, placed[row.name], found[placed[row.name]])
            encoders[row.name] = _encoder(part, tokenizer, rows, row, (configs or {}).get(row.name, {}), device, name)
    return Model(name, rows, encoders, companion=companion)


def from_modules(
    modules: Mapping[str, nn.Module],
    tokenizers: Any,
    name: str = "a live model",
    family: str | None = None,
    companion: Any = None,
) -> Model:
    """The model of CLIP text encoders that transformers made, by component: {"text_encoder": CLIPTextModel, ...}.

    They are used as they are: a patch that is applied to this model is applied to them. tokenizers: one for all, or
    {component: tokenizer}. family: by default told by the components and widths, as in `from_state_dict`. Modules of
    other makers: give their state_dict() to `from_state_dict`.
    """
    towers = {component: text_tower(module) for component, module in modules.items()}
    if strange := [c for c, tower in towers.items() if not hasattr(tower, "embeddings")]:
        raise ModelError(f"{name}: {strange[0]} is no CLIP text encoder of transformers: use from_state_dict")
    kinds = tuple(sorted(KINDS.get(tower.final_layer_norm.weight.shape[0], "?") for tower in towers.values()))
    rows = _family(family or BY_KINDS.get(kinds, ""), towers, name)
    given = tokenizers if isinstance(tokenizers, Mapping) else dict.fromkeys(modules, tokenizers)
    encoders = {row.name: TextEncoder(row.name, modules[row.name], given[row.name], row) for row in rows.encoders}
    return Model(name, rows, encoders, companion=companion)


def _language_model(
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    name: str,
    family: Family,
    prefixes: Mapping[str, str] | None,
    configs: Mapping[str, Mapping[str, Any]],
    device: Any,
    companion: Any,
) -> Model:
    """The model of a family whose prompts a language model reads."""
    (row,) = family.encoders_edited
    found = decoders_in(weights)
    placed = dict(prefixes) if prefixes is not None else dict.fromkeys([row.name], found[0] if len(found) == 1 else "?")
    if placed.keys() != {row.name} or placed[row.name] not in found:
        have = ", ".join(map(repr, found)) or "none"
        raise ModelError(
            f"{name}: {family.title} needs the language model {row.name}, and no names of one begin with "
            f"{placed.get(row.name, '?')!r}; there are {have}: give prefixes={{{row.name!r}: ...}}"
        )
    words = tokenizer[row.name] if isinstance(tokenizer, Mapping) else tokenizer
    with torch.inference_mode(False):
        made = decoder(weights, placed[row.name], words, row, configs.get(row.name, {}), device, name)
    return Model(name, replace(family, encoders=(row,)), {row.name: made}, companion=companion)


# -- which encoders, of which family ----------------------------------------------------------------------------------


def _found(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """{what an encoder's names begin with: its layout, by how its table of token embeddings is called}."""
    found: dict[str, str] = {}
    for key in weights:
        for ending in _ENDINGS:
            if key.endswith(ending):
                prefix = key.removesuffix(ending)
                if ending != "token_embedding.weight" or f"{prefix}positional_embedding" in weights:
                    found[prefix] = ending
                break
    return found


def _width(weights: Mapping[str, Tensor], prefix: str, ending: str) -> int:
    return weights[prefix + ending].shape[1]


def _placed(weights: Mapping[str, Tensor], found: Mapping[str, str]) -> dict[str, str]:
    kinds = {prefix: KINDS.get(_width(weights, prefix, ending), "?") for prefix, ending in found.items()}
    return {ROLES[kind]: prefix for prefix, kind in kinds.items() if kind in ROLES}


def _rows(weights, found: Mapping[str, str], placed: Mapping[str, str], family: str | None, name: str) -> Family:
    kinds = tuple(sorted(KINDS.get(_width(weights, p, found[p]), "?") for p in placed.values()))
    return _family(family or BY_KINDS.get(kinds, ""), placed, name)


def _family(family: str, components: Mapping[str, Any], name: str) -> Family:
    """The family with those of its CLIP encoders that are there."""
    if family not in FAMILIES:
        told = f"is no family {family!r}" if family else "the text encoders do not tell the family"
        have = ", ".join(components) or "no CLIP text encoder of a known width"
        raise ModelError(f"{name}: {told} (found {have}); give family=..., one of {', '.join(FAMILIES)}")
    rows = tuple(row for row in FAMILIES[family].encoders if row.kind == "clip" and row.name in components)
    if not rows or (strange := components.keys() - {row.name for row in rows}):
        wrong = ", ".join(sorted(strange)) if rows else "none of its CLIP text encoders"
        raise ModelError(f"{name}: {FAMILIES[family].title} has not been given what it needs: {wrong} is here")
    return replace(FAMILIES[family], encoders=rows)


# -- one encoder ------------------------------------------------------------------------------------------------------


def _named(weights: Mapping[str, Tensor], prefix: str, ending: str) -> dict[str, Tensor]:
    """An encoder's tensors by the names of published files; views of the given ones."""
    mine = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    if ending != "token_embedding.weight":
        return {on_disk(key): tensor for key, tensor in mine.items()}
    named: dict[str, Tensor] = {}
    for key, tensor in mine.items():
        if key in _OPENCLIP:
            named[_OPENCLIP[key]] = tensor
        elif key == "text_projection":
            named["text_projection.weight"] = tensor.T
        elif block := _BLOCK.fullmatch(key):
            named |= _block(f"text_model.encoder.layers.{block[1]}.", block[2], tensor)
    return named


def _block(layer: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of OpenCLIP's block; queries, keys and values lie in one there."""
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.removeprefix("attn.in_proj_")
        return {f"{layer}self_attn.{x}_proj.{kind}": part for x, part in zip("qkv", tensor.chunk(3))}
    part, _, kind = name.rpartition(".")
    return {f"{layer}{_PARTS[part]}.{kind}": tensor} if part in _PARTS else {}


def _encoder(
    weights: dict[str, Tensor],
    tokenizer: Any,
    family: Family,
    row: EncoderRow,
    changes: Mapping,
    device: Any,
    name: str,
) -> TextEncoder:
    words = _tokenizer(tokenizer, row, family, name)
    config = _config(weights, family, words, changes, name)
    projected = (family.name, row.name) in PROJECTED and "text_projection.weight" in weights
    module = _module(weights, config, projected, device, f"{row.name} of {name}")
    return TextEncoder(row.name, module, words, row)


def _config(weights: dict[str, Tensor], family: Family, tokenizer: Any, changes: Mapping, name: str) -> Any:
    """The encoder's CLIPTextConfig: what the tensors' shapes tell, and what is known of published encoders."""
    from transformers.models.clip import CLIPTextConfig

    (vocabulary, width), layers = weights["text_model.embeddings.token_embedding.weight"].shape, _layers(weights)
    if width not in KINDS and "num_attention_heads" not in changes:
        raise ModelError(
            f"{name}: a CLIP text encoder of width {width} is not a published one: "
            "give its configs={component: {'num_attention_heads': ..., 'hidden_act': ...}}"
        )
    projection = weights.get("text_projection.weight")
    told = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": len(weights["text_model.encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": min(layers, SD2_LAYERS) if family.name == "sd2" else layers,
        "num_attention_heads": width // HEAD,
        "max_position_embeddings": len(weights["text_model.embeddings.position_embedding.weight"]),
        "projection_dim": width if projection is None else len(projection),
        "hidden_act": "quick_gelu" if KINDS.get(width) == "l" else "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**(told | dict(changes)))


def _layers(weights: Mapping[str, Tensor]) -> int:
    numbers = [int(m[1]) for key in weights if (m := re.match(r"text_model\.encoder\.layers\.(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def _module(weights: dict[str, Tensor], config: Any, projected: bool, device: Any, what: str) -> nn.Module:
    """transformers' module of that config around these tensors."""
    from transformers.models.clip import CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        module = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    place = torch.device(device) if device is not None else weights["text_model.final_layer_norm.weight"].device
    fill(module, weights, place, what, on_disk)
    embeddings = text_tower(module).embeddings
    embeddings.position_ids = torch.arange(config.max_position_embeddings, device=place)[None]
    return module


# -- its words --------------------------------------------------------------------------------------------------------


def _tokenizer(given: Any, row: EncoderRow, family: Family, name: str) -> Any:
    """The encoder's tokenizer; one that is given for all encoders is copied, and pads as this one's pipeline does."""
    if isinstance(given, Mapping):
        return given[row.name]
    folder = given if isinstance(given, (str, Path)) else given.name_or_path
    words = copy.deepcopy(given) if getattr(given, "is_fast", False) else _read_tokenizer(folder, name)
    openclip = family.name == "sd2" or row.name == "text_encoder_2"
    words.pad_token = words.convert_ids_to_tokens(0) if openclip else words.eos_token  # the token of id 0 is "!"
    return words


def _read_tokenizer(folder: Any, name: str) -> Any:
    from transformers.models.clip import CLIPTokenizer

    held = {path.name for path in Path(folder).glob("*")}  # transformers makes an empty tokenizer of an empty folder
    if "tokenizer.json" not in held and not {"vocab.json", "merges.txt"} <= held:
        raise ModelError(f"{name}: {folder} holds no CLIP tokenizer: neither tokenizer.json nor vocab.json, merges.txt")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
