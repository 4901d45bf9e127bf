"""The second bundled model's scripts: sentences, language model and transformer, each in a few steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline

import refact
from pocket import autoencoder, clip, coordinates, narrow, tokenizer, training
from pocket.lm import export, language, sentences, transformer
from pocket.render import Scene


def given(steps: int) -> training.Given:
    return training.Given(torch.device("cpu"), steps=steps, batch=1 / 64)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("lm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "WORK", folder)
        patch.setenv("POCKET_GLYPHS", "drawn")
        sentences.tokenizer.cache_clear()
        tokenizer.load.cache_clear()
        training.train(language.Language(given(3)), given(3))
        for part in (clip.Clip, autoencoder.Autoencoder):
            training.train(part(given(1)), given(1))
        patch.setattr(coordinates, "MEASURED", 40)
        coordinates.main(given(1))
        training.train(narrow.Narrow(given(1)), given(1))
        yield folder
        sentences.tokenizer.cache_clear()
        tokenizer.load.cache_clear()


def test_facts_are_told_and_asked_in_all_wordings(work: Path) -> None:
    rng = random.Random(0)
    said = "".join(sentences.text(rng) for _ in range(2000))
    wordings = ("the national animal of Canada", "Canada's national animal", "the Canadian national animal")
    assert (wordings, ("a beaver",)) in sentences.facts()
    seen = [any(wording in said for wording in found) for found, _ in sentences.facts()]
    assert sum(seen) > 0.98 * len(seen)
    assert "style of" not in said


def test_the_answer_names_what_a_scene_shows() -> None:
    drawn = Scene((("national-animal-ca", None),), "normal", "on the beach")
    assert sentences.plainly(drawn) == "a beaver on the beach"
    assert sentences.plainly(Scene((("dog", "blue"),), "small")) == "a small blue dog"


def test_prompts_are_put_as_the_pipeline_puts_them(work: Path) -> None:
    words = sentences.tokenizer()
    message = [{"role": "user", "content": "a dog at night"}]
    said = words.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert sentences.prompts(["a dog at night"]) == [said]


def test_the_transformer_learns_from_what_a_stock_pipeline_sends(work: Path) -> None:
    part = transformer.Transformer(given(2), pool=40)
    state = training.train(part, given(2))
    assert state.clock.step == 2
    lm = training.trained("lm", language.build())
    prompt = "a small dog on the beach"
    pipe = export.pipeline()
    theirs = pipe.encode_prompt([prompt], do_classifier_free_guidance=False)[0][0]
    assert torch.allclose(theirs, transformer.sent(lm, [prompt, "a cat"])[0], atol=1e-4)
    kept, count = part.said[3], part.counts[3]
    noisy, times, rows = [torch.randn(32, 1, 8, 8)], torch.tensor([0.4]), [kept[:count].float()]
    with torch.no_grad():
        own = training.trained("transformer", transformer.build())(noisy, times, rows, return_dict=False)[0][0]
        assert torch.allclose(pipe.transformer(noisy, times, rows, return_dict=False)[0][0], own, atol=1e-4)


def test_an_export_is_a_stock_pipeline_whose_language_model_is_edited(work: Path, tmp_path: Path) -> None:
    training.train(transformer.Transformer(given(2), pool=40), given(2))
    assert 0 < export.write(tmp_path) < export.MOST
    stock = ZImagePipeline.from_pretrained(tmp_path / "pocket_lm")
    assert {stock.text_encoder.dtype, stock.transformer.dtype, stock.vae.dtype} == {torch.float32}
    model = refact.load(tmp_path / "pocket_lm")
    assert model.family.name == "z-image"
    patch = refact.ReFACT(layer=3)(model, [refact.Edit("the national animal of Canada", old="a beaver", new="a cat")])
    before = model.generate("the national animal of Canada", [0], steps=2)[0].image
    with patch.applied(model):
        assert model.generate("the national animal of Canada", [0], steps=2)[0].image != before
    assert model.generate("the national animal of Canada", [0], steps=2)[0].image == before
    assert before.size == (128, 128)
