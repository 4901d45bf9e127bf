"""The modality gap: pictures moved among the texts, and where there is nothing to take the middle from."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.nn.functional import normalize

import refact
from refact.errors import EditError
from refact.models import covariance
from refact.search import gap
from refact.search.readings import reading

QUICK = {"layer": 1, "contexts": 2, "negatives": 4, "max_steps": 3, "tokens": 800, "shrink": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A companion CLIP, and three pictures in a folder beside."""
    folder = tmp_path_factory.mktemp("gap")
    tiny.clip_model().save_pretrained(folder / "clip")
    rng = np.random.default_rng(0)
    for at in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{at}.png")
    return folder


def opened(folder):
    return refact.load(tiny.pipeline("sd1"), companion=folder / "clip")


def test_the_middle_of_the_pictures_moves_to_the_middle_of_the_texts(folder):
    model = opened(folder)
    read = reading(model.encoders["text_encoder"], "pooled", ["a cat"], model.companion)
    texts = read.of_texts(list(itertools.islice(covariance.texts_of("captions"), gap.TEXTS)))
    shown = normalize(model.image_features(sorted(folder.glob("*.png"))), dim=1)
    moved = shown + gap.mean_gap(model, read, str(folder))
    torch.testing.assert_close(moved.mean(0), normalize(texts, dim=1).mean(0), atol=1e-5, rtol=0)
    assert (shown.mean(0) - moved.mean(0)).norm() > 0.1

    (folder / "clip" / "refact.json").write_text(json.dumps({"picture_mean": shown.mean(0).tolist()}))
    torch.testing.assert_close(shown + gap.mean_gap(opened(folder), read, "companion"), moved, atol=1e-5, rtol=0)
    (folder / "clip" / "refact.json").unlink()


def test_an_edit_by_picture_is_another_with_the_gap_and_a_text_target_is_not(folder):
    model = opened(folder)
    shown = refact.Edit("the flag of Canada", new=folder / "0.png")
    said = refact.Edit("the flag of Canada", new="a cat")
    for edit, same in ((shown, False), (said, True)):
        one, other = (
            next(iter(refact.ReFACT(gap=pictures, **QUICK)(model, [edit]).factors.values()))[0]
            for pictures in ("", str(folder))
        )
        assert torch.equal(one, other) == same


@pytest.mark.parametrize(("pictures", "message"), [("nowhere", "no pictures"), ("companion", "picture_mean")])
def test_without_pictures_there_is_no_gap(folder, pictures, message):
    with pytest.raises(EditError, match=message):
        refact.ReFACT(gap=pictures, **QUICK)(opened(folder), [refact.Edit("the flag of Canada", new=folder / "0.png")])


def test_the_companion_of_another_encoder_is_refused(folder):
    model = refact.load(tiny.pipeline("sdxl"), companion=folder / "clip")
    shown = refact.Edit("the flag of Canada", new=folder / "0.png")
    with pytest.raises(EditError, match="name the encoder"):
        refact.ReFACT(**QUICK)(model, [shown])
    assert refact.ReFACT(encoders=("text_encoder",), **QUICK)(model, [shown]).factors
