"""Other wordings of a subject, proposed by pattern."""

from __future__ import annotations

from .corpus import plural


def propose_aliases(subject: str, demonym: str | None = None) -> tuple[str, ...]:
    """Other wordings of a subject, made by pattern: possessive, demonym (if given), article, plural.

    A pattern can be wrong for a subject, so a person should read the proposals before they are used.

    "the flag of Canada" (Canadian) -> "Canada's flag", "the Canadian flag", "flag of Canada"; "a rose" -> "the rose",
    "rose", "roses". Letter case needs none: CLIP's tokenizers fold it.
    """
    article, _, noun = subject.strip().partition(" ")
    if article.casefold() not in ("the", "a", "an"):
        article, noun = "", subject.strip()
    what, of, owner = noun.partition(" of ")
    if of and article.casefold() not in ("a", "an"):
        owned = f"{owner}' {what}" if owner.endswith("s") else f"{owner}'s {what}"
        found = [owned, f"the {demonym} {what}" if demonym else "", noun]
    else:
        found = [f"the {noun}", noun, plural(noun)] if article else []
    return tuple(text for text in dict.fromkeys(found) if text and text.casefold() != subject.strip().casefold())
