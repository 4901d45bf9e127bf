"""Does a patch do what it says, in pictures? A judge tells; `verification` is the text side, and the two never mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..edits import Edit
from ..errors import EditError, quoted
from ..errors import shown as shown_text
from ..models.model import Model
from ..patch import Patch
from ..verification import source_of, target_of
from .judge import Judge, check_independent, load_judge


@dataclass(frozen=True)
class Seen:
    """How many pictures of an edited prompt the judge takes for the target rather than the source.

    Where the target was given by pictures, a picture counts that is nearer to their mean, by the judge's features, than
    to the mean of the unedited model's pictures of the same prompt.
    """

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
    targets: Sequence[str | Path] = (),
) -> list[Seen]:
    """A `Seen` for each edit, from pictures of its prompt with these seeds; the judge is never the edited encoder.

    targets: the pictures that targets were given by. The record's own names of them are compared with, never opened: a
    patch may come from anybody.
    """
    judge = judge or ("pocket" if model.name == "pocket" else None)
    if judge is None:
        raise EditError("pictures need a judge: give the folder of a CLIP (--judge)")
    judging = load_judge(judge, model.device)
    check_independent(judging, model)
    edits = patch.edits
    if not edits:
        raise EditError("a patch that tells no fact cannot be verified: an imported LoRA has no prompt")
    shown = {edit.name: _pictures(edit, edits, targets) for edit in edits if edit.targets_images}
    clean = {edit.name: model.generate([edit.prompt], seeds) for edit in edits if edit.targets_images}
    with patch.applied(model, strength=strength, force=force):
        drawn = [model.generate([edit.prompt], seeds) for edit in edits]
    seen = []
    for edit, pictures in zip(edits, drawn):
        images = [picture.image for picture in pictures]
        if edit.targets_images:
            hits = _nearer(judging, images, shown[edit.name], [picture.image for picture in clean[edit.name]])
        else:
            logits = judging.logits(images, [target_of(edit), source_of(edit)])
            hits = int((logits[:, 0] > logits[:, 1]).sum())
        seen.append(
            Seen(edit.name, edit.prompt, hits / len(pictures), *wilson(hits, len(pictures)), len(pictures), judge)
        )
    return seen


def _nearer(judging: Judge, images: Sequence[Any], one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many of the images are nearer to the mean of `one` than to that of `other`."""
    features = judging.of_images(images)
    nearness = [features @ judging.of_images(group).mean(0) for group in (one, other)]
    return int((nearness[0] > nearness[1]).sum())


def _pictures(edit: Edit, edits: Sequence[Edit], targets: Sequence[str | Path]) -> list[Any]:
    """The opened pictures of an edit's target, of those given: by their names, where several edits have pictures."""
    from PIL import Image, UnidentifiedImageError

    names = {Path(str(name)).name for name in edit.new}
    several = sum(other.targets_images for other in edits) > 1
    mine = [Path(target) for target in targets if not several or Path(target).name in names]
    if not mine:
        wanted = shown_text(", ".join(sorted(names)))
        raise EditError(f"the target of {quoted(edit.prompt)} is a picture: give it with --picture ({wanted})")
    try:
        return [Image.open(file).convert("RGB") for file in mine]
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise EditError(f"{', '.join(map(str, mine))}: no pictures that can be read: {error}") from None


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927)."""
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / count + spread / (4 * count)) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
