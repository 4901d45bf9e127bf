"""Causal tracing on a tiny CLIP: what must be 0 and 1 whatever the weights are."""

from __future__ import annotations

import pytest
import tiny
import torch

from refact.encoders.encoder import TextEncoder
from refact.errors import EditError
from refact.families import FAMILIES
from refact.studies.tracing import trace

PROMPT = "a photo of the president of france"
OTHERS = ["a dog", "a red car", "the capital of canada"]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    pipe = tiny.pipeline("sd1")
    return TextEncoder("text_encoder", pipe.text_encoder, pipe.tokenizer, FAMILIES["sd1"].encoders[0])


def test_the_last_layer_at_eos_restores_everything_and_no_other_position_anything(encoder) -> None:
    found = trace(encoder, PROMPT, PROMPT, OTHERS, "the president of france", samples=3)
    assert found.effect.shape == (encoder.n_layers, len(found.tokens))
    assert found.effect[-1, -1] == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(found.effect[-1, :-1], torch.zeros(len(found.tokens) - 1), atol=1e-4, rtol=0)
    assert found.clean > found.corrupted


def test_before_the_subject_nothing_is_restored(encoder) -> None:
    """Causality: positions left of the noise hold what they held."""
    found = trace(encoder, PROMPT, PROMPT, OTHERS, "the president of france", samples=3)
    first = found.subject[0]
    torch.testing.assert_close(found.effect[:, :first], torch.zeros(encoder.n_layers, first), atol=1e-4, rtol=0)


def test_tracing_repeats_and_leaves_the_encoder_alone(encoder) -> None:
    before = encoder.embed([PROMPT])
    one, other = (trace(encoder, PROMPT, PROMPT, OTHERS, part="mlp", samples=2) for _ in range(2))
    assert torch.equal(one.effect, other.effect)
    assert torch.equal(encoder.embed([PROMPT]), before)


def test_what_cannot_be_traced_is_refused(encoder) -> None:
    with pytest.raises(EditError, match="nothing to trace"):
        trace(encoder, PROMPT, "a dog", [PROMPT], samples=2)
    with pytest.raises(EditError, match="part"):
        trace(encoder, PROMPT, PROMPT, OTHERS, part="head")
