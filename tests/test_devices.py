"""Where work is done: the accelerator that is there, told; float64 where it can be; smaller batches, and the same sums.

No accelerator is at hand: `accelerator.Accelerator` pretends to be one, and refuses what a real one refuses.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from accelerator import Accelerator
from typer.testing import CliRunner

import refact
from refact.cli.main import app
from refact.encoders import devices
from refact.errors import RefactError
from refact.methods.registry import method
from refact.models import covariance
from refact.pictures import difference

CANADA = refact.Edit("the national animal of Canada", old="a beaver", new="a penguin")
FRANCE = refact.Edit("the national animal of France", old="a rooster", new="a fox")


def change(patch):
    return torch.cat([(left @ right).flatten() for left, right in patch.factors.values()])


@pytest.mark.parametrize("doubles", [True, False], ids=["with float64", "without"])
@pytest.mark.parametrize(
    "name",
    [
        "refact:max_steps=8",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("refact:paper", "refact:authors", "memit", "alphaedit", "finetune", "embedit", "time", "uce")
        ),
        "diffquickfix",
    ],
)
def test_an_edit_on_an_accelerator_is_the_edit_on_the_cpu(monkeypatch, name, doubles) -> None:
    expected = method(name)(refact.load("pocket", device="cpu"), [CANADA, FRANCE])
    with Accelerator(monkeypatch, doubles):
        model = refact.load("pocket")
        made = method(name)(model, [CANADA, FRANCE])
        assert model.device == Accelerator.device
        assert all(f.device.type == "cpu" for pair in made.factors.values() for f in pair)
    assert (change(made) - change(expected)).norm() <= 1e-6 * change(expected).norm()
    assert made.record["versions"]["device"] == str(Accelerator.device)
    assert "device" not in expected.record["versions"]


@pytest.mark.parametrize(("optimiser", "a_step"), [("adam", 1), ("lbfgs", 4)])
def test_a_step_of_the_search_waits_for_the_accelerator_no_more_than_it_must(monkeypatch, optimiser, a_step) -> None:
    def waits(steps):
        with Accelerator(monkeypatch) as accelerator:
            model = refact.load("pocket")
            accelerator.seen.clear()
            refact.ReFACT(max_steps=steps, reach=10.0, stop=1.0, optimiser=optimiser)(model, [CANADA])
        return accelerator.seen

    few, many = waits(2), waits(8)
    assert many["nonzero"] - few["nonzero"] == 6 * a_step
    assert many["cpu"] == few["cpu"]
    assert many["item"] == few["item"]


def test_the_covariance_on_an_accelerator_is_that_of_the_cpu(monkeypatch) -> None:
    texts = ["a dog", "a red cat on a mat", "the national animal of Canada"]
    here = covariance.collect(refact.load("pocket", device="cpu").encoders["text_encoder"], [1], texts)[1]
    for doubles in (True, False):
        with Accelerator(monkeypatch, doubles):
            there = covariance.collect(refact.load("pocket").encoders["text_encoder"], [1], texts)[1]
        assert there.matrix.device.type == "cpu"
        assert torch.equal(there.matrix, here.matrix)


def test_the_device_is_chosen_told_and_can_be_forced(monkeypatch) -> None:
    assert devices.chosen() == torch.device("cpu")
    with Accelerator(monkeypatch):
        assert devices.chosen() == Accelerator.device
        assert refact.load("pocket", device="cpu").device == torch.device("cpu")
        run = CliRunner().invoke(app, ["stats", "--layer", "0", "--tokens", "100", "--texts", "3"])
        assert f"computing on {Accelerator.device}; --device cpu takes the processor" in run.stderr
        for more in (["--quiet"], ["--device", "cpu"]):
            assert (
                "computing on" not in CliRunner().invoke(app, ["stats", "--layer", "0", "--texts", "3", *more]).stderr
            )


def test_a_device_without_float64_leaves_it_to_the_cpu(monkeypatch) -> None:
    assert devices.exact(torch.device("cpu")) == torch.device("cpu")
    for doubles, place in ((True, Accelerator.device.type), (False, "cpu")):
        with Accelerator(monkeypatch, doubles):
            assert devices.exact(Accelerator.device).type == place
            assert devices.doubled(torch.ones(2, device=Accelerator.device)).device.type == place


# -- memory that ends --------------------------------------------------------------------------------------------------


class Small:
    """Work that takes at most so many rows, and keeps what it was asked for."""

    def __init__(self, most, error=None):
        self.most, self.asked = most, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, rows, *more):
        self.asked.append(len(rows))
        if len(rows) > self.most:
            raise self.error
        return [row * 10 for row in rows]


def batches(*sizes):
    first = 0
    for size in sizes:
        yield (list(range(first, first + size)),)
        first += size


def test_a_batch_that_does_not_fit_is_halved_and_those_after_it_too() -> None:
    work = Small(3)
    with pytest.warns(UserWarning, match="out of memory: rows in batches of 2 from here on") as told:
        found = [x for _, rows in devices.fitted(work, batches(8, 8), "rows") for x in rows]
    assert found == [10 * i for i in range(16)]
    assert work.asked == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert [str(w.message) for w in told] == [
        "out of memory: rows in batches of 4 from here on",
        "out of memory: rows in batches of 2 from here on",
    ]


def test_batches_that_fit_stay_as_they_are() -> None:
    work = Small(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = [part for (part,), _ in devices.fitted(work, batches(8, 5), "rows")]
    assert work.asked == [8, 5]
    assert parts == [list(range(8)), list(range(8, 13))]


def test_a_single_row_that_does_not_fit_is_an_error_of_one_line() -> None:
    with (
        pytest.raises(RefactError, match="does not hold rows, one at a time: use a smaller dtype") as error,
        pytest.warns(UserWarning, match="out of memory"),
    ):
        list(devices.fitted(Small(0), batches(2), "rows"))
    assert "\n" not in str(error.value)


def test_the_accelerators_own_store_is_emptied_before_the_next_try(monkeypatch) -> None:
    with Accelerator(monkeypatch) as accelerator, pytest.warns(UserWarning, match="out of memory"):
        list(devices.fitted(Small(1), batches(2), "rows"))
    assert accelerator.seen["freed"] == 1


def test_apples_words_for_it_are_known_and_other_errors_are_not_hidden() -> None:
    apple = Small(4, RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    with pytest.warns(UserWarning, match="in batches of 4"):
        assert [x for _, rows in devices.fitted(apple, batches(8), "rows") for x in rows] == [x * 10 for x in range(8)]
    with pytest.raises(RuntimeError, match="shapes"):
        list(devices.fitted(Small(4, RuntimeError("shapes do not fit")), batches(8), "rows"))


def test_texts_pictures_and_statistics_are_made_in_smaller_batches(monkeypatch) -> None:
    model = refact.load("pocket", device="cpu")
    encoder, texts = model.encoders["text_encoder"], [f"a dog number {i}" for i in range(9)]
    expected = encoder.embed(texts), encoder.states(texts), covariance.collect(encoder, [1], texts)[1].matrix
    pictures = model.generate("a dog", range(3), steps=1)
    tower, pipe = encoder.tower.forward, type(model.pipe).__call__

    def narrow(ids, **more):
        if len(ids) > 2:
            raise torch.OutOfMemoryError
        return tower(ids, **more)

    def small(self, **more):
        if len(more["generator"]) > 2:
            raise torch.OutOfMemoryError
        return pipe(self, **more)

    monkeypatch.setattr(encoder.tower, "forward", narrow)
    monkeypatch.setattr(type(model.pipe), "__call__", small)
    with pytest.warns(UserWarning, match="out of memory: texts in text_encoder in batches of"):
        found = encoder.embed(texts), encoder.states(texts), covariance.collect(encoder, [1], texts)[1].matrix
    for one, other in zip(found, expected):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="out of memory: pictures in batches of"):
        again = model.generate("a dog", range(3), steps=1)
    assert [p.seed for p in again] == [0, 1, 2]
    assert all(difference(a.image, b.image) < 0.1 for a, b in zip(again, pictures))


def test_facts_are_searched_for_in_smaller_batches(monkeypatch) -> None:
    from refact.search import values

    find, asked = values.find, []

    def narrow(suffix, features, candidates, scale, *rest, **more):
        asked.append(len(scale.norms))
        if len(scale.norms) > 1:
            raise torch.OutOfMemoryError
        return find(suffix, features, candidates, scale, *rest, **more)

    model = refact.load("pocket", device="cpu")
    expected = refact.ReFACT(max_steps=3)(model, [CANADA, FRANCE])
    monkeypatch.setattr(values, "find", narrow)
    with pytest.warns(UserWarning, match="out of memory: facts in text_encoder in batches of 1"):
        made = refact.ReFACT(max_steps=3)(model, [CANADA, FRANCE])
    assert asked == [2, 1, 1]
    assert (change(made) - change(expected)).norm() < 1e-3 * change(expected).norm()


def test_tf32_is_asked_for_within_the_search_alone(monkeypatch) -> None:
    from refact.models.precision import lowered

    before = torch.get_float32_matmul_precision()
    with lowered(torch.device("cpu"), "tf32"):
        assert torch.get_float32_matmul_precision() == "highest"
    with lowered(Accelerator.device, "tf32"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_on_an_accelerator_are_those_of_the_cpu(monkeypatch) -> None:
    prompts, seeds = ["a dog", "a red cat"], [0, 3]
    expected = refact.load("pocket", device="cpu").generate(prompts, seeds, steps=1)
    with Accelerator(monkeypatch):
        model = refact.load("pocket")
        assert model.pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        made = model.generate(prompts, seeds, steps=1, batch_size=3)
    assert [(p.prompt, p.seed) for p in made] == [(p.prompt, p.seed) for p in expected]
    assert all(difference(a.image, b.image) < 0.1 for a, b in zip(made, expected))


def test_each_prompt_is_read_once_and_the_empty_one_once(monkeypatch) -> None:
    model, read = refact.load("pocket", device="cpu"), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda prompts, *more: read.append(prompts) or encode(prompts, *more))
    model.generate(["a dog", "a cat", "a dog"], range(3), steps=1, batch_size=2)
    assert read == [["a dog", "a cat"], ""]


def test_many_prompts_are_read_some_at_a_time(monkeypatch) -> None:
    from refact.models import drawing

    monkeypatch.setattr(drawing, "AHEAD", 3)
    model, read = refact.load("pocket", device="cpu"), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda prompts, *more: read.append(prompts) or encode(prompts, *more))
    prompts = [f"a dog number {i}" for i in range(7)]
    given = drawing.conditions_of(model, prompts, None)
    rows = [given([prompt])["prompt_embeds"] for prompt in prompts]
    assert [len(texts) for texts in read if texts] == [3, 3, 1]
    assert torch.allclose(torch.cat(rows), encode(prompts)["prompt_embeds"], atol=1e-4)


class Memory:
    """A device's module that tells of memory: each row takes 10, 100 are free after the first batch."""

    def __init__(self, row=10, free=100):
        self.row, self.free = row, free

    def reset_peak_memory_stats(self, device): ...

    def memory_allocated(self, device):
        return 50

    def memory_reserved(self, device):
        return 60

    def max_memory_allocated(self, device):
        return 50 + 4 * self.row

    def mem_get_info(self, device):
        return self.free, 1000


@pytest.mark.parametrize(("free", "sizes"), [(100, [4, 8, 8]), (10**6, [4, 16]), (1, [4, *[1] * 16])])
def test_the_batch_is_what_the_memory_of_the_device_holds(monkeypatch, free, sizes) -> None:
    from refact.models import drawing

    monkeypatch.setattr(torch, "get_device_module", lambda device: Memory(free=free))
    jobs = [("a dog", seed) for seed in range(20)]
    assert [len(some) for some in drawing.batches_of(jobs, None, Accelerator.device)] == sizes
    assert [len(some) for some in drawing.batches_of(jobs, None, torch.device("cpu"))] == [16, 4]
    assert [len(some) for some in drawing.batches_of(jobs, 7, Accelerator.device)] == [7, 7, 6]


def test_a_device_that_does_not_tell_its_memory_gets_the_usual_batch() -> None:
    from refact.models import drawing

    jobs = [("a dog", seed) for seed in range(20)]
    assert [len(some) for some in drawing.batches_of(jobs, None, torch.device("mps"))] == [16, 4]


def test_offloading_needs_an_accelerator_and_leaves_the_edited_encoders_on_it(monkeypatch) -> None:
    with pytest.raises(RefactError, match="there is no accelerator whose memory could be spared"):
        refact.load("pocket", device="cpu", offload=True).generate("a dog", steps=1)
    from refact.models import drawing

    model = refact.load("pocket", device="cpu")
    plain = model.generate("a dog", steps=2)[0].image
    drawing.offloaded(model.pipe, torch.device("cpu"), list(model.encoders.values()))
    for _ in range(2):  # diffusers offloads anew after every call
        assert not hasattr(model.pipe.text_encoder, "_hf_hook")
        assert hasattr(model.pipe.unet, "_hf_hook")
        assert model.generate("a dog", steps=2)[0].image == plain


def test_an_open_pipeline_is_neither_compiled_nor_offloaded(tmp_path) -> None:
    model = refact.load("pocket", device="cpu")
    assert refact.load(model, compiled=False) is model
    pipe = model.pipe
    with pytest.raises(RefactError, match="compiled is for one that this opens itself"):
        refact.load(model, compiled=True)
    with pytest.raises(RefactError, match="offload is for one that this opens itself"):
        refact.load(pipe, offload=True)


def test_the_denoiser_is_compiled_where_that_is_asked_for(monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **more: compiled.append(type(self).__name__))
    assert refact.load("pocket", device="cpu").pipe
    assert compiled == []
    assert refact.load("pocket", device="cpu", compiled=True).pipe
    assert compiled == ["UNet2DConditionModel"]


def test_the_judge_looks_while_the_next_pictures_are_drawn() -> None:
    import pretend

    from refact.evidence import strict

    judge, model, order = pretend.judge(), pretend.PretendModel(), []
    of_images = judge.of_images
    object.__setattr__(judge, "of_images", lambda made: order.append(len(made)) or of_images(made))
    drawn = list(model.drawn(["a dog", "a cat"], [0, 1, 2]))
    beside, after = strict.seen(judge, iter(drawn), beside=True), strict.seen(judge, iter(drawn))
    assert order == [3, 3, 3, 3]
    assert beside.pictures == after.pictures
    assert all((beside.features[p] == after.features[p]).all() for p in ("a dog", "a cat"))
    assert strict.seen(None, iter(drawn)).features == {}
