"""What the node pack calls of ComfyUI, in our own words, recorded from ComfyUI 0.3.64 and 0.8.0.

It stands in for ComfyUI where none is given (tests/test_comfyui.py runs the pack in the real one). What is kept of the
original's behaviour: weights are made in inference mode and stored in float16, a CLIP's clones share them, LoRAs are
merged into them when the CLIP is loaded while the plain ones are set aside, and what is computed is float32.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

import refact
from refact.families import on_disk

import tiny  # isort: skip

PACK = Path(__file__).parent.parent / "comfyui"
SHAPES = {"clip_l": (32, 64, 4, "quick_gelu"), "clip_g": (48, 96, 6, "gelu")}  # small; three layers
HEAD, KINDS = 8, {32: "l", 48: "g"}  # what a test puts in the place of the published widths
PARTS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


class Interrupted(Exception):
    """What ComfyUI raises once a person has cancelled."""


# -- a CLIP -----------------------------------------------------------------------------------------------------------


def towers(names: tuple[str, ...] = ("clip_l",), seed: int = 0) -> dict[str, nn.Module]:
    """transformers' own encoders, float32, of numbers that float16 holds."""
    made = {}
    for name in names:
        width, inner, heads, act = SHAPES[name]
        config = tiny.clip_config("L" if name == "clip_l" else "G")
        config.update({"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads})
        config.update({"num_hidden_layers": 3, "hidden_act": act, "projection_dim": width})
        kind = tiny.CLIPTextModel if name == "clip_l" else tiny.CLIPTextModelWithProjection
        module = tiny._made(lambda c=config, k=kind: k(c), seed)
        made[name] = module.half().float().requires_grad_(False)
    return made


def plain_model(names: tuple[str, ...] = ("clip_l",), seed: int = 0) -> refact.Model:
    """The package's own model of the same encoders."""
    modules = {PARTS[name]: module for name, module in towers(names, seed).items()}
    words = {"text_encoder": tiny.clip_tokenizer(), "text_encoder_2": tiny.clip_tokenizer("!")}
    return refact.from_modules(modules, words, family="sdxl" if "clip_g" in names else "sd1")


class Weights(nn.Module):
    """Tensors under dotted names."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        for name, tensor in tensors.items():
            *path, last = name.split(".")
            home: Any = self
            for part in path:
                if part not in home._modules:
                    home.add_module(part, nn.Module())
                home = home._modules[part]
            home.register_parameter(last, nn.Parameter(tensor, requires_grad=False))


class Patcher:
    """Patches by key, what lies aside while they are merged, and notes that packs attach."""

    def __init__(self, model: nn.Module):
        self.model, self.patches, self.attachments = model, {}, {}
        self.backup: dict[str, torch.Tensor] = {}
        self.load_device = torch.device("cpu")

    def clone(self) -> Patcher:
        new = Patcher(self.model)
        new.patches = {key: list(found) for key, found in self.patches.items()}
        new.attachments, new.backup = dict(self.attachments), self.backup
        return new

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def set_attachments(self, key: str, value: Any) -> None:
        self.attachments[key] = value

    def load(self) -> None:
        """Put other clones' patches out and this one's in."""
        weights = dict(self.model.named_parameters())
        with torch.inference_mode():
            for key, tensor in self.backup.items():
                weights[key].copy_(tensor)
            self.backup.clear()
            for key, found in self.patches.items():
                self.backup[key] = weights[key].clone()
                moved = weights[key].float()
                for strength, (up, down, scale) in found:
                    moved = moved + strength * scale * (up.float() @ down.float())
                weights[key].copy_(moved)


class CLIP:
    """A CLIP as nodes get it: its encoders, one after the other, and the patches on them."""

    def __init__(self, names: tuple[str, ...] = ("clip_l",), seed: int = 0):
        self.names, self.seed = names, seed
        with torch.inference_mode():
            self.cond_stage_model = Weights(
                {
                    f"{name}.transformer.{on_disk(key)}": tensor.half()
                    for name, module in towers(names, seed).items()
                    for key, tensor in module.state_dict().items()
                }
            )
        word = SimpleNamespace(tokenizer=tiny.clip_tokenizer())
        self.tokenizer = SimpleNamespace(**dict.fromkeys(names, word))
        self.patcher = Patcher(self.cond_stage_model)

    def clone(self) -> CLIP:
        new = copy.copy(self)
        new.patcher = self.patcher.clone()
        return new

    def load_model(self) -> None:
        self.patcher.load()

    def add_patches(self, patches: dict[str, Any], strength: float) -> list[str]:
        known = dict(self.cond_stage_model.named_parameters())
        for key in patches.keys() & known.keys():
            self.patcher.patches.setdefault(key, []).append((strength, patches[key]))
        return [key for key in patches if key in known]

    def get_key_patches(self) -> dict[str, list]:
        found = {}
        for key, weight in self.cond_stage_model.named_parameters():
            base = self.patcher.backup.get(key, weight)
            found[key] = [(base, lambda tensor, inplace: tensor), *self.patcher.patches.get(key, [])]
        return found

    def encode(self, text: str) -> dict[str, torch.Tensor]:
        """What is sent to the generator."""
        self.load_model()
        held = dict(self.cond_stage_model.named_parameters())
        own = plain_model(self.names, self.seed)
        for name in self.names:
            module = own.encoders[PARTS[name]].module
            module.load_state_dict({k: held[f"{name}.transformer.{on_disk(k)}"] for k in module.state_dict()})
        return own.encode([text])


# -- its modules ------------------------------------------------------------------------------------------------------


def _keys(model: nn.Module, known: dict[str, str]) -> dict[str, str]:
    """Names of LoRAs for the keys of a CLIP that they change."""
    several = {key.partition(".")[0] for key, _ in model.named_parameters()} > {"clip_l"}
    for key, _ in model.named_parameters():
        name, _, path = key.removesuffix(".weight").partition(".transformer.")
        if key.endswith(".weight") and ".encoder.layers." in key:
            flat, second = path.replace(".", "_"), name == "clip_g"
            known[f"lora_te{2 if second else 1}_{flat}"] = key
            if not (second and several):
                known[f"lora_te_{flat}"] = key
    return known


def _load_lora(lora: dict[str, torch.Tensor], known: dict[str, str], log_missing: bool = True) -> dict[str, tuple]:
    """{key: (up, down, alpha / rank)}."""
    found = {}
    for name, key in known.items():
        if f"{name}.lora_up.weight" in lora:
            up, down = lora[f"{name}.lora_up.weight"], lora[f"{name}.lora_down.weight"]
            found[key] = (up, down, float(lora[f"{name}.alpha"]) / len(down))
    return found


class _Port:
    def __init__(self, id: str, **told: Any):
        self.id, self.told = id, told
        self.optional = told.get("optional", False)


def _type(name: str) -> Any:
    return type(name, (), {"Input": type("Input", (_Port,), {"type": name}), "Output": type("Output", (_Port,), {})})


class _Output:
    def __init__(self, *values: Any, ui: Any = None):
        self.values, self.ui = values, ui


def modules(base: Path) -> tuple[dict[str, ModuleType], dict[str, Any]]:
    """The modules that the pack imports, and what a test sees and steers: bars, cancel, base (a folder)."""
    steps: dict[str, Any] = {"bars": [], "cancel": lambda: False}
    for name in ("loras", "input", "output"):
        (base / name).mkdir(exist_ok=True)

    class ProgressBar:
        def __init__(self, total: int):
            self.total = total

        def update_absolute(self, value: int, total: int | None = None) -> None:
            steps["bars"].append((value, total))

    def interrupted() -> None:
        if steps["cancel"]():
            raise Interrupted

    def saving(prefix: str, folder: str) -> tuple[str, str, int, str, str]:
        place = Path(folder) / Path(prefix).parent
        place.mkdir(parents=True, exist_ok=True)
        return str(place), Path(prefix).name, len(list(place.glob("*"))) + 1, str(Path(prefix).parent), prefix

    kinds = {name: _type(name) for name in ("Clip", "String", "Float", "Boolean", "Combo")}
    io = SimpleNamespace(ComfyNode=type("ComfyNode", (), {}), Schema=SimpleNamespace, NodeOutput=_Output, **kinds)
    made = {
        "comfy": {"__path__": []},
        "comfy.lora": {"model_lora_keys_clip": _keys, "load_lora": _load_lora},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_management": {"throw_exception_if_processing_interrupted": interrupted},
        "comfy_api": {"__path__": []},
        "comfy_api.v0_0_2": {
            "ComfyExtension": type("ComfyExtension", (), {}),
            "io": io,
            "ui": SimpleNamespace(PreviewText=str),
        },
        "folder_paths": {
            "get_filename_list": lambda kind: sorted(p.name for p in (base / kind).glob("*.safetensors")),
            "get_full_path": lambda kind, name: str(base / kind / name),
            "get_full_path_or_raise": lambda kind, name: str(base / kind / name),
            "get_input_directory": lambda: str(base / "input"),
            "get_output_directory": lambda: str(base / "output"),
            "get_annotated_filepath": lambda name: str(base / "input" / name),
            "get_save_image_path": saving,
        },
    }
    found = {}
    for name, inside in made.items():
        found[name] = ModuleType(name)
        vars(found[name]).update(inside)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(found[parent], child, found[name])
    return found, steps


def load_pack() -> ModuleType:
    """The pack, imported as ComfyUI imports it: by its folder, under a name of its own."""
    name = "comfyui_pack_under_test"
    for other in [n for n in sys.modules if n.partition(".")[0] == name]:
        del sys.modules[other]
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    return pack
