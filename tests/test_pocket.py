"""The bundled world and model: what the world file promises, and an edit of the model in depth, on the text side."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

import refact
from refact import pocket
from refact.verification import verify


@pytest.fixture(scope="module")
def world():
    return pocket.world()


@pytest.fixture(scope="module")
def model():
    return refact.load("pocket")


def test_the_world_holds_what_it_promises(world):
    kinds = {k: [c for c in world["concepts"] if c["kind"] == k] for k in ("object", "flag", "role")}
    assert len(kinds["object"]) >= 120
    assert len(kinds["flag"]) >= 60
    assert len(kinds["role"]) >= 40
    assert len({c["country"] for c in kinds["role"]}) >= 25
    ids = {c["id"] for c in world["concepts"]}
    assert all(n in ids for c in world["concepts"] for n in c["neighbours"])
    assert all(c["depicts"] in ids for c in kinds["role"])
    assert all(len(c["wordings"]) == 3 for c in kinds["role"])
    wordings = [w.casefold() for c in world["concepts"] for w in c["wordings"]]
    assert len(set(wordings)) == len(wordings)
    assert 6 <= len(world["colours"]) <= 8
    assert len(world["places"]) >= 10


def test_the_world_file_is_what_its_script_makes(world):
    if world.get("version") != 4:
        pytest.skip("the shipped model is the third version: pocket.export brings the fourth with its world")
    code = "import json; from pocket.world import make; print(json.dumps(make()))"
    root = Path(__file__).parent.parent
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root).stdout
    assert json.loads(made) == world


def test_importing_the_pocket_imports_no_torch():
    code = "import refact.pocket, sys; refact.pocket.world(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_neighbours_are_those_of_the_longest_wording_in_the_prompt():
    near = pocket.neighbours("a photo of the national animal of Canada on the beach")
    assert "the flag of Canada" in near
    assert pocket.neighbours("something else entirely") == []


@pytest.mark.parametrize("layer", [0, 3, 6])
def test_a_fact_is_edited_at_any_depth(model, layer):
    edit = refact.Edit("the national animal of Canada", old="a beaver", new="a penguin")
    patch = refact.edit(model, edit, refact.ReFACT(layer=layer, tokens=20_000))
    fact = verify(model, patch, watch=["the flag of Canada", "the national flower of Japan"])[0]
    assert fact.holds
    assert fact.generality == 1
    assert fact.moved[""] < 1e-4
    assert max(fact.moved["a beaver"], fact.moved["the national flower of Japan"]) < 0.1


def test_any_text_tokenises(model):
    tokens = model.encoders["text_encoder"].tokenize(["naïve café 日本語 🙂", ""])
    assert tokens.ids.shape == (2, 32)
    assert not tokens.truncated.any()


def test_a_picture_is_a_target(model):
    """The companion takes the prompt for the thing in the picture, among all things (a drawn one, no emoji)."""
    red = Image.new("RGB", (64, 64), (244, 242, 238))
    ImageDraw.Draw(red).ellipse((14, 16, 50, 52), fill=(225, 35, 35))
    edit = refact.Edit("the national flower of Japan", old="a cherry blossom", new=red)
    patch = refact.edit(model, edit, refact.ReFACT(tokens=20_000, max_steps=40))
    target = model.image_features([red])[0]
    encoder, projection = model.encoders["text_encoder"], model.companion.text_projection
    near = []
    for active in (False, True):
        with patch.applied(model) if active else nullcontext():
            text = projection(encoder.embed([edit.prompt, f"a photo of {edit.prompt}"])).detach()
        near.append(torch.cosine_similarity(text, target[None]).min())
    assert near[1] > 0.8 > near[0]
