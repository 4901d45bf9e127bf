"""ROME (Meng et al., NeurIPS 2022, arXiv 2202.05262) as a method of refact: one matrix, one key for each edit.

The search is refact's own. What is ROME's is the writing: the direction is C^-1 times the mean key over all contexts,
and its length makes the change hold exactly at the bare prompt, as in ROME's code. Protected prompts are held, as they
are by every method of refact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_doc import Doc

from refact import Edit, ReFACT

if TYPE_CHECKING:
    from refact import Model, Patch


@dataclass(frozen=True)
class ROME(ReFACT):
    """One matrix, changed along C^-1 times each edit's mean key, exactly at the bare prompt (arXiv 2202.05262)."""

    presets: ClassVar[tuple[str, ...]] = ()
    citation: ClassVar[str] = """@inproceedings{meng2022rome,
  title     = {Locating and Editing Factual Associations in {GPT}},
  author    = {Meng, Kevin and Bau, David and Andonian, Alex and Belinkov, Yonatan},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
  note      = {arXiv:2202.05262}
}"""

    rarity: Annotated[float, Doc("As in ReFACT; as published 0, so that all keys count alike.")] = 0.0
    write: Annotated[str, Doc("ROME always writes along each edit's mean key.")] = "value"

    def __call__(self, model: Model, edits: Sequence[Edit], onto: Sequence[Patch] = ()) -> Patch:
        """The patch for these edits. The facts of the patches in `onto` stay held. Raises EditError."""
        import torch  # not at the top of the file: `refact edit --help` reads the settings above without torch

        from refact import solve
        from refact.edits import distinct
        from refact.writing import held, loop

        edits = distinct(edits)

        def write(encoder, layer, wanted) -> loop.Written:
            """Called once for each text encoder, with each edit's keys and the offset that the search has found."""
            prior, record = held.prior_of(self, model, encoder, layer)  # C = E[k k^T], and what the patch records of it
            keys = torch.stack([keys.mean(0) for keys in wanted.keys])  # (edits, d_in)
            prior, dropped = held.protect(self, encoder, layer, edits, onto, [key[None] for key in keys], prior)
            solution = solve.exact(keys, prior)
            ends = [encoder.locate(edit.prompt, edit.words) for edit in edits]
            bare = encoder.keys([edit.prompt for edit in edits], ends, layer).double()  # (edits, d_in)
            right = solution.right / (bare @ solution.right.T).diagonal()[:, None]
            share = torch.eye(len(edits), dtype=torch.float64)  # each prompt gets the whole of its own edit's offset
            return loop.Written(replace(solution, right=right, written=bare @ right.T), share, dropped, record)

        return loop.one_layer(self, model, edits, write)
