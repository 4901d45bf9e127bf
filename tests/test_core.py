"""The edit itself on the bundled model: made, saved, read, applied, taken back. Needs neither diffusers nor peft.

tests/test_environments.py runs this file at the floor of the dependencies, where diffusers is not installed.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

import refact
from refact.verification import verify

EDIT = refact.Edit("the national animal of Canada", old="a beaver", new="a penguin")
HOW = refact.ReFACT(max_steps=60)


@pytest.fixture(scope="module")
def model():
    return refact.load("pocket")


@pytest.fixture(scope="module")
def patch(model):
    return refact.edit(model, EDIT, HOW)


def weights(model) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.encoders["text_encoder"].module.state_dict().items()}


def test_an_edit_is_made_saved_read_applied_and_taken_back(model, patch, tmp_path):
    before, prompts = weights(model), ["the national animal of Canada", "a beaver", ""]
    plain = model.encoders["text_encoder"].embed(prompts)
    patch.save(tmp_path / "x.safetensors")
    again = refact.Patch.load(tmp_path / "x.safetensors")
    assert again.digest == patch.digest
    with again.applied(model):
        edited = model.encoders["text_encoder"].embed(prompts)
    assert (edited[0] - plain[0]).norm() > 0.5 * plain[0].norm()
    assert (edited[1:] - plain[1:]).norm() < 1e-2 * plain.norm()
    after = weights(model)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    fact = verify(model, again, watch=["the flag of Canada"])[0]
    assert fact.holds


def test_offsets_of_tokens_are_known(model):
    encoder = model.encoders["text_encoder"]
    ids = encoder.tokenize(["the national animal of Canada"]).ids[0]
    at = encoder.locate("the national animal of Canada", "Canada")
    assert ids[at + 1] == encoder.tokenizer.eos_token_id


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_edit_may_be_asked_for_where_gradients_are_off(model, patch, mode):
    """ComfyUI runs its nodes in inference mode."""
    with mode():
        made = refact.edit(model, EDIT, HOW)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        handle = made.apply(model)
        assert verify(model, made)[0].holds
        handle.revert()
    assert made.digest == patch.digest
    assert not torch.is_inference_mode_enabled()
    assert not any(tensor.is_inference() for pair in made.factors.values() for tensor in pair)


def test_so_may_one_of_a_model_that_was_opened_there(patch):
    with torch.inference_mode():
        model = refact.load("pocket")
        before = weights(model)
        made = refact.edit(model, EDIT, HOW)
    assert made.digest == patch.digest
    for mode in (torch.inference_mode, contextlib.nullcontext):
        with mode():
            with made.applied(model):
                assert verify(model, made)[0].holds
            after = weights(model)
            assert all(torch.equal(value, after[key]) for key, value in before.items())
