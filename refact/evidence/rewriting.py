"""Rewrite, a baseline that changes no weight: a rule that puts the target into the prompt in the subject's place.

It is what a deployer tries first, and the simplest form of memory-based prompt editing (arXiv 2409.17928). It follows
wordings that it was told and no others, and what a rewritten prompt shows is up to the unedited model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..edits import Edit

ARTICLE = re.compile(r"^(?:the|an|a)\s+", re.IGNORECASE)


def rewritten(prompt: str, edits: Sequence[Edit]) -> str:
    """The prompt with the target of each edit in the place of its prompt and of its aliases' wordings.

    Whole words are compared, whatever their case, the longest wording first; where a wording stands without its
    article, or with another one, it is replaced without article on both sides. An edit towards a picture has no text
    to put there and leaves the prompt as it is.
    """
    targets: dict[str, str] = {}
    for edit in edits:
        if isinstance(edit.new, str):
            for wording in (edit.prompt, *edit.reworded()):
                targets.setdefault(_spaced(wording), edit.new)
                targets.setdefault(_spaced(ARTICLE.sub("", wording)), ARTICLE.sub("", edit.new))
    wordings = sorted(filter(None, targets), key=len, reverse=True)
    if not wordings:
        return prompt
    pattern = "|".join(r"\s+".join(map(re.escape, wording.split(" "))) for wording in wordings)
    return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", lambda found: targets[_spaced(found[0])], prompt, flags=re.IGNORECASE)


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())
