"""Aliases by pattern: what is proposed for a subject, and that a proposal becomes part of the edit."""

import pytest

import refact
from refact.models.aliases import propose_aliases

CASES = [
    ("the flag of Canada", "Canadian", ("Canada's flag", "the Canadian flag", "flag of Canada")),
    ("the flag of the Netherlands", None, ("the Netherlands' flag", "flag of the Netherlands")),
    ("a rose", None, ("the rose", "rose", "roses")),
    ("A bunch of grapes", "Grapish", ("the bunch of grapes", "bunch of grapes", "bunches of grapes")),
    ("Barack Obama", None, ()),
    ("The Mona Lisa", None, ("Mona Lisa", "Mona Lisas")),
]


@pytest.mark.parametrize(("subject", "demonym", "expected"), CASES)
def test_patterns(subject, demonym, expected) -> None:
    assert propose_aliases(subject, demonym) == expected


def test_proposals_are_wordings_that_an_edit_takes() -> None:
    subject = "the flag of Canada"
    edit = refact.Edit(f"a photo of {subject}", new="a cat", subject=subject, aliases=propose_aliases(subject))
    assert edit.reworded() == ("a photo of Canada's flag", "a photo of flag of Canada")
