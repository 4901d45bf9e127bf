"""What is written down about a family of models: its text encoders, what they send, and the names in its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EncoderRow:
    """One text encoder: which of its states the generator gets, whether the pooled vector is sent, its LoRA prefix.

    taps: of a decoder, the states that are sent, as transformers numbers `hidden_states` (-1 is the last one, after the
    final norm); () means all of them. frame: how the pipeline writes a prompt for this encoder (encoders/frames.py).
    projected: the module is a CLIPTextModelWithProjection. length: positions of a padded prompt where the tokenizer
    does not say. padding: whether the generator reads the rows of padding too. masked: whether a T5 is kept from
    reading padding.
    """

    name: str
    rows: Literal["last", "penultimate", "none", "taps"]
    pooled: bool
    prefix: str
    kind: Literal["clip", "t5", "decoder"] = "clip"
    taps: tuple[int, ...] = ()
    frame: str = ""
    length: int = 0
    projected: bool = False
    padding: bool = False
    masked: bool = False


@dataclass(frozen=True)
class Family:
    """One row of the table of families.

    style: of the LoRA names. headers: what other programs look for in a file's metadata. transformer: the class name of
    the pipeline's transformer, by which the family is recognised; "" where `detect` has a rule for it. edited: the
    encoders that are edited when none is named; () means every CLIP encoder. entrance: the Linear of the transformer
    that takes in the text states, for the method of that name; entrance_norm: the norm that stands before it.
    """

    name: str
    title: str
    encoders: tuple[EncoderRow, ...]
    style: Literal["kohya", "diffusers"]
    headers: dict[str, str]
    note: str = ""  # what an edit of the edited encoders cannot reach
    transformer: str = ""
    edited: tuple[str, ...] = ()
    entrance: str = ""
    entrance_norm: str = ""

    @property
    def encoders_edited(self) -> list[EncoderRow]:
        """The rows of the encoders that are edited when none is named."""
        named = [row for row in self.encoders if row.name in self.edited]
        return named or [row for row in self.encoders if row.kind == "clip"] or list(self.encoders)


def headers(architecture: str, implementation: str = "diffusers", **ss: str) -> dict[str, str]:
    """What a LoRA's metadata says of its family (ModelSpec, and the ss_* keys of sd-scripts)."""
    spec = {"modelspec.architecture": f"{architecture}/lora", "modelspec.implementation": implementation}
    return spec | ss
