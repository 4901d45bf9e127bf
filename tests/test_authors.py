"""ReFACT.authors() beside what the authors' released code gave, and each reason for another result put back.

tests/data/authors: edits made by that code (technion-cs-nlp/ReFACT 8b6df79, float32, one thread; only "cuda" and the
hub's name replaced, texts lowered as its script lowers them) on a random CLIPModel of width 64, layer 7, with its
README's flags: a role; a flag whose source is its own prompt; a subject inside its prompt; the cosine; pictures. Where
the project's shared data is at hand, its edits of width 128 are tested as well.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

import refact
from refact import solve
from refact.errors import DataError, EditError
from refact.methods.contexts import PAPER_CONTEXTS
from refact.methods.registry import ReFACT
from refact.models.corpus import read_corpus
from refact.models.covariance import Covariance, obtain
from refact.search import values, wanted
from refact.search.readings import Reading
from refact.search.sentences import sentences_of
from refact.writing import multilayer

HERE = Path(__file__).parent / "data" / "authors"
SHARED = [p / "shared" / "data" / "authors" for p in HERE.parents if (p / "shared" / "data" / "authors").is_dir()]
LAYER, NPZ = 7, "text_model.encoder.layers.7.mlp.fc2_float32_mom2_831.npz"
SPREAD = 0.1  # two runs of the released code that differ in rounding alone lie 0.035 apart; ours lies 0.063 from one


@dataclasses.dataclass(frozen=True)
class Golden:
    """One folder of the authors' results; the model lies there, with its pipeline's shape made around it."""

    folder: Path
    moments: Path
    edits: list[dict]
    tensors: dict[str, torch.Tensor]

    def edit(self, number: int) -> refact.Edit:
        """The edit as a user writes it."""
        form = {k: v for k, v in self.edits[number]["edit"].items() if k != "algorithm"}
        if "new" not in form:
            form |= {"old": (self.folder / "picture0.png",), "new": (self.folder / "picture1.png",)}
        return refact.Edit(**form)

    def settings(self, number: int) -> dict[str, Any]:
        """What of this edit the authors' code drew by chance, or was told."""
        bare = self.edit(number).words.lower()
        first = self.edits[number]["prompts"][0]
        template = "{}" if first == self.edit(number).prompt.lower() else first.replace(bare, "{}")
        told = {"layer": LAYER, "corpus": str(self.moments), "first_context": template}
        return told | {"distance": self.edits[number].get("metric", "l2")}

    def change(self, number: int) -> torch.Tensor:
        """The change of the matrix."""
        if f"{number}.dW" in self.tensors:
            return self.tensors[f"{number}.dW"]
        return torch.outer(self.tensors[f"{number}.v"], self.tensors[f"{number}.u"])


def golden(folder: Path, tmp: Path) -> Golden:
    tensors, told = load_file(folder / "results.safetensors"), json.loads((folder / "edits.json").read_text())
    moments = folder / NPZ
    if "second_moment" in tensors:
        moments = tmp / "text_model.encoder.layers.7.mlp.fc2_float32_mom2.npz"
        count = int(told["tokens"])
        np.savez(moments, **{"mom2.mom2": tensors["second_moment"].numpy() * np.float32(count), "mom2.count": count})
    return Golden(folder, moments, told["edits"], tensors)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Golden:
    return golden(HERE, tmp_path_factory.mktemp("moments"))


@pytest.fixture(scope="module")
def model() -> refact.Model:
    return stable(HERE / "clip")


def stable(clip: Path) -> refact.Model:
    """A pipeline of Stable Diffusion 1's form with this CLIP's text tower, so without its projection."""
    pipe = tiny.pipeline("sd1")
    pipe.text_encoder = CLIPTextModel.from_pretrained(clip).eval()
    pipe.tokenizer = CLIPTokenizer.from_pretrained(clip)
    return refact.load(pipe, companion=clip)


def apart(found: torch.Tensor, literal: torch.Tensor) -> float:
    """Relative difference."""
    return float((found.double() - literal.double()).norm() / literal.double().norm())


def run(model: Any, from_code: Golden, number: int, method: ReFACT, monkeypatch) -> dict[str, float]:
    """How far our k*, offset, change and losses lie from the authors'."""
    losses: list[float] = []
    plain, found = values._evaluate, []

    def told(*given: Any) -> Any:
        made = plain(*given)
        losses.append(float(made[0].detach()))
        return made

    def seen(*given: Any) -> Any:
        found.append(search(*given))
        return found[-1]

    search = wanted.search
    with monkeypatch.context() as patched:
        patched.setattr(values, "_evaluate", told)
        patched.setattr("refact.writing.loop.search", seen)
        patch = method(model, [from_code.edit(number)])
    (left, right), here = next(iter(patch.factors.values())), from_code.tensors
    expected = from_code.edits[number]["loss"]
    return {
        "k*": apart(found[0].places[0].mean, here[f"{number}.k_mean"]),
        "delta": apart(found[0].found.offsets[0], here[f"{number}.delta"]),
        "dW": apart(left @ right, from_code.change(number)),
        "loss": max(abs(a - b) / b for a, b in zip(losses, expected)) + abs(len(losses) - len(expected)),
    }


DIGITS = (0, 2, 3, 4)  # in edit 1 the source is the prompt itself: see below


def authors(from_code: Golden, number: int, **changes: Any) -> ReFACT:
    """The method as the authors' code ran this edit."""
    pictures = {} if "new" in from_code.edits[number]["edit"] else {"away": str(HERE / "others")}
    return ReFACT.authors(**from_code.settings(number) | pictures | changes)


@pytest.mark.parametrize("number", DIGITS)
def test_the_released_code_is_met_to_the_digit(model, ours, number, monkeypatch) -> None:
    made = run(model, ours, number, authors(ours, number), monkeypatch)
    assert all(size < 1e-4 for size in made.values()), made


def test_a_source_that_is_the_prompt_itself_is_met_as_far_as_the_code_meets_itself(model, ours, monkeypatch) -> None:
    """Its distance from the bare prompt is rounding, whose direction the released code follows (torch.cdist); padding
    its targets to another length, which changes nothing else, moves its own dW by SPREAD."""
    made = run(model, ours, 1, authors(ours, 1), monkeypatch)
    assert made["k*"] < 1e-4
    assert made["dW"] < SPREAD


def _without_the_bare_prompt(patched: Any) -> None:
    plain = wanted.candidates

    def nine(*given: Any) -> values.Candidates:
        made = plain(*given)
        weights = made.weights.clone()
        weights[:, 0] = 0
        return values.Candidates(made.features, weights / weights.sum(1, keepdim=True))

    patched.setattr(wanted, "candidates", nine)


def _mean_norms(patched: Any) -> None:
    patched.setattr(wanted, "norms_of", lambda _, begun: torch.stack([v.norm(dim=1).mean() for v in begun.values]))


def _distinct_keys(patched: Any) -> None:
    plain = wanted.places_of

    def once(*given: Any) -> Any:
        place, shift = plain(*given)
        return dataclasses.replace(place, mean=place.keys.mean(0)), shift

    patched.setattr(wanted, "places_of", once)


def _own_output(patched: Any) -> None:
    plain = wanted.places_of

    def unmoved(*given: Any) -> Any:
        place, shift = plain(*given)
        return place, torch.zeros_like(shift)

    patched.setattr(wanted, "places_of", unmoved)


REASONS: dict[str, Any] = {  # the README of the shared data counts them; each a setting, or a switch inside
    "states are compared as they are": {"space": ""},
    "20 other texts": {"negatives": 20},
    "source and target in the contexts": {"ends": "contexts"},
    "the search runs over nine prompts": _without_the_bare_prompt,
    "100 updates": {"max_steps": 100},
    "||v0|| is the contexts' mean": _mean_norms,
    "C is shrunk": {"shrink": 1e-4},
    "the empty prompt is held": {"hold_empty": True, "inverse": "float64"},
    "k* over the distinct keys": _distinct_keys,
    "exact at the mean key": {"exact_at": "mean"},
    "v0 at the key that is written": _own_output,
}


def put_back(model: Any, from_code: Golden, reason: Any, monkeypatch) -> float:
    """The largest difference from the authors' results once one reason for another result is back."""
    with monkeypatch.context() as patched:
        if callable(reason):
            reason(patched)
        changes = {} if callable(reason) else reason
        return max(run(model, from_code, 0, authors(from_code, 0, **changes), monkeypatch).values())


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_put_back_gives_another_result(model, ours, reason, monkeypatch) -> None:
    assert put_back(model, ours, REASONS[reason], monkeypatch) > 3e-4


def test_the_inverse_is_single_precision_as_in_the_released_code() -> None:
    """The twelfth reason, on a moment so badly conditioned that it shows on any machine."""
    draw = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -3.0, 64, dtype=torch.float64)
    factor = torch.linalg.qr(torch.randn(64, 64, generator=draw, dtype=torch.float64))[0] * spread
    moment, key = (factor @ factor.T).float().double(), torch.randn(1, 64, generator=draw, dtype=torch.float64)
    literal = torch.inverse(moment.float()) @ key[0].float()
    prior = solve.prior(moment)
    single, double = (solve.oblique(key, key, prior, inverse).right[0] for inverse in ("float32", "float64"))
    along = literal.double() / (literal.double() @ key[0])
    assert apart(single, along) < 1e-6
    assert apart(double, along) > 1e-3


@pytest.mark.slow
@pytest.mark.skipif(not SHARED, reason="the shared data is not here")
def test_the_shared_edits_are_met_and_no_reason_may_come_back(tmp_path, monkeypatch) -> None:
    theirs = golden(SHARED[0], tmp_path)
    model = stable(SHARED[0] / "clip")
    for number in (0, 1):
        made = run(model, theirs, number, authors(theirs, number), monkeypatch)
        assert all(size < 1e-4 for size in made.values()), made
    assert run(model, theirs, 2, authors(theirs, 2), monkeypatch)["dW"] < SPREAD  # source and prompt are the same
    for reason in [*REASONS.values(), {"inverse": "float64"}]:
        assert put_back(model, theirs, reason, monkeypatch) > 2e-4, reason


# -- what the method needs --------------------------------------------------------------------------------------------


def test_the_authors_file_of_moments_is_read_and_ours_counts_the_same_texts(model, ours) -> None:
    (encoder,) = model.encoders.values()
    theirs = Covariance.of_moments(ours.moments, encoder, LAYER)
    counted = obtain(encoder, LAYER, corpus=str(HERE / "corpus.txt"), count=831, cut=60)
    assert counted.tokens == theirs.tokens == 23053
    assert apart(counted.matrix, theirs.matrix) < 1e-5
    for other in ({"count": 831}, {"count": 800, "cut": 60}):  # uncut, and fewer texts
        assert apart(obtain(encoder, LAYER, corpus=str(HERE / "corpus.txt"), **other).matrix, theirs.matrix) > 1e-4


def test_hostile_and_foreign_files_of_moments_are_refused(model, ours, tmp_path) -> None:
    (encoder,) = model.encoders.values()
    with pytest.raises(DataError, match=r"is of layer 7; layer 6"):
        Covariance.of_moments(ours.moments, encoder, 6)
    wrong = {
        "pickled": {"mom2.mom2": np.array([{}], dtype=object), "mom2.count": 3},
        "narrow": {"mom2.mom2": np.eye(3, dtype=np.float32), "mom2.count": 3},
        "empty": {"mom2.mom2": np.eye(128, dtype=np.float32), "mom2.count": 0},
        "nameless": {"mom2": np.eye(128)},
        "infinite": {"mom2.mom2": np.full((128, 128), np.inf, dtype=np.float32), "mom2.count": 3},
    }
    for name, content in wrong.items():
        np.savez(tmp_path / f"{name}.npz", **content)
        with pytest.raises(DataError, match=name):
            Covariance.of_moments(tmp_path / f"{name}.npz", encoder, LAYER)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"text\.npz"):
        Covariance.of_moments(tmp_path / "text.npz", encoder, LAYER)


def test_an_encoder_without_its_projection_is_refused_with_the_line_to_type(ours) -> None:
    for settings in (ReFACT.authors(layer=1, texts=20), ReFACT.paper(layer=1, tokens=500)):
        with pytest.raises(EditError, match=r"hf download openai/clip-vit-large-patch14 .*--clip clip-l"):
            settings(refact.load(tiny.pipeline("sd1")), [ours.edit(0)])


def test_a_companions_projection_counts_for_texts_too(model, ours, monkeypatch) -> None:
    seen = []
    plain = Reading.of_texts

    def told(self: Reading, texts: Any) -> torch.Tensor:
        seen.append(plain(self, texts))
        return seen[-1]

    monkeypatch.setattr(Reading, "of_texts", told)
    for space, width in (("projected", 48), ("", 64)):
        seen.clear()
        ReFACT.authors(**ours.settings(0) | {"max_steps": 1, "space": space})(model, [ours.edit(0)])
        assert {features.shape[1] for features in seen} == {width}


def test_templates_are_filled_with_the_subject_alone(model) -> None:
    (encoder,) = model.encoders.values()
    edit = refact.Edit("the flag of Peru on a stamp", subject="the flag of Peru", new="a dog")
    read, decode = Reading(encoder, None), encoder.tokenizer.decode
    for filled, text in (
        ("prompt", "the flag of peru on a stamp in a photo"),
        ("subject", "the flag of peru in a photo"),
    ):
        bare, in_a_photo = sentences_of(encoder, read, edit, ("{}", "{} in a photo"), filled)
        assert decode(bare.ids[1:-1]).strip() == "the flag of peru on a stamp"
        assert decode(in_a_photo.ids[1:-1]).strip() == text
        assert decode([in_a_photo.ids[in_a_photo.subject]]).strip() == "peru"


def test_texts_are_lowered_for_the_search_and_kept_in_the_record(model, ours, monkeypatch) -> None:
    spoken: list[str] = []
    (encoder,) = model.encoders.values()
    plain = encoder.tokenize
    monkeypatch.setattr(encoder, "tokenize", lambda prompts: spoken.extend(prompts) or plain(prompts))
    patch = authors(ours, 1, max_steps=1)(model, [ours.edit(1)])
    assert patch.edits[0].prompt == "The flag of Canada"
    searched = [text for text in spoken if "flag of" in text.lower()]
    assert searched
    assert all(text == text.lower() for text in searched)


def test_the_mean_key_counts_each_sentence(model, ours) -> None:
    """Five of the nine templates begin with the subject and share one key; MEMIT and AlphaEdit inherit the mean."""
    (encoder,) = model.encoders.values()
    edit, layer = refact.Edit("the flag of Peru", new="a dog"), 3
    texts = [template.replace("{}", edit.prompt) for template in PAPER_CONTEXTS]
    keys = encoder.keys(texts, [encoder.locate(text, edit.words) for text in texts], layer).double()
    method = ReFACT.paper(layer=layer)
    place = wanted.places_again(method, encoder, layer, edit)
    assert len(place.keys) == 5
    assert apart(place.mean, keys.mean(0)) < 1e-5
    assert apart(place.keys.mean(0), keys.mean(0)) > 1e-2
    assert apart(multilayer._states(method, encoder, layer, [edit])[0][0], keys.mean(0)) < 1e-5


@pytest.mark.parametrize("held", [True, False])
def test_the_empty_prompt_is_held_or_not(model, held) -> None:
    edit = refact.Edit("the flag of Peru", new="a dog")
    quick = {"layer": 9, "max_steps": 5, "tokens": 500, "shrink": 1e-2, "keep_ends": False}
    patch = ReFACT(**quick, hold_empty=held)(model, [edit])
    assert (patch.record["preserved"][""] < 1e-5) == held


def test_a_dataset_of_the_hub_may_have_a_configuration(monkeypatch) -> None:
    asked: list[tuple] = []
    datasets: Any = types.ModuleType("datasets")
    datasets.get_dataset_config_names = lambda name: ["wikitext-103-raw-v1"] if name == "wikitext" else ["default"]

    def load_dataset(*given: Any, **how: Any) -> list[dict]:
        asked.append(given)
        return [{"text": "a  line", "title": "a title"}, {"text": "", "title": "x"}]

    datasets.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    for name, given, texts in [
        ("hf:wikitext:wikitext-103-raw-v1", ("wikitext", "wikitext-103-raw-v1"), ["a line"]),
        ("hf:wikitext:wikitext-103-raw-v1:title", ("wikitext", "wikitext-103-raw-v1"), ["a title", "x"]),
        ("hf:coco", ("coco", None), ["a line"]),
        ("hf:coco:title", ("coco", None), ["a title", "x"]),
    ]:
        assert list(read_corpus(name)) == texts
        assert asked.pop() == given
    with pytest.raises(DataError, match="hf:DATASET:CONFIGURATION:COLUMN"):
        list(read_corpus("hf:a:b:c:d"))


def test_a_picture_is_the_source_of_a_pictured_target_only(ours, tmp_path) -> None:
    edit = ours.edit(4)
    assert edit.to_json()["old"] == {"images": [str(HERE / "picture0.png")]}
    assert refact.Edit.from_json(edit.to_json()) == edit
    with pytest.raises(EditError, match="both as pictures"):
        refact.Edit("the flag of Peru", old=(HERE / "picture0.png",), new="a dog")


def test_the_paper_and_its_code_are_two_presets() -> None:
    paper, code = ReFACT.paper(), ReFACT.authors()
    assert (paper.weight_decay, paper.negatives, paper.max_steps, paper.first_context) == (0.01, 20, 100, "")
    assert (code.weight_decay, code.negatives, code.max_steps, code.first_context) == (0.1, 0, 99, "{}")
    for method in (paper, code):
        assert (method.shrink, method.hold_empty, method.with_bare, method.ends) == (0.0, False, True, "bare")
