"""TextEncoder: one text encoder of a pipeline: its tokens, the keys of its MLPs, and what it says.

What differs among CLIP, T5 and the decoders of language models is in `clip.py`, `t5.py` and `decoder.py`.
"""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import EditError, ModelError
from ..family import EncoderRow
from ..stash import base_weight
from .clip import Clip, text_tower
from .decoder import Decoder
from .devices import fitted
from .fingerprints import Fingerprint, plain_weights
from .frames import frame_of
from .hooks import read
from .t5 import T5
from .widened import is_lent

__all__ = ["TextEncoder", "Tokens", "text_tower"]
BATCH_TOKENS = 2048  # positions in one forward pass
KINDS: dict[str, Any] = {"clip": Clip, "t5": T5, "decoder": Decoder}


@dataclass(frozen=True)
class Tokens:
    """Prompts as the model reads them. ids: padded to its length (of a decoder, to the longest); ends: the pooled
    [EOS] (of a decoder, the last token); truncated: words were cut."""

    ids: Int[Tensor, "n t"]
    ends: Int[Tensor, " n"]
    truncated: Bool[Tensor, " n"]


class TextEncoder:
    """A text encoder with its tokenizer, read as the pipeline reads it: its frame around a prompt, its own padding.

    name: of the pipeline's component; row: what the generator gets of it. tokenizer: the pipeline's, which may be a
    processor. length: positions of a padded prompt; by default the tokenizer's, at most the encoder's. The module is
    put in eval mode, and is the pipeline's own object.
    """

    def __init__(self, name: str, module: nn.Module, tokenizer: Any, row: EncoderRow, length: int | None = None):
        self.name, self.module, self.row, self.kind = name, module.eval(), row, row.kind
        self.component, self.tokenizer = tokenizer, getattr(tokenizer, "tokenizer", tokenizer)
        self.part = KINDS[row.kind](module)
        self.tower = self.part.tower
        self.frame = frame_of(row.frame, tokenizer)
        given = length or row.length
        self.length: int = given + self.frame.longer if given else min(self.tokenizer.model_max_length, self.part.most)
        if self.kind == "decoder":
            self.taps: list[int] = self.part.taps(row)
            self.part.tail = max(1, self._written_after())
        self._fingerprint = Fingerprint()

    # -- structure ----------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer's blocks."""
        return self.part.layers

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def causal(self) -> bool:
        """Whether no row depends on later ones."""
        return self.part.causal

    @property
    def width(self) -> int:
        """How many numbers a hidden state has."""
        return self.part.norm.weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self.part.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if is_lent(self.linear(0)) else base_weight(self.linear(0)).dtype

    def linear(self, layer: int) -> nn.Linear:
        """The last matrix of a layer's MLP (fc2, T5: wo, decoders: down_proj), from inside a PEFT wrapper.

        Raises EditError where there is no such layer.
        """
        if not 0 <= layer < self.n_layers:
            raise EditError(f"{self.name} has {self.n_layers} layers, counted from 0: there is no layer {layer}")
        found = self.part.linear(layer)
        return getattr(found, "base_layer", found)

    def site(self, layer: int) -> str:
        """The on-disk name of that matrix."""
        return f"{self.name}.{self.part.path(layer)}"

    @property
    def effective(self) -> range:
        """The layers whose edit can reach the generator; the last one's cannot where the generator skips it."""
        if self.kind == "decoder":
            return range(max(self.taps))
        return range(self.n_layers if self.row.rows == "last" else self.n_layers - 1)

    @property
    def usual_layer(self) -> int:
        """The layer that is edited when none is named: 7 of 12 by depth (paper, RoAD).

        Of a decoder, by the depth of the lowest state that is sent, so that all of them are reached; where all states
        are sent, by half of the depth.
        """
        depth = self.n_layers
        if self.kind == "decoder":
            depth = min(self.taps) if self.row.taps else depth // 2
        return min(round(depth * 7 / 12), depth - 1)

    def reached(self, layer: int) -> list[int]:
        """Of a decoder: the states sent to the generator that an edit of the layer changes."""
        return [tap for tap in self.taps if tap > layer]

    def check_layer(self, layer: int, pooled: bool = True) -> None:
        """Raises EditError where an edit would have no effect, or none on a pooled objective."""
        blind = pooled and self.kind == "clip"
        use = range(self.n_layers - 1) if blind else self.effective
        if layer in use:
            return
        why = f"it has {self.n_layers} layers, counted from 0"
        if self.kind == "decoder" and 0 <= layer < self.n_layers:
            why = f"the generator gets the states after {max(use) + 1} of {self.n_layers} layers, and none after that"
            raise EditError(f"layer {layer} of {self.name} takes no edit ({why}); use 0 to {use.stop - 1}")
        if layer == self.n_layers - 1:
            why = "nothing after the last layer's MLP reads the subject's token"
            if self.row.rows == "penultimate":
                why = f"the generator gets the states before the last layer, and {why}"
        raise EditError(f"layer {layer} of {self.name} takes no edit ({why}); use 0 to {use.stop - 1}")

    def in_float32(self) -> TextEncoder:
        """This encoder if it computes in float32 and gradients can be taken through it, else such a copy of it.

        A decoder and an encoder whose weights belong to another program compute in float32 as they are. Of an encoder
        that was opened in inference mode a copy is made, for its tensors take no part in a search.
        """
        plain = all(w.dtype == torch.float32 and not w.is_inference() for w in self.tower.parameters())
        if self.kind == "decoder" or plain or is_lent(self.linear(0)):
            return self
        with torch.inference_mode(False):
            module = copy.deepcopy(self.module).float()
        return TextEncoder(self.name, module, self.component, self.row, self.length - self.frame.longer)

    # -- words --------------------------------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """The prompts' ids, padded and cut as the pipeline does, with the position at which the model pools."""
        lists = self._tokens([self._framed(p)[0] for p in prompts])["input_ids"]
        rows, decoder = [self._cut(ids) for ids in lists], self.kind == "decoder"
        length = max(map(len, rows), default=0) if decoder else self.length
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows], dtype=torch.int64)
        ids = ids.reshape(len(rows), length)
        truncated = torch.tensor([len(row) > self.length for row in lists], dtype=torch.bool)
        last = torch.tensor([len(row) - 1 for row in rows], dtype=torch.int64)
        return Tokens(ids, last if decoder else self.part.ends(ids, self.tokenizer, self.row), truncated)

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self.length:
            return ids
        return ids[: self.length] if self.kind == "decoder" else [*ids[: self.length - 1], ids[-1]]

    def _tokens(self, texts: list[str], **more: bool) -> Any:
        return self.tokenizer(texts, truncation=False, verbose=False, add_special_tokens=self.frame.special, **more)

    def _framed(self, prompt: str) -> tuple[str, int]:
        """The text that the tokenizer gets, and at which character of it the prompt begins."""
        return self.frame.write(self._written(prompt))

    def _written_after(self) -> int:
        """How many tokens the frame writes after a prompt."""
        text, _ = self._framed("a")
        stop = len(text) - len(self.frame.after)
        offsets = self._tokens([text], return_offsets_mapping=True)["offset_mapping"][0]
        return sum(a >= stop and b > a for a, b in offsets)

    def _written(self, text: str) -> str:
        """The text in composed form; a word of several learned vectors written out as diffusers does ("<v> <v>_1")."""
        text = unicodedata.normalize("NFC", text)
        added = self.tokenizer.get_added_vocab()
        for word in [w for w in added if f"{w}_1" in added and w in text]:
            count = next(i for i in range(1, len(added) + 2) if f"{word}_{i}" not in added)
            text = text.replace(word, " ".join([word, *(f"{word}_{i}" for i in range(1, count))]))
        return text

    def starts(self, prompts: Sequence[str]) -> list[int]:
        """The position of each prompt's own first token, after what the frame writes and [BOS]."""
        framed = [self._framed(prompt) for prompt in prompts]
        offsets = self._tokens([text for text, _ in framed], return_offsets_mapping=True)["offset_mapping"]
        return [
            next((i for i, (a, b) in enumerate(found) if b > max(at, a)), len(found) - 1)
            for found, (_, at) in zip(offsets, framed)
        ]

    def locate(self, prompt: str, subject: str, within: tuple[int, int] | None = None) -> int:
        """The position of the subject's last token. Raises EditError as `span` does."""
        return self.span(prompt, subject, within)[1]

    def span(self, prompt: str, subject: str, within: tuple[int, int] | None = None) -> tuple[int, int]:
        """The positions of the subject's first and last token.

        within: (start, length) of the only part of the prompt to look at, in characters. Raises EditError when the
        subject is empty, absent, there more than once, or cut off. Case counts where the tokenizer keeps it.
        """
        start, stop = self._characters(prompt, subject, within)
        text, before = self._framed(prompt)
        start, stop = start + before, stop + before
        offsets = self._tokens([text], return_offsets_mapping=True)["offset_mapping"][0]
        found = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and b > a]
        if not found:
            raise EditError(f"the subject {subject!r} gives no token of its own")
        if found[-1] >= self.length - 1:
            frame = "[BOS] and [EOS]" if self.kind != "decoder" else "what its pipeline writes around a prompt"
            raise EditError(
                f"the subject {subject!r} ends at token {found[-1] + 1}, but {self.name} reads {self.length} with "
                f"{frame}: shorten the prompt"
            )
        return found[0], found[-1]

    def _characters(self, prompt: str, subject: str, within: tuple[int, int] | None) -> tuple[int, int]:
        start, length = within or (0, len(prompt))
        before, part = self._written(prompt[:start]), self._written(prompt[start : start + length])
        words = self._written(subject).split()
        if not words:
            raise EditError(f"the subject is empty: name the words of {prompt!r} that carry the fact")
        pattern = r"\s+".join(re.escape(word) for word in words)
        spans = [m.span() for m in re.finditer(pattern, part, re.IGNORECASE if self._lowercases() else 0)]
        whole = [span for span in spans if not _inside_word(part, *span)]
        if not whole:
            where = "stands only inside a longer word of" if spans else "is not in"
            raise EditError(f"the subject {subject!r} {where} {prompt!r}: name words that the prompt contains")
        if len(whole) > 1:
            raise EditError(
                f"the subject {subject!r} stands {len(whole)} times in {prompt!r}: "
                "name more words around the one that is meant, or use a prompt with one"
            )
        return len(before) + whole[0][0], len(before) + whole[0][1]

    def _lowercases(self) -> bool:
        return self.frame.lower or self.tokenizer.tokenize("A") == self.tokenizer.tokenize("a")

    # -- numbers ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def inputs(self, ids: Int[Tensor, "b t"], layers: Sequence[int]) -> dict[int, Float[Tensor, "b t d_in"]]:
        """The inputs of the linears of these layers at every position, float32; nothing above the deepest is run."""
        if self.kind == "decoder":
            given = [(self.linear(at), "input") for at in layers]
            return dict(zip(layers, self.part.given(ids, given, (self.linear(max(layers)), "input"))))
        with ExitStack() as stack:
            seen = {at: stack.enter_context(read(self.linear(at), stop=at == max(layers))) for at in layers}
            self.run(ids)
        return {at: tensors[0].float() for at, tensors in seen.items()}

    def run(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The last states of padded ids, as the pipeline has the module compute them (CLIP, T5)."""
        mask = self.part.mask(ids, self.tokenizer, self.row) if self.kind == "t5" else None
        return self.tower(ids.to(self.device), **({} if mask is None else {"attention_mask": mask.to(self.device)}))[0]

    def keys(self, prompts: Sequence[str], positions: Sequence[int] | Tensor, layer: int) -> Float[Tensor, "n d_in"]:
        """The input of the layer's linear at one position of each prompt."""
        ids, at = self.tokenize(prompts).ids, torch.as_tensor(positions, dtype=torch.int64)
        out = torch.empty(len(ids), self.linear(layer).in_features, device=self.device)
        for rows, _, found in self.passes(ids, at + 1, lambda batch: self.inputs(batch, [layer])[layer]):
            out[rows] = found[torch.arange(len(rows)), at[rows]]
        return out

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The pooled state, projected where the module has a projection; T5: the mean of the rows up to [EOS].

        Of a decoder, the mean of what the generator gets of the rows after the prompt, its last row where none are.
        """
        tokens = self.tokenize(prompts)
        width = self.width * (len(self.taps) if self.kind == "decoder" else 1)
        pooled = torch.empty(len(tokens.ids), width, device=self.device)
        for rows, _, states in self.passes(tokens.ids, tokens.ends + 1, self._last):
            pooled[rows] = self.pool(states.float(), tokens.ends[rows])
        return self.project(pooled)

    def _last(self, ids: Int[Tensor, "b t"]) -> Tensor:
        return self.part.rows(ids, self.taps) if self.kind == "decoder" else self.run(ids)

    def pool(self, states: Float[Tensor, "n t d"], ends: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The row at [EOS]; T5: the mean up to it; of a decoder, the mean of the rows after the prompt."""
        if self.kind == "clip":
            self.check_pooled(ends)
        return self.part.pool(states, ends)

    def check_pooled(self, ends: Int[Tensor, " n"]) -> None:
        """Raises ModelError where the tokenizer never writes the [EOS] token at which the encoder pools."""
        if not ends.all():
            raise ModelError(
                f"{self.name} pools at token {self.tower.config.eos_token_id} (its config's eos_token_id), which its "
                f"tokenizer does not write (eos {self.tokenizer.eos_token_id}): mend the config"
            )

    def project(self, pooled: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        """Pooled states in the module's projected space; unchanged where the module has no projection."""
        projection = getattr(self.module, "text_projection", None)
        if projection is None:
            return pooled
        return nn.functional.linear(pooled, projection.weight.detach().float())

    @torch.no_grad()
    def states(self, prompts: Sequence[str], clip_skip: int = 0) -> Float[Tensor, "n t d"]:
        """The rows that the generator gets: of the last layer, normalised, or of the one before it as they are.

        Of a decoder, the states that its pipeline sends, side by side, up to the last token, zeros after it: rows of
        the frame are among them, rows of padding are not. clip_skip: how many layers earlier than that to read, as in
        diffusers. Where the generator gets no rows (row.rows is "none"), the last ones.
        """
        tokens = self.tokenize(prompts)
        if self.kind == "decoder":
            return self._decoded(tokens)
        out = torch.empty(*tokens.ids.shape, self.width, device=self.device)

        def read_rows(ids: Tensor) -> Tensor:
            return self.part.rows(ids.to(self.device), self.row, clip_skip) if self.kind == "clip" else self.run(ids)

        for rows, _, found in self.passes(tokens.ids, torch.full((len(tokens.ids),), self.length), read_rows):
            out[rows] = found.float()
        return out

    def _decoded(self, tokens: Tokens) -> Tensor:
        out = torch.zeros(*tokens.ids.shape, self.width * len(self.taps), device=self.device)
        for rows, batch, found in self.passes(tokens.ids, tokens.ends + 1, self._last):
            out[rows, : batch.shape[1]] = found
        past = torch.arange(out.shape[1]) > tokens.ends[:, None]
        return out.masked_fill(past.to(out.device)[..., None], 0.0)

    def batches(self, ids: Int[Tensor, "n t"], needed: Int[Tensor, " n"]) -> Iterator[tuple[Tensor, Tensor]]:
        """(row numbers, their ids) in batches of similar length, shortest first.

        needed: how many positions of each row matter. Causal attention lets a batch end at its longest; T5 reads
        both ways, so there every row keeps its length.
        """
        order = torch.argsort(needed, stable=True)
        lengths = (needed if self.causal else torch.full_like(needed, ids.shape[1]))[order].tolist()
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * lengths[stop] <= BATCH_TOKENS:
                stop += 1
            rows = order[start:stop]
            yield rows, ids[rows, : lengths[stop - 1]]
            start = stop

    def passes(
        self, ids: Int[Tensor, "n t"], needed: Int[Tensor, " n"], work: Callable[[Tensor], Any]
    ) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """(row numbers, their ids, work(ids)) in `batches`, smaller ones where the device's memory ends."""
        for (rows, batch), found in fitted(
            lambda _, some: work(some), self.batches(ids, needed), f"texts in {self.name}"
        ):
            yield rows, batch, found

    # -- identity -----------------------------------------------------------------------------------------------------

    def hash(self) -> str:
        """The fingerprint of the tower's weights by on-disk name: 16 hex digits.

        Without the token embeddings, which textual inversion extends, and the projection, which only some files carry.
        """
        weights = plain_weights(self.tower)
        return self._fingerprint({f"{self.part.root}.{name}": w for name, w in weights.items() if "token" not in name})


def _inside_word(text: str, start: int, stop: int) -> bool:
    """Whether a letter or digit touches either edge; scripts without case write words together, there it may."""
    return any(
        len(pair) == 2 and all(map(_separates, pair))
        for pair in (text[start - 1 : start + 1], text[stop - 1 : stop + 1])
    )


def _separates(character: str) -> bool:
    return unicodedata.category(character) in {"Lu", "Ll", "Lt", "Lm", "Nd"}
