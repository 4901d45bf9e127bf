"""Pictures of a model: texts read once, noise by the seed alone, batches that fit, pictures fetched beside the drawing.

`draw` is what `Model.generate` runs; `prepare` readies a pipeline that was opened for a model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..encoders import devices
from ..errors import ModelError
from ..language import LANGUAGE
from ..progress import Progress
from .precision import lowered

BATCH = 16  # pictures at once on the CPU, and where a device does not tell its memory
FIRST = 4  # pictures of the batch by which the memory of one is measured
MOST = 64  # pictures at once: larger batches are no quicker
AHEAD = 64  # prompts that are read together
Job = tuple[str, int]


@dataclass(frozen=True)
class Picture:
    """One generated image."""

    prompt: str
    seed: int
    image: Any  # PIL


@dataclass(frozen=True)
class How:
    """How pictures are drawn; see `Model.generate`."""

    options: dict[str, Any]  # the pipeline's own: steps, guidance, size
    batch_size: int | None = None
    clip_skip: int | None = None
    autocast: str | None = None


def draw(model: Any, jobs: Sequence[Job], how: How, progress: Progress) -> Iterator[Picture]:
    """The picture of each (prompt, seed), in order; on an accelerator while the next ones are being drawn."""
    conditions, pipe = conditions_of(model, [prompt for prompt, _ in jobs], how.clip_skip), model.pipe
    beside = model.device.type != "cpu" and model.family.name not in LANGUAGE
    more = {"output_type": "pt"} if beside else {}

    def drawn(group: list[Job]) -> Callable[[], list[Any]]:
        noise = [torch.Generator().manual_seed(seed) for _, seed in group]
        given = conditions([prompt for prompt, _ in group])
        with _without_bar(pipe), lowered(model.device, how.autocast):
            images = pipe(**given, **how.options, **more, generator=noise).images
        return _fetched(pipe, images) if beside else lambda: images

    sizes = batches_of(jobs, how.batch_size, model.device)
    groups = list(sizes) if how.batch_size or model.device.type == "cpu" else sizes
    shown = progress(groups, "pictures", len(groups) if isinstance(groups, list) else None)
    with ThreadPoolExecutor(1) if beside else nullcontext() as worker:
        waiting: deque[tuple[list[Job], Callable[[], list[Any]]]] = deque()
        for (group,), images in devices.fitted(drawn, ((group,) for group in shown), "pictures"):
            waiting.append((group, worker.submit(images).result if worker else images))
            while len(waiting) > bool(worker):
                yield from _pictures(*waiting.popleft())
        while waiting:
            yield from _pictures(*waiting.popleft())


def _pictures(group: list[Job], images: Callable[[], list[Any]]) -> Iterator[Picture]:
    for (prompt, seed), image in zip(group, images(), strict=True):
        yield Picture(prompt, seed, image)


def _fetched(pipe: Any, images: Tensor) -> Callable[[], list[Any]]:
    """What gives the images as PIL; they are on their way to the CPU already."""
    here = devices.fetched(images)
    return lambda: pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(here()))


def batches_of(jobs: Sequence[Job], size: int | None, device: torch.device) -> Iterator[list[Job]]:
    """The jobs in batches of that size; where none is given, of what the memory of the device holds.

    One picture's share is measured with a first small batch.
    """
    begun = 0
    if size is None and device.type != "cpu" and (room := devices.Room.of(device)):
        yield list(jobs[:FIRST])
        begun, size = len(jobs[:FIRST]), min(MOST, room.for_more(FIRST))
    size = size or BATCH
    for at in range(begun, len(jobs), size):
        yield list(jobs[at : at + size])


def conditions_of(model: Any, prompts: Sequence[str], clip_skip: int | None) -> Callable[[list[str]], dict[str, Any]]:
    """What gives the pipeline's inputs for some of these prompts; each distinct one is read once, some at a time."""
    if model.family.name in LANGUAGE:
        return lambda group: {"prompt": list(group)}
    distinct = list(dict.fromkeys(prompts))
    known: dict[str, dict[str, Tensor]] = {}
    empty: dict[str, Tensor] = {}

    def given(group: list[str]) -> dict[str, Any]:
        if missing := [prompt for prompt in group if prompt not in known]:
            begun = distinct.index(missing[0])
            some = list(dict.fromkeys([*missing, *distinct[begun : begun + AHEAD]]))
            read: dict[str, dict[str, Tensor]] = {prompt: {} for prompt in some}
            for name, rows in model.encode(some, clip_skip).items():
                for prompt, row in zip(some, rows):
                    read[prompt][name] = row
            kept = {prompt: known[prompt] for prompt in group if prompt in known}
            known.clear()
            known.update(kept | read)
        names = known[group[0]]
        found = {name: torch.stack([known[prompt][name] for prompt in group]) for name in names}
        if model.family.name == "flux":  # guidance is an input of the transformer, there is no second pass
            return found
        if not empty:
            empty.update(_unconditional(model, found))
        more = {f"negative_{name}": row.expand(len(group), *row.shape[1:]) for name, row in empty.items()}
        return found | more

    return given


def _unconditional(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What guidance leads away from, one row: the empty prompt; zeros where SDXL's config says so."""
    if getattr(model.pipe.config, "force_zeros_for_empty_prompt", False):
        return {name: torch.zeros_like(value[:1]) for name, value in given.items()}
    return model.encode("")


@contextmanager
def _without_bar(pipe: Any) -> Iterator[None]:
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**before | {"disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)


# -- a pipeline made ready ---------------------------------------------------------------------------------------------


def prepare(pipe: Any, device: torch.device, encoders: Sequence[Any], compiled: bool, offload: bool) -> Any:
    """The pipeline on the device, its convolutions in the layout that accelerators are quickest with.

    compiled: the denoiser by torch.compile. offload: only the part that works is in the accelerator's memory; the text
    encoders that are edited stay there. Raises ModelError where there is no accelerator to offload from.
    """
    if offload and device.type == "cpu":
        raise ModelError("there is no accelerator whose memory could be spared: leave out offload (--offload)")
    if device.type != "cpu":
        for name in ("unet", "vae"):
            if (part := pipe.components.get(name)) is not None:
                part.to(memory_format=torch.channels_last)
    if compiled:
        (pipe.components.get("unet") or pipe.components["transformer"]).compile()
    return offloaded(pipe, device, encoders) if offload else pipe.to(device)


def offloaded(pipe: Any, device: torch.device, encoders: Sequence[Any]) -> Any:
    """The pipeline with all parts but these encoders out of the device's memory while they do nothing."""
    staying = {encoder.name for encoder in encoders}  # told to diffusers, which offloads again after every call
    pipe._exclude_from_cpu_offload = [*pipe._exclude_from_cpu_offload, *staying]
    others = [name for name in pipe.model_cpu_offload_seq.split("->") if name not in staying]
    pipe.model_cpu_offload_seq = "->".join(others)
    pipe.enable_model_cpu_offload(device=device)
    return pipe
