"""load() and Model on tiny pipelines of every family: sites, conditioning, pictures, files, the hub's cache."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import refact
from refact import pocket
from refact.errors import DataError, ModelError
from refact.evidence.cases import read_cases
from refact.families import FAMILIES
from refact.models import drawing
from refact.models.model import Model, Picture, load

PROMPTS = ["the president of France", "", "a photo of the national flag of Canada's king, standing"]
FAST = {"steps": 2, "size": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: tiny.folder(name, root) for name in tiny.NAMES}


@pytest.fixture(scope="module")
def models(folders) -> dict[str, Model]:
    return {name: load(folder) for name, folder in folders.items()}


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image, dtype=float)


# -- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_folder_gives_its_clip_encoders_and_nothing_else(folders, name):
    model = load(str(folders[name]))
    assert model.family.name == name
    assert list(model.encoders) == [row.name for row in FAMILIES[name].encoders if row.kind == "clip"]
    assert model._pipe is None
    assert (model.name, model.device, model.dtype) == (folders[name].name, torch.device("cpu"), torch.float32)
    live = tiny.pipeline(name)
    for part, encoder in model.encoders.items():
        own = dict(getattr(live, part).named_parameters())
        assert all(torch.equal(weight, own[key]) for key, weight in encoder.module.named_parameters())


def test_the_rest_is_loaded_around_the_same_objects(models):
    for model in models.values():
        pipe = model.pipe
        assert model.pipe is pipe
        for part, encoder in model.encoders.items():
            assert getattr(pipe, part) is encoder.module
            assert getattr(pipe, part.replace("text_encoder", "tokenizer")) is encoder.tokenizer


def test_only_the_encoders_asked_for(folders):
    assert list(load(folders["sd3"], encoders=["text_encoder_3", "text_encoder"]).encoders) == [
        "text_encoder_3",
        "text_encoder",
    ]
    with pytest.raises(ModelError, match="no text encoder 'text_encoder_2' here; it has text_encoder"):
        load(folders["sd1"], encoders=["text_encoder_2"])


def test_a_live_pipeline_is_taken_as_it_is():
    pipe = tiny.pipeline("sdxl").to(torch.float16)
    model = load(pipe)
    assert model.pipe is pipe
    assert model.encoders["text_encoder_2"].module is pipe.text_encoder_2
    assert (model.dtype, model.family.name, model.name) == (torch.float16, "sdxl", "StableDiffusionXLPipeline")
    assert load(model) is model
    assert load(pipe, dtype="bfloat16").dtype == torch.bfloat16


def test_a_live_pipeline_is_named_after_its_source_without_the_path(models, folders):
    assert load(models["sd1"].pipe).name == folders["sd1"].name


def test_half_precision_files_are_edited_in_float32(tmp_path):
    tiny.pipeline("sd1").to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    with pytest.raises(ModelError, match="it has variant fp16"):
        load(tmp_path / "half")
    model = load(tmp_path / "half", variant="fp16")
    assert model.dtype == torch.float32
    assert model.pipe.unet.dtype == torch.float32
    assert model.fingerprints() == load(tiny.pipeline("sd1")).fingerprints() | {"unet": model.fingerprints()["unet"]}
    assert load(tmp_path / "half", variant="fp16", dtype="float16").pipe.unet.dtype == torch.float16


def test_editing_needs_no_diffusers(folders):
    code = f"""
import sys
sys.modules["diffusers"] = sys.modules["peft"] = sys.modules["accelerate"] = None
import refact
model = refact.load({str(folders["sdxl"])!r})
model.encode("a cat"), model.fingerprints(), model["text_encoder.text_model.encoder.layers.1.mlp.fc2"]
edit = refact.Edit("the king of france", old="a lion", new="a dog")
with refact.edit(model, edit, refact.ReFACT(layer=1, max_steps=2, tokens=500, contexts=1)).applied(model):
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_a_bare_clip_folder(tmp_path):
    clip, tokenizer = tiny.clip_model(), tiny.clip_tokenizer()
    for module, part in ((clip, "whole"), (tiny.pipeline("sd1").text_encoder, "text")):
        module.save_pretrained(tmp_path / part)
        tokenizer.save_pretrained(tmp_path / part)
        model = load(tmp_path / part)
        assert model.family.name == "clip"
        site = "text_encoder.text_model.encoder.layers.1.mlp.fc2"
        assert model[site] is model.encoders["text_encoder"].linear(1)
        assert model.conditioning_sites == []
        with pytest.raises(ModelError, match="text encoder alone"):
            model.generate("a cat")
    ids = tokenizer(["a cat"], return_tensors="pt").input_ids
    with torch.no_grad():
        own = clip.get_text_features(input_ids=ids).pooler_output
    torch.testing.assert_close(load(tmp_path / "whole").encode("a cat")["pooled_prompt_embeds"], own)


def test_a_text_encoder_from_a_checkpoint_file(folders, tmp_path):
    """The layout of published SD 1.x files; the configs come from a folder without weights."""
    weights = {tiny.on_disk(k): v + 0.25 for k, v in tiny.pipeline("sd1").text_encoder.state_dict().items()}
    prefix = "cond_stage_model.transformer."
    save_file({prefix + key: value for key, value in weights.items()}, tmp_path / "model.safetensors")
    config = tmp_path / "config"
    shutil.copytree(folders["sd1"], config, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match="config=FOLDER"):
        load(tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors", config=config)
    assert (model.name, model.family.name) == ("model", "sd1")
    for key, value in model.encoders["text_encoder"].module.state_dict().items():
        assert torch.equal(value, weights[tiny.on_disk(key)])


@pytest.fixture
def hub(folders, tmp_path, monkeypatch):
    """A hub cache that holds a part of one repository, and no network."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "abc"
    shutil.copytree(folders["sdxl"], snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_hub_name_is_read_from_the_cache_when_offline(hub, models):
    model = load("someone/tiny")
    assert model.name == "someone/tiny"
    assert model.fingerprints() == {k: v for k, v in models["sdxl"].fingerprints().items() if k != "unet"}
    with pytest.raises(ModelError, match="someone/other cannot be had from the hub, nor from its cache"):
        load("someone/other")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_only_the_needed_files_are_fetched(monkeypatch, tmp_path, variant):
    import huggingface_hub

    fetched, remote, here = [], tmp_path / "remote", tmp_path / "here"
    for one in (None, "fp16"):  # as published: both in one repository
        tiny.pipeline("sd3").save_pretrained(remote, variant=one)

    def download(name, revision=None, allow_patterns=None):
        assert (name, revision) == ("someone/tiny", "v2")
        for file in sorted(remote.rglob("*")):
            part = file.relative_to(remote)
            if file.is_file() and any(part.match(p) and len(part.parts) == len(Path(p).parts) for p in allow_patterns):
                fetched.append(str(part))
                (here / part).parent.mkdir(exist_ok=True, parents=True)
                shutil.copy(file, here / part)
        return str(here)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("someone/tiny", revision="v2", variant=variant).family.name == "sd3"
    assert not [file for file in fetched if file.startswith(("transformer", "vae", "text_encoder_3", "tokenizer_3"))]
    weights = "model.fp16.safetensors" if variant else "model.safetensors"
    expected = [f"text_encoder/{weights}", f"text_encoder_2/{weights}"]
    assert sorted({file for file in fetched if file.endswith(".safetensors")}) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such place", "no such folder, and not the name of a hub repository"),
        ("{tmp}", "holds no model"),
        ("{tmp}/model.ckpt", "from .safetensors only"),
        ("{tmp}/broken", "is not JSON"),
        ("{tmp}/t5only", "has no text encoder that is known"),
        ("{tmp}/empty", "text_encoder of empty cannot be read"),
        ("{tmp}/pickled", "pickled weights only"),
    ],
)
def test_what_is_no_model_is_refused_with_the_reason(tmp_path, name, message):
    (tmp_path / "model.ckpt").write_bytes(b"")
    for part in ("broken", "t5only", "empty/text_encoder", "pickled/text_encoder", "pickled/tokenizer"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "broken" / "model_index.json").write_text("{")
    (tmp_path / "t5only" / "model_index.json").write_text(json.dumps({"text_encoder": ["t", "T5EncoderModel"]}))
    for part in ("empty", "pickled"):
        index = {"text_encoder": ["transformers", "CLIPTextModel"], "unet": ["diffusers", "UNet2DConditionModel"]}
        (tmp_path / part / "model_index.json").write_text(json.dumps(index))
        (tmp_path / part / "text_encoder" / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    (tmp_path / "pickled" / "text_encoder" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=message):
        load(name.format(tmp=tmp_path))


def test_pickled_weights_of_the_rest_are_refused_too(folders, tmp_path):
    shutil.copytree(folders["sd1"], tmp_path / "own", ignore=shutil.ignore_patterns("diffusion_pytorch_model.*"))
    torch.save({}, tmp_path / "own" / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="own cannot be loaded"):
        load(tmp_path / "own").generate("a cat")


def test_other_objects_and_dtypes_are_refused(folders):
    with pytest.raises(ModelError, match="not Linear"):
        load(nn.Linear(1, 1))
    with pytest.raises(ModelError, match="not 'float8'"):
        load(folders["sd1"], dtype="float8")


# -- sites ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_site_of_an_encoder_is_found_by_its_published_name(models, name):
    model = models[name]
    for encoder in model.encoders.values():
        for layer in range(encoder.n_layers):
            assert model[encoder.site(layer)] is encoder.linear(layer)


def test_the_sites_of_a_t5(folders):
    model = load(folders["flux"], encoders=["text_encoder_2"])
    encoder = model.encoders["text_encoder_2"]
    assert model[encoder.site(2)] is encoder.linear(2)
    with pytest.raises(ModelError, match="text_encoder of flux-0 is not loaded"):
        model["text_encoder.text_model.encoder.layers.0.mlp.fc2"]


def test_the_cross_attention_of_a_unet(models):
    model = models["sdxl"]
    sites = model.conditioning_sites
    linears = [model[site] for site in sites]
    assert {linear.in_features for linear in linears} == {32 + 48}
    assert len(sites) == 2 * sum(".attn2" in n and n.endswith("to_q") for n, _ in model.pipe.unet.named_modules())
    assert models["flux"].conditioning_sites == []


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (
            "text_encoder.text_model.encoder.layer.1.mlp.fc2",
            "near it: text_encoder.text_model.encoder.layers.1.mlp.fc2",
        ),
        ("text_encoder.text_model.encoder.layers.99.mlp.fc2", "has no site"),
        ("text_encoder.text_model.encoder.layers.1.mlp", "has no site"),
        ("text_encoder", "has no site"),
        ("text_encoder.", "has no site"),
        ("vae.decoder.conv_in", "has no component 'vae'"),
        ("", "has no component ''"),
    ],
)
def test_a_site_that_is_not_there_is_refused(models, site, message):
    with pytest.raises(ModelError, match=message):
        models["sd1"][site]


def test_sites_under_a_lora_are_the_wrapped_linears():
    pipe = tiny.pipeline("sd1")
    model = load(pipe)
    site, unet_site = model.encoders["text_encoder"].site(1), model.conditioning_sites[0]
    linear, unet_linear, prints = model[site], model[unet_site], model.fingerprints()
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["fc2"], init_lora_weights=False))
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False))
    assert model[site] is linear
    assert model[unet_site] is unet_linear
    assert model.fingerprints() == prints


def test_the_fingerprint_of_a_unet_is_of_its_cross_attention():
    model = load(tiny.pipeline("sd1"))
    before = model.fingerprints()
    with torch.no_grad():
        model[model.conditioning_sites[3]].weight[0, 0] += 1
    after = model.fingerprints()
    assert after["text_encoder"] == before["text_encoder"]
    assert after["unet"] != before["unet"]


# -- conditioning -----------------------------------------------------------------------------------------------------


def own_encoding(name: str, pipe) -> dict[str, torch.Tensor]:
    """What diffusers' encode_prompt says."""
    if name in {"sd1", "sd2"}:
        return {"prompt_embeds": pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]}
    more = {"prompt_3": None} if name == "sd3" else {}
    found = pipe.encode_prompt(PROMPTS, prompt_2=None, **more)
    return {"prompt_embeds": found[0], "pooled_prompt_embeds": found[1 if name == "flux" else 2]}


@pytest.mark.parametrize("name", tiny.NAMES)
def test_the_conditioning_is_what_diffusers_makes(models, name):
    found = models[name].encode(PROMPTS)
    with torch.no_grad():
        own = own_encoding(name, models[name].pipe)
    assert found.keys() == own.keys()
    for key in own:
        torch.testing.assert_close(found[key], own[key], rtol=1e-4, atol=1e-4)


def test_clip_skip_is_what_diffusers_makes_where_it_can(models):
    """On SDXL; on SD 1.x its own way fails with transformers >= 5.6."""
    model = models["sdxl"]
    with torch.no_grad():
        own = model.pipe.encode_prompt(PROMPTS, prompt_2=None, clip_skip=1)[0]
    torch.testing.assert_close(model.encode(PROMPTS, clip_skip=1)["prompt_embeds"], own, rtol=1e-4, atol=1e-4)
    encoder = models["sd1"].encoders["text_encoder"]
    assert torch.equal(models["sd1"].encode("a cat", clip_skip=1)["prompt_embeds"], encoder.states(["a cat"], 1))


def test_an_sd3_without_its_t5_sends_zeros(folders):
    pipe = tiny.pipeline("sd3")
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    model = load(pipe)
    with torch.no_grad():
        own = own_encoding("sd3", pipe)["prompt_embeds"]
    torch.testing.assert_close(model.encode(PROMPTS)["prompt_embeds"], own, rtol=1e-4, atol=1e-4)
    assert len(model.generate("a cat", **FAST)) == 1


# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_picture_is_the_one_that_diffusers_makes(models, name):
    model = models[name]
    (picture,) = model.generate(PROMPTS[0], seeds=[3], **FAST)
    own = model.pipe(
        PROMPTS[0], num_inference_steps=2, height=32, width=32, generator=torch.Generator().manual_seed(3)
    ).images[0]
    assert np.abs(pixels(picture) - np.asarray(own)).max() <= 1  # a level of 255, by rounding


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_seeds_picture_does_not_depend_on_its_batch(models, name):
    model = models[name]
    together = model.generate(PROMPTS, seeds=[5, 1], batch_size=5, **FAST)
    assert [(p.prompt, p.seed) for p in together] == [(prompt, seed) for prompt in PROMPTS for seed in (5, 1)]
    for at in (3, 4, 5):
        (alone,) = model.generate(together[at].prompt, seeds=[together[at].seed], batch_size=1, **FAST)
        assert np.abs(pixels(together[at]) - pixels(alone)).max() <= 1
    assert np.abs(pixels(together[-1]) - pixels(together[-2])).max() > 1


def test_a_change_of_the_encoder_shows_in_the_pictures(folders):
    model = load(folders["sd1"])
    (before,) = model.generate("a cat", **FAST)
    with torch.no_grad():
        model["text_encoder.text_model.encoder.layers.1.mlp.fc2"].weight.mul_(-3)
    (after,) = model.generate("a cat", **FAST)
    assert np.abs(pixels(before) - pixels(after)).max() > 1


def test_steps_and_guidance_are_asked_for_the_models_own_or_the_pipelines(folders, tmp_path, monkeypatch):
    shutil.copytree(folders["sd1"], tmp_path / "own")
    (tmp_path / "own" / "refact.json").write_text('{"default_steps": 3, "default_guidance": 2.5, "layer": 1}')
    model = load(tmp_path / "own")
    assert model.defaults["layer"] == 1
    assert model._options(None, None, None) == {"num_inference_steps": 3, "guidance_scale": 2.5}
    assert model._options(1, 0.0, 32)["guidance_scale"] == 0.0
    assert load(folders["sd1"])._options(None, None, None) == {}
    steps = []
    original = model.pipe.scheduler.step
    monkeypatch.setattr(model.pipe.scheduler, "step", lambda *a, **k: steps.append(a[1]) or original(*a, **k))
    model.generate("a cat", size=32)
    assert len(steps) == 3


def test_no_bar_is_shown_and_the_pipelines_setting_comes_back(capfd):
    pipe = tiny.pipeline("sd1")
    pipe.set_progress_bar_config(desc="mine")
    seen = []
    load(pipe).generate(
        ["a cat", "a dog"], seeds=[0, 1], batch_size=3, progress=lambda items, *more: seen.append(more) or items, **FAST
    )
    assert seen == [("pictures", 2)]
    assert pipe._progress_bar_config == {"desc": "mine"}
    assert capfd.readouterr().err == ""


def test_sdxl_without_a_negative_prompt_follows_its_config(models):
    model = models["sdxl"]
    assert model.pipe.config.force_zeros_for_empty_prompt
    given = drawing.conditions_of(model, PROMPTS, None)(PROMPTS)
    assert all((given[f"negative_{name}"] == 0).all() for name in model.encode("a cat"))
    sd3 = models["sd3"]
    given = drawing.conditions_of(sd3, PROMPTS, None)(PROMPTS)
    for name in sd3.encode("a cat"):
        value = given[f"negative_{name}"]
        assert value.shape == given[name].shape
        torch.testing.assert_close(value[1], given[name][1], rtol=1e-4, atol=1e-4)  # PROMPTS[1] is empty


# -- the companion ----------------------------------------------------------------------------------------------------


def images(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 40, 52, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in noise]


def test_pictures_are_embedded_by_the_companion(folders, tmp_path):
    from transformers import CLIPImageProcessorPil

    clip = tiny.clip_model()
    clip.save_pretrained(tmp_path)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6]
    )
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        own = clip.get_image_features(processor(images=images(2), return_tensors="pt").pixel_values).pooler_output
    torch.testing.assert_close(load(folders["sd1"], companion=tmp_path).image_features(images(2)), own)
    images(1)[0].save(tmp_path / "picture.png")
    features = load(folders["sd1"], companion=str(tmp_path)).image_features([tmp_path / "picture.png"])
    torch.testing.assert_close(features, own[:1])
    assert load(folders["sd1"], companion=clip).companion is clip
    assert load(folders["sd1"], companion=clip).image_features(images(3)).shape == (3, 24)


def test_a_companion_may_come_with_the_model(folders, tmp_path):
    shutil.copytree(folders["sd1"], tmp_path / "own")
    tiny.clip_model().save_pretrained(tmp_path / "own" / "clip")
    (tmp_path / "own" / "refact.json").write_text('{"companion": "clip"}')
    assert load(tmp_path / "own").image_features(images(1)).shape == (1, 24)


def test_the_pocket_comes_with_its_settings_and_its_companion(folders, tmp_path, monkeypatch):
    shutil.copytree(folders["sd1"], tmp_path / "pocket")
    tiny.clip_model().save_pretrained(tmp_path / "pocket_clip")
    (tmp_path / "pocket" / "refact.json").write_text(
        '{"default_steps": 2, "default_size": 32, "companion": "../pocket_clip"}'
    )
    monkeypatch.setenv("REFACT_POCKET", str(tmp_path))
    model = load("pocket")
    assert (model.name, model.family.name, model.defaults["default_steps"]) == ("pocket", "sd1", 2)
    assert model.image_features(images(1)).shape == (1, 24)
    assert model.generate("a cat")[0].image.size == (32, 32)
    assert pocket.world()["concepts"]  # the package's, where the build has none of its own
    (tmp_path / "world.json").write_text('{"concepts": []}')
    (tmp_path / "pocket-road.csv").write_text("nothing\n")
    assert pocket.world() == {"concepts": []}
    with pytest.raises(DataError):
        read_cases("pocket-road")


def test_without_a_companion_pictures_are_refused(folders):
    model = load(folders["sd1"])
    assert model.companion is None
    with pytest.raises(ModelError, match="companion=FOLDER"):
        model.image_features(images(1))
    with pytest.raises(ModelError, match="no CLIP folder"):
        load(folders["sd1"], companion="nowhere").image_features(images(1))


def test_a_run_knows_every_weight_that_draws(tmp_path):
    """Of a live pipeline by its weights; of a folder by its files, so that nothing is loaded."""
    pipe = tiny.pipeline("sd1")
    live = load(pipe)
    before = live.fingerprints(whole=True)
    assert set(before) == {"text_encoder", "unet", "vae"}
    weight = pipe.vae.decoder.conv_out.weight
    with torch.no_grad():
        weight.view(-1)[0] += 0.5
    assert live.fingerprints(whole=True) == before | {"vae": live.fingerprints(whole=True)["vae"]} != before
    pipe.save_pretrained(tmp_path / "one")
    first = load(tmp_path / "one").fingerprints(whole=True)
    assert first == load(tmp_path / "one").fingerprints(whole=True)
    with torch.no_grad():
        weight.view(-1)[0] += 0.5
    pipe.save_pretrained(tmp_path / "two")
    opened = load(tmp_path / "two")
    assert set(opened.fingerprints(whole=True)) == set(first) == {"text_encoder", "generator"}
    assert opened.fingerprints(whole=True)["generator"] != first["generator"]
    assert opened.pipe
    assert opened.fingerprints(whole=True)["generator"] != first["generator"]


def test_every_public_name_leads_somewhere():
    assert all(getattr(refact, name) is not None for name in refact.__all__)
