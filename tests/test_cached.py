"""What a search computes of a language model equals the plain forward of every sentence, for each architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_decoders
import torch
from torch import nn

from refact.encoders import hooks
from refact.encoders.decoder import Decoder
from refact.encoders.encoder import TextEncoder
from refact.encoders.widened import Widened
from refact.errors import ModelError
from refact.families import FAMILIES
from refact.family import EncoderRow
from refact.search import cached
from refact.search.trie import Sentence

PAD = tiny_decoders.tokenizer().pad_token_id
WINDOWED = {"mistral", "gemma2", "gemma3"}  # a window of 5 tokens: padding far away would see nothing at all


def encoder_of(kind: str, module: nn.Module | None = None) -> TextEncoder:
    """A language model as a text encoder whose pipeline puts nothing around a prompt."""
    module = tiny_decoders.language_model(kind) if module is None else module
    row = EncoderRow("text_encoder", "taps", False, "text_encoders.x.transformer", "decoder", taps=(-1,), length=64)
    return TextEncoder("text_encoder", module, tiny_decoders.tokenizer(), row)


@pytest.fixture(scope="module", params=tiny_decoders.KINDS)
def opened(request):
    module = tiny_decoders.language_model(request.param)
    return request.param, module, encoder_of(request.param, module)


def sentence(*ids: int, at: int, padding: tuple[int, ...] = ()) -> Sentence:
    return Sentence(ids, at, len(ids) - 1, (*range(at, len(ids)), *padding))


def edits(padding: tuple[int, ...]) -> list[list[Sentence]]:
    """Two edits; sentences that begin alike, subjects in several places, one edit with fewer sentences."""
    first = [(1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 5, 9, 8, 10, 11), (1, 2, 12, 3, 4, 5, 7)]
    second = [(1, 2, 20, 21, 22, 23, 24, 25, 26, 27, 28), (1, 2, 3, 20, 21)]
    return [
        [sentence(*ids, at=at, padding=padding) for ids, at in zip(first, (4, 4, 5))],
        [sentence(*ids, at=at, padding=padding) for ids, at in zip(second, (3, 4))],
    ]


def plain(module: nn.Module, part: Decoder, layer: int, said: Sentence, offset: torch.Tensor, taps) -> torch.Tensor:
    """The library's forward of one padded sentence, the offset put in by a hook on down_proj."""
    length = max(len(said.ids), *(row + 1 for row in said.rows))
    ids = torch.tensor([[*said.ids, *[PAD] * (length - len(said.ids))]])
    mask = (torch.arange(length) < len(said.ids)).long()[None]

    def moved(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[0, said.subject] += offset
        return out

    with hooks.replace(part.linear(layer), moved):
        states = module(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return torch.cat([states[tap][0, list(said.rows)] for tap in taps], -1)


@pytest.mark.parametrize(("layer", "taps"), [(0, (1, 3, 6)), (2, (5,)), (5, (6,))])
def test_states_and_gradients_equal_the_plain_forward(opened, layer, taps):
    kind, module, encoder = opened
    asked = edits(() if kind in WINDOWED else (14, 19))
    begun = cached.start(encoder, layer, asked, taps)
    offsets = torch.randn(2, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    rows, _ = begun.suffix(offsets)
    total, literal = 0, 0
    for e, sentences in enumerate(asked):
        for c, said in enumerate(sentences):
            wanted, found = plain(module, encoder.part, layer, said, offsets[e], taps), rows[e, c, : len(said.rows)]
            assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
            total, literal = total + found.sin().sum(), literal + wanted.sin().sum()
    (ours,), (theirs,) = torch.autograd.grad(total, offsets), torch.autograd.grad(literal, offsets)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    some = begun.suffix.select(torch.tensor([1]))(offsets[1:].detach())[0]
    torch.testing.assert_close(some, rows[1:].detach(), rtol=1e-5, atol=1e-4)


def test_keys_are_what_down_proj_is_given_one_a_distinct_beginning(opened):
    _, module, encoder = opened
    asked = edits(())
    begun = cached.start(encoder, 2, asked, ())
    assert [len(keys) for keys in begun.keys] == [2, 2]
    with hooks.read(encoder.linear(2)) as given, hooks.read(encoder.linear(2), "output") as gave, torch.no_grad():
        module(input_ids=torch.tensor([asked[1][1].ids]))
    torch.testing.assert_close(begun.keys[1][1], given[0][0, 4], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(begun.values[1][1], gave[0][0, 4], rtol=1e-5, atol=1e-5)


def test_a_window_is_read_off_the_librarys_own_mask():
    assert [call.window for call in cached.start(encoder_of("llama"), 2, edits(()), (6,)).suffix.calls.values()] == [
        0
    ] * 4
    windows = {call.window for call in cached.start(encoder_of("gemma2"), 0, edits(()), (6,)).suffix.calls.values()}
    assert windows == {0, 5}
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(4, 4)).tril().bool()
    with pytest.raises(ModelError, match="neither all earlier tokens nor a window"):
        cached._window(blocks[None, None], 7)


def test_attention_without_a_mask_of_ours_is_refused():
    module = tiny_decoders.language_model("qwen3")
    module.config._attn_implementation = module.model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="attn_implementation='sdpa'"):
        Decoder(module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_stay_and_products_are_those_of_a_float32_copy(dtype):
    narrow, wide = nn.Linear(300, 5000).to(dtype), nn.Linear(300, 5000)
    wide.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    x = torch.randn(3, 7, 300, requires_grad=True)
    with Widened():
        ours = narrow.requires_grad_(False)(x)
        (slope,) = torch.autograd.grad(ours.sin().sum(), x)
        assert narrow(x.to(dtype)).dtype == dtype  # inputs as narrow as the weight are left alone
    theirs = wide(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope, torch.autograd.grad(theirs.sin().sum(), x)[0], rtol=1e-5, atol=1e-5)
    assert narrow.weight.dtype == dtype


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
def test_a_search_in_a_bfloat16_model_is_the_search_in_its_float32_copy(kind):
    narrow = tiny_decoders.language_model(kind).to(torch.bfloat16)
    wide = tiny_decoders.language_model(kind).to(torch.bfloat16).float()
    offsets = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    one, other = (cached.start(encoder_of(kind, m), 2, edits(()), (3, 6)).suffix(offsets)[0] for m in (narrow, wide))
    assert (one - other).abs().max() < (1e-5 if kind == "qwen3" else 2e-2) * other.abs().max()
    assert all(weight.dtype == torch.bfloat16 for weight in narrow.parameters())


def test_texts_are_read_once_where_they_begin_alike():
    row = replace(FAMILIES["z-image"].encoders[0], length=64)
    encoder = TextEncoder("text_encoder", tiny_decoders.language_model("qwen3"), tiny_decoders.tokenizer(), row)
    prompts = ["a red dog", "the flag of Canada on a phone", ""]
    tokens = encoder.tokenize(prompts)
    together = encoder.states(prompts)
    for prompt, end, states in zip(prompts, tokens.ends.tolist(), together):
        with torch.no_grad():
            alone = encoder.module(encoder.tokenize([prompt]).ids, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(states[: end + 1], alone[0], rtol=1e-4, atol=1e-4)
        assert not states[end + 1 :].any()
    tail = encoder.part.tail
    torch.testing.assert_close(encoder.embed(prompts)[0], together[0][int(tokens.ends[0]) + 1 - tail :][:tail].mean(0))
    keys = encoder.keys(prompts, [3, 4, 2], 4)
    with hooks.read(encoder.linear(4)) as given, torch.no_grad():
        encoder.module(encoder.tokenize([prompts[1]]).ids)
    torch.testing.assert_close(keys[1], given[0][0, 4], rtol=1e-4, atol=1e-4)
