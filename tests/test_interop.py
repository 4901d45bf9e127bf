"""A patch is a LoRA: the installed diffusers loads it on every family, and its names are ones that others accept."""

from __future__ import annotations

import re

import pytest
import tiny
import torch
from safetensors.torch import save_file

from refact.errors import PatchError
from refact.exports import bake
from refact.families import FAMILIES
from refact.patch import Patch, from_lora, merge
from refact.record import read_header

PROMPT = "a photo of the president of france"
TOLERANCE = 1e-5  # fp32; the update is added to the weight by us, to the output by diffusers


def states(pipe) -> torch.Tensor:
    """All that the pipeline sends to its generator for a prompt, in one vector."""
    more = {"max_sequence_length": 32} if hasattr(pipe, "transformer") else {"num_images_per_prompt": 1}
    if "3" in type(pipe).__name__:
        more |= {"prompt_2": None, "prompt_3": None}
    elif hasattr(pipe, "transformer"):
        more |= {"prompt_2": None}
    else:
        more |= {"do_classifier_free_guidance": True}
    with torch.no_grad():
        sent = pipe.encode_prompt(PROMPT, device="cpu", **more)
    return torch.cat([part.flatten() for part in sent if torch.is_tensor(part)])


def bits(pipe) -> dict[str, torch.Tensor]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{n}.{k}": v.clone() for n, part in parts.items() for k, v in part.state_dict().items()}


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def load(pipe, patch: Patch, folder, name: str = "edit", **how) -> None:
    patch.save(folder / f"{name}.safetensors", **how)
    pipe.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name=name)


def clip_sites(model, layer: int = 1) -> list[str]:
    return [tiny.site(row, layer) for row in model.family.encoders if row.kind == "clip"]


@pytest.fixture(params=tiny.NAMES)
def model(request):
    return tiny.FakeModel(tiny.pipeline(request.param), family=request.param)


def ranks(model, kind: str) -> dict[str, int]:
    """Sites and ranks: one row in each encoder; mixed over layers; with the UNet's cross-attention."""
    found = dict.fromkeys(clip_sites(model), 1)
    if kind == "mixed":
        found |= dict.fromkeys(clip_sites(model, 2), 3)
    if kind == "unet":
        found |= {site: 1 + i % 3 for i, site in enumerate(tiny.unet_sites(model.pipe))}
    return found


@pytest.mark.parametrize("kind", ["plain", "mixed", "unet"])
def test_diffusers_does_what_we_do(model, tmp_path, kind):
    if kind == "unet" and not hasattr(model.pipe, "unet"):
        pytest.skip("this family has no UNet")
    pipe, patch = model.pipe, tiny.patch(model, {"canada": ranks(model, kind)})
    base, before, plain = states(pipe), bits(pipe), tiny.generate(pipe)
    with patch.applied(model):
        expected, picture = states(pipe), tiny.generate(pipe)
    assert (expected - base).abs().max() > 0.1
    assert abs(picture - plain).max() > 1e-3
    load(pipe, patch, tmp_path)
    torch.testing.assert_close(states(pipe), expected, rtol=0, atol=TOLERANCE)
    assert abs(tiny.generate(pipe) - picture).max() < 1e-4
    pipe.unload_lora_weights()
    assert equal(bits(pipe), before)
    assert torch.equal(states(pipe), base)


def test_adapters_are_sums_and_strengths(model, tmp_path):
    pipe = model.pipe
    one, two = (tiny.patch(model, {n: ranks(model, "plain")}, seed=i) for i, n in enumerate(("one", "two")))
    load(pipe, one, tmp_path, "one")
    load(pipe, two, tmp_path, "two")
    for weights in ([1.0, 1.0], [0.5, -1.0]):
        pipe.set_adapters(["one", "two"], adapter_weights=weights)
        loaded = states(pipe)
        pipe.disable_lora()
        with one.applied(model, weights[0]), two.applied(model, weights[1]):
            torch.testing.assert_close(states(pipe), loaded, rtol=0, atol=TOLERANCE)
        with merge([one.scaled(weights[0]), two.scaled(weights[1])]).applied(model):
            torch.testing.assert_close(states(pipe), loaded, rtol=0, atol=TOLERANCE)
        pipe.enable_lora()


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_t5_part_does_not_hide_the_clip_part(name, tmp_path):
    model = tiny.FakeModel(tiny.pipeline(name), family=name)
    t5 = next(tiny.site(row, 1) for row in model.family.encoders if row.kind == "t5")
    patch = tiny.patch(model, {"clip": ranks(model, "plain"), "t5": {t5: 2}})
    with patch.applied(model):
        everything = states(model.pipe)
    with patch["clip"].applied(model):
        clip_only = states(model.pipe)
    assert (everything - clip_only).abs().max() > 0.1
    load(model.pipe, patch, tmp_path)
    torch.testing.assert_close(states(model.pipe), clip_only, rtol=0, atol=TOLERANCE)
    assert Patch.load(tmp_path / "edit.safetensors").digest == patch.digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_the_same(tmp_path, dtype):
    model = tiny.FakeModel(tiny.pipeline("sdxl"), family="sdxl")
    load(model.pipe, tiny.patch(model, {"x": ranks(model, "mixed")}), tmp_path, dtype=dtype)
    loaded = states(model.pipe)
    model.pipe.unload_lora_weights()
    with Patch.load(tmp_path / "edit.safetensors").applied(model):
        torch.testing.assert_close(states(model.pipe), loaded, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("first", ["patch", "lora"])
def test_a_pipeline_that_carries_loras_takes_patches(model, tmp_path, first):
    """On the same fc2, in either order of coming and going."""
    pipe, sites = model.pipe, ranks(model, "plain")
    patch, lora = tiny.patch(model, {"mine": sites}), tiny.patch(model, {"theirs": sites}, seed=1)
    before, base = bits(pipe), states(pipe)
    with patch.applied(model), lora.applied(model):
        both = states(pipe)
    with lora.applied(model):
        lora_alone = states(pipe)
    if first == "patch":
        handle = patch.apply(model)
        load(pipe, lora, tmp_path)
    else:
        load(pipe, lora, tmp_path)
        assert patch.mismatch(model) == []  # the hash is of the base, under PEFT's wrapper too
        handle = patch.apply(model)
    torch.testing.assert_close(states(pipe), both, rtol=0, atol=TOLERANCE)
    if first == "patch":
        handle.revert()
        torch.testing.assert_close(states(pipe), lora_alone, rtol=0, atol=TOLERANCE)
        pipe.unload_lora_weights()
    else:
        pipe.unload_lora_weights()
        handle.revert()
    assert equal(bits(pipe), before)
    assert torch.equal(states(pipe), base)


def test_an_imported_lora_does_what_it_did_in_diffusers(tmp_path):
    """With alpha half its rank, made by hand as sd-scripts writes it."""
    model = tiny.FakeModel(tiny.pipeline("sdxl"), family="sdxl")
    tensors = {}
    for prefix, width in (("lora_te1", 32), ("lora_te2", 48)):
        stem = f"{prefix}_text_model_encoder_layers_1_mlp_fc2"
        tensors[f"{stem}.lora_up.weight"] = torch.randn(width, 4) * 0.3
        tensors[f"{stem}.lora_down.weight"] = torch.randn(4, 2 * width) * 0.3
        tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "theirs.safetensors")
    base = states(model.pipe)
    model.pipe.load_lora_weights(str(tmp_path), weight_name="theirs.safetensors")
    loaded = states(model.pipe)
    model.pipe.unload_lora_weights()
    with from_lora(tmp_path / "theirs.safetensors").applied(model):
        torch.testing.assert_close(states(model.pipe), loaded, rtol=0, atol=TOLERANCE)
    assert (loaded - base).abs().max() > 0.1


def test_baking_with_loras_loaded_is_refused(tmp_path):
    model = tiny.FakeModel(tiny.pipeline("sd1"))
    load(model.pipe, tiny.patch(model, {"x": ranks(model, "plain")}), tmp_path)
    with pytest.raises(PatchError, match="text_encoder of tiny have LoRAs loaded"):
        bake(model, [], tmp_path / "baked")
    model.pipe.unload_lora_weights()
    bake(model, [], tmp_path / "baked")
    assert (tmp_path / "baked" / "text_encoder" / "model.safetensors").exists()


# -- names that others accept -----------------------------------------------------------------------------------------
# From a study of file formats made for this project (2026-11): names that each tool's own key map lists, found
# by running its code (ComfyUI 0.3.64, Forge 2025-06, A1111's networks.py, sd-scripts) on toy models, not checkpoints.

FC2 = r"text_model_encoder_layers_\d+_mlp_fc2"
WO = r"encoder_block_\d+_layer_1_DenseReluDense_wo"
UNET = r"lora_unet_\w+_attentions_\d_transformer_blocks_\d+_attn2_to_[kv]"
DOTTED = r"text_model\.encoder\.layers\.\d+\.mlp\.fc2"
KOHYA, LINEAR_LAYER = r"\.(lora_up\.weight|lora_down\.weight|alpha)", r"\.lora_linear_layer\.(up|down)\.weight"
ONE_ENCODER, TWO_ENCODERS = rf"(lora_te_{FC2}|{UNET}){KOHYA}", rf"(lora_te[12]_{FC2}|{UNET}){KOHYA}"
ACCEPTED = {
    "ComfyUI": {
        "sd1": ONE_ENCODER,
        "sd2": ONE_ENCODER,
        "sdxl": TWO_ENCODERS,
        "sd3": rf"(text_encoder(_2)?\.{DOTTED}|lora_te3_{WO}){LINEAR_LAYER}",
        "flux": rf"(text_encoder\.{DOTTED}|lora_te[23]_{WO}){LINEAR_LAYER}",
    },
    "Forge": {
        "sd1": ONE_ENCODER,
        "sd2": ONE_ENCODER,
        "sdxl": TWO_ENCODERS,
        "sd3": rf"text_encoder(_2)?\.{DOTTED}{LINEAR_LAYER}",
        "flux": rf"text_encoder\.{DOTTED}{LINEAR_LAYER}",
    },
    "A1111": {"sd1": ONE_ENCODER, "sd2": ONE_ENCODER, "sdxl": TWO_ENCODERS},  # SD2: lora_te_ only; SDXL: te1, te2 only
    "sd-scripts": {
        "sd1": rf"lora_te_{FC2}{KOHYA}",
        "sd2": rf"lora_te_{FC2}{KOHYA}",
        "sdxl": rf"lora_te[12]_{FC2}{KOHYA}",
    },
}
WITHOUT = {"Forge": ("t5",), "sd-scripts": ("unet", "t5")}  # parts whose names were not checked in that tool


def names_in_file(family: str, tmp_path, without: tuple[str, ...]) -> list[str]:
    model = tiny.FakeModel(tiny.pipeline(family), family=family)
    sites = [tiny.site(row, 2) for row in FAMILIES[family].encoders if row.kind not in without]
    if hasattr(model.pipe, "unet") and "unet" not in without:
        sites += tiny.unet_sites(model.pipe)
    tiny.patch(model, {"x": dict.fromkeys(sites, 1)}).save(tmp_path / "x.safetensors")
    return list(read_header(tmp_path / "x.safetensors").tensors)


@pytest.mark.parametrize(("tool", "family"), [(tool, family) for tool in ACCEPTED for family in ACCEPTED[tool]])
def test_names_are_ones_that_others_accept(tool, family, tmp_path):
    names = names_in_file(family, tmp_path, WITHOUT.get(tool, ()))
    strange = [name for name in names if not re.fullmatch(ACCEPTED[tool][family], name)]
    assert not strange
    assert len(names) >= 2 * len([row for row in FAMILIES[family].encoders if row.kind == "clip"])


@pytest.mark.parametrize("family", tiny.NAMES)
def test_every_clip_name_keeps_text_model(family, tmp_path):
    names = names_in_file(family, tmp_path, ("unet", "t5"))
    assert all("text_model" in name for name in names)  # without it ComfyUI and Forge drop the tensor
    assert not any("lora_A" in name or "lora_B" in name for name in names)  # diffusers refuses PEFT's names of fc2
