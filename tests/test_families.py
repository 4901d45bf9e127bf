"""Families: detection from what a folder says, and names of sites that survive every way of writing them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from refact.errors import ModelError, PatchError
from refact.families import FAMILIES, detect, lora_keys, on_disk, site_of

UNET = "unet.down_blocks.{}.attentions.{}.transformer_blocks.{}.attn2.to_{}"


def sites(family: str, layer: int) -> list[str]:
    found = [tiny.site(row, layer) for row in FAMILIES[family].encoders]
    if FAMILIES[family].style == "kohya":
        found += [UNET.format(layer, 1, 0, "k"), f"unet.mid_block.attentions.0.transformer_blocks.{layer}.attn2.to_v"]
    return found


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_saved_pipeline_is_recognised(name, tmp_path):
    folder = tiny.folder(name, tmp_path)
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    family = detect(json.loads((folder / "model_index.json").read_text()), config)
    assert family == FAMILIES[name]


def test_encoders_that_are_not_there_are_left_out():
    clip, t5 = ["transformers", "CLIPTextModelWithProjection"], ["transformers", "T5EncoderModel"]
    index = {"transformer": ["diffusers", "SD3Transformer2DModel"], "text_encoder": clip, "text_encoder_2": clip}
    assert [row.name for row in detect(index).encoders] == ["text_encoder", "text_encoder_2"]
    assert [row.name for row in detect(index | {"text_encoder_3": t5}).encoders][-1] == "text_encoder_3"
    assert len(detect(index | {"text_encoder_3": [None, None]}).encoders) == 2
    refiner = {"unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": [None, None], "text_encoder_2": clip}
    assert [(row.name, row.prefix) for row in detect(refiner).encoders] == [("text_encoder_2", "lora_te2")]


def test_a_bare_clip_and_an_unknown_pipeline_with_clip_are_clip():
    assert detect({}, {"model_type": "clip"}).name == "clip"
    assert detect({}, {"model_type": "clip_text_model"}).name == "clip"
    video = {"transformer": ["diffusers", "HunyuanVideoTransformer3DModel"], "text_encoder": ["x", "LlamaModel"]}
    family = detect(video | {"text_encoder_2": ["transformers", "CLIPTextModel"]})
    assert family.name == "clip"
    assert [row.name for row in family.encoders] == ["text_encoder_2"]


def test_what_has_no_clip_is_refused_with_what_was_found():
    index = {"_class_name": "KolorsPipeline", "text_encoder": ["kolors", "ChatGLMModel"], "unet": ["diffusers", "U"]}
    with pytest.raises(ModelError, match=r"KolorsPipeline .*ChatGLMModel.*Stable Diffusion XL.*Z-Image"):
        detect(index)
    with pytest.raises(ModelError, match="bert"):
        detect({}, {"model_type": "bert"})


@given(st.sampled_from(list(FAMILIES)), st.integers(0, 40))
def test_names_lead_back_to_their_site(name, layer):
    for site in sites(name, layer):
        if name == "clip" and not site.startswith("text_encoder."):
            continue
        down, up, alpha = lora_keys(FAMILIES[name], site)
        assert site_of(down, name) == (site, "down")
        assert site_of(up, name) == (site, "up")
        assert alpha is None or site_of(alpha, name) == (site, "alpha")


def test_all_ways_of_writing_a_site():
    clip, big = "text_encoder.text_model.encoder.layers.9.mlp.fc2", "text_encoder_2.text_model.encoder.layers.9.mlp.fc2"
    t5 = "text_encoder_3.encoder.block.9.layer.1.DenseReluDense.wo"
    ways = {
        "lora_te_text_model_encoder_layers_9_mlp_fc2.alpha": (clip, "alpha"),
        "lora_te1_text_model_encoder_layers_9_mlp_fc2.lora_up.weight": (clip, "up"),
        "lora_te2_text_model_encoder_layers_9_mlp_fc2.lora_up.weight": (big, "up"),
        "text_encoder.encoder.layers.9.mlp.fc2.lora_A.weight": (clip, "down"),
        "base_model.model.encoder.layers.9.mlp.fc2.lora_B.weight": (clip, "up"),
        "base_model.model.text_model.encoder.layers.9.mlp.fc2.lora_B.weight": (clip, "up"),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.9.mlp.fc2.lora_up.weight": (clip, "up"),
        "text_encoders.clip_g.transformer.text_model.encoder.layers.9.mlp.fc2.lora_up.weight": (big, "up"),
        "text_encoders.t5xxl.transformer.encoder.block.9.layer.1.DenseReluDense.wo.lora_A.weight": (t5, "down"),
        "lora_te3_encoder_block_9_layer_1_DenseReluDense_wo.lora_down.weight": (t5, "down"),
    }
    assert {key: site_of(key) for key in ways} == ways
    flux = t5.replace("_3", "_2")
    assert site_of("lora_te3_encoder_block_9_layer_1_DenseReluDense_wo.lora_down.weight", "flux") == (flux, "down")


@pytest.mark.parametrize(
    "key",
    [
        "lora_te_text_model_encoder_layers_9_mlp_fc1.lora_up.weight",
        "lora_te_text_model_encoder_layers_9_self_attn_q_proj.lora_up.weight",
        "text_encoder.vision_model.encoder.layers.9.mlp.fc2.lora_A.weight",
        "text_encoder.text_model.encoder.layers.9.mlp.fc2.dora_scale",
        "text_encoder.text_model.encoder.layers.9.mlp.fc2.lora_A.weight\n",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k.lora_up.weight",
        "text_encoder.text_model.encoder.layers.٩.mlp.fc2.x",
        "",
    ],
)
def test_other_names_are_nobodys(key):
    assert site_of(key) is None


@pytest.mark.parametrize(
    ("family", "site"),
    [
        ("sd1", "text_encoder_2.text_model.encoder.layers.1.mlp.fc2"),
        ("flux", "text_encoder_2.text_model.encoder.layers.1.mlp.fc2"),  # T5 is there
        ("sd3", UNET.format(0, 0, 0, "k")),
        ("sd1", "text_encoder.text_model.encoder.layers.1.mlp.fc1"),
        ("sd1", "nonsense"),
    ],
)
def test_sites_of_other_families_are_refused(family, site):
    with pytest.raises(PatchError, match="no site of"):
        lora_keys(FAMILIES[family], site)


def test_on_disk_names():
    assert on_disk("encoder.layers.0.mlp.fc2.weight") == "text_model.encoder.layers.0.mlp.fc2.weight"
    for same in (
        "text_model.embeddings.x",
        "text_projection.weight",
        "encoder.block.0.layer.1.DenseReluDense.wo.weight",
    ):
        assert on_disk(same) == same


def test_reading_a_record_needs_no_torch():
    code = "import sys, refact.record; print([m for m in ('torch', 'numpy', 'diffusers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
