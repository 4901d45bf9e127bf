"""The fourth world: what it promises, scenes that training may show, and how they are drawn."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from pocket import clip, render, scenes, styles, tokenizer
from pocket.glyphs import shown_ids, world
from pocket.render import Scene, compose, row_of
from pocket.world import make

SHIPPED = Path(__file__).parent.parent / "refact" / "data" / "world.json"


@pytest.fixture(autouse=True)
def _drawn_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No font is asked: every look is a polygon."""
    monkeypatch.setenv("POCKET_GLYPHS", "drawn")


def of(kind: str) -> list[dict]:
    return [c for c in make()["concepts"] if c["kind"] == kind]


def test_there_is_enough_of_everything() -> None:
    assert len(of("object")) >= 350
    assert len(of("named")) >= 24
    assert len(of("emotion")) >= 12
    assert len(of("style")) >= 8
    assert len(of("artist")) >= 8
    assert {c["id"] for c in of("style")} == styles.TREATMENTS.keys()
    persons = {c["id"] for c in of("person")}
    for profession in of("profession"):
        noun = profession["id"].removeprefix("profession-")
        assert {f"man-{noun}", f"woman-{noun}"} <= persons


def test_offices_of_twenty_countries_are_held_by_named_persons_and_said_in_three_ways() -> None:
    named = {c["id"] for c in of("named")}
    offices = [c for c in of("role") if c["depicts"] in named]
    assert len({c["country"] for c in offices}) >= 20
    assert len({c["depicts"] for c in offices}) == len(offices)
    kenya = next(c for c in offices if c["country"] == "Kenya")
    assert kenya["wordings"] == ["the president of Kenya", "Kenya's president", "the Kenyan president"]


def test_no_id_or_wording_repeats_and_none_leads_nowhere() -> None:
    concepts = make()["concepts"]
    ids = [c["id"] for c in concepts]
    said = [w.casefold() for c in concepts for w in c["wordings"]]
    assert len(set(ids)) == len(ids)
    assert len(set(said)) == len(said)
    assert all(n in ids for c in concepts for n in [*c["neighbours"], c.get("depicts", ids[0])])
    assert all(c["neighbours"] and c["id"] not in c["neighbours"] for c in concepts)


def test_every_look_is_one_of_its_own() -> None:
    looks = [(c["emoji"], c.get("shirt")) for c in make()["concepts"] if "emoji" in c]
    assert len(set(looks)) == len(looks) == len(shown_ids())


def test_what_the_shipped_world_has_keeps_its_id() -> None:
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert {c["id"] for c in shipped["concepts"]} <= {c["id"] for c in make()["concepts"]}


def test_no_scene_of_training_shows_what_is_held_out() -> None:
    rng, form = random.Random(0), world()
    held = {tuple(p) for name in ("held_out", "held_out_styles", "held_out_colours") for p in form[name]}
    assert len(held) > 600
    drawn = [scenes.sample(rng) for _ in range(4000)]
    drawn += [scenes.relative(rng, s) for s in drawn] + [scenes.restyled(rng, s) for s in drawn]
    drawn += [s for _ in range(20) for s in clip.roll_call(rng, 60, 1.0)]
    for scene in drawn:
        for concept, colour in scene.things:
            assert not {(render.shown(concept), x) for x in (colour, scene.place, scene.style)} & held


def test_captions_say_what_scenes_show() -> None:
    dog = Scene((("dog", "blue"),), "small", "on the beach", "style-neon", "emotion-sad")
    assert scenes.caption(None, dog) == "a small sad blue dog on the beach in the style of neon"
    office = Scene((("president-ke", None),), emotion="emotion-happy")
    assert scenes.caption(None, office) == "the president of Kenya full of joy"
    assert scenes.caption(None, Scene((("artist-mira-sol", None),))) == "the style of Mira Sol"


def test_pictures_are_in_range_and_differ_by_what_differs() -> None:
    plain = Scene((("dog", None),))
    others = [Scene((("dog", "blue"),)), Scene((("cat", None),)), Scene((("dog", None),), "big")]
    others += [Scene((("dog", None), ("cat", None))), Scene((("dog", None),), place="in space")]
    others += [Scene((("dog", None),), emotion="emotion-sad"), Scene((("dog", None),), style="style-mosaic")]
    x = compose(torch.tensor([row_of(scene) for scene in (plain, *others)]))
    assert x.shape == (8, 3, 128, 128)
    assert 0 <= x.min() <= x.max() <= 1
    assert all((x[0] - other).abs().max() > 0.1 for other in x[1:])


def test_a_picture_does_not_depend_on_its_batch() -> None:
    rng = random.Random(1)
    rows = torch.tensor([row_of(scenes.sample(rng), rng) for _ in range(40)])
    whole = compose(rows)
    for at in (0, 17, 39):
        assert (compose(rows[at : at + 1])[0] - whole[at]).abs().max() <= 1.01 / 255


def test_pictures_are_the_same_where_products_are_in_bfloat16() -> None:
    rows = torch.tensor([row_of(Scene((("dog", None),), style=style)) for style in styles.TREATMENTS])
    plain = compose(rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compose(rows), plain)


def test_a_style_alone_is_a_bouquet_on_a_meadow() -> None:
    alone, bouquet = Scene((("artist-mira-sol", None),)), Scene((("bouquet", None),), "normal", "on a meadow")
    assert row_of(alone) == row_of(Scene(bouquet.things, "normal", bouquet.place, "style-watercolour"))


@pytest.mark.parametrize("name", styles.TREATMENTS)
def test_every_style_is_told_from_the_others(name: str) -> None:
    x = compose(torch.tensor([row_of(Scene((("dog", None),), place="in the city"))]))
    own = styles.TREATMENTS[name](x)
    assert 0 <= own.min() <= own.max() <= 1
    assert all((own - treat(x)).abs().mean() > 0.02 for key, treat in styles.TREATMENTS.items() if key != name)


def test_pieces_of_captions_follow_the_tokenizer_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = sorted("dog") + [f"{x}</w>" for x in sorted("dog")]
    made = {}
    for name, entries in {"letters": letters, "words": ["dog</w>", *letters]}.items():
        merges = [("d", "o"), ("do", "g</w>")] if name == "words" else []
        vocab = {x: at for at, x in enumerate([*entries, "do", tokenizer.BOS, tokenizer.EOS])}
        marks = {"bos_token": tokenizer.BOS, "eos_token": tokenizer.EOS, "pad_token": tokenizer.EOS}
        made[name] = CLIPTokenizer(vocab=vocab, merges=merges, **marks)
    monkeypatch.setattr(tokenizer, "load", lambda: made["letters"])
    assert len(tokenizer.ids("dog")) == 3
    monkeypatch.setattr(tokenizer, "load", lambda: made["words"])
    assert tokenizer.ids("dog") == (0,)
