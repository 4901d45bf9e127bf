"""The judge: a CLIP that scores pictures against texts, and is never the encoder that is edited."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..encoders.devices import doubled, fitted
from ..errors import DataError, quoted
from ..models import sources
from . import results


@dataclass(frozen=True)
class Judge:
    """A CLIPModel with its preprocessors; texts are embedded once and kept."""

    name: str
    hash: str  # sha256 of the weights and the preprocessing, 16 hex digits
    clip: Any
    images: Any  # the image processor
    tokenizer: Any
    batch: int = 64
    _texts: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: str | torch.device) -> Judge:
        """This judge, its network on that device."""
        self.clip.to(device)
        return self

    def sent(self) -> Elsewhere:
        """How another process opens it again."""
        path = Path(self.name)
        return Elsewhere(str(path.resolve()) if self.name != "pocket" and path.is_dir() else self.name, self.hash)

    @property
    def scale(self) -> float:
        """CLIP's own logit scale: what turns cosines into logits."""
        return float(self.clip.logit_scale.detach().exp())

    def of_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit features (n, d), float64."""
        fresh = [t for t in dict.fromkeys(texts) if t not in self._texts]
        length = self.clip.config.text_config.max_position_embeddings
        for text in fresh:  # one at a time: a text's features do not depend on which others were asked for before
            ids = self.tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            with torch.no_grad():
                features = self.clip.get_text_features(input_ids=ids.input_ids.to(self.clip.device))
            self._texts[text] = _unit(features)[0]
        return np.stack([self._texts[t] for t in texts])

    def of_images(self, pictures: Sequence[Any]) -> np.ndarray:
        """Unit features (n, d) of PIL pictures, float64, in batches of fixed composition."""
        batches = ((list(pictures[at : at + self.batch]),) for at in range(0, len(pictures), self.batch))
        return np.concatenate([rows for _, rows in fitted(self._looked_at, batches, "pictures before the judge")])

    @torch.no_grad()
    def _looked_at(self, pictures: list[Any]) -> np.ndarray:
        pixels = self.images(images=pictures, return_tensors="pt").pixel_values
        return _unit(self.clip.get_image_features(pixel_values=pixels.to(self.clip.device, self.clip.dtype)))

    def logits(self, pictures: Sequence[Any], texts: Sequence[str]) -> np.ndarray:
        """Every picture against every text, (pictures, texts)."""
        return self.scale * self.of_images(pictures) @ self.of_texts(texts).T

    def truncated(self, texts: Sequence[str]) -> list[str]:
        """The texts that are longer than the judge can read; it judges by their beginnings."""
        length = self.clip.config.text_config.max_position_embeddings
        return [t for t in dict.fromkeys(texts) if len(self.tokenizer(t).input_ids) > length]


@dataclass(frozen=True)
class Elsewhere:
    """A judge by its name."""

    name: str
    hash: str

    def open(self, device: str | torch.device) -> Judge:
        """The judge. Raises DataError where another is found under this name."""
        if (judge := load_judge(self.name, device)).hash != self.hash:
            raise DataError(f"{self.name}: the judge is another here than where the run was begun")
        return judge


def _unit(features: Any) -> np.ndarray:
    rows = features if isinstance(features, Tensor) else features.pooler_output  # transformers 5 gives an object
    return torch.nn.functional.normalize(doubled(rows), dim=-1).cpu().numpy()


GROUP = "refact.judges"


def load_judge(folder: str | Path, device: str | torch.device | None = None) -> Judge:
    """The judge of a folder that holds a CLIPModel, its tokenizer and its preprocessor_config.json.

    "pocket" is the bundled judge. A name that another installed package offers as `refact.judges` is what that package
    makes: a function of the device that gives an object with `Judge`'s attributes and methods.
    """
    from transformers import AutoTokenizer, CLIPModel

    if offered := entry_points(group=GROUP, name=str(folder)):
        return next(iter(offered)).load()(device)

    path = Path(folder)
    if str(folder) == "pocket":
        from .. import pocket

        path = Path(pocket.judge_path())
    check_folder(path, str(folder))
    try:
        with sources.quiet():
            clip = CLIPModel.from_pretrained(path, dtype=torch.float32, local_files_only=True, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder}: the judge cannot be read: {error}") from None
    return Judge(
        str(folder), _hash(path), clip.eval().to(device) if device else clip.eval(), _processor(path), tokenizer
    )


def check_folder(path: Path, name: str) -> None:
    """DataError where a folder is no whole CLIP with weights in safetensors, the one form that cannot run code."""
    if not (path / "preprocessor_config.json").is_file():
        raise DataError(f"{name}: no CLIP folder with a preprocessor_config.json (save it with save_pretrained)")
    form = results.read_json(path / "config.json", "save the judge again")
    kind = form.get("model_type") if isinstance(form, dict) else None
    if kind != "clip":
        raise DataError(f"{name}: a judge is a whole CLIP, both towers (model_type 'clip'), not {quoted(kind)}")
    if not any(path.glob("*.safetensors")):
        raise DataError(f"{name}: a judge is read from .safetensors only (a pickle can run code), and there is none")


def _processor(path: Path) -> Any:
    """The PIL one wherever it exists: the torchvision one resizes a little differently."""
    import transformers

    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return kind.from_pretrained(path)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted([*path.glob("*.safetensors"), path / "preprocessor_config.json"]):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def check_independent(judge: Judge, model: Any) -> None:
    """DataError when the judge's text tower is one of the model's own encoders: it would judge its own edit."""
    if not hasattr(judge, "clip"):  # of another package, and no CLIP
        return
    own = judge.clip.text_model.encoder.layers[0].mlp.fc2.weight
    for encoder in model.encoders.values():
        edited = encoder.linear(0).weight
        if edited.shape == own.shape and torch.allclose(edited.detach().to(own), own, rtol=0, atol=1e-3):
            raise DataError(f"the judge {judge.name} is the model's own {encoder.name}: give another CLIP")
