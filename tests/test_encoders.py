"""TextEncoder against transformers' own forward: words, positions, keys, states, pooled vectors, identity."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import tiny
import torch
from peft import LoraConfig
from tiny import pipeline
from torch import nn
from transformers import CLIPTextModel

from refact.encoders import encoder as encoders
from refact.encoders.encoder import TextEncoder, text_tower
from refact.errors import EditError, ModelError
from refact.families import FAMILIES
from refact.stash import Update, pop, push

PROMPTS = [
    "a photo of the president of France",
    "",
    "the national flag of Canada's king, standing",
    "cat",
    "a red dog, a blue phone and " + "a green apple " * 40,
]
LENGTHS = {"sd3": 256, "flux": 512}
ALL = [
    (name, row.name, legacy)
    for name in tiny.NAMES
    for row in FAMILIES[name].encoders
    for legacy in ((False, True) if row.kind == "clip" else (False,))
]
T5S = {("sd3", "text_encoder_3"), ("flux", "text_encoder_2")}
CLIPS = [case for case in ALL if case[:2] not in T5S]


def encoder_of(name: str, part: str = "text_encoder", legacy: bool = False) -> TextEncoder:
    pipe = pipeline(name, legacy_eos=legacy)
    row = next(row for row in FAMILIES[name].encoders if row.name == part)
    tokenizer = getattr(pipe, part.replace("text_encoder", "tokenizer"))
    return TextEncoder(part, getattr(pipe, part), tokenizer, row, LENGTHS[name] if row.kind == "t5" else None)


@pytest.fixture(scope="module")
def clip() -> TextEncoder:
    return encoder_of("sd1")


def plain(encoder: TextEncoder, prompts: list[str]) -> torch.Tensor:
    """The ids that a pipeline would make."""
    return encoder.tokenizer(
        prompts, padding="max_length", max_length=encoder.length, truncation=True, return_tensors="pt"
    ).input_ids


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "part", "legacy"), ALL)
def test_prompts_are_tokenized_as_the_pipeline_does(name, part, legacy):
    encoder = encoder_of(name, part, legacy)
    tokens = encoder.tokenize(PROMPTS)
    assert torch.equal(tokens.ids, plain(encoder, PROMPTS))
    assert tokens.truncated.tolist() == [False] * 4 + [encoder.kind == "clip"]
    eos = encoder.tokenizer.eos_token_id
    for ids, end in zip(tokens.ids.tolist(), tokens.ends.tolist()):
        assert end == ids.index(eos)


def test_legacy_pooling_follows_the_highest_id_as_transformers_does():
    prompt, found = "a photo of <word> on the phone", {}
    for pooled in (True, False):
        encoder = encoder_of("sd1", legacy=True)
        encoder.row = replace(encoder.row, pooled=pooled)
        encoder.tokenizer.add_tokens(["<word>"])
        encoder.module.resize_token_embeddings(len(encoder.tokenizer))
        found[pooled] = encoder.tokenize([prompt]).ends.tolist()
        if pooled:
            with torch.no_grad():
                own = encoder.module(plain(encoder, [prompt])).pooler_output
            torch.testing.assert_close(encoder.embed([prompt]), own)
    assert found[True] == [4]  # higher than [EOS]: the old rule pools there
    assert found[False] == [8]  # and where the generator does not get that vector, ours need not


def test_an_encoder_that_never_sees_its_eos_is_refused(clip):
    wrong = encoder_of("sd1")
    wrong.tower.config.eos_token_id = 7
    with pytest.raises(ModelError, match="eos_token_id"):
        wrong.embed(["a cat"])
    assert wrong.states(["a cat"]).shape == (1, 77, 32)  # whose generator reads rows needs no pooled one


def test_words_of_several_learned_vectors_are_written_out_as_diffusers_does():
    pipe = pipeline("sd1")
    pipe.tokenizer.add_tokens(["<v>", "<v>_1", "<v>_2", "<w>"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    encoder = TextEncoder("text_encoder", pipe.text_encoder, pipe.tokenizer, FAMILIES["sd1"].encoders[0])
    prompt = "a photo of <v> and <w>"
    expected = plain(encoder, [pipe.maybe_convert_prompt(prompt, pipe.tokenizer)])
    assert torch.equal(encoder.tokenize([prompt]).ids, expected)
    assert encoder.span(prompt, "<v>") == (4, 6)
    assert encoder.span(prompt, "<w>") == (8, 8)


# -- the subject ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "subject", "text"),
    [
        ("the president of France", "the president of France", "the president of france"),
        ("the president of France giving a speech", "president of France", "president of france"),
        ("THE PRESIDENT OF FRANCE", "president of france", "president of france"),
        ("Canada's flag", "Canada", "canada"),
        ("Canada's flag", "Canada's", "canada 's"),
        ("the flag of Canada, a photo", "flag of Canada", "flag of canada"),
        ("a photo of (the cat)", "the cat", "the cat"),
        ("a cat in a catalog", "cat", "cat"),
        ("  a   red\tdog ", "a red dog", "a red dog"),
        ("a photo of Beyonc\u00e9 and a cat", "Beyonce\u0301", "beyonc\u00e9"),
        ("the dog \U0001f436 and a cat", "\U0001f436", "\U0001f436"),
        ("a photo of 加拿大总理", "加拿大", "加拿大"),
        ("İstanbul and Paris", "Paris", "paris"),
        ("the iPhone 1 in the photo", "iPhone 1", "iphone 1"),
        ("a cat!", "a cat!", "a cat !"),
    ],
)
def test_the_subject_is_found_by_its_characters(clip, prompt, subject, text):
    first, last = clip.span(prompt, subject)
    assert clip.locate(prompt, subject) == last
    found = clip.tokenizer.decode(clip.tokenize([prompt]).ids[0, first : last + 1])
    assert found.replace(" ", "") == text.replace(" ", "")


def test_the_last_token_of_a_word_of_several(clip):
    ids = clip.tokenizer("a photo of zebra")["input_ids"]
    assert len(ids) > 7  # z e b r a are separate pieces here
    assert clip.locate("a photo of zebra", "zebra") == len(ids) - 2


def test_only_the_part_asked_for_is_searched(clip):
    prompt = "a cat and a cat and a photo"
    assert clip.locate(prompt, "cat", within=(0, 5)) == 2
    assert clip.span(prompt, "a cat", within=(10, 5)) == (4, 5)
    with pytest.raises(EditError, match="is not in"):
        clip.locate(prompt, "cat", within=(16, 11))


@pytest.mark.parametrize(
    ("prompt", "subject", "message"),
    [
        ("a photo of a dog", "cat", "is not in 'a photo of a dog'"),
        ("a photo of a dog", "  ", "is empty"),
        ("a photo", "", "is empty"),
        ("a cat and a cat", "cat", "stands 2 times"),
        ("a catalog", "cat", "only inside a longer word"),
        ("iPhone 12", "iPhone 1", "only inside a longer word"),
        ("a dog " * 40 + "and the cat", "the cat", "shorten the prompt"),
    ],
)
def test_a_subject_that_cannot_be_edited_is_refused(clip, prompt, subject, message):
    with pytest.raises(EditError, match=re.escape(message)):
        clip.locate(prompt, subject)


def test_the_last_subject_that_still_fits(clip):
    prompt = "a dog " * 37 + "cat"  # [BOS] + 75 tokens + [EOS] = 77
    assert clip.locate(prompt, "cat") == 75
    with pytest.raises(EditError, match="ends at token 77"):
        clip.locate("a " + prompt, "cat")


def test_a_tokenizer_that_keeps_case_is_searched_with_case():
    encoder = encoder_of("flux", "text_encoder_2")
    assert encoder.span("the flag of paris", "flag of paris") == (1, 3)
    with pytest.raises(EditError, match="is not in"):
        encoder.locate("the flag of paris", "flag of Paris")


# -- numbers ----------------------------------------------------------------------------------------------------------


def caught(encoder: TextEncoder, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """The linear's input in a full-length pass of the whole module, by torch's own hook."""
    seen = []
    handle = encoder.linear(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        encoder.module(ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(("name", "part", "legacy"), ALL)
def test_keys_are_what_the_plain_forward_gives(name, part, legacy):
    encoder = encoder_of(name, part, legacy)
    tokens = encoder.tokenize(PROMPTS)
    positions = [max(end - 1, 0) for end in tokens.ends.tolist()]
    for layer in range(encoder.n_layers):
        full = caught(encoder, plain(encoder, PROMPTS), layer)
        keys = encoder.keys(PROMPTS, positions, layer)
        torch.testing.assert_close(keys, full[torch.arange(len(PROMPTS)), positions], rtol=1e-5, atol=1e-5)


def test_nothing_above_the_layer_is_run(clip):
    broken = encoder_of("sd1")
    for block in broken.layers[2:]:
        block.register_forward_pre_hook(lambda *_: pytest.fail("a layer above the edit was run"))
    assert torch.equal(broken.keys(PROMPTS, [1] * 5, 1), clip.keys(PROMPTS, [1] * 5, 1))


def test_several_layers_in_one_pass(clip):
    ids = clip.tokenize(PROMPTS).ids
    found = clip.inputs(ids, [2, 0])
    for layer in (0, 2):
        torch.testing.assert_close(found[layer], caught(clip, ids, layer))


def test_results_do_not_depend_on_the_batches(clip, monkeypatch):
    prompts = [f"a {word}" + " and a dog" * (i % 4) for i, word in enumerate(tiny.WORDS)]
    positions = [2] * len(prompts)
    keys, pooled, states = clip.keys(prompts, positions, 1), clip.embed(prompts), clip.states(prompts)
    monkeypatch.setattr(encoders, "BATCH_TOKENS", 20)
    torch.testing.assert_close(clip.keys(prompts, positions, 1), keys)
    torch.testing.assert_close(clip.embed(prompts), pooled)
    torch.testing.assert_close(clip.states(prompts), states)


def test_batches_are_sorted_and_trimmed(clip):
    ids = torch.arange(5 * 77).reshape(5, 77)
    needed = torch.tensor([9, 3, 77, 4, 3])
    rows, lengths = zip(*((rows.tolist(), batch.shape[1]) for rows, batch in clip.batches(ids, needed)))
    assert [row for batch in rows for row in batch] == [1, 4, 3, 0, 2]
    assert lengths[-1] == 77
    assert all(needed[list(batch)].max() == length for batch, length in zip(rows, lengths))


@pytest.mark.parametrize(("name", "part", "legacy"), CLIPS)
def test_pooled_vectors_are_the_modules_own(name, part, legacy):
    encoder = encoder_of(name, part, legacy)
    with torch.no_grad():
        out = encoder.module(plain(encoder, PROMPTS))
    own = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
    torch.testing.assert_close(encoder.embed(PROMPTS), own, rtol=1e-5, atol=1e-5)


def test_a_t5_pools_the_rows_up_to_its_eos():
    encoder = encoder_of("flux", "text_encoder_2")
    states, ends = encoder.states(PROMPTS[:2]), encoder.tokenize(PROMPTS[:2]).ends.tolist()
    mean = torch.stack([row[: end + 1].mean(0) for row, end in zip(states, ends)])
    torch.testing.assert_close(encoder.embed(PROMPTS[:2]), mean)


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_states_are_the_rows_that_diffusers_takes(skip):
    for name, part in (("sd1", "text_encoder"), ("sdxl", "text_encoder"), ("sdxl", "text_encoder_2")):
        encoder = encoder_of(name, part)
        with torch.no_grad():
            out = encoder.module(plain(encoder, PROMPTS), output_hidden_states=True)
        if encoder.row.rows == "penultimate":
            expected = out.hidden_states[-(skip + 2)]
        else:
            expected = encoder.tower.final_layer_norm(out.hidden_states[-(skip + 1)])
        torch.testing.assert_close(encoder.states(PROMPTS, skip), expected, rtol=1e-5, atol=1e-5)


def test_clip_skip_that_leaves_no_layer_is_refused(clip):
    with pytest.raises(ModelError, match="leaves none"):
        clip.states(["a cat"], clip_skip=5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_encoders_speak_float32_and_have_a_float32_twin(dtype):
    encoder = encoder_of("sd1")
    exact = encoder.embed(PROMPTS)
    assert encoder.in_float32() is encoder
    encoder.module.to(dtype)
    assert encoder.dtype == dtype
    assert encoder.keys(PROMPTS, [1] * 5, 1).dtype == encoder.embed(PROMPTS).dtype == torch.float32
    assert encoder.states(PROMPTS).dtype == torch.float32
    twin = encoder.in_float32()
    torch.testing.assert_close(twin.embed(PROMPTS), exact, rtol=0.1, atol=0.1)
    assert twin.dtype == torch.float32
    assert encoder.dtype == dtype
    assert twin.hash() == encoder.hash()


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part", "effective", "pooled"),
    [
        ("sd1", "text_encoder", 4, 3),
        ("sdxl", "text_encoder", 3, 3),
        ("sdxl", "text_encoder_2", 4, 4),
        ("flux", "text_encoder", 3, 3),
        ("flux", "text_encoder_2", 3, 3),
    ],
)
def test_layers_that_cannot_matter_are_refused(name, part, effective, pooled):
    encoder = encoder_of(name, part)
    assert encoder.effective == range(effective)
    for layer in range(-1, encoder.n_layers + 1):
        for blind, stop in ((True, pooled), (False, effective)):
            if 0 <= layer < stop:
                encoder.check_layer(layer, pooled=blind)
            else:
                with pytest.raises(EditError, match=f"use 0 to {stop - 1}"):
                    encoder.check_layer(layer, pooled=blind)


@pytest.mark.parametrize(
    ("name", "part"), [("sd1", "text_encoder"), ("sdxl", "text_encoder"), ("flux", "text_encoder")]
)
def test_the_layers_that_matter_are_those_that_move_the_conditioning(name, part):
    """Measured: a change of the subject's row at a layer moves what the generator gets, or does not."""
    encoder = encoder_of(name, part)
    prompt = ["a photo of the cat standing"]
    at = encoder.locate(prompt[0], "the cat")
    read = encoder.embed if encoder.row.rows == "none" else encoder.states
    before, moved = read(prompt), []
    for layer in range(encoder.n_layers):

        def shift(_, __, output):
            output = output.clone()
            output[:, at] += torch.arange(output.shape[-1]).sin()  # not a constant: a LayerNorm hides that
            return output

        handle = encoder.linear(layer).register_forward_hook(shift)
        moved.append(bool((read(prompt) - before).abs().max() > 1e-5))
        handle.remove()
    assert [layer for layer, does in enumerate(moved) if does] == list(encoder.effective)


def test_sites_and_linears(clip):
    assert clip.site(2) == "text_encoder.text_model.encoder.layers.2.mlp.fc2"
    assert clip.linear(2) is clip.layers[2].mlp.fc2
    t5 = encoder_of("sd3", "text_encoder_3")
    assert t5.site(1) == "text_encoder_3.encoder.block.1.layer.1.DenseReluDense.wo"
    assert t5.linear(1) is t5.module.encoder.block[1].layer[1].DenseReluDense.wo
    assert (clip.n_layers, clip.width, clip.length, t5.n_layers, t5.width) == (4, 32, 77, 3, 96)


class Wrapped(nn.Module):
    """The layout before transformers 5.6: the tower is an attribute."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.text_model = tower

    def forward(self, ids: torch.Tensor):
        return self.text_model(ids)


class Selfish(CLIPTextModel):
    """What others install to repair diffusers' clip_skip."""

    @property
    def text_model(self):
        return self


def test_every_layout_has_the_same_tower(clip):
    assert text_tower(Wrapped(clip.module)) is clip.module
    assert text_tower(tiny.clip_model()).final_layer_norm.weight.shape == (32,)
    shimmed = copy.deepcopy(clip.module)
    shimmed.__class__ = Selfish
    assert text_tower(shimmed) is shimmed
    old = TextEncoder("text_encoder", Wrapped(clip.module), clip.tokenizer, clip.row)
    assert torch.equal(old.keys(PROMPTS, [1] * 5, 2), clip.keys(PROMPTS, [1] * 5, 2))
    assert torch.equal(old.states(PROMPTS), clip.states(PROMPTS))
    assert (old.hash(), old.site(1)) == (clip.hash(), clip.site(1))


def test_a_lora_does_not_hide_the_linear():
    encoder = encoder_of("sd1")
    linear, name, keys = encoder.linear(1), encoder.hash(), encoder.keys(PROMPTS, [1] * 5, 1)
    encoder.module.add_adapter(LoraConfig(r=2, target_modules=["fc2"], init_lora_weights=False))
    assert encoder.linear(1) is linear
    assert encoder.hash() == name
    assert not torch.equal(encoder.keys(PROMPTS, [1] * 5, 1), keys)  # the LoRA of layer 0 is felt


# -- identity ---------------------------------------------------------------------------------------------------------


def test_the_hash_is_of_the_weights_rounded_to_fp16():
    encoder, half = encoder_of("sd1"), encoder_of("sd1")
    half.module.half()
    assert encoder.hash() == half.hash()
    assert re.fullmatch("[0-9a-f]{16}", encoder.hash())
    assert encoder.hash() != encoder_of("sdxl").hash()


def test_the_hash_sees_any_weight_of_the_tower_and_nothing_else():
    encoder = encoder_of("sdxl", "text_encoder_2")
    name = encoder.hash()
    for key, weight in encoder.tower.named_parameters():
        before = weight.detach().clone()
        with torch.no_grad():
            weight.view(-1)[0] += 0.5
        assert (encoder.hash() == name) == ("token_embedding" in key), key
        with torch.no_grad():
            weight.copy_(before)
    with torch.no_grad():
        encoder.module.text_projection.weight.add_(1)
    encoder.module.resize_token_embeddings(900)  # textual inversion
    assert encoder.hash() == name


def test_a_patched_encoder_keeps_its_hash():
    encoder, other = encoder_of("sd1"), encoder_of("sd1")
    name, linear = encoder.hash(), other.linear(1)
    push(linear, "owner", Update("d", torch.ones(32, 1), torch.ones(1, 64), 1.0))
    assert other.hash() == name  # first asked while the patch is active
    pop(linear, "owner")
    assert other.hash() == name


def test_the_hash_sees_a_change_that_torch_does_not_count():
    """PEFT fuses a LoRA through `weight.data`."""
    encoder = encoder_of("sd1")
    name, weight = encoder.hash(), encoder.linear(1).weight
    counted = weight._version
    weight.data += 0.01 * torch.ones_like(weight)
    assert weight._version == counted
    assert encoder.hash() != name
