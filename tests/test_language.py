"""Families whose prompts a language model or T5 reads, on a tiny pipeline of each stock class: edit to picture."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_decoders
import torch
from diffusers import DiffusionPipeline

import refact
from refact import Edit, ReFACT
from refact.encoders import frames, hooks
from refact.errors import DataError, EditError, ModelError
from refact.exports import bake, usage
from refact.families import FAMILIES, detect, lora_keys, site_of
from refact.language import LANGUAGE
from refact.models import covariance
from refact.record import describe
from refact.search import aligned, cached
from refact.search.sentences import sentences_of

PROMPT = "a photo of the flag of Canada"
EDIT = Edit("the flag of Canada", old="a red flag", new="a blue cat", aliases=("the Canada flag",), preserve=("a dog",))
QUICK = {"contexts": 2, "negatives": 4, "max_steps": 8, "tokens": 300, "shrink": 1e-2, "learning_rate": 0.2}
SENT = {  # what a pipeline's own encoding of a prompt gives: (1, rows, width) of the rows that its generator reads
    "z-image": lambda p: p.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0][0][None],
    "flux2-klein": lambda p: p.encode_prompt(PROMPT)[0],
    "flux2": lambda p: p.encode_prompt(PROMPT)[0],
    "qwen-image": lambda p: p.encode_prompt(PROMPT)[0],
    "sana": lambda p: p._get_gemma_prompt_embeds(
        PROMPT, "cpu", torch.float32, complex_human_instruction=frames.instruction()
    )[0],
    "lumina2": lambda p: p.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0],
    "pixart": lambda p: p.encode_prompt(PROMPT, do_classifier_free_guidance=False)[0],
    "hidream": lambda p: p._get_llama3_prompt_embeds(PROMPT, 128).permute(1, 2, 0, 3).flatten(2),
}
DROPPED = {"qwen-image": 34}  # rows of the frame that are not sent


@functools.cache
def made(name: str) -> SimpleNamespace:
    """A tiny pipeline and a patch of it, made once."""
    pipe = tiny_decoders.pipeline(name)
    before = {key: weight.clone() for key, weight in weights(pipe).items()}
    model = refact.load(pipe)
    encoder = next(iter(model.encoders.values()))
    method = ReFACT(**QUICK, embedding="conditioning" if encoder.kind == "t5" else "pooled")
    return SimpleNamespace(pipe=pipe, before=before, model=model, encoder=encoder, patch=method(model, [EDIT]))


@pytest.fixture(params=tiny_decoders.NAMES)
def family(request):
    return request.param


def weights(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    parts = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder")}
    return {f"{name}.{key}": weight for name, part in parts.items() for key, weight in part.state_dict().items()}


def test_the_family_is_recognised_and_its_usual_encoders_are_opened(family) -> None:
    at = made(family)
    assert at.model.family == FAMILIES[family]
    assert list(at.model.encoders) == [row.name for row in FAMILIES[family].encoders_edited]


def test_states_are_what_the_pipeline_sends(family) -> None:
    at = made(family)
    with torch.no_grad(), hooks.read(at.encoder.tower.get_input_embeddings()) as given:
        sent = SENT[family](at.pipe)
    tokens = at.encoder.tokenize([PROMPT])
    count = int(tokens.ends) + 1
    assert torch.equal(given[0][0, :count], tokens.ids[0, :count])
    assert set(given[0][0, count:].tolist()) <= {at.encoder.tokenizer.pad_token_id}
    ours = at.encoder.states([PROMPT])[:, DROPPED.get(family, 0) :]
    end = min(int(at.encoder.tokenize([PROMPT]).ends) + 1 - DROPPED.get(family, 0), ours.shape[1])
    assert (ours[:, :end] - sent[:, :end]).abs().max() < 1e-4 * sent.abs().max()


def test_an_edit_reaches_the_picture_and_comes_out_bit_for_bit(family) -> None:
    at = made(family)
    clean = tiny_decoders.picture(at.pipe, PROMPT)
    with at.patch.applied(at.model):
        edited = tiny_decoders.picture(at.pipe, PROMPT)
    assert np.abs(edited - clean).max() > 1e-7
    assert all(torch.equal(weight, at.before[key]) for key, weight in weights(at.pipe).items())
    assert np.array_equal(tiny_decoders.picture(at.pipe, PROMPT), clean)


def test_the_search_lowers_its_loss_and_the_change_is_written_exactly(family) -> None:
    ((_, log),) = made(family).patch.record["edits"][0]["sites"].items()
    assert log["loss"][1] < log["loss"][0]
    assert log["residual"] < 1e-6


def test_the_patch_is_a_file_with_the_names_that_comfyui_reads(family, tmp_path) -> None:
    at = made(family)
    at.patch.save(tmp_path / "flag.safetensors")
    again = refact.Patch.load(tmp_path / "flag.safetensors")
    assert again.digest == at.patch.digest
    (site,) = at.patch.factors
    down, up, _ = lora_keys(FAMILIES[family], site)
    assert site_of(down, family) == (site, "down")
    assert site_of(up, family) == (site, "up")
    assert down.startswith("lora_te1_encoder_block" if family == "pixart" else "text_encoders.")
    told = usage(tmp_path / "flag.safetensors", again.record)
    assert f"pipe.{at.encoder.name}.load_adapter('adapters/{at.encoder.name}')" in told
    assert "load_lora_weights(" not in told
    assert FAMILIES[family].title in describe(tmp_path / "flag.safetensors", again.record)


def test_an_adapter_gives_the_stock_encoder_the_same_states_and_leaves_it_as_it_was(family, tmp_path) -> None:
    at = made(family)
    stock = tiny_decoders.pipeline(family)
    (folder,) = refact.save_adapter(at.patch, at.model, tmp_path)
    with torch.no_grad():
        clean = SENT[family](stock)
    with at.patch.applied(at.model), torch.no_grad():
        wanted = SENT[family](at.pipe)
    part = getattr(stock, at.encoder.name)
    part.load_adapter(str(folder))
    with torch.no_grad():
        found = SENT[family](stock)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert not torch.equal(wanted, clean)
    part.delete_adapter("default")
    with torch.no_grad():
        assert torch.equal(SENT[family](stock), clean)


@pytest.mark.parametrize("family", ["z-image", "qwen-image", "lumina2", "pixart"])
def test_a_folder_opens_and_a_baked_one_has_the_change_for_the_stock_library(family, tmp_path) -> None:
    at = made(family)
    folder = tiny_decoders.folder(family, tmp_path)
    opened = refact.load(folder)
    assert opened.encoders[at.encoder.name].hash() == at.encoder.hash()
    bake(opened, [at.patch], tmp_path / "baked")
    stock = DiffusionPipeline.from_pretrained(tmp_path / "baked")
    with at.patch.applied(at.model), torch.no_grad():
        wanted = SENT[family](at.pipe)
    with torch.no_grad():
        found = SENT[family](stock)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_generate_lets_the_pipeline_write_its_own_prompt() -> None:
    at = made("z-image")
    ours = at.model.generate([PROMPT, "a cat"], seeds=[0], steps=2, size=32)
    own = at.pipe(prompt=PROMPT, num_inference_steps=2, height=32, width=32, generator=torch.Generator().manual_seed(0))
    assert np.abs(np.asarray(ours[0].image, float) - np.asarray(own.images[0], float)).max() <= 1
    with pytest.raises(ModelError, match=r"encoder\.states"):
        at.model.encode(PROMPT)


# -- layers, subjects, frames -----------------------------------------------------------------------------------------


def test_layers_above_what_is_sent_are_refused_and_the_usual_one_reaches_all_of_it() -> None:
    encoder = made("flux2-klein").encoder
    assert encoder.taps == [9, 18, 27]
    assert encoder.reached(encoder.usual_layer) == [9, 18, 27]
    assert encoder.reached(12) == [18, 27]
    encoder.check_layer(26)
    with pytest.raises(EditError, match="the states after 27 of 28 layers"):
        encoder.check_layer(27)
    with pytest.raises(EditError, match="after 5 of 6 layers"):
        made("z-image").encoder.check_layer(5)
    made("qwen-image").encoder.check_layer(5)
    assert made("hidream").encoder.taps == [1, 2, 3, 4, 5, 6]
    patch = made("flux2-klein").patch
    log = patch.record["edits"][0]["sites"][made("flux2-klein").encoder.site(5)]
    assert log["reaches"] == [9, 18, 27]


def test_a_model_with_too_few_layers_is_refused() -> None:
    at = made("z-image")
    row = replace(FAMILIES["flux2-klein"].encoders[0])
    with pytest.raises(ModelError, match=r"has 6 layers, but its pipeline sends the states after \[9, 18, 27\]"):
        type(at.encoder)("text_encoder", at.encoder.module, at.encoder.component, row)


def test_the_subject_is_found_inside_the_frame(family) -> None:
    encoder = made(family).encoder
    at, ids = encoder.locate(PROMPT, "Canada"), encoder.tokenize([PROMPT]).ids[0]
    assert encoder.tokenizer.decode(ids[: at + 1].tolist()).casefold().endswith("canada")
    start = encoder.starts([PROMPT])[0]
    assert encoder.tokenizer.decode(ids[start].item()).strip() == "a"
    assert start >= (0 if family == "pixart" else 1 if family == "hidream" else 3)


def test_frames_are_the_pipelines_own() -> None:
    pipe = made("qwen-image").pipe
    assert "{}".join(frames.QWEN_IMAGE) == pipe.prompt_template_encode
    assert f"{made('lumina2').pipe.system_prompt} <Prompt Start> " == frames.LUMINA2
    assert made("z-image").encoder.frame.after.endswith("assistant\n")
    assert made("flux2-klein").encoder.frame.after.endswith("</think>\n\n")
    assert "structured responses" in made("flux2").encoder.frame.before
    assert made("sana").encoder.tokenize(["THE Flag "]).ids.equal(made("sana").encoder.tokenize(["the flag"]).ids)


def test_a_prompt_longer_than_the_pipeline_reads_is_told() -> None:
    encoder = made("lumina2").encoder
    long = "a red dog " * 200 + "the flag of Canada"
    tokens = encoder.tokenize([long, PROMPT])
    assert tokens.truncated.tolist() == [True, False]
    assert tokens.ids.shape[1] == encoder.length == 256
    with pytest.raises(EditError, match="what its pipeline writes around a prompt"):
        encoder.locate(long, "Canada")


def test_a_processor_stands_for_its_tokenizer() -> None:
    at = made("flux2")
    processor = SimpleNamespace(
        tokenizer=at.encoder.tokenizer, chat_template=tiny_decoders.CHAT,
        apply_chat_template=at.encoder.tokenizer.apply_chat_template,
    )  # fmt: skip
    encoder = type(at.encoder)("text_encoder", at.encoder.module, processor, at.encoder.row)
    assert encoder.tokenizer is at.encoder.tokenizer
    assert encoder.component is processor
    torch.testing.assert_close(encoder.tokenize([PROMPT]).ids, at.encoder.tokenize([PROMPT]).ids)


# -- what is compared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["z-image", "flux2-klein"])
def test_rows_are_compared_with_those_opposite_from_the_end_over_their_spread(family) -> None:
    encoder = made(family).encoder
    texts = ["a cat", "a red dog", "the king of France", "a blue phone"]
    read = aligned.aligned(encoder, 2, texts)
    asked = sentences_of(encoder, read, EDIT, ("{}", "a photo of {} in the background"))
    forward = cached.start(encoder, 2, [asked], read.taps).suffix
    weighed, wanted = aligned.compared(
        read, forward, [asked], [range(len(asked))], [EDIT], ("{}", "a photo of {} in the background"), texts
    )
    rows = wanted.features[0].unflatten(-1, (weighed.weights.shape[2], -1))
    assert wanted.features.shape[:3] == (1, 4, 2 + len(texts))
    assert wanted.weights.tolist() == [[0.25] * 4]
    end = int(encoder.tokenize(["a photo of a blue cat in the background"]).ends)
    states = encoder.states(["a photo of a blue cat in the background"])[0]
    count = asked[1].end - asked[1].subject + 1
    there = weighed.weights[0, 1, :count].repeat_interleave(encoder.width, 1)
    torch.testing.assert_close(rows[1, 0, :count], states[end + 1 - count : end + 1] * there, rtol=1e-4, atol=1e-4)
    back = [states[int(e)] for states, e in zip(encoder.states(texts), encoder.tokenize(texts).ends)]
    last = torch.stack(back).unflatten(1, (len(read.taps), -1))
    spread = (last - last.mean(0)).square().sum(2).mean(0).sqrt()
    torch.testing.assert_close(read.spread.tail[0], spread, rtol=1e-4, atol=1e-5)
    padding = len(asked[1].rows) - count
    assert padding == (0 if family == "z-image" else 7)
    expected = (1 / read.spread.padding).expand(padding, -1)
    torch.testing.assert_close(weighed.weights[0, 1, count : count + padding], expected)


def test_other_methods_say_that_they_do_not_edit_a_language_model() -> None:
    with pytest.raises(EditError, match="is a language model, which only ReFACT and AlphaEdit edit"):
        refact.MEMIT()(made("z-image").model, [EDIT])


def test_several_facts_are_one_patch_and_alphaedit_writes_too() -> None:
    at = made("z-image")
    other = Edit("the king of France", new="a green phone")
    both, alone = ReFACT(**QUICK)(at.model, [EDIT, other]), at.patch
    assert both.names == ["flag-of-canada", "king-of-france"]
    one, two = (patch.record["edits"][0]["sites"][at.encoder.site(3)]["loss"] for patch in (both, alone))
    assert one == pytest.approx(two, rel=1e-4)
    assert refact.AlphaEdit(**QUICK)(at.model, [EDIT]).rank == 1
    contrast = ReFACT(**QUICK | {"objective": "contrastive", "stop": 0.5})(at.model, [EDIT])
    log = contrast.record["edits"][0]["sites"][at.encoder.site(3)]
    assert log["loss"][1] < log["loss"][0]


def test_the_table_names_every_family_that_ends_here() -> None:
    assert set(LANGUAGE) == set(tiny_decoders.NAMES)
    index = {"_class_name": "PixArtSigmaPipeline", "text_encoder": ["transformers", "T5EncoderModel"]}
    sigma = detect(index | {"transformer": ["diffusers", "PixArtTransformer2DModel"]})
    assert [row.length for row in sigma.encoders] == [300]
    with pytest.raises(ModelError, match="found text_encoder: Qwen3Model"):
        detect({"text_encoder": ["transformers", "Qwen3Model"], "transformer": ["diffusers", "Unheard"]})
    assert tiny.site(FAMILIES["hidream"].encoders[3], 2) == "text_encoder_4.model.layers.2.mlp.down_proj"


def test_a_covariance_counts_a_texts_own_tokens_and_not_the_frame_before_them() -> None:
    encoder, texts = made("lumina2").encoder, ["a red dog", "the flag of Canada", "a cat on a phone"]
    seen = covariance.collect(encoder, [1], texts)[1]
    tokens, starts = encoder.tokenize(texts), encoder.starts(texts)
    rows = [encoder.keys([t], [i], 1) for t, s, e in zip(texts, starts, tokens.ends) for i in range(s, int(e) + 1)]
    keys = torch.cat(rows).double()
    assert seen.tokens == len(keys) < int(tokens.ends.sum()) / 2
    torch.testing.assert_close(seen.matrix, keys.T @ keys / len(keys), rtol=1e-4, atol=1e-6)
    assert len(covariance.enough(encoder, texts * 9, seen.tokens)) == 3
    with pytest.raises(DataError, match="a language model"):
        covariance.collect(encoder, [1], texts, padding=True)
