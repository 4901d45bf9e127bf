"""The suffix of a text tower computes what the plain forward of every sentence computes."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from refact.encoders import hooks
from refact.encoders.encoder import text_tower
from refact.search import suffix
from refact.search.trie import Sentence

BOS, EOS, LENGTH = 48, 49, 16


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def tower(request):
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
        max_position_embeddings=LENGTH, hidden_act=request.param, eos_token_id=EOS, bos_token_id=BOS,
    )  # fmt: skip
    model = CLIPTextModel(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return text_tower(model)


def sentence(*ids: int, at: int, rows: bool = False) -> Sentence:
    ids, end = (BOS, *ids, EOS), len(ids) + 1
    padded = ids + (EOS,) * (LENGTH - len(ids))
    return Sentence(padded, at, end, (at, end, end + 2, LENGTH - 1)) if rows else Sentence(ids, at, end)


def edits(rows: bool) -> list[list[Sentence]]:
    """Two edits; shared prefixes, a subject in several places, one edit with fewer sentences."""
    return [
        [sentence(3, 4, at=2, rows=rows), sentence(3, 4, 9, 8, at=2, rows=rows), sentence(7, 3, 4, 9, at=3, rows=rows)],
        [sentence(5, at=1, rows=rows), sentence(5, 6, 7, 8, 9, 10, at=1, rows=rows)],
    ]


def plain(tower, layer: int, s: Sentence, offset: torch.Tensor, depth: int):
    """The tower's own forward on one sentence, the offset put in by a hook on fc2."""

    def moved(out: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[0, s.subject] += offset
        return out

    layers = list(tower.encoder.layers)
    with hooks.replace(layers[layer].mlp.fc2, moved), hooks.read(layers[depth - 1], "output") as seen:
        out = tower(torch.tensor([s.ids]))
    rows = out.last_hidden_state if depth == len(layers) else seen[0]
    return rows[0, list(s.rows)], out.last_hidden_state[0, s.end]


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize(("rows", "depth"), [(False, 5), (True, 5), (True, 4)])
def test_states_and_gradients_equal_the_plain_forward(tower, layer, rows, depth):
    begun = suffix.start(tower, layer, edits(rows), depth)
    offsets = torch.randn(2, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    seen_rows, pooled = begun.suffix(offsets)
    wanted = [[plain(tower, layer, s, offsets[e], depth) for s in sentences] for e, sentences in enumerate(edits(rows))]
    total, literal = 0, 0
    for e, sentences in enumerate(wanted):
        for c, (r, p) in enumerate(sentences):
            assert torch.allclose(pooled[e, c], p, atol=1e-5, rtol=1e-5)
            total, literal = total + pooled[e, c].sin().sum(), literal + p.sin().sum()
            if rows:
                assert torch.allclose(seen_rows[e, c], r, atol=1e-5, rtol=1e-5)
                total, literal = total + seen_rows[e, c].sin().sum(), literal + r.sin().sum()
    (ours,), (theirs,) = torch.autograd.grad(total, offsets), torch.autograd.grad(literal, offsets)
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_an_offset_changes_the_states_at_every_layer_but_the_last(tower):
    for layer in range(4):
        begun = suffix.start(tower, layer, edits(False), 5)
        base, moved = begun.suffix(torch.zeros(2, 32))[1], begun.suffix(torch.arange(64.0).view(2, 32).sin())[1]
        assert (base - moved).abs().max() > 1e-2


def test_keys_are_the_inputs_of_fc2_one_a_distinct_prefix(tower):
    begun = suffix.start(tower, 2, edits(False), 5)
    assert [len(k) for k in begun.keys] == [2, 1]  # two sentences of the first edit share all up to the subject
    fc2 = list(tower.encoder.layers)[2].mlp.fc2
    with hooks.read(fc2) as inputs, hooks.read(fc2, "output") as outputs:
        tower(torch.tensor([edits(False)[1][1].ids]))
    assert torch.allclose(begun.keys[1][0], inputs[0][0, 1], atol=1e-6)
    assert torch.allclose(begun.values[1][0], outputs[0][0, 1], atol=1e-6)


def test_a_selection_of_edits_gives_their_rows(tower):
    begun = suffix.start(tower, 1, edits(True), 5)
    offsets = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    rows, pooled = begun.suffix(offsets)
    some_rows, some = begun.suffix.select(torch.tensor([1]))(offsets[1:])
    assert torch.allclose(some, pooled[1:], atol=1e-6)
    assert torch.allclose(some_rows, rows[1:], atol=1e-6)


def test_all_keys_hold_every_token_once(tower):
    keys, paths = suffix.all_keys(tower, 2, edits(False)[0])
    assert len(keys) == len({s.ids[: i + 1] for s in edits(False)[0] for i in range(len(s.ids))})
    with hooks.read(list(tower.encoder.layers)[2].mlp.fc2) as inputs:
        tower(torch.tensor([edits(False)[0][2].ids]))
    assert torch.allclose(keys[paths[2]], inputs[0][0], atol=1e-5)


def test_states_of_texts_that_begin_alike_are_those_of_each_alone(tower):
    every = [s for edit in edits(False) for s in edit]
    alone = [tower(torch.tensor([s.ids])).last_hidden_state[0, s.end] for s in every]
    assert torch.allclose(suffix.pooled(tower, every), torch.stack(alone), atol=1e-5)
