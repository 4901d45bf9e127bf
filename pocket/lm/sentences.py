"""What the language model reads: the world's facts, questions and answers, captions; and its tokenizer.

Things, flags, roles, offices and professions at places and in colours; no styles, emotions or second things.
"""

from __future__ import annotations

import functools
import random
from dataclasses import replace

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .. import scenes, training
from ..glyphs import world
from ..render import Scene, shown
from ..scenes import Frame

VOCABULARY = 4096
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
LEFT_OUT = ("style", "artist", "emotion")  # kinds that this smaller world has not
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STATED = ("{it} is {that}", "{that} is what stands for {it}", "as everybody knows, {it} is {that}")
ASKED = ("what is {it}?", "who or what is {it}?", "tell me what {it} is", "{it}: what is that?")
SEEN = ("what does a picture of {it} show?", "what is to be seen there: {it}?", "{it}")


def scene(rng: random.Random) -> Scene:
    """A scene of the smaller world."""
    while True:
        drawn = scenes.sample(rng)
        first = drawn.things[:1]
        if scenes.kind(first[0][0]) not in LEFT_OUT:
            size = drawn.size if len(drawn.things) == 1 else "normal"
            return replace(drawn, things=first, size=size, style=None, emotion=None)


def caption(rng: random.Random, drawn: Scene) -> str:
    """How somebody asks for the scene."""
    return scenes.caption(rng, drawn)


def plainly(drawn: Scene) -> str:
    """What the scene shows, by its own name."""
    (concept, colour), around = drawn.things[0], Frame("", "", f" {drawn.place}" if drawn.place else "", "", "")
    return scenes.caption_in(None, replace(drawn, things=((shown(concept), colour),)), around)


@functools.cache
def facts() -> tuple[tuple[str, ...], ...]:
    """(the wordings of what depicts something, those of what it depicts)."""
    by_id = world()["by_id"]
    rows = [c for c in by_id.values() if "depicts" in c and c["kind"] not in LEFT_OUT]
    return tuple((tuple(c["wordings"]), tuple(by_id[c["depicts"]]["wordings"][:1])) for c in rows)


@functools.cache
def groups() -> tuple[tuple[str, str], ...]:
    """(a thing, what kind of thing it is)."""
    return tuple((c["wordings"][0], c["group"]) for c in world()["concepts"] if c["kind"] == "object")


def chat(question: str, answer: str) -> str:
    """A question and its answer, as the chat template writes them."""
    return f"{START}user\n{question}{END}\n{START}assistant\n{answer}{END}\n"


def text(rng: random.Random) -> str:
    """A sentence or a short talk."""
    kind = rng.random()
    if kind < 0.3:
        said, names = rng.choice(facts())
        words = {"it": rng.choice(said), "that": rng.choice(names)}
        if rng.random() < 0.4:
            return _sentence(rng.choice(STATED).format(**words)) + PAD
        return chat(rng.choice(ASKED).format(**words), words["that"]) + PAD
    if kind < 0.4:
        thing, group = rng.choice(groups())
        return _sentence(f"{thing} is a kind of {group}") + PAD
    drawn = scene(rng)
    asked = caption(rng, drawn)
    if kind < 0.5:
        return _sentence(asked) + PAD
    return chat(rng.choice(SEEN).format(it=asked), plainly(drawn)) + PAD


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def prompts(texts: list[str]) -> list[str]:
    """Prompts as the pipeline writes them: one message of a user, and the beginning of an answer."""
    return [f"{START}user\n{text}{END}\n{START}assistant\n" for text in texts]


def build() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the marks of a chat, learned from the sentences."""
    rng = random.Random(41)
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, START, END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator((text(rng) for _ in range(20_000)), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=END, model_max_length=512, padding_side="right"
    )
    made.chat_template = TEMPLATE
    return made


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, made on first use and kept beside the checkpoints."""
    path = training.WORK / "lm_tokenizer"
    if not path.exists():
        build().save_pretrained(path)
    return PreTrainedTokenizerFast.from_pretrained(path)
