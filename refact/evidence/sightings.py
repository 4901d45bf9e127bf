"""Does a patch do what it says, in pictures? A judge tells; `verification` is the text side, and the two never mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..errors import EditError
from ..models.model import Model
from ..patch import Patch
from ..verification import source_of, target_of
from .judge import check_independent, load_judge


@dataclass(frozen=True)
class Seen:
    """How many pictures of an edited prompt the judge takes for the target rather than the source."""

    name: str
    prompt: str
    share: float
    low: float  # Wilson's interval, 95 %
    high: float
    count: int
    judge: str

    def to_json(self) -> dict:
        """A JSON-able form."""
        return asdict(self)


def look(
    model: Model,
    patch: Patch,
    seeds: Sequence[int],
    judge: str | None = None,
    strength: float = 1.0,
    force: bool = False,
) -> list[Seen]:
    """A `Seen` for each edit, from pictures of its prompt with these seeds; the judge is never the edited encoder."""
    judge = judge or ("pocket" if model.name == "pocket" else None)
    if judge is None:
        raise EditError("pictures need a judge: give the folder of a CLIP (--judge)")
    judging = load_judge(judge)
    check_independent(judging, model)
    edits = patch.edits
    with patch.applied(model, strength=strength, force=force):
        drawn = [model.generate([edit.prompt], seeds) for edit in edits]
    seen = []
    for edit, pictures in zip(edits, drawn):
        logits = judging.logits([p.image for p in pictures], [target_of(edit), source_of(edit)])
        hits = int((logits[:, 0] > logits[:, 1]).sum())
        seen.append(
            Seen(edit.name, edit.prompt, hits / len(pictures), *wilson(hits, len(pictures)), len(pictures), judge)
        )
    return seen


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927)."""
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / count + spread / (4 * count)) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
