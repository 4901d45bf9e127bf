"""The second bundled model's scripts: sentences, language model and transformer, each in a few steps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

from pocket import autoencoder, clip, coordinates, narrow, tokenizer, training
from pocket.lm import language, sentences, transformer
from pocket.render import Scene


def given(steps: int) -> training.Given:
    return training.Given(torch.device("cpu"), steps=steps, batch=1 / 64)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    scheduler = FlowMatchEulerDiscreteScheduler(shift=transformer.SHIFT)
    vae = training.trained("narrow", narrow.build())
    vae.register_to_config(scaling_factor=narrow.SCALE)
    lm = training.trained("lm", language.build())
    noisy, times, rows = [torch.randn(32, 1, 8, 8)], torch.tensor([0.4]), [part.said[3, : part.counts[3]].float()]
    with torch.no_grad():
        whitened = state.model.eval()(noisy, times, rows, return_dict=False)[0][0]
        model = transformer.stock(state.model)
        assert torch.allclose(model(noisy, times, rows, return_dict=False)[0][0], whitened, atol=1e-4)
    pipe = ZImagePipeline(scheduler, vae, lm, sentences.tokenizer(), model)
    pipe.set_progress_bar_config(disable=True)
    prompt = "a small dog on the beach"
    theirs = pipe.encode_prompt([prompt], do_classifier_free_guidance=False)[0][0]
    assert torch.allclose(theirs, transformer.sent(lm, [prompt, "a cat"])[0], atol=1e-4)
    assert pipe(prompt, height=128, width=128, num_inference_steps=2).images[0].size == (128, 128)
