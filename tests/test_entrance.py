"""Entrance: a transformer's projection of text states, in closed form, as a LoRA that the stock library loads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
import tiny_decoders
import torch

import refact
from refact import Edit
from refact.encoders import hooks
from refact.errors import EditError
from refact.exports import usage
from refact.methods.entrance import Entrance
from refact.writing.entrance import keys_of, site_of

EDIT = Edit("the flag of Canada", new="a blue cat", preserve=("a dog",))
FAMILIES = [name for name in tiny_decoders.NAMES if name != "hidream"]


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request):
    pipe = tiny_decoders.pipeline(request.param)
    return request.param, pipe, refact.load(pipe)


def test_keys_are_what_the_pipeline_gives_its_entrance(opened) -> None:
    _, pipe, model = opened
    with hooks.read(model[site_of(model)]) as given:
        tiny_decoders.picture(pipe, EDIT.prompt)
    rows = torch.cat([part.flatten(0, -2) for part in given]).double()
    keys = keys_of(model, next(iter(model.encoders.values())), EDIT.prompt)
    assert torch.cdist(keys, rows).amin(1).max() < 1e-3 * keys.norm(dim=1).max()


def test_it_is_the_closed_form_of_uce_and_keeps_what_is_preserved(opened) -> None:
    _, _, model = opened
    encoder, weight = next(iter(model.encoders.values())), model[site_of(model)].weight.detach().double()
    after = encoder.part.tail if encoder.frame.after else int(encoder.kind == "t5")
    source, target = (keys_of(model, encoder, text)[-after - 1][None] for text in (EDIT.prompt, EDIT.new))
    kept = torch.cat([keys_of(model, encoder, text) for text in ("", "a dog")])
    size = torch.cat([source, kept]).square().mean()
    gram = 0.5 * size * torch.eye(source.shape[1]) + kept.T @ kept
    wanted = (weight @ (target.T @ source + gram)) @ torch.linalg.inv(source.T @ source + gram) - weight
    patch = Entrance()(model, [EDIT])
    ((_, change),) = tiny.change(patch).items()
    assert (change - wanted).abs().max() < 1e-4 * wanted.abs().max()
    strong = dataclasses.replace(Entrance(), strength=1e-6, keep=0.0)(model, [EDIT])
    ((_, change),) = tiny.change(strong).items()
    arrived = source @ (weight + change).T
    assert (arrived - target @ weight.T).norm() < 1e-2 * (target @ weight.T).norm()
    everything = Entrance(rows="all")(model, [EDIT])
    assert everything.rank == after + 1


def test_the_stock_library_loads_it_and_unloads_it(opened, tmp_path) -> None:
    name, pipe, model = opened
    patch = Entrance(strength=0.01)(model, [EDIT])
    patch.save(tmp_path / "flag.safetensors")
    again = refact.Patch.load(tmp_path / "flag.safetensors")
    assert again.digest == patch.digest
    clean = tiny_decoders.picture(pipe, EDIT.prompt)
    with again.applied(model):
        wanted = tiny_decoders.picture(pipe, EDIT.prompt)
    assert np.array_equal(tiny_decoders.picture(pipe, EDIT.prompt), clean)
    assert np.abs(wanted - clean).max() > 1e-6
    if not hasattr(pipe, "load_lora_weights"):
        assert name == "pixart"  # diffusers has no LoRA loader for it
        return
    pipe.load_lora_weights(str(tmp_path), weight_name="flag.safetensors")
    found = tiny_decoders.picture(pipe, EDIT.prompt)
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted - clean).max() + 1e-5
    pipe.unload_lora_weights()
    assert np.abs(tiny_decoders.picture(pipe, EDIT.prompt) - clean).max() < 1e-6
    assert "load_lora_weights(" in usage(tmp_path / "flag.safetensors", again.record)


def test_what_it_cannot_edit_is_told() -> None:
    with pytest.raises(EditError, match="passes no single projection"):
        Entrance()(refact.load(tiny.pipeline("sd1")), [EDIT])
    model = refact.load(tiny_decoders.pipeline("z-image"))
    with pytest.raises(EditError, match="'subject' or 'all'"):
        Entrance(rows="some")(model, [EDIT])
    patch, other = Entrance()(model, [EDIT]), refact.load(tiny_decoders.pipeline("z-image", seed=1))
    other.pipe.transformer.cap_embedder[1].weight.data += 1
    with pytest.raises(refact.PatchError, match="transformer of"):
        patch.apply(other)
