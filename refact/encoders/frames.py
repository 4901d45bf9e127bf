"""How a pipeline writes a prompt before its text encoder reads it: a chat template, an instruction, small letters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ModelError

MARK = "\x00PROMPT\x00"  # stands for the prompt while a template is filled in
# as the pipelines' own constructors have them; tests compare
QWEN_IMAGE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)
LUMINA2 = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)


@dataclass(frozen=True)
class Frame:
    """What stands before and after the prompt. lower: the prompt is put in small letters, without spaces at its ends.

    special: whether the tokenizer adds its own [BOS] and [EOS]. longer: positions that the frame adds to a prompt's.
    """

    before: str = ""
    after: str = ""
    lower: bool = False
    special: bool = True
    longer: int = 0

    def write(self, prompt: str) -> tuple[str, int]:
        """The text that is tokenized, and the character of it at which the prompt begins."""
        if not self.lower:
            return self.before + prompt + self.after, len(self.before)
        inner = prompt.lower()
        return self.before + inner.strip() + self.after, len(self.before) - (len(inner) - len(inner.lstrip()))


def frame_of(name: str, tokenizer: Any) -> Frame:
    """The frame of that name (`EncoderRow.frame`) for a pipeline's tokenizer or processor."""
    return FRAMES[name](tokenizer)


def _chat(thinking: bool) -> Callable[[Any], Frame]:
    """One message of a user, after which the model would answer (Z-Image, FLUX.2 klein)."""

    def frame(tokenizer: Any) -> Frame:
        return _filled(
            tokenizer, [{"role": "user", "content": MARK}], add_generation_prompt=True, enable_thinking=thinking
        )

    return frame


def _flux2(processor: Any) -> Frame:
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE

    said = [("system", SYSTEM_MESSAGE), ("user", MARK)]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    frame = _filled(processor, messages, add_generation_prompt=False)
    tokenizer = getattr(processor, "tokenizer", processor)
    # a processor lets its tokenizer add a [BOS] where the template writes none; a tokenizer's own templates never do
    adds = tokenizer is not processor and not frame.before.startswith(tokenizer.bos_token or "\0")
    return replace(frame, special=adds)


def _filled(tokenizer: Any, messages: list[dict], **how: bool) -> Frame:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"the {type(tokenizer).__name__} of this model has no chat template, by which prompts are put")
    before, _, after = tokenizer.apply_chat_template(messages, tokenize=False, **how).partition(MARK)
    return Frame(before, after)


def instruction() -> list[str]:
    """What Sana's pipeline writes before a prompt, line by line."""
    from diffusers import SanaPipeline

    return inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default


def _sana(tokenizer: Any) -> Frame:
    before = "\n".join(instruction())
    return Frame(before, lower=True, longer=len(tokenizer.encode(before)))


FRAMES: dict[str, Callable[[Any], Frame]] = {
    "": lambda tokenizer: Frame(),
    "lower": lambda tokenizer: Frame(lower=True),
    "chat": _chat(thinking=False),
    "chat-thinking": _chat(thinking=True),
    "flux2": _flux2,
    "qwen-image": lambda tokenizer: Frame(*QWEN_IMAGE),
    "lumina2": lambda tokenizer: Frame(LUMINA2),
    "sana": _sana,
}
