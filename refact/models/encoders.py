"""TextEncoder: one text encoder of a pipeline: its tokens, the keys of its MLPs, and what it says. CLIP and T5."""

from __future__ import annotations

import copy
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import EditError, ModelError
from ..families import EncoderRow
from ..stash import base_weight
from .fingerprints import Fingerprint, plain_weights
from .hooks import read
from .lent import is_lent

BATCH_TOKENS = 2048  # positions in one forward pass
LEGACY_EOS = 2  # eos_token_id of the first published CLIP configs: transformers then pools at the highest id


@dataclass(frozen=True)
class Tokens:
    """Prompts as the model reads them. ids: padded to its length; ends: the pooled [EOS]; truncated: words were cut."""

    ids: Int[Tensor, "n t"]
    ends: Int[Tensor, " n"]
    truncated: Bool[Tensor, " n"]


def text_tower(module: Any) -> Any:
    """The part with embeddings, encoder and final_layer_norm, on every layout that transformers has had."""
    while (inner := getattr(module, "text_model", module)) is not module:
        module = inner
    return module


class TextEncoder:
    """A text encoder with its tokenizer, read as the pipeline reads it: no attention mask, its own padding.

    name: of the pipeline's component; row: what the generator gets of it. length: positions of a padded prompt; by
    default the tokenizer's, at most the encoder's. The module is put in eval mode, and is the pipeline's own object.
    """

    def __init__(self, name: str, module: nn.Module, tokenizer: Any, row: EncoderRow, length: int | None = None):
        self.name, self.module, self.tokenizer, self.row, self.kind = name, module.eval(), tokenizer, row, row.kind
        tower: Any = text_tower(module) if self.kind == "clip" else module.encoder
        self.tower = tower
        most = tower.embeddings.position_embedding.num_embeddings if self.kind == "clip" else 512
        self.length: int = length or min(tokenizer.model_max_length, most)
        self._fingerprint = Fingerprint()

    # -- structure ----------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer's blocks."""
        return self.tower.encoder.layers if self.kind == "clip" else self.tower.block

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def width(self) -> int:
        """Of a state."""
        return self.tower.final_layer_norm.weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self.tower.final_layer_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if is_lent(self.linear(0)) else base_weight(self.linear(0)).dtype

    def linear(self, layer: int) -> nn.Linear:
        """The second matrix of a layer's MLP (fc2, T5: wo), from inside a PEFT wrapper if there is one."""
        block: Any = self.layers[layer]
        found = block.mlp.fc2 if self.kind == "clip" else block.layer[-1].DenseReluDense.wo
        return getattr(found, "base_layer", found)

    def site(self, layer: int) -> str:
        """The on-disk name of that matrix."""
        if self.kind == "t5":
            return f"{self.name}.encoder.block.{layer}.layer.1.DenseReluDense.wo"
        return f"{self.name}.text_model.encoder.layers.{layer}.mlp.fc2"

    @property
    def effective(self) -> range:
        """The layers whose edit can reach the generator; the last one's cannot where the generator skips it."""
        return range(self.n_layers if self.row.rows == "last" else self.n_layers - 1)

    def check_layer(self, layer: int, pooled: bool = True) -> None:
        """Raises EditError where an edit would have no effect, or none on a pooled objective."""
        blind = pooled and self.kind == "clip"
        use = range(self.n_layers - 1) if blind else self.effective
        if layer in use:
            return
        why = f"it has {self.n_layers} layers, counted from 0"
        if layer == self.n_layers - 1:
            why = "nothing after the last layer's MLP reads the subject's token"
            if self.row.rows == "penultimate":
                why = f"the generator gets the states before the last layer, and {why}"
        raise EditError(f"layer {layer} of {self.name} takes no edit ({why}); use 0 to {use.stop - 1}")

    def in_float32(self) -> TextEncoder:
        """This encoder if it computes in float32 and gradients can be taken through it, else such a copy of it."""
        plain = all(w.dtype == torch.float32 and not w.is_inference() for w in self.tower.parameters())
        if plain or is_lent(self.linear(0)):
            return self
        with torch.inference_mode(False):
            module = copy.deepcopy(self.module).float()
        return TextEncoder(self.name, module, self.tokenizer, self.row, self.length)

    # -- words --------------------------------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """The prompts' ids, padded and cut as the pipeline does, with the position at which the model pools."""
        lists = self.tokenizer([self._written(p) for p in prompts], truncation=False, verbose=False)["input_ids"]
        pad, cut = self.tokenizer.pad_token_id, self.length - 1
        rows = [ids if len(ids) <= self.length else [*ids[:cut], ids[-1]] for ids in lists]
        ids = torch.tensor([row + [pad] * (self.length - len(row)) for row in rows], dtype=torch.int64)
        ids = ids.reshape(len(rows), self.length)
        truncated = torch.tensor([len(row) > self.length for row in lists], dtype=torch.bool)
        return Tokens(ids, self._ends(ids), truncated)

    def _ends(self, ids: Int[Tensor, "n t"]) -> Int[Tensor, " n"]:
        """Where the installed transformers pools: the first [EOS], or the highest id where the config is old."""
        eos = self.tokenizer.eos_token_id if self.kind == "t5" else self.tower.config.eos_token_id
        if eos == LEGACY_EOS and self.kind == "clip":
            # learned words have higher ids than [EOS]; where no generator gets this vector, they need not count
            return (ids if self.row.pooled else ids.where(ids <= self.tokenizer.eos_token_id, -1)).argmax(1)
        return (ids == eos).int().argmax(1)

    def _written(self, text: str) -> str:
        """The text in composed form; a word of several learned vectors written out as diffusers does ("<v> <v>_1")."""
        text = unicodedata.normalize("NFC", text)
        added = self.tokenizer.get_added_vocab()
        for word in [w for w in added if f"{w}_1" in added and w in text]:
            count = next(i for i in range(1, len(added) + 2) if f"{word}_{i}" not in added)
            text = text.replace(word, " ".join([word, *(f"{word}_{i}" for i in range(1, count))]))
        return text

    def locate(self, prompt: str, subject: str, within: tuple[int, int] | None = None) -> int:
        """The position of the subject's last token; raises as `span` does."""
        return self.span(prompt, subject, within)[1]

    def span(self, prompt: str, subject: str, within: tuple[int, int] | None = None) -> tuple[int, int]:
        """The positions of the subject's first and last token.

        within: (start, length) of the only part of the prompt to look at, in characters. Raises EditError when the
        subject is empty, absent, there more than once, or cut off. Case counts where the tokenizer keeps it.
        """
        start, stop = self._characters(prompt, subject, within)
        offsets = self.tokenizer(self._written(prompt), truncation=False, verbose=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        found = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start and b > a]
        if not found:
            raise EditError(f"the subject {subject!r} gives no token of its own")
        if found[-1] >= self.length - 1:
            raise EditError(
                f"the subject {subject!r} ends at token {found[-1] + 1}, but {self.name} reads {self.length} with "
                "[BOS] and [EOS]: shorten the prompt"
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
        return self.tokenizer.tokenize("A") == self.tokenizer.tokenize("a")

    # -- numbers ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def inputs(self, ids: Int[Tensor, "b t"], layers: Sequence[int]) -> dict[int, Float[Tensor, "b t d_in"]]:
        """The inputs of the linears of these layers at every position, float32; nothing above the deepest is run."""
        with ExitStack() as stack:
            seen = {at: stack.enter_context(read(self.linear(at), stop=at == max(layers))) for at in layers}
            self.tower(ids.to(self.device))
        return {at: tensors[0].float() for at, tensors in seen.items()}

    def keys(self, prompts: Sequence[str], positions: Sequence[int] | Tensor, layer: int) -> Float[Tensor, "n d_in"]:
        """The input of the layer's linear at one position of each prompt."""
        ids, at = self.tokenize(prompts).ids, torch.as_tensor(positions, dtype=torch.int64)
        out = torch.empty(len(ids), self.linear(layer).in_features, device=self.device)
        for rows, batch in self.batches(ids, at + 1):
            found = self.inputs(batch, [layer])[layer]
            out[rows] = found[torch.arange(len(rows)), at[rows]]
        return out

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """The pooled state, projected where the module has a projection; T5: the mean of the rows up to [EOS]."""
        tokens = self.tokenize(prompts)
        pooled = torch.empty(len(tokens.ids), self.width, device=self.device)
        for rows, batch in self.batches(tokens.ids, tokens.ends + 1):
            pooled[rows] = self.pool(self.tower(batch.to(self.device))[0].float(), tokens.ends[rows])
        return self.project(pooled)

    def pool(self, states: Float[Tensor, "n t d"], ends: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The row at [EOS]; T5: the mean up to it."""
        if self.kind == "t5":
            kept = (torch.arange(states.shape[1]) <= ends[:, None]).to(states)
            return (states * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        self.check_pooled(ends)
        return states[torch.arange(len(ends)), ends]

    def check_pooled(self, ends: Int[Tensor, " n"]) -> None:
        """ModelError where the encoder never sees its own [EOS]."""
        if not ends.all():
            raise ModelError(
                f"{self.name} pools at token {self.tower.config.eos_token_id} (its config's eos_token_id), which its "
                f"tokenizer does not write (eos {self.tokenizer.eos_token_id}): mend the config"
            )

    def project(self, pooled: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        """Pooled states in the module's projected space; as they are where it has none."""
        projection = getattr(self.module, "text_projection", None)
        if projection is None:
            return pooled
        return nn.functional.linear(pooled, projection.weight.detach().float())

    @torch.no_grad()
    def states(self, prompts: Sequence[str], clip_skip: int = 0) -> Float[Tensor, "n t d"]:
        """The rows that the generator gets: of the last layer, normalised, or of the one before it as they are.

        clip_skip: how many layers earlier than that to read, as in diffusers. Where the generator gets no rows
        (row.rows is "none"), the last ones.
        """
        ids = self.tokenize(prompts).ids
        out = torch.empty(*ids.shape, self.width, device=self.device)
        for rows, batch in self.batches(ids, torch.full((len(ids),), self.length)):
            out[rows] = self._rows(batch.to(self.device), clip_skip).float()
        return out

    def _rows(self, ids: Tensor, clip_skip: int) -> Tensor:
        early = clip_skip + (self.row.rows == "penultimate")
        if not early:
            return self.tower(ids)[0]
        if early > self.n_layers:
            raise ModelError(f"{self.name} has {self.n_layers} layers; clip_skip={clip_skip} leaves none")
        with read(self.layers[self.n_layers - early], stop=True) as seen:
            self.tower(ids)
        return seen[0] if self.row.rows == "penultimate" else self.tower.final_layer_norm(seen[0])

    def batches(self, ids: Int[Tensor, "n t"], needed: Int[Tensor, " n"]) -> Iterator[tuple[Tensor, Tensor]]:
        """(row numbers, their ids) in batches of similar length, shortest first.

        needed: how many positions of each row matter. Causal attention lets a CLIP's batch end at its longest; T5
        reads both ways, so there every row keeps its length.
        """
        order = torch.argsort(needed, stable=True)
        lengths = (needed if self.kind == "clip" else torch.full_like(needed, ids.shape[1]))[order].tolist()
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * lengths[stop] <= BATCH_TOKENS:
                stop += 1
            rows = order[start:stop]
            yield rows, ids[rows, : lengths[stop - 1]]
            start = stop

    # -- identity -----------------------------------------------------------------------------------------------------

    def hash(self) -> str:
        """The fingerprint of the tower's weights by on-disk name: 16 hex digits.

        Without the token embeddings, which textual inversion extends, and the projection, which only some files carry.
        """
        prefix = "text_model." if self.kind == "clip" else "encoder."
        weights = plain_weights(self.tower)
        return self._fingerprint({prefix + name: w for name, w in weights.items() if "token" not in name})


def _inside_word(text: str, start: int, stop: int) -> bool:
    """Whether a letter or digit touches either edge; scripts without case write words together, there it may."""
    return any(
        len(pair) == 2 and all(map(_separates, pair))
        for pair in (text[start - 1 : start + 1], text[stop - 1 : stop + 1])
    )


def _separates(character: str) -> bool:
    return unicodedata.category(character) in {"Lu", "Ll", "Lt", "Lm", "Nd"}
