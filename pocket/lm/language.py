"""The language model: a small Qwen3, trained on the world's sentences. python -m pocket.lm.language"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from .. import training
from . import sentences

ROWS, LENGTH, PEAK, CPU_SHARE = 256, 96, 1e-3, 1 / 8
SHAPE = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


def build() -> Qwen3ForCausalLM:
    """The model with fresh weights."""
    words = sentences.tokenizer()
    torch.manual_seed(51)
    marks = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(words), **marks, **SHAPE))


class Language:
    """The language model as a part."""

    name, peak, decay, average, muon = "lm", PEAK, 0.02, 0.999, 2.0

    def __init__(self, asked: training.Given) -> None:
        self.size = max(2, round(asked.batch * ROWS))
        self.players = {"lm": build()}
        self.kept: dict[str, float] = {}

    def begin(self, clock: training.Clock) -> None:
        """Nothing here depends on the time."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Rows of so many tokens, filled with texts one after another."""
        rng, words = training.rng_of(self.name, step), sentences.tokenizer()
        need, ids = self.size * (LENGTH + 1), list[int]()
        while len(ids) < need:
            texts = [sentences.text(rng) for _ in range(self.size)]
            ids += [one for found in words(texts, add_special_tokens=False)["input_ids"] for one in found]
        return {"ids": np.array(ids[:need]).reshape(self.size, LENGTH + 1)}

    def losses(self, player: str, batch: dict, noise: torch.Generator, memo: dict) -> dict[str, Tensor]:
        """The next token's."""
        ids = batch["ids"]
        logits = self.players[player](input_ids=ids[:, :-1]).logits
        return {"next token": cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())}


@torch.no_grad()
def answers(model: Any, questions: list[str], most: int = 12) -> list[str]:
    """What the model answers, word by word the likeliest."""
    words, found = sentences.tokenizer(), []
    for prompt in sentences.prompts(questions):
        ids = words(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False)
        found.append(words.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return found


def known(model: Any) -> float:
    """The share of all facts, in every wording, that the model answers rightly."""
    asked = [(wording, name) for said, names in sentences.facts() for wording in said for name in names]
    right = answers(model, [f"what is {wording}?" for wording, _ in asked])
    return float(np.mean([answer == name for answer, (_, name) in zip(right, asked)]))


if __name__ == "__main__":
    given = training.given(training.parser(__doc__).parse_args(), CPU_SHARE)
    state = training.train(Language(given), given)
    print("facts answered:", known(training.trained("lm", build())))
