"""Exported forms: the same changes under other names, loaded by the real diffusers and PEFT, or read back by us."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file

import refact
from refact.errors import PatchError
from refact.exports import export, usage
from refact.families import FAMILIES
from refact.patch import Patch
from refact.record import read_header, read_record

# What each program's own code looks for: written down from its sources, and run against them by tests/programs.
STEM = r"text_model_encoder_layers_\d+_mlp_fc2"
WO = r"encoder_block_\d+_layer_1_DenseReluDense_wo"
PARTS = r"\.(lora_up\.weight|lora_down\.weight|alpha)"
KOHYA = {
    "sd1": rf"lora_te_{STEM}{PARTS}",
    "sd2": rf"lora_te_{STEM}{PARTS}",
    "sdxl": rf"lora_te[12]_{STEM}{PARTS}",
    "sd3": rf"(lora_te[12]_{STEM}|lora_te3_{WO}){PARTS}",
    "flux": rf"(lora_te1_{STEM}|lora_te3_{WO}){PARTS}",
}


def model_of(name: str) -> tiny.FakeModel:
    return tiny.FakeModel(tiny.pipeline(name), family=name)


def sites(name: str, kinds: tuple[str, ...] = ("clip", "t5"), layer: int = 1) -> dict[str, int]:
    """Two layers of every encoder, with different ranks."""
    rows = [row for row in FAMILIES[name].encoders if row.kind in kinds]
    return {tiny.site(row, layer + more): 1 + more for row in rows for more in (0, 1)}


def states(pipe) -> torch.Tensor:
    from test_interop import states

    return states(pipe)


@pytest.mark.parametrize("name", tiny.NAMES)
@pytest.mark.parametrize("names", ["kohya", "diffusers"])
def test_other_names_hold_the_same_patch(name, names, tmp_path):
    model = model_of(name)
    found = sites(name) | (dict.fromkeys(tiny.unet_sites(model.pipe), 2) if hasattr(model.pipe, "unet") else {})
    patch = tiny.patch(model, {"x": found})
    export(patch, tmp_path / "x.safetensors", names=names)
    again = Patch.load(tmp_path / "x.safetensors")
    assert again.record == patch.record
    assert again.digest == patch.digest
    kohya = [key.startswith("lora_") for key in read_header(tmp_path / "x.safetensors").tensors]
    assert all(kohya) if names == "kohya" else sum(kohya) == 4 * (name in ("sd3", "flux"))  # T5 keeps its stem


@pytest.mark.parametrize("name", tiny.NAMES)
def test_kohyas_names_are_those_that_programs_look_for(name, tmp_path):
    export(tiny.patch(model_of(name), {"x": sites(name)}), tmp_path / "x.safetensors", names="kohya")
    names = list(read_header(tmp_path / "x.safetensors").tensors)
    assert not [found for found in names if not re.fullmatch(KOHYA[name], found)]
    assert len(names) == 3 * 2 * len(FAMILIES[name].encoders)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_diffusers_reads_its_own_names_of_every_family(name, tmp_path):
    model = model_of(name)
    patch = tiny.patch(model, {"x": sites(name) | dict.fromkeys(tiny.unet_sites(model.pipe), 2)})
    export(patch, tmp_path / "x.safetensors", names="diffusers")
    with patch.applied(model):
        expected, picture = states(model.pipe), tiny.generate(model.pipe)
    model.pipe.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    torch.testing.assert_close(states(model.pipe), expected, rtol=0, atol=1e-5)
    assert abs(tiny.generate(model.pipe) - picture).max() < 1e-4


def test_diffusers_still_ignores_kohyas_names_of_sd3(tmp_path):
    """Why they are not the default there; should this fail one day, they can be."""
    model = model_of("sd3")
    base = states(model.pipe)
    export(tiny.patch(model, {"x": sites("sd3", ("clip",))}), tmp_path / "x.safetensors", names="kohya")
    model.pipe.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
    assert torch.equal(states(model.pipe), base)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_peft_loads_its_adapters(name, tmp_path):
    model = model_of(name)
    patch = tiny.patch(model, {"x": sites(name)})
    export(patch, tmp_path / "x", program="peft")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["x"]
    with patch.applied(model):
        expected = states(model.pipe)
    base = states(model.pipe)
    for row in FAMILIES[name].encoders:
        wrapped = PeftModel.from_pretrained(getattr(model.pipe, row.name), tmp_path / "x" / "transformers-5" / row.name)
        adapters = [module for module in wrapped.modules() if hasattr(module, "lora_A")]
        assert len(adapters) == 2
        assert {module.scaling["default"] for module in adapters} == {1.0}
    torch.testing.assert_close(states(model.pipe), expected, rtol=0, atol=1e-5)
    assert (expected - base).abs().max() > 0.1
    old = load_file(tmp_path / "x" / "transformers-4" / "text_encoder" / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.text_model.encoder.layers.") for key in old)


def test_what_invokeai_asks_for(tmp_path):
    """The rule of InvokeAI's lora_token_vector_length, restated: the width that a UNet's cross-attention reads."""
    for name, width in (("sd1", 768), ("sd2", 1024), ("sdxl", 2048)):
        model = model_of(name)
        patch = tiny.patch(model, {"x": sites(name)})
        export(patch, tmp_path / "x.safetensors", program="invokeai", dtype=torch.float16)
        tensors = load_file(tmp_path / "x.safetensors")
        read = [t.shape[1] for key, t in tensors.items() if key.endswith("_attn2_to_k.lora_down.weight")]
        assert read == [width]
        added = {key: t for key, t in tensors.items() if key.startswith("lora_unet_")}
        assert len(added) == 3
        assert not any(t.any() for key, t in added.items() if "alpha" not in key)
        assert Patch.load(tmp_path / "x.safetensors").record == patch.record
        whole = tiny.patch(model, {"x": dict.fromkeys(tiny.unet_sites(model.pipe), 1)})
        export(whole, tmp_path / "y.safetensors", program="invokeai")
        assert len(load_file(tmp_path / "y.safetensors")) == 3 * len(whole.factors)  # it has such keys already
    flux = tiny.patch(model_of("flux"), {"clip": sites("flux", ("clip",)), "t5": sites("flux", ("t5",))})
    export(flux["clip"], tmp_path / "z.safetensors", program="invokeai")
    assert all(key.startswith("lora_te1_") for key in load_file(tmp_path / "z.safetensors"))
    with pytest.raises(PatchError, match="export the CLIP part alone"):
        export(flux, tmp_path / "z.safetensors", program="invokeai")
    with pytest.raises(PatchError, match=r"no LoRA into the text encoders of Stable Diffusion 3"):
        export(tiny.patch(model_of("sd3"), {"x": sites("sd3")}), tmp_path / "z.safetensors", program="invokeai")


def test_what_cannot_be_exported(tmp_path, patch):
    for how, message in (
        ({"names": "peft"}, "names are kohya or diffusers, not 'peft'"),
        ({"program": "krita"}, "there is one for invokeai and peft"),
        ({"program": "peft", "names": "kohya"}, "not both"),
    ):
        with pytest.raises(PatchError, match=message):
            export(patch, tmp_path / "x.safetensors", **how)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    with pytest.raises(PatchError, match="new or empty"):
        export(patch, tmp_path / "full", program="peft")
    model = model_of("sd1")
    unet = tiny.patch(model, {"x": dict.fromkeys(tiny.unet_sites(model.pipe), 1)})
    with pytest.raises(PatchError, match="changes the unet"):
        export(unet, tmp_path / "new", program="peft")
    assert sorted(f.name for f in tmp_path.rglob("*")) == ["a.txt", "full"]


def test_the_same_patch_is_exported_as_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        export(tiny.patch(model_of("sdxl"), {"x": sites("sdxl")}), tmp_path / name, program="peft")
    first, second = (sorted((tmp_path / name).rglob("*.*")) for name in ("a", "b"))
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]
    assert len(first) == 8


# -- what `refact show` says ------------------------------------------------------------------------------------------


def lines(name: str, tmp_path, **how) -> str:
    export(tiny.patch(model_of(name), {"x": sites(name, ("clip",))}), tmp_path / "x.safetensors", **how)
    return usage(tmp_path / "x.safetensors", read_record(tmp_path / "x.safetensors"))


def test_show_tells_flux_how_to_fuse(tmp_path):
    """And diffusers does as it says: fuse_lora() alone leaves CLIP out."""
    assert 'pipe.fuse_lora(components=["text_encoder"])' in lines("flux", tmp_path)
    assert "fuse_lora" not in lines("sd1", tmp_path)
    model = model_of("flux")
    patch = tiny.patch(model, {"x": sites("flux", ("clip",))})
    patch.save(tmp_path / "x.safetensors")
    fused = []
    for components in ({}, {"components": ["text_encoder"]}):
        pipe = tiny.pipeline("flux")
        base = states(pipe)
        pipe.load_lora_weights(str(tmp_path), weight_name="x.safetensors")
        pipe.fuse_lora(**components)
        pipe.unload_lora_weights()
        fused.append((states(pipe) - base).abs().max())
    assert fused[0] == 0
    assert fused[1] > 0.1


def test_show_tells_which_programs_need_another_form(tmp_path):
    text = lines("flux", tmp_path)
    assert "--names kohya" in text
    assert "InvokeAI" in text
    text = lines("sd3", tmp_path)
    assert "sd-scripts, SD.Next:" in text
    assert "--for invokeai" not in text
    text = lines("sd3", tmp_path, names="kohya")
    assert "diffusers: does not read this file's names" in text
    assert "load_lora_weights" not in text
    text = lines("sdxl", tmp_path)
    assert "--for invokeai" in text
    assert "--names kohya" not in text
    assert "(LoraLoaderModelOnly) ignore this file" in text


def test_show_needs_no_torch(tmp_path, patch):
    patch.save(tmp_path / "x.safetensors")
    code = f"""
import sys
from refact.cli.main import app
sys.argv = ["refact", "show", {str(tmp_path / "x.safetensors")!r}]
app(standalone_mode=False)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# -- other things in a file -------------------------------------------------------------------------------------------


def test_alpha_is_exact_in_bfloat16(tmp_path):
    linears = tiny.Linears(shape=(300, 400))
    patch = tiny.patch(linears, {"x": {tiny.CLIP_FC2.format(1): 257}})
    patch.save(tmp_path / "x.safetensors", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "x.safetensors")
    assert [(t.dtype, t.item()) for key, t in tensors.items() if key.endswith("alpha")] == [(torch.float32, 257.0)]
    assert {t.dtype for key, t in tensors.items() if "weight" in key} == {torch.bfloat16}
    change = tiny.change(patch)[tiny.CLIP_FC2.format(1)]
    again = tiny.change(Patch.load(tmp_path / "x.safetensors"))[tiny.CLIP_FC2.format(1)]
    assert ((again - change).norm() / change.norm()) < 5e-3


def test_no_name_that_programs_would_write_into_the_prompt(tmp_path, patch):
    patch.save(tmp_path / "x.safetensors")
    assert "ss_output_name" not in read_header(tmp_path / "x.safetensors").metadata


def test_word_embeddings_have_no_place_in_an_adapter(tmp_path):
    model = refact.load(tiny.pipeline("sd1"))
    patch = refact.EmbEdit(max_steps=1, contexts=2)(model, [refact.Edit("the flag of Canada", new="a dog")])
    with pytest.raises(PatchError, match="matrices of layers only"):
        refact.save_adapter(patch, model, tmp_path / "a")
    with pytest.raises(PatchError, match="matrices of layers only"):
        export(patch, tmp_path / "x", program="peft")
    assert not list(tmp_path.iterdir())


def test_an_adapter_holds_an_attention_matrix_too(tmp_path):
    model = refact.load(tiny.pipeline("sd1"))
    patch = refact.DiffQuickFix()(model, [refact.Edit("the flag of Canada", new="a dog")])
    base = states(model.pipe)
    with patch.applied(model):
        expected = states(model.pipe)
    (folder,) = refact.save_adapter(patch, model, tmp_path)
    PeftModel.from_pretrained(model.pipe.text_encoder, folder)
    torch.testing.assert_close(states(model.pipe), expected, rtol=0, atol=1e-5)
    assert (expected - base).abs().max() > 1e-4
