"""The file of a patch: what other programs read, and LoRAs of other makers."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import safetensors
import tiny
import torch
from safetensors.torch import load_file, save_file

from refact.errors import PatchError
from refact.exports import usage
from refact.patch import Patch, from_lora, merge
from refact.record import describe, read_header, read_record

FC2 = tiny.CLIP_FC2
ONE, TWO = FC2.format(1), FC2.format(2)
STEM = "lora_te_text_model_encoder_layers_1_mlp_fc2"
DOWN, UP = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight"


# -- the file ---------------------------------------------------------------------------------------------------------


def test_saving_and_loading_is_identity(tmp_path, patch):
    patch.save(tmp_path / "p.safetensors")
    again = Patch.load(tmp_path / "p.safetensors")
    assert again.record == patch.record
    assert again.digest == patch.digest
    assert [f.name for f in tmp_path.iterdir()] == ["p.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path, patch, dtype):
    patch.save(tmp_path / "p.safetensors", dtype=dtype)
    again = Patch.load(tmp_path / "p.safetensors")
    tiny.close(tiny.change(again), tiny.change(patch), 3e-3 if dtype is torch.float16 else 3e-2)
    again.save(tmp_path / "q.safetensors", dtype=dtype)
    assert (tmp_path / "q.safetensors").read_bytes() == (tmp_path / "p.safetensors").read_bytes()


def test_the_same_patch_gives_the_same_bytes(tmp_path, model):
    files = []
    for name in "ab":
        made = tiny.patch(model, {"zürich": {TWO: 1, ONE: 1}})
        made.save(tmp_path / f"{name}.safetensors")
        files.append((tmp_path / f"{name}.safetensors").read_bytes())
    assert files[0] == files[1]
    assert b"20" + b"26-" not in files[0]  # no date


def test_other_readers_agree(tmp_path, patch):
    path = tmp_path / "p.safetensors"
    patch.save(path)
    tensors = load_file(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert {name: (entry.dtype, entry.shape) for name, entry in read_header(path).tensors.items()} == {
        name: ("F32", tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    assert metadata == read_header(path).metadata
    assert json.loads(metadata["refact"]) == read_record(path) == patch.record
    up, down, alpha = (tensors[f"{STEM}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha"))
    assert torch.allclose((up @ down * alpha / len(down)).double(), tiny.change(patch)[ONE], atol=1e-6)
    assert {tuple(t.shape) for n, t in tensors.items() if "down" in n} == {(4, 20)}  # padded to one rank


def test_what_other_programs_read(tmp_path, patch):
    patch.save(tmp_path / "p.safetensors")
    metadata = read_header(tmp_path / "p.safetensors").metadata
    for key in ("sai_model_spec", "architecture", "implementation", "title", "hash_sha256"):
        assert metadata[f"modelspec.{key}"]
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert not metadata["ss_base_model_version"].startswith("sdxl_")
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "4"
    data = (tmp_path / "p.safetensors").read_bytes()[read_header(tmp_path / "p.safetensors").data :]
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()


def test_a_failed_save_leaves_what_was_there(tmp_path, patch, monkeypatch):
    path = tmp_path / "p.safetensors"
    patch.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        patch.scaled(2.0).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_saved(tmp_path, patch):
    empty = Patch({}, patch.record | {"edits": []})
    with pytest.raises(PatchError, match="changes nothing"):
        empty.save(tmp_path / "p.safetensors")
    with pytest.raises(PatchError, match=r"too large for torch\.float16"):
        patch.scaled(1e12).save(tmp_path / "p.safetensors", dtype=torch.float16)
    with pytest.raises(PatchError, match="float32, float16 or bfloat16"):
        patch.save(tmp_path / "p.safetensors", dtype=torch.int8)
    named = json.loads(json.dumps(patch.record).replace("the flag of peru", "a \\ud800 prompt"))
    with pytest.raises(PatchError, match="Unicode characters is needed"):
        Patch(patch.factors, named).save(tmp_path / "p.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_show_says(tmp_path, patch):
    path = tmp_path / "three.facts.safetensors"
    patch.scaled({"peru": 0.5}).save(path)
    record = read_record(path)
    text = describe(path, record)
    assert "3 facts" in text
    assert "'the flag of canada' -> 'a lion'" in text
    assert "strength 0.5" in text
    lines = usage(path, record)
    assert (
        f"pipe.load_lora_weights({str(tmp_path)!r}, weight_name='three.facts.safetensors', adapter_name='three_facts')"
        in lines
    )
    assert "<lora:three.facts:1>" in lines
    assert "strength_clip" in lines


# -- what a caller may get wrong --------------------------------------------------------------------------------------


def test_numbers_and_paths_of_a_record_become_json(patch):
    record = json.loads(json.dumps(patch.record))
    record["method"] |= {"templates": ("{}", "a photo of {}"), "ratio": float("inf")}
    made = Patch(patch.factors, record)
    assert made.record["method"]["templates"] == ["{}", "a photo of {}"]
    assert made.record["method"]["ratio"] is None
    with pytest.raises(PatchError, match="JSON values, not Tensor"):
        Patch(patch.factors, record | {"versions": {"x": torch.ones(1)}})


@pytest.mark.parametrize("pair", [((12, 3), (2, 20)), ((12,), (1, 20)), ((12, 0), (0, 20))])
def test_factors_that_do_not_fit(patch, pair):
    shaped = (torch.ones(pair[0]), torch.ones(pair[1]))
    with pytest.raises((PatchError, Exception), match=r"expected \(d_out, r\)|rows"):
        Patch({ONE: shaped, TWO: patch.factors[TWO]}, patch.record)


# -- import -----------------------------------------------------------------------------------------------------------

WAYS = {  # stem, up, down of one fc2 at layer 1
    "kohya": (STEM, "lora_up.weight", "lora_down.weight"),
    "kohya te1": (STEM.replace("te_", "te1_"), "lora_up.weight", "lora_down.weight"),
    "diffusers": (ONE, "lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    "diffusers, flat": (ONE.replace("text_model.", ""), "lora.up.weight", "lora.down.weight"),
    "peft": (ONE, "lora_B.weight", "lora_A.weight"),
    "peft adapter": (ONE.replace("text_encoder", "base_model.model"), "lora_B.weight", "lora_A.weight"),
    "comfy": (ONE.replace("text_encoder", "text_encoders.clip_l.transformer"), "lora_up.weight", "lora_down.weight"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_importing_any_lora_of_fc2(tmp_path, model, way, alpha):
    stem, up, down = WAYS[way]
    left, right = torch.randn(12, 4), torch.randn(4, 20)
    tensors = {f"{stem}.{up}": left, f"{stem}.{down}": right}
    if alpha:
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "My LoRA.safetensors")
    patch = from_lora(tmp_path / "My LoRA.safetensors", family="sd1")
    assert patch.names == ["my-lora"]
    tiny.close(tiny.change(patch), {ONE: (left.double() @ right.double()) * ((alpha or 4) / 4)}, 1e-5)
    assert patch.apply(model).mismatch == []  # it does not say which model it is for
    patch.save(tmp_path / "again.safetensors")
    assert Patch.load(tmp_path / "again.safetensors").digest == patch.digest


def test_importing_our_own_file_is_loading_it(tmp_path, patch):
    patch.save(tmp_path / "p.safetensors")
    assert from_lora(tmp_path / "p.safetensors").record == patch.record


def test_importing_refuses_what_it_would_lose(tmp_path):
    tensors = {DOWN: torch.ones(1, 20), UP: torch.ones(12, 1)}
    other = {DOWN.replace("mlp_fc2", "self_attn_q_proj"): torch.ones(1, 12)}
    save_file(tensors | other, tmp_path / "p.safetensors")
    with pytest.raises(PatchError, match=r"self_attn_q_proj.* changes something else"):
        from_lora(tmp_path / "p.safetensors", family="sd1")
    save_file(tensors, tmp_path / "p.safetensors")
    with pytest.raises(PatchError, match="give family="):
        from_lora(tmp_path / "p.safetensors")
    with pytest.raises(PatchError, match="no family 'sd5'"):
        from_lora(tmp_path / "p.safetensors", family="sd5")


@pytest.mark.parametrize(
    ("family", "name", "width", "metadata"),
    [
        ("sd1", STEM, 768, None),
        ("sd2", STEM, 1024, None),
        ("sdxl", STEM.replace("te_", "te2_"), 1280, None),
        ("sd1", ONE, 12, {"ss_base_model_version": "sd_v1"}),
        ("sd3", ONE, 12, {"modelspec.architecture": "stable-diffusion-3-medium/lora"}),
        ("flux", ONE, 12, {"modelspec.architecture": "flux-1-schnell/lora"}),
    ],
)
def test_the_family_is_read_off_the_file(tmp_path, family, name, width, metadata):
    kohya = name.startswith("lora_")
    up, down = ("lora_up", "lora_down") if kohya else ("lora_B", "lora_A")
    tensors = {f"{name}.{up}.weight": torch.ones(width, 1), f"{name}.{down}.weight": torch.ones(1, 20)}
    save_file(tensors, tmp_path / "p.safetensors", metadata=metadata)
    assert from_lora(tmp_path / "p.safetensors").record["family"] == family


def test_a_merged_import_can_be_taken_out(tmp_path, patch):
    save_file({DOWN: torch.ones(1, 20), UP: torch.ones(12, 1)}, tmp_path / "old.safetensors")
    both = merge([from_lora(tmp_path / "old.safetensors", family="sd1"), patch])
    assert both.names == ["canada", "france", "peru", "old"]
    assert both.record["model"]["name"] == "small"
    tiny.close(tiny.change(both.without("old")), tiny.change(patch))
    both.save(tmp_path / "both.safetensors")
    assert Patch.load(tmp_path / "both.safetensors").record == both.record
