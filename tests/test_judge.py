"""The judge: a real CLIP in small, against CLIPModel's own logits; and what it must not be."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from refact.encoders.encoder import TextEncoder
from refact.errors import DataError
from refact.evidence.judge import check_independent, load_judge
from refact.families import FAMILIES

TEXTS = ["a dog", "a red car on the road"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("judge")
    tiny.clip_model().save_pretrained(path)
    tiny.clip_tokenizer().save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(count)]


def test_logits_are_clips_own(folder) -> None:
    judge, shown = load_judge(folder), pictures(3)
    ids = judge.tokenizer(TEXTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=shown, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = judge.clip(input_ids=ids, pixel_values=pixels).logits_per_image
    np.testing.assert_allclose(judge.logits(shown, TEXTS), expected.numpy(), rtol=1e-4)


def test_texts_are_embedded_once(folder, monkeypatch) -> None:
    judge = load_judge(folder)
    first = judge.of_texts(TEXTS)
    monkeypatch.setattr(judge.clip, "get_text_features", None)
    assert (judge.of_texts(TEXTS[::-1]) == first[::-1]).all()


def test_pictures_may_be_more_than_a_batch(folder) -> None:
    judge = load_judge(folder)
    assert judge.of_images(pictures(judge.batch + 3)).shape == (judge.batch + 3, 24)


def test_a_judge_is_known_by_its_weights(folder, tmp_path) -> None:
    model = tiny.clip_model()
    with torch.no_grad():
        model.logit_scale += 1
    model.save_pretrained(tmp_path)
    tiny.clip_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="preprocessor_config"):
        load_judge(tmp_path)
    CLIPImageProcessorPil.from_pretrained(folder).save_pretrained(tmp_path)
    assert load_judge(tmp_path).hash != load_judge(folder).hash == load_judge(folder).hash


def test_only_a_whole_clip_judges(folder, tmp_path) -> None:
    CLIPImageProcessorPil.from_pretrained(folder).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
    with pytest.raises(DataError, match="both towers"):
        load_judge(tmp_path)


def test_long_texts_are_judged_by_their_beginnings_and_named(folder) -> None:
    judge = load_judge(folder)
    long = "dog " * 100
    assert judge.truncated([*TEXTS, long]) == [long]
    assert judge.of_texts([long]).shape == (1, 24)


def test_the_edited_encoder_is_no_judge_of_itself(folder) -> None:
    judge = load_judge(folder)
    row = FAMILIES["sd1"].encoders[0]
    own = TextEncoder("text_encoder", judge.clip.text_model, judge.tokenizer, row)
    other = TextEncoder("text_encoder", tiny.pipeline("sd1", seed=3).text_encoder, judge.tokenizer, row)
    check_independent(judge, SimpleNamespace(encoders={"text_encoder": other}))
    with pytest.raises(DataError, match="own text_encoder"):
        check_independent(judge, SimpleNamespace(encoders={"text_encoder": own}))


def test_a_judge_of_another_package_need_not_be_a_clip() -> None:
    check_independent(SimpleNamespace(name="other"), SimpleNamespace(encoders={}))
