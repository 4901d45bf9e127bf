"""Text encoders without a pipeline: their own files in both ways of naming, bare folders, named families."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

import refact
from refact.errors import ModelError
from refact.families import on_disk
from refact.models import standalone, tokenizers
from refact.models.model import load
from refact.record import read_header

PROMPTS = ["the president of France", "a photo of the flag of Canada", ""]
FAST = refact.ReFACT(layer=1, max_steps=2, tokens=500, contexts=1)


@pytest.fixture(scope="module")
def pipes() -> dict:
    return {name: tiny.pipeline(name) for name in ("sdxl", "sd3", "flux")}


def tensors_of(module) -> dict[str, torch.Tensor]:
    return {on_disk(key): value.clone().contiguous() for key, value in module.state_dict().items()}


def open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP's names and forms, the way back from transformers', restated."""
    out: dict[str, torch.Tensor] = {}
    layers = 1 + max(int(key.split(".")[3]) for key in tensors if ".layers." in key)
    plain = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    out["token_embedding.weight"] = plain["embeddings.token_embedding.weight"]
    out["positional_embedding"] = plain["embeddings.position_embedding.weight"]
    out["ln_final.weight"], out["ln_final.bias"] = plain["final_layer_norm.weight"], plain["final_layer_norm.bias"]
    if "text_projection.weight" in plain:
        out["text_projection"] = plain["text_projection.weight"].T.contiguous()
    for n in range(layers):
        here, there = f"encoder.layers.{n}.", f"transformer.resblocks.{n}."
        for kind in ("weight", "bias"):
            parts = [plain[f"{here}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            out[f"{there}attn.in_proj_{kind}"] = torch.cat(parts)
            for ours, theirs in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"),
                ("mlp.fc2", "mlp.c_proj"),
            ):
                out[f"{there}{theirs}.{kind}"] = plain[f"{here}{ours}.{kind}"]
    return out


def config_of(pipe, part: str, folder: Path) -> Path:
    """A folder in diffusers' layout with one encoder's config and tokenizer."""
    getattr(pipe, part).config.save_pretrained(folder / part)
    getattr(pipe, part.replace("text_encoder", "tokenizer")).save_pretrained(
        folder / part.replace("text_encoder", "tokenizer")
    )
    return folder


WAYS = {
    "transformers": lambda t: t,
    "half": lambda t: {key: value.half() for key, value in t.items()},
    "eight bits": lambda t: {key: value.to(torch.float8_e4m3fn) for key, value in t.items()},
    "flat": lambda t: {key.removeprefix("text_model."): value for key, value in t.items()},
    "ComfyUI": lambda t: {f"text_encoders.clip_g.transformer.{key}": value for key, value in t.items()},
    "OpenCLIP": open_clip,
    "OpenCLIP, prefixed": lambda t: {f"cond_stage_model.model.{k}": v for k, v in open_clip(t).items()},
    "with pictures": lambda t: t | {"vision_model.encoder.layers.0.mlp.fc2.weight": torch.ones(2, 2)},
    "OpenCLIP with pictures": lambda t: (
        open_clip(t) | {"visual.transformer.resblocks.0.mlp.c_proj.weight": torch.ones(2, 2)}
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_clips_own_file_is_the_encoder_of_the_pipeline(pipes, tmp_path, way):
    pipe = pipes["sdxl"]
    save_file(WAYS[way](tensors_of(pipe.text_encoder_2)), tmp_path / "clip_g.safetensors")
    config = config_of(pipe, "text_encoder_2", tmp_path / "config")
    model = load(tmp_path / "clip_g.safetensors", family="sdxl", component="text_encoder_2", config=config)
    whole = load(pipe)
    assert model.family.name == "sdxl"
    assert list(model.encoders) == ["text_encoder_2"]
    assert model.dtype == torch.float32
    if way not in ("half", "eight bits"):
        assert model.fingerprints()["text_encoder_2"] == whole.fingerprints()["text_encoder_2"]
        ours, theirs = model.encoders["text_encoder_2"], whole.encoders["text_encoder_2"]
        torch.testing.assert_close(ours.embed(PROMPTS), theirs.embed(PROMPTS))  # with the projection
        torch.testing.assert_close(ours.states(PROMPTS), theirs.states(PROMPTS))
    with pytest.raises(ModelError, match="text encoder alone"):
        model.pipe  # noqa: B018


def test_a_patch_made_on_a_file_fits_the_pipeline(pipes, tmp_path):
    """And has the names under which ComfyUI loads bigG."""
    save_file(tensors_of(pipes["sdxl"].text_encoder_2), tmp_path / "clip_g.safetensors")
    config = config_of(pipes["sdxl"], "text_encoder_2", tmp_path / "config")
    model = load(tmp_path / "clip_g.safetensors", family="sdxl", component="text_encoder_2", config=config)
    patch = refact.edit(model, refact.Edit("the president of France", old="a king", new="a lion"), FAST)
    patch.save(tmp_path / "x.safetensors")
    assert all(key.startswith("lora_te2_text_model_") for key in read_header(tmp_path / "x.safetensors").tensors)
    patch.apply(load(pipes["sdxl"])).revert()


def test_a_t5s_own_file(pipes, tmp_path):
    pipe = pipes["flux"]
    tensors = {key: value.clone() for key, value in pipe.text_encoder_2.state_dict().items()}
    tensors.pop("encoder.embed_tokens.weight", None)  # the published files have one of the two
    save_file(tensors, tmp_path / "t5xxl.safetensors")
    pipe.tokenizer_2.save_pretrained(tmp_path / "words")
    model = load(tmp_path / "t5xxl.safetensors", family="flux", config=tmp_path / "words")
    assert list(model.encoders) == ["text_encoder_2"]
    whole = load(pipe, encoders=["text_encoder_2"])
    assert model.fingerprints() == whole.fingerprints()
    # the shape is read from the tensors: all but the epsilon and such, which T5s share
    torch.testing.assert_close(
        model.encoders["text_encoder_2"].states(PROMPTS), whole.encoders["text_encoder_2"].states(PROMPTS)
    )
    for given, message in (
        ({}, "say for which family, sd3 or flux"),
        ({"family": "flux"}, "T5's is not in this package"),
        ({"family": "sd1"}, "is a T5; Stable Diffusion 1.x has no such encoder"),
        ({"family": "flux", "component": "text_encoder"}, "has no such text_encoder"),
        ({"family": "flux", "config": tmp_path}, "has no tokenizer"),
    ):
        with pytest.raises(ModelError, match=message):
            load(tmp_path / "t5xxl.safetensors", **given)


# -- with CLIP's own tokenizer ----------------------------------------------------------------------------------------


def published(width: int, projected: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of an encoder as wide as a published one, with its vocabulary, one layer and little else; float16."""
    shapes = {"embeddings.token_embedding.weight": (49408, width), "embeddings.position_embedding.weight": (77, width)}
    layer = "encoder.layers.0"
    for name in [*(f"{layer}.self_attn.{part}_proj" for part in ("q", "k", "v", "out")), f"{layer}.layer_norm1"]:
        shapes |= {f"{name}.weight": (width, width) if "norm" not in name else (width,), f"{name}.bias": (width,)}
    for name in (f"{layer}.layer_norm2", "final_layer_norm"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    shapes |= {f"{layer}.mlp.fc1.weight": (64, width), f"{layer}.mlp.fc1.bias": (64,)}
    shapes |= {f"{layer}.mlp.fc2.weight": (width, 64), f"{layer}.mlp.fc2.bias": (width,)}
    tensors = {f"text_model.{name}": torch.full(shape, 0.01, dtype=torch.float16) for name, shape in shapes.items()}
    return tensors | ({"text_projection.weight": torch.eye(width).half()} if projected else {})


def test_clip_l_opens_by_itself(tmp_path):
    save_file(published(768), tmp_path / "clip_l.safetensors")
    prefixes = {}
    for family in ("sd1", "sdxl", None):
        model = load(tmp_path / "clip_l.safetensors", family=family)
        prefixes[family] = model.family.encoders[0].prefix
    assert prefixes == {"sd1": "lora_te", "sdxl": "lora_te1", None: "lora_te"}
    encoder = model.encoders["text_encoder"]
    config = encoder.module.config
    assert (config.hidden_act, config.num_attention_heads, config.num_hidden_layers) == ("quick_gelu", 12, 1)
    ids = encoder.tokenize(["a photo of a cat"]).ids[0]
    assert ids[:7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]  # CLIP's, known from its publication
    assert set(ids[7:].tolist()) == {49407}


def test_clip_g_is_the_second_encoder_and_is_padded_with_the_first_token(tmp_path):
    save_file(open_clip(published(1280, projected=True)), tmp_path / "clip_g.safetensors")
    model = load(tmp_path / "clip_g.safetensors")
    assert [row.prefix for row in model.family.encoders] == ["lora_te2"]
    assert list(load(tmp_path / "clip_g.safetensors", family="sd3").encoders) == ["text_encoder_2"]
    encoder = model.encoders["text_encoder_2"]
    assert encoder.module.config.hidden_act == "gelu"
    assert set(encoder.tokenize(["a cat"]).ids[0, 4:].tolist()) == {0}


def test_a_bare_folder_can_be_named(tmp_path):
    config = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model", "hidden_size": 1280}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 20, "intermediate_size": 64, "projection_dim": 1280}
    (tmp_path / "bigG").mkdir()
    (tmp_path / "bigG" / "config.json").write_text(json.dumps(config | {"vocab_size": 49408, "eos_token_id": 49407}))
    save_file(published(1280, projected=True), tmp_path / "bigG" / "model.safetensors", metadata={"format": "pt"})
    assert list(load(tmp_path / "bigG").encoders) == ["text_encoder_2"]  # by its width; CLIP's own tokenizer
    model = load(tmp_path / "bigG", family="sdxl", component="text_encoder_2")
    assert (model.family.name, list(model.encoders)) == ("sdxl", ["text_encoder_2"])
    tiny.pipeline("sd1").text_encoder.save_pretrained(tmp_path / "small")
    tiny.clip_tokenizer().save_pretrained(tmp_path / "small")
    model = load(tmp_path / "small", component="text_encoder_2")
    assert [row.prefix for row in model.family.encoders] == ["lora_te2"]


def test_clips_own_tokenizer_writes_what_transformers_reads(tmp_path):
    """All 49408 entries in the order of their ids; text is read without regard to case and spaces."""
    words = tokenizers.clip()
    vocab = words.get_vocab()
    assert sorted(vocab.values()) == list(range(49408))
    assert (vocab["!"], vocab["cat</w>"], vocab["<|startoftext|>"], vocab["<|endoftext|>"]) == (0, 2368, 49406, 49407)
    assert isinstance(words, CLIPTokenizer)
    assert words("Penguin's naïve 日本 12").input_ids == words("penguin's  NAÏVE 日本 12").input_ids
    assert words.model_max_length == 77


# -- what cannot be opened --------------------------------------------------------------------------------------------


def test_what_a_file_cannot_be(pipes, tmp_path):
    tensors = tensors_of(pipes["sdxl"].text_encoder_2)
    file = tmp_path / "clip_g.safetensors"
    save_file(tensors, file)
    cases = [
        ({}, "knows 6.. tokens, CLIP's own tokenizer 49408: give the folder"),
        ({"family": "sd9"}, "no family 'sd9'"),
        ({"config": tmp_path / "gone"}, "no such folder"),
        (
            {"family": "sdxl", "component": "text_encoder_3"},
            "no such text_encoder_3: text_encoder \\(clip\\), text_encoder_2",
        ),
    ]
    for given, message in cases:
        with pytest.raises(ModelError, match=message):
            load(file, **given)
    broken = dict(tensors)
    broken.pop("text_model.encoder.layers.2.layer_norm1.weight")
    save_file(broken, file)
    with pytest.raises(ModelError, match=r"the text encoder has no .*layers\.2\.layer_norm1\.weight"):
        load(file, config=config_of(pipes["sdxl"], "text_encoder_2", tmp_path / "config"), component="text_encoder_2")
    save_file(tensors | {"text_model.encoder.layers.0.mlp.fc2.scale_weight": torch.ones(1)}, file)
    with pytest.raises(ModelError, match="scaled fp8"):
        load(file)
    file.write_bytes(b"not at all")
    with pytest.raises(ModelError, match="no safetensors file"):
        load(file)


def test_a_whole_pipeline_is_not_named(tmp_path):
    folder = tiny.folder("sd1", tmp_path)
    with pytest.raises(ModelError, match="is a whole pipeline"):
        load(folder, family="sdxl")
    with pytest.raises(ModelError, match="open already"):
        load(tiny.pipeline("sd1"), component="text_encoder_2")


def test_a_whole_checkpoint_is_no_encoders_file(pipes, tmp_path):
    tensors = tensors_of(pipes["flux"].text_encoder)
    save_file(tensors | {"model.diffusion_model.x": torch.ones(1)}, tmp_path / "a.safetensors")
    assert standalone.form_of(tmp_path / "a.safetensors") is None
    with pytest.raises(ModelError, match=r"give config=FOLDER \(--config FOLDER\), a folder in diffusers' layout"):
        load(tmp_path / "a.safetensors")


# -- from the command line --------------------------------------------------------------------------------------------


def test_every_command_that_takes_a_model_takes_its_config(pipes, tmp_path):
    from typer.testing import CliRunner

    from refact.cli.main import app

    save_file(tensors_of(pipes["sdxl"].text_encoder_2), tmp_path / "clip_g.safetensors")
    config = config_of(pipes["sdxl"], "text_encoder_2", tmp_path / "config")
    named = ["-m", tmp_path / "clip_g.safetensors", "--config", config, "--family", "sdxl"]
    named += ["--component", "text_encoder_2"]
    words = ["edit", *named, "--prompt", "the president of France", "--old", "a king", "--new", "a lion"]
    words += ["--layer", 1, "--max-steps", 2, "--tokens", 500, "-o", tmp_path / "x.safetensors"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code in (0, 3), done.output
    assert "lora_te2" in next(iter(read_header(tmp_path / "x.safetensors").tensors))
    done = CliRunner().invoke(app, list(map(str, ["verify", tmp_path / "x.safetensors", *named, "--json"])))
    assert done.exit_code in (0, 3), done.output
    assert len(json.loads(done.output)["facts"]) == 1


def commands(app, above: str = "") -> list[tuple[str, list[str]]]:
    """(name, options) of every command, those of `refact study` too."""
    from typer.main import get_command

    root = get_command(app)

    def walk(command, name):
        for key, one in getattr(command, "commands", {}).items():
            yield from walk(one, f"{name} {key}".strip())
        if not hasattr(command, "commands"):
            yield name, [option for p in command.params for option in (*p.opts, *p.secondary_opts)]

    return list(walk(root, above))


def test_no_command_forgets_them():
    from refact.cli.main import app

    found = {name: options for name, options in commands(app) if "--model" in options}
    assert {"edit", "bake", "study scale"} <= found.keys()
    assert [
        name for name, options in found.items() if not {"--config", "--family", "--component"} <= set(options)
    ] == []


def test_a_checkpoint_from_the_command_line(tmp_path, monkeypatch):
    """--config reaches load() as the error says; the checkpoint itself is read in test_models.py."""
    from typer.testing import CliRunner

    from refact.cli.main import app
    from refact.models import model

    seen = {}

    def spy(name, **how):
        seen.update(how, name=name)
        raise ModelError("seen")

    monkeypatch.setattr(model, "load", spy)
    CliRunner().invoke(app, ["stats", "-m", "a.safetensors", "--config", str(tmp_path)])
    assert (type(seen["name"]), seen["name"], seen["config"]) == (str, "a.safetensors", str(tmp_path))


def test_messages_name_flags_that_exist():
    """Whoever types `refact` is told what to type: every --flag in a text of the package is one of some command."""
    from refact.cli.main import app

    known = {option for _, options in commands(app) for option in options} | {"--help", "--version"}
    others = {
        "--local-dir": "hf download",
        "--head": "ray start",
        "--with": "the authors' own script",
        "--no-": "a flag's opposite",
    }
    told = {
        (file.name, flag)
        for file in sorted(Path(refact.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value)
    }
    assert {("sources.py", "--config"), ("model.py", "--encoders"), ("model.py", "--clip")} <= told
    assert [one for one in told if one[1] not in known and one[1] not in others] == []
