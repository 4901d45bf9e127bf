"""Cases beyond single prompts: concepts by layer, two things in a prompt, facts that depend on each other.

They are lists of `Case`, to be run like any benchmark: `bench.run(companions(cases), model, methods, out)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..edits import Edit
from ..errors import DataError
from ..evidence.cases import Case, Probe, alike, key_of

COMPANIONS = ("a dog", "a clock", "a tree")  # things that a prompt may hold beside the edited one
ROLE = re.compile(r"^(the .+) of (.+)$", re.IGNORECASE)


def _case(kind: str, edit: Edit, oracle: str, positives: Iterable[Probe] = (), negatives: Iterable[Probe] = ()) -> Case:
    case = Case("", edit, tuple(positives), tuple(negatives), oracle, kind)
    key = f"{kind}--{key_of(case)}"
    return replace(case, id=key, edit=replace(edit, name=key))


def concepts(subject: str, targets: Sequence[str]) -> list[Case]:
    """The causal probe of section 5: `subject` edited to each target; run it with `studies.layers`, compare by layer.

    The paper: "a doctor" to a person with each of six emotions, 50 seeds; on the pocket: colours or sizes.
    """
    if not targets or any(alike(subject, target) for target in targets):
        raise DataError(f"a probe needs targets that differ from its subject {subject!r}, not {list(targets)}")
    return [_case("concepts", Edit(subject, old=subject, new=target), target) for target in targets]


def companions(cases: Iterable[Case], things: Sequence[str] = COMPANIONS) -> list[Case]:
    """Whether "a dog and <the edited thing>" shows the new thing (generality) and keeps the dog (specificity)."""
    found = []
    for case in cases:
        texts = " ".join([case.source, str(case.edit.new), case.edit.prompt]).casefold()
        beside = [thing for thing in things if thing.split()[-1].casefold() not in texts.split()]
        pairs = [(f"{t} and {{}}", t) for t in beside] + [(f"{{}} and {t}", t) for t in beside]
        placed = [(p.format(case.edit.prompt), p.format(case.source), p.format(case.edit.new), t) for p, t in pairs]
        shown = [Probe(prompt, old, new, new) for prompt, old, new, _ in placed]
        kept = [Probe(prompt, new, str(case.edit.new), new) for prompt, _, new, _ in placed]
        found.append(_case("companions", case.edit, case.oracle, shown, kept))
    return found


def relations(cases: Iterable[Case], world: Mapping) -> list[Case]:
    """Cases that ask what else changes with a role: for each edit a "two-step", an "inverse" and a "sibling" case.

    "the national animal of Canada" -> a penguin:
    two-step  the role's holder named by another of its facts, "... of the country whose national flower is ..."
    inverse   "the country whose national animal is a penguin" should now show Canada's flag
    sibling   Canada's other facts and the other countries' animals must stay
    """
    roles = dict(_roles(world))
    found = []
    for case in cases:
        if not (match := ROLE.match(case.edit.words)) or not isinstance(case.edit.new, str):
            continue
        relation, holder = match.groups()
        others = {r: thing for (r, h), thing in roles.items() if alike(h, holder) and not alike(r, relation)}
        peers = {h: thing for (r, h), thing in roles.items() if alike(r, relation) and not alike(h, holder)}
        found += [c for c in (_two_step(case, relation, others), _inverse(case, relation, holder, peers)) if c]
        texts = [(f"{r} of {holder}", t) for r, t in others.items()] + [
            (f"{relation} of {h}", t) for h, t in peers.items()
        ]
        kept = [
            Probe(prompt, thing, case.edit.new, prompt) for prompt, thing in texts if not alike(thing, case.edit.new)
        ]
        if kept:
            found.append(_case("sibling", case.edit, case.oracle, (), kept[:8]))
    if not found:
        raise DataError('no case is about a role of the form "the ... of ...", as relations need')
    return found


def _roles(world: Mapping) -> Iterable[tuple[tuple[str, str], str]]:
    """((relation, holder), the thing's wording) of every role of the world."""
    things = {c["id"]: c["wordings"][0] for c in world["concepts"]}
    for concept in world["concepts"]:
        if concept["kind"] in ("role", "flag") and (match := ROLE.match(concept["wordings"][0])):
            relation, holder = match.groups()
            yield (relation, holder), things.get(concept.get("depicts"), concept["wordings"][0])


def _two_step(case: Case, relation: str, others: Mapping[str, str]) -> Case | None:
    told = {r.removeprefix("the "): thing for r, thing in others.items() if not thing.startswith(f"{r} of ")}
    prompts = [f"{relation} of the country whose {r} is {thing}" for r, thing in told.items()]
    probes = [Probe(prompt, case.source, str(case.edit.new), str(case.edit.new)) for prompt in prompts]
    return _case("two-step", case.edit, case.oracle, probes) if probes else None


def _inverse(case: Case, relation: str, holder: str, peers: Mapping[str, str]) -> Case | None:
    """The wrong answer is the country that has the target already, or any other one."""
    owners = [h for h, thing in peers.items() if alike(thing, str(case.edit.new))] or list(peers)[:1]
    prompt = f"the country whose {relation.removeprefix('the ')} is {case.edit.new}"
    right = f"the flag of {holder}"
    probes = [Probe(prompt, f"the flag of {h}", right, right) for h in owners]
    return _case("inverse", case.edit, case.oracle, probes) if probes else None
