"""A patch in the names and forms that other programs ask for, and the lines with which a person uses it there.

Importing this needs no torch. Which program and version reads which file was found by running them: tests/programs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from .errors import PatchError, shown
from .families import FAMILIES, EncoderRow, Family, Style, lora_keys, on_disk
from .language import LANGUAGE
from .language import usage as language_usage
from .record import parts_of, read_header
from .trust import disk

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .patch import Patch

PROGRAMS = ("invokeai", "peft")
STYLES: tuple[Style, ...] = ("kohya", "diffusers")

# InvokeAI tells Stable Diffusion's LoRAs apart by the width of the text states that a cross-attention of the UNet
# reads, and refuses a file without one: (a matrix that every UNet of the family has, its outputs, that width).
_INVOKEAI: dict[str, tuple[str, int, int]] = {
    "sd1": ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 320, 768),
    "sd2": ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 320, 1024),
    "sdxl": ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 640, 2048),
}


def export(
    patch: Patch,
    path: str | Path,
    names: Style | None = None,
    program: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the patch with the names, or in the form, that other programs ask for; its changes stay the same.

    names: "kohya" or "diffusers"; by default the family's own, or what the program reads. program: "invokeai" writes a
    file that InvokeAI accepts; "peft" writes a folder with one PEFT adapter for each text encoder. Files can be loaded
    as patches again, folders cannot. dtype: float32 unless given. Raises PatchError where the program has no such form.
    """
    import torch

    family = FAMILIES[patch.record["family"]]
    dtype = dtype or torch.float32
    if program is not None and program not in PROGRAMS:
        raise PatchError(f"there is no form for {program!r}; there is one for {' and '.join(PROGRAMS)}")
    if names is not None and names not in STYLES:
        raise PatchError(f"names are {' or '.join(STYLES)}, not {names!r}")
    if names and program:
        raise PatchError(f"give names or a program, not both: {program} asks for names of its own")
    if program == "peft":
        return _write_adapters(patch, family, Path(path), dtype)
    if program == "invokeai":
        return patch.save(path, dtype, names="kohya", also=_for_invokeai(patch, family))
    return patch.save(path, dtype, names=names)


# -- InvokeAI ---------------------------------------------------------------------------------------------------------


def _for_invokeai(patch: Patch, family: Family) -> dict[str, Tensor]:
    """The tensors that InvokeAI needs beside the patch's own to take the file for one of this family."""
    import torch

    if family.name == "flux":
        if any(site.startswith("text_encoder_2.") for site in patch.factors):
            raise PatchError("InvokeAI reads no T5 part under the names that others use: export the CLIP part alone")
        return {}
    if family.name not in _INVOKEAI:
        raise PatchError(f"InvokeAI loads no LoRA into the text encoders of {family.title}")
    if any(site.startswith("unet.") for site in patch.factors):
        return {}
    site, d_out, d_in = _INVOKEAI[family.name]
    down, up, alpha = lora_keys(family, site, "kohya")
    zeros = {down: torch.zeros(1, d_in), up: torch.zeros(d_out, 1)}
    return zeros | ({alpha: torch.tensor(1.0)} if alpha else {})


# -- PEFT -------------------------------------------------------------------------------------------------------------


def _write_adapters(patch: Patch, family: Family, folder: Path, dtype: torch.dtype) -> None:
    """FOLDER/transformers-4/text_encoder and FOLDER/transformers-5/text_encoder, for each encoder that is changed."""
    rows = {row.name: row for row in family.encoders}
    components = sorted({site.split(".")[0] for site in patch.factors})
    if strange := [name for name in components if name not in rows]:
        raise PatchError(f"a PEFT adapter is for a text encoder, and this patch changes the {strange[0]}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PatchError(f"{folder} is there already; give a folder that is new or empty")
    with disk.folder(folder) as partial:
        for layout in ("transformers-4", "transformers-5"):
            for name in components:
                _write_adapter(patch, rows[name], layout, partial / layout / name, dtype)


def _write_adapter(patch: Patch, row: EncoderRow, layout: str, folder: Path, dtype: torch.dtype) -> None:
    """One adapter: its configuration, and factors of which each matrix keeps its own rank."""
    from . import lora

    flat = layout == "transformers-5" and row.kind == "clip" and not row.projected
    tensors, ranks = {}, {}
    for site, (left, right) in patch.factors.items():
        component, _, path = site.partition(".")
        if component != row.name:
            continue
        if path.endswith("token_embedding"):
            raise PatchError(f"a PEFT adapter changes matrices of layers only, and this patch changes {site}")
        path = path.removeprefix("text_model.") if flat else path
        tensors[f"base_model.model.{path}.lora_A.weight"] = right.to(dtype)
        tensors[f"base_model.model.{path}.lora_B.weight"] = left.to(dtype)
        ranks[path] = len(right)
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
    }
    disk.write(folder / "adapter_config.json", json.dumps(config, indent=1).encode())
    disk.write(folder / "adapter_model.safetensors", lora.file_bytes(tensors, {"format": "pt"}))


# -- a whole pipeline -------------------------------------------------------------------------------------------------


def bake(model: Any, patches: Sequence[Patch], folder: str | Path) -> None:
    """Write the whole pipeline with the patches in its weights; transformers from 4.44 on read the folder.

    The live model has the patches while the files are written, and is what it was afterwards. Patches that are active
    in it already are written too. Raises PatchError where LoRAs are loaded (their weights would not be saved).
    """
    folder, pipe = Path(folder), model.pipe
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PatchError(f"{folder} is there already; give a folder that is new or empty")
    if wrapped := [name for name, part in pipe.components.items() if getattr(part, "peft_config", None)]:
        raise PatchError(f"{', '.join(wrapped)} of {model.name} have LoRAs loaded; fuse or unload them first")
    try:
        with disk.folder(folder) as partial, ExitStack() as active:
            for patch in patches:
                active.enter_context(patch.applied(model))
            pipe.save_pretrained(partial, safe_serialization=True)
            _make_readable(pipe, partial)
    except SafetensorError as error:  # what a full disk is called where Rust writes
        raise PatchError(f"{folder} cannot be written: {error}") from None


def _make_readable(pipe: Any, folder: Path) -> None:
    """Give a folder that was just saved the names and files that transformers 4 reads."""
    for file in folder.glob("text_encoder*/*.safetensors*"):
        _rename_weights(file)
    from .models import tokenizers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for name, part in pipe.components.items():
        if name.startswith("tokenizer") and part is not None:
            tokenizers.keep(part, folder / name)
            if index[name][1] == "T5Tokenizer" and (folder / name / "tokenizer.json").is_file():
                index[name][1] = "T5TokenizerFast"  # transformers 4 has two, and only this one reads that file
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _rename_weights(file: Path) -> None:
    """Give a saved CLIP encoder's weights, or its index of shards, the names that old transformers read."""
    if file.suffix == ".json":
        index = json.loads(file.read_text())
        index["weight_map"] = {on_disk(name): shard for name, shard in index["weight_map"].items()}
        file.write_text(json.dumps(index, indent=2))
        return
    from safetensors.torch import load_file, save_file

    if any(on_disk(name) != name for name in read_header(file).tensors):
        save_file({on_disk(name): weight for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})


# -- for people -------------------------------------------------------------------------------------------------------


def usage(path: str | Path, record: dict, reader_has: str | Path = "") -> str:
    """The lines to use the file in diffusers, ComfyUI, A1111 and Forge, and what to export for other programs.

    `reader_has` is the file's path in these lines, where the reader will have it elsewhere (a download).
    """
    kohya = any(".lora_down." in name for name in read_header(path).tensors)
    path = Path(shown(reader_has or path, 1000))
    name = re.sub(r"\W+", "_", path.stem)  # PEFT takes no dots in an adapter's name
    sites = {site for part in parts_of(record) for site in part["sites"]}
    if record["family"] in LANGUAGE:
        return language_usage(path, FAMILIES[record["family"]], sites, _comfy_strength(sites))
    if any("token_embedding" in site for site in sites):
        return f"a change of word embeddings, which no program reads as a LoRA: refact bake -m MODEL --patch {path}"
    family = FAMILIES[record["family"]]
    return "\n".join(
        [
            *_diffusers(path, name, family, sites, kohya),
            "ComfyUI:",
            f"  copy {path.name} to models/loras; node Load LoRA, MODEL and CLIP wired through it;",
            f"  {_comfy_strength(sites)}",
            *_a1111(path, family, kohya),
            *_others(path, family, kohya),
        ]
    )


def _diffusers(path: Path, name: str, family: Family, sites: set[str], kohya: bool) -> list[str]:
    if kohya and family.style == "diffusers":
        return [f"diffusers: does not read this file's names: refact export {path} --names diffusers -o FILE"]
    lines = [
        "diffusers:",
        "  pipe = diffusers.DiffusionPipeline.from_pretrained(MODEL)  # the folder or hub id of the model",
        f"  pipe.load_lora_weights({str(path.parent)!r}, weight_name={path.name!r}, adapter_name={name!r})",
        f"  pipe.set_adapters([{name!r}], adapter_weights=[1.0])  # the strength; name all loaded edits here",
        "  pipe.unload_lora_weights()  # undo",
    ]
    if family.name == "flux":
        lines.append('  pipe.fuse_lora(components=["text_encoder"])  # to fuse: without components= CLIP is left out')
    if any("DenseReluDense" in site for site in sites):
        lines.append("  (diffusers has no LoRA for T5: the T5 part of this file stays without effect)")
    return lines


def _comfy_strength(sites: Iterable[str]) -> str:
    parts = {"strength_model" if site.startswith("unet.") else "strength_clip" for site in sites}
    strength = f"{' and '.join(sorted(parts))} is the edit's strength"
    if "strength_model" in parts:
        return strength
    return f"{strength}; nodes that load a LoRA into the model only (LoraLoaderModelOnly) ignore this file"


def _a1111(path: Path, family: Family, kohya: bool) -> list[str]:
    if family.style == "kohya" and kohya:
        return ["A1111, Forge:", f"  copy {path.name} to models/Lora; write in the prompt: <lora:{path.stem}:1>"]
    return ["Forge (not tried in A1111):", f"  copy {path.name} to models/Lora; <lora:{path.stem}:1>"]


def _others(path: Path, family: Family, kohya: bool) -> list[str]:
    lines = []
    if not kohya:
        programs = "sd-scripts, SD.Next" + (", InvokeAI, stable-diffusion.cpp" * (family.name == "flux"))
        lines += [f"{programs}:", f"  refact export {path} --names kohya -o FILE"]
    if family.name in _INVOKEAI:
        lines += ["InvokeAI:", f"  refact export {path} --for invokeai -o FILE"]
    return lines


def told(program: str | None, path: Path, record: dict[str, Any]) -> str:
    """One line on a file or folder that was just exported."""
    if program == "peft":
        first = sorted({site.split(".")[0] for part in parts_of(record) for site in part["sites"]})[0]
        return (
            f"{path}: adapters for PEFT. Use the folder of your transformers: transformers-5 from 5.6 on, else "
            f"transformers-4: peft.PeftModel.from_pretrained(pipe.{first}, '{path}/transformers-5/{first}')"
        )
    return f"{path}: {path.stat().st_size / 1024:.1f} KB. To use it: refact show {path}"
