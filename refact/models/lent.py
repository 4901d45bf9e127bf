"""A module of transformers around tensors of another program, and the decoder of a language model made that way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.encoder import TextEncoder
from ..encoders.widened import LentEmbedding, LentLinear
from ..errors import ModelError
from ..family import EncoderRow

TABLE = "embed_tokens.weight"
FRAMES = {"chat", "chat-thinking"}  # of Qwen3's families; the other language models are not taken
CHAT = (  # how Qwen3 is asked one thing; a host's tokenizer may carry the template of another model
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
QWEN3 = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40960}  # of all published sizes


def fill(module: nn.Module, weights: Mapping[str, Tensor], place: Any, what: str, named: Callable[[str], str]) -> None:
    """Put tensors in the place of a module's parameters: matrices as they lie, the little rest in float32 at `place`.

    named: what a parameter is called among the tensors. Raises ModelError for one that is missing or of another shape.
    """
    for path, part in list(module.named_modules()):
        names = {name: named(f"{path}.{name}") for name, _ in part.named_parameters(recurse=False)}
        if missing := [name for name in names.values() if name not in weights]:
            raise ModelError(f"{what} has no tensor {missing[0]}")
        if names:
            given = {name: weights[key] for name, key in names.items()}
            _check_shapes(part, given, f"{what}: {path}")
            _put(module, path, part, given, place)


def _check_shapes(part: nn.Module, given: Mapping[str, Tensor], what: str) -> None:
    for name, parameter in part.named_parameters(recurse=False):
        if given[name].shape != parameter.shape:
            raise ModelError(f"{what}.{name} has shape {tuple(given[name].shape)}, not {tuple(parameter.shape)}")


def _put(module: nn.Module, path: str, part: nn.Module, given: Mapping[str, Tensor], place: Any) -> None:
    small = {n: t.detach().to(place, torch.float32, copy=True) for n, t in given.items() if t.dim() == 1}
    if isinstance(part, nn.Linear):
        module.set_submodule(path, LentLinear(given["weight"], small.get("bias")))
    elif isinstance(part, nn.Embedding):
        module.set_submodule(path, LentEmbedding(given["weight"]))
    else:
        for name, tensor in small.items():
            setattr(part, name, nn.Parameter(tensor, requires_grad=False))


# -- the decoder of a language model ----------------------------------------------------------------------------------


def decoders_in(weights: Mapping[str, Tensor]) -> list[str]:
    """What the names of each decoder begin with."""
    found = [key.removesuffix(TABLE) for key in weights if key.endswith(TABLE)]
    return [prefix for prefix in found if f"{prefix}layers.0.mlp.down_proj.weight" in weights]


def decoder(
    weights: Mapping[str, Tensor],
    prefix: str,
    tokenizer: Any,
    row: EncoderRow,
    changes: Mapping[str, Any],
    device: Any,
    name: str,
) -> TextEncoder:
    """The text encoder of a Qwen3 whose tensors are used where they lie. Raises ModelError for another architecture.

    tokenizer: of transformers, or its folder; changes: fields of Qwen3Config that differ from the published ones.
    """
    from transformers.models.qwen3 import Qwen3Config, Qwen3Model

    mine = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    if row.frame not in FRAMES or "layers.0.self_attn.q_norm.weight" not in mine:
        raise ModelError(f"{name}: of language models only Qwen3 is taken, which Z-Image and FLUX.2 klein have")
    with torch.device("meta"):
        module = Qwen3Model(Qwen3Config(**(_shape(mine) | QWEN3 | dict(changes))))
    place = torch.device(device) if device is not None else mine["norm.weight"].device
    fill(module, mine, place, f"{row.name} of {name}", lambda key: key)
    with place:
        module.rotary_emb = type(module.rotary_emb)(module.config)  # its frequencies are no parameters
    return TextEncoder(row.name, module, _words(tokenizer), row)


def _shape(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors' shapes tell of the config."""
    (vocabulary, width), first = weights[TABLE].shape, "layers.0."
    head = len(weights[f"{first}self_attn.q_norm.weight"])
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": weights[f"{first}mlp.down_proj.weight"].shape[1],
        "num_hidden_layers": 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("layers.")),
        "num_attention_heads": len(weights[f"{first}self_attn.q_proj.weight"]) // head,
        "num_key_value_heads": len(weights[f"{first}self_attn.k_proj.weight"]) // head,
        "head_dim": head,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _words(tokenizer: Any) -> Any:
    """A copy of the tokenizer that asks as Qwen3 is asked."""
    from transformers import AutoTokenizer

    if getattr(tokenizer, "is_fast", False):
        words = copy.deepcopy(tokenizer)
    else:
        folder = getattr(tokenizer, "name_or_path", tokenizer)
        words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    words.chat_template = CHAT
    return words
