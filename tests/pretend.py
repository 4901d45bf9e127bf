"""A model, a method and a judge that cost nothing: a picture is its prompt's words, written as pixels.

An edit swaps the subject's words for the target's in every prompt that holds them, so what each metric must be can
be worked out by hand.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from refact.errors import EditError
from refact.evidence.judge import Judge

DIMENSIONS = 64
SMALL = {"a", "an", "the", "of", "in", "on", "and", "photo"}


def vector(text: str) -> np.ndarray:
    """A bag of words: each word a random sign vector of its own; little words weigh little."""
    total = np.zeros(DIMENSIONS)
    for word in text.lower().replace(",", "").split():
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
        total += np.random.default_rng(seed).normal(size=DIMENSIONS) * (0.1 if word in SMALL else 1)
    return total / max(np.linalg.norm(total), 1e-9)


def drawn(text: str, seed: int, noise: float = 0.02) -> Image.Image:
    rng = np.random.default_rng([seed, len(text)])
    row = vector(text) + noise * rng.normal(size=DIMENSIONS)
    pixels = np.clip(128 + 127 * row, 0, 255).astype(np.uint8).reshape(8, 8)
    return Image.fromarray(pixels).convert("RGB")


@dataclass
class PretendPatch:
    edit: object
    record: dict
    digest: str = "0" * 16

    @contextmanager
    def applied(self, model):
        model.swaps.append((self.edit.words, self.edit.new))
        try:
            yield
        finally:
            model.swaps.pop()


@dataclass(frozen=True)
class Swap:
    """The perfect method, for prompts that hold the subject verbatim."""

    strength: float = 1.0

    def __call__(self, model, edits, onto=()):
        return PretendPatch(edits[0], {"edits": [{"sites": {"text_encoder.0": {"steps": 7}}}]})


@dataclass(frozen=True)
class Fails:
    """No edit can be made."""

    why: str = "absent"

    def __call__(self, model, edits, onto=()):
        raise EditError(f"the subject is {self.why}")


@dataclass
class PretendModel:
    name: str = "pretend"
    family: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(name="sd1"))
    swaps: list = field(default_factory=list)
    made: list = field(default_factory=list)
    pause: float = 0.0

    @property
    def encoders(self):
        return {"text_encoder": self}

    kind = "clip"
    device = "cpu"

    def in_float32(self):
        return self

    def linear(self, layer):
        return torch.nn.Linear(2, 3)

    def fingerprints(self, whole=False):
        return {"text_encoder": "0" * 16}

    def meant(self, prompt: str) -> str:
        for words, new in self.swaps:
            at = prompt.lower().find(words.lower())
            if at >= 0:
                prompt = prompt[:at] + new + prompt[at + len(words) :]
        return prompt

    def embed(self, prompts):
        return torch.tensor(np.stack([vector(self.meant(p)) for p in prompts]), dtype=torch.float32)

    def drawn(self, prompts, seeds, steps=None, guidance=None, size=None, autocast=None, batch_size=16):
        self.made += [(p, tuple(s for s, _ in self.swaps)) for p in prompts]
        time.sleep(self.pause)
        return [SimpleNamespace(prompt=p, seed=s, image=drawn(self.meant(p), s)) for p in prompts for s in seeds]

    def generate(self, *given, **more):
        return self.drawn(*given, **more)

    def jobs(self, pairs, **more):
        return [picture for prompt, seed in pairs for picture in self.drawn([prompt], [seed], **more)]


class PretendJudge(Judge):
    """Reads the words back from the pixels."""

    scale = 100.0

    def of_texts(self, texts):
        return np.stack([vector(t) for t in texts])

    def of_images(self, pictures):
        rows = np.stack([np.asarray(p.convert("L"), dtype=float).ravel() for p in pictures])
        rows = rows.reshape(len(pictures), -1) / 127 - 128 / 127
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def judge() -> PretendJudge:
    layer = SimpleNamespace(mlp=SimpleNamespace(fc2=SimpleNamespace(weight=torch.zeros(1, 1))))
    clip = SimpleNamespace(text_model=SimpleNamespace(encoder=SimpleNamespace(layers=[layer])))
    return PretendJudge("pretend judge", "1" * 16, clip, None, None)
