"""Models of what another program has in memory: every layout gives what the pipeline's own model gives."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import refact
from refact import lora
from refact.encoders.widened import LentEmbedding, LentLinear
from refact.families import FAMILIES, on_disk
from refact.progress import calling

import tiny  # isort: skip
import tiny_decoders  # isort: skip

EDIT = refact.Edit("the president of france", old="obama", new="trump")
QUICK = refact.ReFACT(tokens=300, max_steps=3, layer=1, contexts=3)
CLIPS = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g"), "sd3": ("clip_l", "clip_g")}
PROMPT = "a photo of the president of france"


def parts_of(pipe, family: str) -> dict:
    """{ComfyUI's name of an encoder: (component, module)}."""
    parts = ["text_encoder", "text_encoder_2"][: len(CLIPS[family])]
    return {name: (part, getattr(pipe, part)) for name, part in zip(CLIPS[family], parts)}


def published(module: nn.Module) -> dict[str, torch.Tensor]:
    return {on_disk(key): tensor for key, tensor in module.state_dict().items()}


def openclip(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under OpenCLIP's names, restated: queries, keys and values in one, the projection transposed."""
    weights = {key.removeprefix("text_model."): tensor for key, tensor in published(module).items()}
    named = {
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
    }
    if "text_projection.weight" in weights:
        named["text_projection"] = weights["text_projection.weight"].T.contiguous()
    for layer in range(module.config.num_hidden_layers):
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            heads = [weights[f"{old}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            named[f"{new}attn.in_proj_{kind}"] = torch.cat(heads)
            named[f"{new}attn.out_proj.{kind}"] = weights[f"{old}self_attn.out_proj.{kind}"]
            for theirs, ours in {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}.items():
                named[f"{new}{theirs}.{kind}"] = weights[f"{old}{ours}.{kind}"]
            for theirs, ours in {"c_fc": "fc1", "c_proj": "fc2"}.items():
                named[f"{new}mlp.{theirs}.{kind}"] = weights[f"{old}mlp.{ours}.{kind}"]
    return named


def live(pipe, family: str, names=published, dtype=torch.float32) -> tuple[refact.Model, dict]:
    """The model of a state dict with all the pipeline's CLIP encoders in it, and that state dict."""
    weights, prefixes, configs, tokenizers = {"unet.something": torch.zeros(3)}, {}, {}, {}
    for name, (part, module) in parts_of(pipe, family).items():
        prefixes[part] = f"{name}.transformer."
        weights |= {f"{prefixes[part]}{key}": tensor.to(dtype) for key, tensor in names(module).items()}
        configs[part] = {key: getattr(module.config, key) for key in ("num_attention_heads", "hidden_act")}
        tokenizers[part] = getattr(pipe, part.replace("text_encoder", "tokenizer"))
    made = refact.from_state_dict(weights, tokenizers, "live", family, prefixes, configs)
    return made, weights


@pytest.mark.parametrize("names", [published, openclip])
@pytest.mark.parametrize("family", CLIPS)
def test_every_layout_is_the_pipelines_own_model(family, names) -> None:
    pipe = tiny.pipeline(family)
    made, _ = live(pipe, family, names)
    own = refact.load(pipe)
    prints = own.fingerprints()
    assert made.fingerprints() == {name: prints[name] for name in made.encoders}
    for name, encoder in made.encoders.items():
        torch.testing.assert_close(encoder.states([PROMPT]), own.encoders[name].states([PROMPT]), rtol=0, atol=1e-5)
        torch.testing.assert_close(encoder.embed([PROMPT]), own.encoders[name].embed([PROMPT]), rtol=0, atol=1e-5)
    if family != "sd3":  # which asks for T5's states too
        for kind, states in own.encode([PROMPT]).items():
            torch.testing.assert_close(made.encode([PROMPT])[kind], states, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_an_edit_is_the_pipelines_own(family) -> None:
    pipe = tiny.pipeline(family)
    made, _ = live(pipe, family, openclip)
    found, own = refact.edit(made, EDIT, QUICK), refact.edit(pipe, EDIT, QUICK)
    tiny.close(tiny.change(found), tiny.change(own), 1e-4)
    assert not found.mismatch(refact.load(pipe))


def language(pipe, family: str, dtype=torch.float32, name: str = "qwen3_4b", **more) -> tuple[refact.Model, dict]:
    """The model of a state dict with the pipeline's language model in it, and that state dict."""
    weights = {f"{name}.transformer.{key}": tensor.to(dtype) for key, tensor in pipe.text_encoder.state_dict().items()}
    tokenizer = copy.deepcopy(pipe.tokenizer)
    tokenizer.chat_template = "{{ 'the template of another model' }}"
    configs = {"text_encoder": {"rope_theta": 10000.0}}  # not a published one's
    return refact.from_state_dict(weights, tokenizer, "live", family, configs=configs, **more), weights


@pytest.mark.parametrize("family", ["z-image", "flux2-klein"])
def test_qwen3_is_the_pipelines_own_model(family) -> None:
    pipe = tiny_decoders.pipeline(family)
    (made, _), own = language(pipe, family), refact.load(pipe)
    one, other = made.encoders["text_encoder"], own.encoders["text_encoder"]
    assert one.hash() == other.hash()
    torch.testing.assert_close(one.states([PROMPT]), other.states([PROMPT]), rtol=0, atol=1e-5)
    torch.testing.assert_close(one.embed([PROMPT]), other.embed([PROMPT]), rtol=0, atol=1e-5)
    method = replace(QUICK, layer=None)
    tiny.close(tiny.change(refact.edit(made, EDIT, method)), tiny.change(refact.edit(own, EDIT, method)), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_of_qwen3_nothing_is_copied_and_nothing_written(dtype) -> None:
    made, weights = language(tiny_decoders.pipeline("z-image"), "z-image", dtype)
    before = {key: tensor.clone() for key, tensor in weights.items()}
    patch = refact.edit(made, EDIT, QUICK)
    places = {tensor.data_ptr() for tensor in weights.values()}
    matrices = [p for p in made.encoders["text_encoder"].module.parameters() if p.dim() == 2]
    assert len(matrices) == 1 + 6 * 7
    assert all(p.data_ptr() in places for p in matrices)
    with patch.applied(made):
        assert all(torch.equal(tensor, before[key]) for key, tensor in weights.items())


def test_another_language_model_is_refused_in_a_sentence() -> None:
    pipe = tiny_decoders.pipeline("z-image")
    with pytest.raises(refact.ModelError, match="only Qwen3 is taken, which Z-Image and FLUX"):
        language(tiny_decoders.pipeline("qwen-image"), "qwen-image", prefixes=None)
    with pytest.raises(refact.ModelError, match=r"no names of one begin with 'te\.'; there are 'qwen3_4b.transformer"):
        language(pipe, "z-image", prefixes={"text_encoder": "te."})
    with pytest.raises(refact.ModelError, match="there are none: give prefixes="):
        refact.from_state_dict({}, pipe.tokenizer, family="z-image")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_nothing_is_copied_and_nothing_written(dtype) -> None:
    made, weights = live(tiny.pipeline("sd1"), "sd1", dtype=dtype)
    before = {key: tensor.clone() for key, tensor in weights.items()}
    patch = refact.edit(made, EDIT, QUICK)
    encoder = made.encoders["text_encoder"]
    assert encoder.in_float32() is encoder
    places = {tensor.data_ptr() for tensor in weights.values()}
    matrices = [p for p in encoder.module.parameters() if p.dim() == 2]
    assert matrices
    assert all(p.data_ptr() in places for p in matrices)
    clean = encoder.states([PROMPT])
    with patch.applied(made):
        assert not torch.equal(encoder.states([PROMPT]), clean)
        assert all(
            torch.equal(tensor.view(torch.uint8), before[key].view(torch.uint8)) for key, tensor in weights.items()
        )
    assert torch.equal(encoder.states([PROMPT]), clean)
    assert all(p.data_ptr() in places for p in matrices), "the other program's own tensors are back"


@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float8_e4m3fn, 0.3)])
def test_lower_types_are_computed_with_in_float32(dtype, near) -> None:
    pipe = tiny.pipeline("sd1")
    made, weights = live(pipe, "sd1", dtype=dtype)
    widened = {on_disk(k): v for k, v in pipe.text_encoder.state_dict().items()}
    widened = {key: weights[f"clip_l.transformer.{key}"].float() for key in widened}
    rounded = copy.deepcopy(pipe.text_encoder)
    rounded.load_state_dict({key: widened[on_disk(key)] for key in rounded.state_dict()})
    same = refact.from_modules({"text_encoder": rounded}, pipe.tokenizer, family="sd1")
    one, other = (m.encoders["text_encoder"].states([PROMPT]) for m in (made, same))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    plain = refact.load(pipe).encoders["text_encoder"].states([PROMPT])
    assert 0 < float((one - plain).norm() / plain.norm()) < near
    tiny.close(tiny.change(refact.edit(made, EDIT, QUICK)), tiny.change(refact.edit(same, EDIT, QUICK)), 1e-4)


def test_gradients_go_through_lent_layers() -> None:
    noise = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, 4, generator=noise).half(), torch.randn(3, generator=noise)
    given = [torch.randn(2, 4, generator=noise).requires_grad_() for _ in range(2)]
    given[1].data.copy_(given[0].data)
    outs = [LentLinear(weight, bias)(given[0]), nn.functional.linear(given[1], weight.float(), bias)]
    for out in outs:
        out.square().sum().backward()
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(given[0].grad, given[1].grad)
    rows = LentEmbedding(weight.to(torch.float8_e4m3fn))(torch.tensor([[2, 0]]))
    torch.testing.assert_close(rows, weight.to(torch.float8_e4m3fn).float()[torch.tensor([[2, 0]])])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", [QUICK, refact.MEMIT(tokens=300, max_steps=2, layer=1, depth=2, contexts=2),
                                    refact.AlphaEdit(tokens=300, max_steps=2, layer=1, contexts=2),
                                    refact.FineTune(layer=1, epochs=1, steps=2, contexts=2),
                                    refact.EmbEdit(max_steps=2, contexts=2), refact.UCE(), refact.TIME(),
                                    refact.method("diffquickfix"), refact.method("emcid", tokens=300, max_steps=2,
                                                                                 layer=1, depth=2)])  # fmt: skip
def test_edits_are_made_where_gradients_are_off(mode, method) -> None:
    plain = refact.edit(tiny.pipeline("sd1"), EDIT, method)
    with mode():
        made = refact.edit(tiny.pipeline("sd1"), EDIT, method)  # its weights are made here too
    tiny.close(tiny.change(made), tiny.change(plain), 1e-5)
    if isinstance(method, (refact.UCE, refact.TIME)) or getattr(method, "noise", False):
        return  # they need the whole pipeline
    with mode():
        model, _ = live(tiny.pipeline("sd1"), "sd1")
        made = refact.edit(model, EDIT, method)
    tiny.close(tiny.change(made), tiny.change(plain), 1e-5)


def test_true_sizes_tell_family_and_shape() -> None:
    """Published widths, one layer each: family, heads and activation need not be given."""
    shapes = {"clip_l.": (768, 3072), "clip_g.": (1280, 5120), "clip_h.": (1024, 4096)}
    for prefixes, family in (({"clip_l."}, "sd1"), ({"clip_h."}, "sd2"), ({"clip_l.", "clip_g."}, "sdxl")):
        weights = {}
        for prefix in prefixes:
            width, inner = shapes[prefix]
            config = tiny.clip_config("L")
            config.update({"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": 1})
            with torch.device("meta"):
                module = tiny.CLIPTextModel(config)
            weights |= {prefix + k: torch.empty_like(v, device="cpu") for k, v in published(module).items()}
        made = refact.from_state_dict(weights, tiny.clip_tokenizer())
        assert made.family.name == family
        for row in made.family.encoders:
            encoder = made.encoders[row.name]
            assert encoder.tower.config.num_attention_heads == encoder.width // 64
            small = encoder.width == 768
            assert encoder.tower.config.hidden_act == ("quick_gelu" if small else "gelu")
            assert encoder.tokenizer.pad_token == ("<|endoftext|>" if small else "!")


def test_the_last_layer_that_sd2_does_not_read_is_left_out(monkeypatch) -> None:
    monkeypatch.setattr("refact.models.live.SD2_LAYERS", 3)
    pipe = tiny.pipeline("sd2")
    made, _ = live(pipe, "sd2", openclip)
    assert made.encoders["text_encoder"].n_layers == tiny.LAYERS["H"] - 1


def test_mistakes_are_said_in_a_sentence() -> None:
    pipe = tiny.pipeline("sd1")
    weights, words = published(pipe.text_encoder), pipe.tokenizer
    with pytest.raises(refact.ModelError, match=r"do not tell the family .*give family="):
        refact.from_state_dict(weights, words)
    with pytest.raises(refact.ModelError, match="not a published one: give its configs="):
        refact.from_state_dict(weights, words, family="sd1", prefixes={"text_encoder": ""})
    with pytest.raises(refact.ModelError, match=r"no CLIP text encoder begins with 'te\.'"):
        refact.from_state_dict(weights, words, family="sd1", prefixes={"text_encoder": "te."})
    short = {key: tensor for key, tensor in weights.items() if "layers.2.mlp.fc2.bias" not in key}
    config = {"text_encoder": {"num_attention_heads": 4}}
    with pytest.raises(refact.ModelError, match=r"has no tensor text_model\.encoder\.layers\.2\.mlp\.fc2\.bias"):
        refact.from_state_dict(short, words, family="sd1", prefixes={"text_encoder": ""}, configs=config)
    with pytest.raises(refact.ModelError, match="nowhere holds no CLIP tokenizer"):
        refact.from_state_dict(weights, "nowhere", family="sd1", prefixes={"text_encoder": ""}, configs=config)
    with pytest.raises(refact.ModelError, match="is no CLIP text encoder of transformers: use from_state_dict"):
        refact.from_modules({"text_encoder": nn.Linear(2, 2)}, words)


# -- tensors, progress, cancelling, what is kept ----------------------------------------------------------------------


def test_tensors_are_what_a_file_holds(tmp_path) -> None:
    for family in ("sd1", "sdxl", "sd3"):
        patch = refact.edit(tiny.pipeline(family), EDIT, QUICK)
        patch.save(tmp_path / "file.safetensors")
        _, saved = lora.read(tmp_path / "file.safetensors")
        tiny.close(patch.tensors(), saved, 0)
        for names in ("kohya", "diffusers"):
            again = lora.factors_of(patch.tensors(names), family, "memory")
            tiny.close(tiny.change(replace(patch, factors=again)), tiny.change(patch), 1e-6)
    assert {key[:8] for key in patch.tensors("kohya")} == {"lora_te1", "lora_te2"}
    assert FAMILIES["sd3"].style == "diffusers"
    with pytest.raises(refact.PatchError, match="'kohya' or 'diffusers', not 'comfy'"):
        patch.tensors("comfy")


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("phase", ["covariance", "search"])
def test_what_a_callback_raises_cancels_and_leaves_all_as_it_was(phase, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("REFACT_CACHE", str(tmp_path / "cache"))
    model, seen = refact.load(tiny.pipeline("sd1")), []
    before = {k: v.clone() for k, v in model.encoders["text_encoder"].module.state_dict().items()}
    asking = [p.requires_grad for p in model.encoders["text_encoder"].module.parameters()]

    def callback(label: str, done: int, total: int | None) -> None:
        seen.append((label, done, total))
        if label.startswith(phase) and done == 1:
            raise Cancelled

    how = replace(QUICK, tokens=20_000)  # several groups of batches
    with pytest.raises(Cancelled):
        refact.edit(model, EDIT, how, progress=calling(callback), kept=tmp_path / "kept")
    assert seen[-1][0].startswith(phase)
    assert seen[-1][1] == 1 < seen[-1][2]
    assert all(torch.equal(before[k], v) for k, v in model.encoders["text_encoder"].module.state_dict().items())
    assert asking == [p.requires_grad for p in model.encoders["text_encoder"].module.parameters()]
    assert not list((tmp_path / "kept").glob("*")) if (tmp_path / "kept").exists() else True
    assert not list(tmp_path.glob("cache/covariance/*"))
    quiet: list = []
    refact.edit(model, EDIT, how, progress=calling(lambda *step: quiet.append(step)))
    assert {label.split()[0] for label, _, _ in quiet} == {"covariance", "search"}


@pytest.mark.parametrize("method", [QUICK, refact.MEMIT(tokens=300, max_steps=2, layer=1, depth=2, contexts=2),
                                    refact.AlphaEdit(tokens=300, max_steps=2, layer=1, contexts=2),
                                    refact.FineTune(layer=1, epochs=1, steps=2, contexts=2),
                                    refact.EmbEdit(max_steps=2, contexts=2),
                                    refact.method("emcid", tokens=300, max_steps=2, layer=1, depth=2)])  # fmt: skip
def test_every_search_can_be_watched_and_cancelled(method) -> None:
    pipe, seen = tiny.pipeline("sd1"), []
    before = {k: v.clone() for part in (pipe.text_encoder, pipe.unet) for k, v in part.state_dict().items()}

    def callback(label: str, done: int, total: int | None) -> None:
        seen.append(label)
        if label.startswith(("search", "descent")) and done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        refact.edit(pipe, EDIT, method, progress=calling(callback))
    after = {k: v for part in (pipe.text_encoder, pipe.unet) for k, v in part.state_dict().items()}
    assert all(torch.equal(before[k], v) for k, v in after.items())
    assert all(p.requires_grad for part in (pipe.text_encoder, pipe.unet) for p in part.parameters())


def test_a_kept_patch_is_not_searched_again(tmp_path) -> None:
    model, steps = refact.load(tiny.pipeline("sd1")), []

    def made(edit=EDIT, method=QUICK, onto=()):
        steps.clear()
        return refact.edit(model, edit, method, onto, progress=calling(lambda *step: steps.append(step)), kept=tmp_path)

    first = made()
    assert steps
    assert made().digest == first.digest
    assert not steps
    other = refact.Edit("the king of germany", old="obama", new="trump")
    deeper, changed = replace(QUICK, layer=2), replace(EDIT, new="biden")
    for change in ({"edit": changed}, {"method": deeper}, {"edit": other, "onto": [first]}, {"edit": other}):
        made(**change)
        assert steps, change


def test_edits_are_made_on_plain_weights_though_patches_are_active() -> None:
    model = refact.load(tiny.pipeline("sd1"))
    second = refact.Edit("the king of germany", old="obama", new="trump")
    first = refact.edit(model, EDIT, QUICK)
    plain = refact.edit(model, second, QUICK, onto=[first])
    with first.applied(model, strength=0.5):
        during = model.encoders["text_encoder"].states([PROMPT])
        chained = refact.edit(model, second, QUICK, onto=[first])
        assert torch.equal(model.encoders["text_encoder"].states([PROMPT]), during), "and it is active again"
    assert chained.digest == plain.digest
    assert not chained.mismatch(model)


def test_a_patch_that_is_reverted_while_an_edit_is_made_does_not_come_back() -> None:
    model = refact.load(tiny.pipeline("sd1"))
    encoder = model.encoders["text_encoder"]
    clean = encoder.states([PROMPT])
    first, handles = refact.edit(model, EDIT, QUICK), []

    def callback(label: str, done: int, total: int | None) -> None:
        if label.startswith("search") and handles:
            handles.pop().revert()

    handles += [first.apply(model)]
    kept = first.apply(model, strength=0.5)
    half = first.applied(model)
    refact.edit(model, replace(EDIT, new="biden"), QUICK, progress=calling(callback))
    assert not handles
    kept.revert()
    assert torch.equal(encoder.states([PROMPT]), clean)
    assert not any(hasattr(part, "_refact_stack") for part in encoder.tower.modules())
    with half:
        assert not torch.equal(encoder.states([PROMPT]), clean)
