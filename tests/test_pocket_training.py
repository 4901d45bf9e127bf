"""The pocket's training: every part steps, goes on bit for bit, travels in pieces, and leaves as a stock pipeline."""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.upsampling import Upsample2D
from torch import nn

import refact
from pocket import __main__ as driver
from pocket import (
    autoencoder,
    card,
    clip,
    coordinates,
    evaluate,
    export,
    judge,
    narrow,
    pack,
    pools,
    reader,
    scenes,
    tokenizer,
    training,
    unet,
)
from refact import pocket as shipped

TINY = 0.003  # of a GPU's batch: two or three scenes
PARTS: dict[str, Callable[[training.Given], training.Part]] = {
    "clip": clip.Clip,
    "judge": judge.part,
    "autoencoder": autoencoder.Autoencoder,
    "reader": reader.Reader,
    "narrow": narrow.Narrow,
    "unet": lambda given: unet.Unet(given, pool=4),
}


def given(steps: int) -> training.Given:
    return training.Given(torch.device("cpu"), steps=steps, batch=TINY)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with checkpoints of all parts after three steps; the shipped tokenizer spares making one."""
    folder = tmp_path_factory.mktemp("pocket")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKET_GLYPHS", "drawn")
        patch.setattr(training, "WORK", folder)
        patch.setattr(tokenizer, "folder", lambda: shipped.path() / "tokenizer")
        tokenizer.load.cache_clear()
        patch.setattr(coordinates, "MEASURED", 40)
        patch.setattr(reader, "MEASURED", 40)
        for name, make in PARTS.items():
            training.train(make(given(3)), given(3))
            if name == "autoencoder":
                coordinates.main(given(0))
        yield folder
    tokenizer.load.cache_clear()


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_was_stopped_goes_on_bit_for_bit(name: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = training.load(name)
    kept = (work / f"{name}.pt").rename(work / f"{name}.kept")
    with monkeypatch.context() as patch:
        patch.setattr(training.Clock, "over", lambda clock: clock.step >= 2)
        training.train(PARTS[name](given(3)), given(3))
    assert training.load(name)["step"] == 2
    again = training.train(PARTS[name](given(3)), given(3)).form()
    kept.rename(work / f"{name}.pt")
    assert again["step"] == straight["step"] == 3
    for one, other in zip(again["players"].values(), straight["players"].values()):
        assert all(torch.equal(one[key], other[key]) for key in other)
    assert all(torch.equal(again["average"][key], straight["average"][key]) for key in straight["average"])


def test_batches_of_other_processes_are_the_same_in_the_same_order(work: Path) -> None:
    part = clip.Clip(given(3))
    alone, beside = (list(training.batches(part.batch, range(3), workers)) for workers in (0, 2))
    for one, other in zip(alone, beside):
        assert all(np.array_equal(a["rows"], b["rows"]) for a, b in zip(one, other))
        assert all(np.array_equal(a["asked"]["ids"], b["asked"]["ids"]) for a, b in zip(one, other))


def test_the_rate_rises_falls_and_follows_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    clock = training.Clock(training.Given(torch.device("cpu"), minutes=2, planned=4, began=100.0), step=1000, before=60)
    assert clock.rate(1.0) == 1.0
    now[0] += 120
    assert clock.over()
    assert clock.progress() == pytest.approx(0.75)
    assert clock.rate(1.0) == pytest.approx(0.625)
    now[0] += 120
    assert clock.rate(1.0) == training.FLOOR
    early = training.Clock(training.Given(torch.device("cpu"), steps=10_000))
    assert early.rate(1.0) < 0.02


def test_losses_fall(work: Path) -> None:
    """Forty steps on one batch: what is minimised can be minimised."""
    torch.manual_seed(0)
    part = judge.part(given(40))
    part.name = "overfitted"
    batch = training.moved(part.batch(0), torch.device("cpu"))
    state = training.State(part, given(40))
    seen = [sum(float(loss) for loss in state.advance(batch).values()) for _ in range(40)]
    assert np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])


def test_times_are_drawn_by_min_snr_plus_one() -> None:
    noise_of = unet.DDPMScheduler(**unet.NOISE)
    times = torch.tensor([0, 300, 999])
    kept = noise_of.alphas_cumprod[times].double()
    snr = kept / (1 - kept)
    wanted = (snr.clamp(max=5) + 1) / (snr + 1)
    found = unet.chances(noise_of)
    assert found.shape == (unet.NOISE["num_train_timesteps"],)
    assert torch.allclose(found[times].double(), wanted, rtol=1e-3)
    assert found[999] == 1


def test_the_generator_sees_looks_alone_first_and_all_scenes_later(work: Path) -> None:
    part = unet.Unet(training.Given(torch.device("cpu"), steps=3, batch=0.1), pool=40)
    few, steps = part.mixture.few, (0, 5000, pools.SHARES[-1][0])
    batches = [part.batch(step) for step in steps]
    for step, batch in zip(steps, batches):
        where = np.searchsorted([40, 40 + few], batch["at"], side="right")  # of all scenes, looks or marked things
        looks, marked, everything = pools.shares(step)
        assert np.bincount(where, minlength=3) / part.size == pytest.approx([everything, looks, marked], abs=0.01)
        said = (batch["said"] - 40)[where == 1]
        assert np.array_equal(said % few, (batch["at"] - 40)[where == 1])
        own = batch["said"][where == 2] - 40 - pools.WORDINGS * few
        assert np.array_equal(own, batch["at"][where == 2] - 40 - few)
    assert [float(batch["tilt"]) for batch in (batches[0], batches[-1])] == [unet.TILTS[0][1], 0]


def test_marked_things_are_at_no_place_and_in_no_pair_that_is_held_out() -> None:
    drawn = [pools.marked_of(i) for i in range(2000)]
    assert all(scene.place is None and scenes.allowed(scene) == scene for scene in drawn)
    marks = [(bool(s.things[0][1]), bool(s.style), bool(s.emotion), len(s.things) == 2) for s in drawn]
    assert {sum(has) for has in marks} == {1}
    assert (np.mean(marks, 0) > 0.1).all()


def test_checkpoints_travel_in_pieces(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "PIECE", 4 * 2**20)
    pieces = pack.close(tmp_path / "pieces")
    assert len(pieces) > 2
    assert all(piece.stat().st_size <= pack.PIECE for piece in pieces)
    before = {name: training.load(name) for name in PARTS}
    assert pack.unpack(tmp_path / "pieces") == {}
    monkeypatch.setattr(training, "WORK", tmp_path / "elsewhere")
    assert pack.unpack(tmp_path / "pieces") == {**dict.fromkeys(PARTS, 3), "coordinates": 0}
    for name, found in before.items():
        made = training.load(name)
        assert made["kept"] == found["kept"]
        assert all(torch.equal(made["average"][key], w.half().float()) for key, w in found["average"].items())
    state = training.train(PARTS["unet"](given(4)), given(4))
    assert (state.clock.step, state.clock.fresh) == (4, 3)


def test_a_unet_takes_the_encoders_own_rows_once_whitening_is_folded_in(work: Path) -> None:
    frame, rows = coordinates.load(torch.device("cpu")), torch.randn(2, 32, 128)
    model = training.trained("unet", unet.build())
    torch.nn.init.normal_(model.conv_out.weight, std=0.02, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, coordinates.CHANNELS, 8, 8)
    with torch.no_grad():
        whitened = model(x, 500, frame.rows(rows)).sample
        assert torch.allclose(coordinates.fold(model, frame)(x, 500, rows).sample, whitened, atol=1e-4)
        assert not torch.allclose(model(x, 500, frame.rows(rows)).sample, whitened, atol=1e-2)


def test_the_reader_learns_the_rows_of_things_alone_and_what_marks_add(work: Path) -> None:
    part = reader.Reader(given(3))
    rng = random.Random(5)
    some = [reader.told(rng) for _ in range(60)]
    batch = training.moved(reader.as_arrays(some), torch.device("cpu"))
    own, first, second = batch["own"], batch["first"], batch["second"]
    wanted, _ = part.wanted(batch)
    before, _ = part.rows(part.before, own["ids"])
    plain, other = (part.rows(part.before, alone["ids"])[0] for alone in (first, second))
    each, two = torch.arange(len(some)), torch.tensor([one.two for one in some])
    bare = torch.tensor([not one.two and not one.marks[0] for one in some])
    assert two.any()
    assert bare.any()
    assert torch.equal(wanted[each, own["ends"]], before[each, own["ends"]])  # CLIP's own comparison stays
    assert torch.allclose(wanted[bare], before[bare], atol=1e-5)
    adds = batch["marks"][:, 0] @ part.adds[0]
    off = wanted[each, own["subjects"]] - plain[each, first["subjects"]] - adds
    assert off.abs().max() < 1e-4
    at = 30 + torch.tensor([0, 1])  # rows of padding, an even one and an odd one
    said = [batch["marks"][:, n] @ part.adds[1] for n in (0, 1)]
    assert torch.allclose(wanted[two, at[0]], (plain[:, 30] + said[0] + part.marker)[two], atol=1e-4)
    assert torch.allclose(wanted[two, at[1]], (other[:, 31] + said[1] - part.marker)[two], atol=1e-4)


def test_the_reader_leaves_the_lower_half(work: Path) -> None:
    tuned, before = (training.trained(name, clip.build()).text_model for name in ("reader", "clip"))
    same = {name: torch.equal(w, dict(before.named_parameters())[name]) for name, w in tuned.named_parameters()}
    moved = [f"layers.{at}." for at in range(reader.LOWER, clip.TEXT["num_hidden_layers"])]
    assert not any(same[name] for name in same if any(layer in name for layer in moved) and name.endswith("fc1.weight"))
    assert all(same[name] for name in same if not any(layer in name for layer in moved))


def test_coordinates_whiten_rows_and_keep_most_of_the_latents(work: Path) -> None:
    frame, asked = coordinates.load(torch.device("cpu")), given(0)
    fine = pools.latents(coordinates.SEEN, 40, asked).float()
    text = pools.texts(coordinates.SEEN, 40, training.trained("clip", clip.build()), asked)[0]
    narrow_ones = frame.narrow(fine)
    assert narrow_ones.shape == (40, coordinates.CHANNELS, 8, 8)
    assert narrow_ones.var((0, 2, 3)).mean() == pytest.approx(1, abs=0.2)
    lost = (frame.widen(narrow_ones) - fine).square().mean() / fine.var()
    assert 0 < lost < 0.5
    assert torch.allclose(frame.narrow(frame.widen(narrow_ones)), narrow_ones, atol=1e-3)
    spread = torch.linalg.eigvalsh(torch.cov(frame.rows(text[:, -coordinates.ENDS :].flatten(0, 1)).T))
    assert spread.max() == pytest.approx(1, abs=0.05)


def test_pools_are_made_again_when_their_network_has_changed(work: Path) -> None:
    model, asked = training.trained("clip", clip.build()), given(0)
    few, file = pools.Pool("few", "few-texts", pools.scene_of, 2), work / "few-texts.pt"
    first = pools.texts(few, 6, model, asked)
    assert first.shape == (2, 6, tokenizer.LENGTH, 128)
    written = file.stat().st_mtime_ns
    assert torch.equal(pools.texts(few, 6, model, asked), first)
    assert file.stat().st_mtime_ns == written
    with torch.no_grad():
        model.text_model.final_layer_norm.bias.add_(1)
    assert not torch.equal(pools.texts(few, 6, model, asked), first)


def test_an_export_is_a_stock_pipeline(work: Path, tmp_path: Path) -> None:
    assert export.write(tmp_path) < export.MOST
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pocket")
    pipe.set_progress_bar_config(disable=True)
    made = pipe("a dog on the beach", num_inference_steps=1, height=128, width=128, output_type="np").images
    assert made.shape == (1, 128, 128, 3)
    assert json.loads((tmp_path / "world.json").read_text(encoding="utf-8"))["version"] == 4
    assert len(list(tmp_path.glob("pocket-*.csv"))) == 8
    model = refact.load(tmp_path / "pocket")
    assert model.generate("a dog", [0], steps=1)[0].image.size == (128, 128)


def test_nothing_is_exported_before_everything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WORK", tmp_path / "nothing")
    monkeypatch.setattr(tokenizer, "folder", lambda: shipped.path() / "tokenizer")
    with pytest.raises(SystemExit, match="train reader first"):
        export.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_gives_its_parts_their_minutes(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [driver.minutes_of(0, part, 10.0, False) for part in driver.WAVES[0]]
    assert sum(alone) == pytest.approx(10.0 - driver.RESERVE)
    assert driver.minutes_of(2, "unet", 10.0, True) == pytest.approx(10.0 - driver.RESERVE)
    spent = training.load("unet")["seconds"] / 60
    assert driver.planned(2, "unet", 10.0, True) == pytest.approx(spent + 2 * (10.0 - driver.RESERVE))
    asked = argparse.Namespace(device="cpu", minutes=10.0, compiled="unet")
    words = driver.command(1, "narrow", asked, False)
    assert words[2] == "pocket.narrow"
    assert "--compiled" not in words
    assert "--compiled" in driver.command(2, "unet", asked, False)


def test_questions_put_the_right_answer_first(work: Path) -> None:
    asked = evaluate.questions(training.rng_of("questions"), 0.01)
    assert asked.keys() == evaluate.GOALS.keys() - {"judge on rendered scenes"}
    for questions in asked.values():
        for question in questions:
            assert all(len(set(choice)) == len(choice) for choice in question.choices)
            assert all(choice[0] == evaluate.canonical(question.scene) for choice in question.choices)
    assert len(asked["things"][0].choices[0]) == len(evaluate.names())


def test_the_card_has_no_figure_of_its_own(work: Path) -> None:
    found = dict.fromkeys(evaluate.GOALS, 0.5) | {
        "16 pictures, s": 2.0,
        "threads": 2,
        "seeds": 1,
        "share of concepts": 1.0,
        "steps": 8,
        "guidance": 1.5,
        "rendered: things": 0.9,
    }
    text = card.text(found, {"layer 3": {"role": {"held": 1.0}}}, "nothing in particular")
    assert "| things | 50.0 % | 90.0 % | 93.0 % |" in text
    assert "$" not in text
    with pytest.raises(KeyError):
        card.text({key: value for key, value in found.items() if key != "things"}, {}, "nothing")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("up", [lambda: Upsample2D(32, use_conv=True), lambda: nn.Upsample(scale_factor=2)])
def test_compiled_networks_have_the_gradients_of_plain_ones(up: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), up(), nn.SiLU()).to(memory_format=torch.channels_last)
    x = torch.randn(8, 32, 4, 4).contiguous(memory_format=torch.channels_last)

    def gradient(run: nn.Module) -> torch.Tensor:
        net.zero_grad()
        with training.low(training.Given(torch.device("cpu"), bfloat16=True)):
            run(x).square().mean().backward()
        return net[0].weight.grad.clone()

    plain = gradient(net)
    assert (gradient(training.compiled(net)) - plain).norm() < 0.05 * plain.norm()
