"""Model: a pipeline seen as text encoders, sites and pictures; and load(), which opens one from a name or an object."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from ..encoders.devices import chosen
from ..encoders.encoder import TextEncoder
from ..encoders.fingerprints import Fingerprint, drawing_prints
from ..errors import ModelError
from ..families import Family, detect
from ..language import LANGUAGE
from ..progress import Progress, plainly
from ..stash import LOCK
from . import sources
from .drawing import How, Picture, draw, prepare
from .embeddings import teach
from .precision import dtype_of
from .sources import Source

PICTURES = 64  # whose features are taken at once


class Model:
    """A text-to-image pipeline, of which only the text encoders need be in memory; or a bare CLIP text encoder.

    encoders: by component name, the pipeline's own objects. defaults: refact.json of the model's folder (layer,
    default_steps, default_guidance, default_size, companion). companion: a CLIPModel or its folder, for targets
    by picture. progress: how an edit's covariance and search show that they go on, and may be cancelled (progress.py).
    """

    def __init__(
        self,
        name: str,
        family: Family,
        encoders: dict[str, TextEncoder],
        source: Source | None = None,
        pipe: Any = None,
        companion: Any = None,
    ):
        self.name, self.family, self.encoders = name, family, encoders
        self.source, self._pipe, self._companion = source, pipe, companion
        self.progress: Progress = plainly
        self.defaults: dict = source.json("refact.json") if source else {}
        self._fingerprint = Fingerprint()
        self.compiled = self.offload = False  # how its pipeline is opened, see `load`

    @property
    def device(self) -> torch.device:
        return next(iter(self.encoders.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.encoders.values())).dtype

    @property
    def corpus(self) -> str:
        """Captions like those the model knows: its folder's own (refact.json), else the built-in ones."""
        own = self.defaults.get("corpus")
        return str(self.source.folder / own) if own and self.source else "captions"

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def pipe(self) -> Any:
        """The diffusers pipeline; the rest of it is loaded on first use, around the encoders that are in memory."""
        if self._pipe is None:
            self._pipe = self._open()
        return self._pipe

    def _open(self) -> Any:
        if self.source is None or self.source.alone:
            raise ModelError(f"{self.name} is a text encoder alone: there is no generator to load")
        words = {sources.tokenizer_of(encoder.name): encoder.component for encoder in self.encoders.values()}
        known = {name: tokenizer for name, tokenizer in words.items() if self.source.takes(name, tokenizer)}
        parts = {encoder.name: encoder.module for encoder in self.encoders.values()} | known
        pipe = self.source.pipeline(self.dtype, parts)
        pipe.register_modules(**{name: tokenizer for name, tokenizer in words.items() if name not in known})
        return prepare(pipe, self.device, list(self.encoders.values()), self.compiled, self.offload)

    def __getitem__(self, site: str) -> nn.Linear | nn.Embedding:
        """The module at a site, by its on-disk name; from inside a PEFT wrapper. ModelError names what is near."""
        component, _, path = site.partition(".")
        root = self._root(component)
        try:
            found = root.get_submodule(path)
        except AttributeError:
            found = None
        found = getattr(found, "base_layer", found)
        if isinstance(found, nn.Linear | nn.Embedding) and path:
            return found
        raise ModelError(f"{self.name} has no site {site!r}{self._near(site)}")

    def _root(self, component: str) -> nn.Module:
        """A component as a module whose paths are those of published files."""
        if component in self.encoders:
            encoder = self.encoders[component]
            return _Rooted(encoder.part.root, encoder.tower)
        if component.startswith("text_encoder"):
            here = ", ".join(self.encoders)
            raise ModelError(f"{component} of {self.name} is not loaded (encoders=..., --encoders); loaded: {here}")
        if component in {"unet", "transformer"} and self._pipe_or_source():
            root = self.pipe.components.get(component)
            if root is not None:
                return root
        raise ModelError(f"{self.name} has no component {component!r}")

    def _pipe_or_source(self) -> bool:
        return self._pipe is not None or (self.source is not None and not self.source.alone)

    def _near(self, site: str) -> str:
        component = site.partition(".")[0]
        names = [
            f"{component}.{name}" for name, part in self._root(component).named_modules() if isinstance(part, nn.Linear)
        ]
        near = difflib.get_close_matches(site, names, n=3, cutoff=0.3)
        return f"; near it: {', '.join(near)}" if near else ""

    def fingerprints(self, whole: bool = False) -> dict[str, str]:
        """{component: hash} of the text encoders; of the UNet's cross-attention too once the pipeline is in memory.

        whole: of all that draws pictures; where that has files, of these, so that nothing is loaded.
        """
        with LOCK:  # a patch that another thread applies meanwhile would be hashed too
            prints = {name: encoder.hash() for name, encoder in self.encoders.items()}
            if whole and self.source is not None:
                return prints if self.source.alone else prints | {"generator": self.source.digest(self.encoders)}
            if self._pipe is None:
                return prints
            return prints | drawing_prints(self._pipe, self.family, self._fingerprint, set(prints) if whole else None)

    @property
    def conditioning_sites(self) -> list[str]:
        """The cross-attention projections that read the text states (to_k, to_v of a UNet); loads the pipeline."""
        if self.family.name not in {"sd1", "sd2", "sdxl"}:
            return []
        names = [name for name, _ in self.pipe.unet.named_modules()]
        return [f"unet.{name}" for name in names if name.endswith((".attn2.to_k", ".attn2.to_v"))]

    # -- pictures as targets ------------------------------------------------------------------------------------------

    @cached_property
    def companion(self) -> Any:
        """The CLIPModel in whose space pictures are compared; None where none was given and none is bundled."""
        if isinstance(self._companion, nn.Module):
            return self._companion.eval().to(self.device)
        folder = self._companion_folder()
        if folder is None:
            return None
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder}: no CLIP folder (config.json, model.safetensors)")
        from transformers.models.clip import CLIPModel

        try:
            with sources.quiet():
                clip = CLIPModel.from_pretrained(  # a pickle can run code
                    folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
                )
        except (OSError, ValueError) as error:
            raise ModelError(f"the companion {folder} cannot be read: {error}") from None
        return clip.eval().to(self.device)

    def _companion_folder(self) -> Path | None:
        if isinstance(self._companion, (str, Path)):
            return Path(self._companion).expanduser()
        if self._companion is not None or self.source is None:
            return None
        bundled = self.defaults.get("companion")
        return self.source.folder / bundled if bundled else None

    def companion_json(self, name: str) -> dict:
        """A JSON file of the companion's folder; empty where there is none."""
        file = (folder := self._companion_folder()) and folder / name
        return json.loads(file.read_text()) if file and file.is_file() else {}

    def image_features(self, images: Sequence[Any]) -> Float[Tensor, "n d"]:
        """Projected features of PIL images or their paths, by the companion; not normalised."""
        if (clip := self.companion) is None:
            raise ModelError(f"{self.name} has no companion CLIP: load it with companion=FOLDER (--clip FOLDER)")
        from PIL import Image

        found, weight = [], next(clip.parameters())
        for at in range(0, len(images), PICTURES):
            pictures = []
            for given in images[at : at + PICTURES]:
                with nullcontext(given) if isinstance(given, Image.Image) else Image.open(given) as picture:
                    pictures.append(picture.convert("RGB"))
            with torch.no_grad():
                seen = clip.get_image_features(pixel_values=self._preprocess(pictures).to(weight))
            found.append(seen if isinstance(seen, Tensor) else seen.pooler_output)
        return torch.cat(found).float()

    def _preprocess(self, pictures: list[Any]) -> Tensor:
        import transformers

        # the torchvision one resizes a little differently, and transformers has the PIL one under two names
        kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
        folder, clip = self._companion_folder(), self.companion
        if folder is not None and (folder / "preprocessor_config.json").is_file():
            processor = kind.from_pretrained(folder)
        else:
            side = clip.config.vision_config.image_size
            processor = kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
        return processor(images=pictures, return_tensors="pt").pixel_values

    # -- conditioning and pictures ------------------------------------------------------------------------------------

    def encode(self, prompts: str | Sequence[str], clip_skip: int | None = None) -> dict[str, Tensor]:
        """What the pipeline's encode_prompt gives: prompt_embeds, and pooled_prompt_embeds where the family has them.

        clip_skip: as in diffusers, whose own fails with transformers >= 5.6. Loads the pipeline where T5 is read.
        Raises ModelError for the families of `language.py`, whose pipelines encode for themselves.
        """
        if self.family.name in LANGUAGE:
            raise ModelError(f"what {self.family.title} sends is read by encoder.states, or by its pipeline itself")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        clips = [encoder for row in self.family.encoders if (encoder := self._encoder(row)).kind == "clip"]
        rows = [e.states(prompts, clip_skip or 0) for e in clips if e.row.rows != "none"]
        joined = torch.cat([row.to(self.device) for row in rows], -1) if rows else None
        if self.family.name in sources.T5_LENGTHS:
            long = self._t5_states(prompts).to(self.device)
            wide = [] if joined is None else [pad(joined, (0, long.shape[-1] - joined.shape[-1]))]
            joined = torch.cat([*wide, long], -2)
        found = {"prompt_embeds": joined}
        if any(encoder.row.pooled for encoder in clips):
            found["pooled_prompt_embeds"] = torch.cat(
                [e.embed(prompts).to(self.device) for e in clips if e.row.pooled], -1
            )
        return {name: value.to(self.dtype) for name, value in found.items() if value is not None}

    def _encoder(self, row: Any) -> TextEncoder:
        """The encoder of a row; where it was not loaded for editing, from the pipeline."""
        if row.name in self.encoders:
            return self.encoders[row.name]
        return sources.of_component(self.pipe, self.family, row)

    def _t5_states(self, prompts: list[str]) -> Tensor:
        t5 = [row for row in self.family.encoders if row.kind == "t5"]
        if t5:
            return self._encoder(t5[0]).states(prompts)
        width = self.pipe.transformer.config.joint_attention_dim  # a pipeline without its T5 sends zeros
        return torch.zeros(len(prompts), sources.T5_LENGTHS[self.family.name], width, device=self.device)

    def generate(
        self,
        prompts: str | Sequence[str],
        seeds: Iterable[int] = (0,),
        steps: int | None = None,
        guidance: float | None = None,
        size: int | None = None,
        batch_size: int | None = None,
        clip_skip: int | None = None,
        autocast: str | None = None,
        progress: Progress = plainly,
    ) -> list[Picture]:
        """A picture for each prompt and seed, prompts in order, seeds inner.

        The noise of a picture depends on its seed alone, whatever else is in its batch. steps, guidance: None means
        the model's own (refact.json), else the pipeline's. size: of a side, in pixels. batch_size: None means 16, on
        an accelerator what its memory holds. autocast: "bfloat16" or "float16" for the generator's products, about
        twice as fast where the processor has them; text states stay.
        """
        return list(self.drawn(prompts, seeds, steps, guidance, size, batch_size, clip_skip, autocast, progress))

    def drawn(
        self, prompts: str | Sequence[str], seeds: Iterable[int] = (0,), *how: Any, **named: Any
    ) -> Iterator[Picture]:
        """The pictures of `generate` one after the other, as their batches get done."""
        prompts, own = [prompts] if isinstance(prompts, str) else list(prompts), list(seeds)
        return self.jobs([(prompt, int(seed)) for prompt in prompts for seed in own], *how, **named)

    def jobs(
        self,
        jobs: Sequence[tuple[str, int]],
        steps: int | None = None,
        guidance: float | None = None,
        size: int | None = None,
        batch_size: int | None = None,
        clip_skip: int | None = None,
        autocast: str | None = None,
        progress: Progress = plainly,
    ) -> Iterator[Picture]:
        """The pictures of (prompt, seed) pairs; the settings are those of `generate`."""
        how = How(self._options(steps, guidance, size), batch_size, clip_skip, autocast)
        pictures = draw(self, list(jobs), how, progress)
        while True:
            with torch.no_grad():  # not while the caller has the picture
                picture = next(pictures, None)
            if picture is None:
                return
            yield picture

    def _options(self, steps: int | None, guidance: float | None, size: int | None) -> dict:
        """The pipeline's arguments: what was asked for, else the model's own; the rest is left to diffusers."""
        steps = self.defaults.get("default_steps") if steps is None else steps
        guidance = self.defaults.get("default_guidance") if guidance is None else guidance
        size = self.defaults.get("default_size") if size is None else size
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}
        return {key: value for key, value in options.items() if value is not None}


class _Rooted(nn.Module):
    """A tower under the name that it has in published files."""

    def __init__(self, name: str, tower: nn.Module):
        super().__init__()
        self.add_module(name, tower)


# -- opening ----------------------------------------------------------------------------------------------------------


def load(
    name: Any,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    variant: str | None = None,
    revision: str | None = None,
    encoders: Sequence[str] | None = None,
    config: str | Path | None = None,
    companion: Any = None,
    embeddings: Sequence[str | Path] = (),
    family: str | None = None,
    component: str | None = None,
    compiled: bool = False,
    offload: bool = False,
) -> Model:
    """The model of "pocket", a folder, a hub name, a .safetensors checkpoint (with config=FOLDER), or a live pipeline.

    A text encoder alone, its folder or its own file, serves the family and is the component that are named; config is
    then a folder with its tokenizer, which only T5 needs.

    device: where to compute; None: the accelerator of this machine if it has one, else the CPU; a live pipeline stays
    where it is. dtype: float32 unless given; a live pipeline keeps its own. encoders: which text encoders to open for
    editing; None: every CLIP encoder. companion: a CLIPModel or its folder, for targets by picture. embeddings: files
    of textual inversion, whose words prompts and targets may then use. compiled, offload: how the pipeline is opened
    once pictures are drawn: the denoiser by torch.compile; in an accelerator's memory only the part that works.
    """
    given = {"config": config, "family": family, "component": component}
    opened = name
    if not isinstance(name, Model):
        opened = _opened(name, device, dtype, variant, revision, encoders, companion, given)
    newly = [("compiled", compiled and not opened.compiled), ("offload", offload and not opened.offload)]
    if opened._pipe is not None and (asked := [name for name, new in newly if new]):
        raise ModelError(f"{opened.name}'s pipeline is open already: {asked[0]} is for one that this opens itself")
    opened.compiled, opened.offload = opened.compiled or compiled, opened.offload or offload
    for file in embeddings:
        teach(opened.encoders, file)
    return opened


def _opened(name, device, dtype, variant, revision, encoders, companion, given: dict[str, Any]) -> Model:
    precision, names = dtype_of(dtype), tuple(encoders or ())
    if not isinstance(name, (str, Path)):
        if any(given.values()):
            raise ModelError("config, family and component are for models in files; this one is open already")
        return _live(name, _label(name), names, companion, device, precision)
    source = sources.find(str(name), variant, revision, names, **given)
    opened = sources.read_encoders(source, sources.chosen(source.family, names), precision or torch.float32)
    try:
        place = chosen(device)
        for encoder in opened.values():
            encoder.module.to(place)
    except (AssertionError, RuntimeError) as error:  # what torch raises where a device is not there
        raise ModelError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return Model(source.name, source.family, opened, source, companion=companion)


def _live(pipe: Any, name: str, encoders: tuple, companion: Any, device: Any, dtype: torch.dtype | None) -> Model:
    parts = getattr(pipe, "components", None)
    if not isinstance(parts, dict):
        raise ModelError(f"a model is a name, a path or a diffusers pipeline, not {type(pipe).__name__}")
    if device is not None or dtype is not None:
        pipe.to(**{key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None})
    index: dict[str, Any] = {
        key: ["", type(part).__name__] for key, part in parts.items() if isinstance(part, nn.Module)
    }
    encoder = parts.get("text_encoder")
    family = detect(index | {"_class_name": type(pipe).__name__}, encoder.config.to_dict() if encoder else None)
    opened = {row.name: sources.of_component(pipe, family, row) for row in sources.chosen(family, encoders)}
    return Model(name, family, opened, pipe=pipe, companion=companion)


def _label(pipe: Any) -> str:
    """What a live pipeline was loaded from, without the path; else its class."""
    origin = str(getattr(getattr(pipe, "config", None), "_name_or_path", "") or "")
    return (Path(origin).name if Path(origin).exists() else origin) or type(pipe).__name__
