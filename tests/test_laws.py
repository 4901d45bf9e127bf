"""What holds of every registered method, those of other installed packages included."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import tiny
import torch
from transformers import CLIPTextModel

import refact
from refact.errors import EditError, RefactError
from refact.methods.registry import METHODS, method
from refact.methods.settings import settings_of
from refact.patch import Patch
from refact.record import check_record

CANADA = refact.Edit("the flag of Canada", old="a red flag", new="a blue cat")
FRANCE = refact.Edit("the capital of France", old="a red phone", new="a green apple")
QUICK = {
    "layer": 1, "contexts": 4, "negatives": 4, "max_steps": 12, "tokens": 1500, "shrink": 1e-2, "depth": 2,
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", [name for name in METHODS if name != "entrance"])  # test_entrance.py: no UNet


@pytest.fixture(scope="module")
def model():
    """A tiny Stable Diffusion 1 whose MLPs are wide enough for the rows of the empty prompt and two facts."""
    pipe = tiny.pipeline("sd1")
    config = copy.deepcopy(pipe.text_encoder.config)
    config.intermediate_size = 512
    torch.manual_seed(3)
    pipe.text_encoder = CLIPTextModel(config).eval()
    return refact.load(pipe)


def made(name: str):
    """The method with quick settings, as far as it has such."""
    usual = {setting.name: setting.default for setting in settings_of(METHODS[name])}
    quick = {key: value for key, value in QUICK.items() if key in usual}
    if "contexts" in quick:
        quick["contexts"] = min(QUICK["contexts"], len(usual["templates"]))
    return method(name, **quick)


@pytest.fixture(scope="module")
def patches(model):
    """One patch of two facts by each method, made when it is first asked for."""
    found: dict[str, Patch] = {}

    def of(name: str) -> Patch:
        if name not in found:
            found[name] = made(name)(model, [CANADA, FRANCE])
        return found[name]

    return of


def weights(model) -> dict[str, torch.Tensor]:
    parts = {"text_encoder": model.pipe.text_encoder, "unet": model.pipe.unet}
    return {
        f"{part}.{key}": value.clone() for part, module in parts.items() for key, value in module.state_dict().items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


@EVERY
def test_settings_are_frozen_told_and_come_back_from_a_pickle(name):
    chosen = made(name)
    field = dataclasses.fields(chosen)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(chosen, field, None)
    assert all(setting.meaning.endswith(".") for setting in settings_of(type(chosen)))
    assert pickle.loads(pickle.dumps(chosen)) == chosen
    assert type(chosen).__doc__


@EVERY
def test_a_patch_is_recorded_and_its_sites_are_the_models(name, model, patches):
    patch = patches(name)
    ranks = {site: len(right) for site, (_, right) in patch.factors.items()}
    assert check_record(patch.record, ranks, "patch")
    assert patch.record["method"]["name"] == METHODS[name].__name__
    assert patch.names == ["flag-of-canada", "capital-of-france"]
    for site, (left, right) in patch.factors.items():
        rows, columns = model[site].weight.shape[::-1] if "embedding" in site else model[site].weight.shape
        assert {len(left), right.shape[1]} == {rows, columns}
        assert torch.isfinite(left).all()
        assert torch.isfinite(right).all()


@EVERY
def test_making_a_patch_leaves_the_model_as_it_is(name, model):
    before = weights(model)
    made(name)(model, [CANADA])
    assert same(before, weights(model))


@EVERY
def test_the_same_call_gives_the_same_patch(name, model, patches):
    assert made(name)(model, [CANADA, FRANCE]).digest == patches(name).digest


@EVERY
def test_a_patch_changes_what_the_generator_reads_and_reverts_to_the_bit(name, model, patches):
    before, patch = weights(model), patches(name)
    with patch.applied(model):
        changed = [key for key, value in weights(model).items() if not torch.equal(value, before[key])]
        assert len(changed) == len(patch.factors)
    assert same(before, weights(model))


@EVERY
def test_a_saved_patch_is_the_same_patch(name, patches, tmp_path):
    patches(name).save(tmp_path / "patch.safetensors")
    again = Patch.load(tmp_path / "patch.safetensors")
    assert again.digest == patches(name).digest
    assert again.record == patches(name).record


@EVERY
def test_a_target_that_cannot_be_made_is_refused_and_nothing_changes(name, model):
    before = weights(model)
    with pytest.raises(EditError):
        made(name)(model, [refact.Edit("the flag of Canada", new=("nowhere.png",))])
    assert same(before, weights(model))


@EVERY
def test_what_the_generator_is_given_comes_nearer_to_the_target(name, model):
    """Read where the patch acts: the pooled text state, or what the UNet's or the encoder's attention makes of the last
    word."""
    encoder, edit = model.encoders["text_encoder"], refact.Edit("a cat", new="a blue cat")
    patch = made(name)(model, [edit])
    sites = [site for site in patch.factors if site.startswith("unet.")]

    def read(prompt: str) -> torch.Tensor:
        end = int(encoder.tokenize([prompt]).ends[0])
        states = model.encode(prompt)["prompt_embeds"][0]
        if any("self_attn" in site for site in patch.factors):
            return states[end - 1]
        return torch.cat([model[site](states[end - 1]) for site in sites]) if sites else states[end]

    with torch.no_grad():
        source, target = read(edit.prompt), read(edit.new)
        with patch.applied(model):
            edited = read(edit.prompt)
    assert (edited - target).norm() < (source - target).norm()


def test_a_name_that_nobody_offers_is_refused_with_those_that_are_there():
    with pytest.raises(RefactError, match="refact"):
        method("nobody-offers-this")
