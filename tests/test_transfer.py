"""Patches on other encoders: nothing changes without noise, much noise breaks a fact, and the model comes back."""

from __future__ import annotations

import pytest
import tiny
import torch

import refact
from refact.methods.refact import ReFACT
from refact.studies.transfer import markdown, perturbed, transfer


@pytest.fixture(scope="module")
def model():
    return refact.load(tiny.pipeline("sd1"))


def test_a_patch_carries_as_far_as_its_encoder_is_near(model) -> None:
    edit = refact.Edit("the president of france", old="a king", new="a lion")
    patch = ReFACT(layer=1, contexts=2, negatives=4, max_steps=30, tokens=1500, shrink=1e-2)(model, [edit])
    weights = {n: w.clone() for n, w in model.encoders["text_encoder"].module.named_parameters()}
    same, near, far = transfer(model, patch, [1e-4, 3.0])
    (fact,) = refact.verify(model, patch)
    assert (same.apart, same.mismatch, same.holds) == (0, "", fact.holds)
    assert same.toward == pytest.approx(fact.toward)
    assert near.mismatch
    assert near.toward == pytest.approx(same.toward, abs=0.02)
    assert abs(far.toward - same.toward) > 0.1
    assert 0 < near.apart < far.apart
    assert all(torch.equal(w, weights[n]) for n, w in model.encoders["text_encoder"].module.named_parameters())
    assert markdown([same, near, far]).count("\n") == 4


def test_noise_is_relative_to_each_matrix(model) -> None:
    linear = model.encoders["text_encoder"].linear(1)
    before = linear.weight.detach().clone()
    with perturbed(model, 0.1):
        assert float((linear.weight.detach() - before).norm() / before.norm()) == pytest.approx(0.1, rel=0.1)
    assert torch.equal(linear.weight, before)
