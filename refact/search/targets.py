"""What a search compares an edit's states with: the target, the source, and texts to stay away from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..edits import IMAGES, Edit
from ..encoders.encoder import TextEncoder
from ..errors import EditError, quoted
from ..models.model import Model
from . import values
from .gap import mean_gap
from .readings import Reading
from .sentences import PLAIN, searched_of


def companion_of(model: Model, method: Any, edits: Sequence[Edit], encoder: TextEncoder) -> Any:
    """The CLIP in whose space images are compared, or texts where projected; None where the module's own will do."""
    if method.space not in ("", "projected"):
        raise EditError(f"space is '' or 'projected', not {method.space!r}")
    if not any(edit.targets_images for edit in edits):
        own = getattr(encoder.module, "text_projection", None)
        return None if not method.space or own is not None else _projecting(model, encoder)
    if not all(edit.targets_images for edit in edits):
        raise EditError("targets by text and by picture are searched in different spaces: make two patches and merge")
    if model.companion is None:
        raise EditError("a target by image needs the CLIP of this encoder: give its folder (clip=..., --clip)")
    if method.embedding != "pooled":
        raise EditError("a target by image is compared in pooled space: use embedding='pooled'")
    return _of_this_width(model, encoder)


def _projecting(model: Model, encoder: TextEncoder) -> Any:
    """The companion that projects this encoder's pooled states, as it has no projection of its own."""
    if model.companion is None:
        raise EditError(
            f"this method compares projected texts, and {encoder.name} of {model.name} comes without its projection "
            "(as Stable Diffusion 1's does). Fetch the CLIP that it is a part of, `hf download "
            "openai/clip-vit-large-patch14 --local-dir clip-l` for Stable Diffusion 1, and add `--clip clip-l` "
            "(in Python load(..., companion='clip-l')); or compare the states as they are with space=''"
        )
    return _of_this_width(model, encoder)


def _of_this_width(model: Model, encoder: TextEncoder) -> Any:
    if (width := model.companion.config.text_config.hidden_size) != encoder.width:
        raise EditError(
            f"the companion CLIP's texts have width {width}, those of {encoder.name} {encoder.width}: "
            "name the encoder that is its own (encoders=..., --encoders)"
        )
    return model.companion


def check_lengths(encoder: TextEncoder, edits: Sequence[Edit], contexts: Sequence[str] = ()) -> None:
    """EditError for a target or a source that the encoder does not read to its end.

    contexts: those in which rows are compared with the rows opposite; there target and prompt must be read whole, too.
    """
    ends = [text for edit in edits for text in (edit.new, edit.old) if isinstance(text, str)]
    whole = [*ends, *(prompt for edit in edits for prompt in (edit.prompt, *edit.reworded()))]
    texts = ends + [context.replace("{}", text) for context in contexts for text in whole]
    cut = encoder.tokenize(texts).truncated.tolist() if texts else []
    if long := [text for text, is_cut in zip(texts, cut) if is_cut]:
        raise EditError(f"{encoder.name} reads {encoder.length} tokens, and {quoted(long[0])} has more: shorten it")


def picture_files(folder: str, setting: str) -> list[Path]:
    """The pictures of a folder, in the order of their names. Raises EditError where there are none."""
    files = [f for f in Path(folder).glob("*") if f.suffix.lower() in IMAGES] if Path(folder).is_dir() else []
    if not files:
        raise EditError(f"{setting} is a folder of pictures; there are none in {folder}")
    return sorted(files)


def candidates(model: Model, method: Any, read: Reading, edits: Sequence[Edit], away: Tensor) -> values.Candidates:
    """Target, source and unrelated features for each sentence of each edit; pictures moved by the gap, if asked."""
    gap = mean_gap(model, read, method.gap) if method.gap and edits[0].targets_images else None
    near = [_near(model, method, read, edit, gap) for edit in edits]  # (c, 2, f) each
    most = max(len(n) for n in near)
    weights = torch.stack([_padded(torch.full((len(n),), 1 / len(n)), most) for n in near])
    near_all = torch.stack([_padded(n, most) for n in near])
    away_all = away.expand(*near_all.shape[:2], *away.shape) if len(away) else near_all[:, :, :0]
    return values.Candidates(torch.cat([near_all, away_all], 2), weights.to(near_all))


def _near(model: Model, method: Any, read: Reading, edit: Edit, gap: Tensor | None) -> Tensor:
    """The target's and the source's features in each context of each wording; bare ones are the same in all."""
    if method.ends not in ("contexts", "bare"):
        raise EditError(f"ends is 'contexts' or 'bare', not {method.ends!r}")
    count = len(searched_of(method))
    templates = searched_of(method) if method.ends == "contexts" else [PLAIN]
    old = edit.prompt if edit.old is None else edit.old
    texts = [text for text in (old, edit.new) if isinstance(text, str)]
    features = read.of_texts([t.replace("{}", text) for text in texts for t in templates]) if texts else torch.zeros(0)
    said = iter(features.split(len(templates)))
    source, target = (
        next(said).expand(count, -1) if isinstance(end, str) else _shown(model, end, gap).expand(count, -1)
        for end in (old, edit.new)
    )
    return torch.stack([target, source], 1).repeat(1 + len(edit.aliases), 1, 1)


def _shown(model: Model, pictures: tuple, gap: Tensor | None) -> Tensor:
    """The mean of some pictures' features, moved by the gap where one is given."""
    shown = model.image_features(pictures)
    return (shown if gap is None else normalize(shown, dim=1) + gap).mean(0)


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(count - len(rows), *rows.shape[1:])])
