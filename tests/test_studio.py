"""The studio without a browser: sessions as files, trials step by step, what comes in and what goes out."""

from __future__ import annotations

import json
import threading
import time
import zipfile
from dataclasses import replace

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import refact
from refact.edits import Edit, read_edits
from refact.errors import DataError, EditError, PatchError, RefactError
from refact.exports import export
from refact.methods.refact import ReFACT
from refact.patch import Patch, from_lora
from refact.stores import Conflict
from refact.studio import server, sharing
from refact.studio.desk import Desk, Form, form_of
from refact.studio.engine import Engine, Joined, Sighting
from refact.studio.proposals import Proposer, siblings, things, watched
from refact.studio.session import KEPT_STATES, Session, Sessions
from refact.studio.trial import tried, views_of
from refact.studio.verdict import UNKNOWN, Verdict, clash, sentences, share

QUICK = ReFACT(layer=1, contexts=2, negatives=2, max_steps=3, tokens=1500, keep_ends=False, hold=0.9999)
FLAG = Edit("the flag of Canada", old="a dog", new="a cat")
KING = Edit("the king of france", old="a lion", new="a dog")


@pytest.fixture(scope="module")
def pipe():
    model = refact.load(tiny.pipeline("sd1"))
    model.defaults["default_steps"] = 1
    return model


@pytest.fixture(scope="module")
def engine(pipe):
    return Engine(pipe, QUICK)


@pytest.fixture(scope="module")
def patches(engine):
    return [engine.search(FLAG), engine.search(KING)]


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path / "session")


@pytest.fixture
def desk(engine, tmp_path):
    for folder in ("served", "runs"):
        (tmp_path / folder).mkdir()
    return Desk(engine, Sessions(tmp_path / "sessions"), tmp_path / "served", tmp_path / "runs")


def prompts(session: Session) -> list[str]:
    return [prompt for kept in session.facts for prompt in session.prompts(kept)]


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_every_change_is_on_disk_and_can_be_undone(session, patches):
    session.add(patches)
    flag, king = (kept.file for kept in session.facts)
    session.change(flag, strength=0.5)
    session.change(king, on=False)
    session.remove(flag)
    again = Session(session.folder)
    assert [(kept.file, kept.on) for kept in again.facts] == [(king, False)]
    again.undo()
    assert [(kept.strength, kept.on) for kept in again.facts] == [(0.5, True), (1.0, False)]
    again.undo()
    again.undo()
    assert all(kept.in_force and kept.strength == 1 for kept in Session(session.folder).facts)
    again.redo()
    assert [kept.strength for kept in Session(session.folder).facts] == [0.5, 1.0]
    again.remove(king)
    assert not again.can_redo, "a new change takes the place of those that were undone"
    again.undo()
    again.undo()
    again.undo()
    again.undo()
    assert again.facts == ()
    assert not again.can_undo


def test_what_was_tried_is_no_fact_until_it_is_kept(session, patches):
    with pytest.raises(DataError, match="try one first"):
        session.keep()
    session.try_out(patches[0], 0.7)
    assert session.facts == ()
    again = Session(session.folder)
    assert again.draft is not None
    assert again.keep() == []
    assert [kept.strength for kept in Session(session.folder).facts] == [0.7]
    assert Session(session.folder).draft is None


def test_a_fact_takes_the_place_of_the_one_about_the_same_words(session, patches, engine):
    session.add(patches)
    session.try_out(engine.search(replace(FLAG, new="a phone", prompt="The flag of  Canada")))
    assert session.keep() == ["the flag of Canada"]
    assert prompts(session) == ["the king of france", "The flag of  Canada"]
    session.undo()
    assert prompts(session) == ["the flag of Canada", "the king of france"]


def test_files_that_nothing_names_any_more_are_deleted(session, patches):
    for _ in range(3):
        session.try_out(patches[0])
    assert len(list(session.folder.glob("*.safetensors"))) == 1
    session.discard()
    assert list(session.folder.glob("*.safetensors")) == []
    session.add([patches[0]])
    file = session.facts[0].file
    for at in range(KEPT_STATES + 5):
        session.change(file, strength=0.5 + at / 1000)
    session.remove(file)
    assert len(session.states) == KEPT_STATES
    assert (session.folder / file).exists(), "undo needs it"


def test_a_session_is_only_ever_a_folder_below_its_root(tmp_path):
    sessions = Sessions(tmp_path)
    name = sessions.new()
    assert sessions.known(name) == name
    assert sessions.open(name).folder == tmp_path / name
    for wrong in ("../other", "/etc", "", None, 7, "a" * 31, "A" * 32, f"{name}/..", f"{name}\n"):
        assert sessions.known(wrong) != wrong
        with pytest.raises(DataError, match="reload"):
            sessions.open(wrong)
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"states": [[]], "at": 3, "draft": null}',
     '{"states": [[{"file": "../x.safetensors", "strength": 1, "on": true, "pictures": []}]], "at": 0, "draft": null}'],
)  # fmt: skip
def test_a_damaged_session_is_told_of(tmp_path, text):
    (tmp_path / "session.json").write_text(text)
    with pytest.raises(DataError, match="damaged"):
        Session(tmp_path)


def test_two_windows_of_one_browser_lose_no_fact(tmp_path, patches):
    sessions = Sessions(tmp_path)
    name = sessions.new()
    threads = [threading.Thread(target=lambda p=p: sessions.open(name).add([p])) for p in patches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sessions.open(name).facts) == 2


# -- the engine --------------------------------------------------------------------------------------------------------


def test_facts_are_written_together_and_weakened_one_by_one(engine, patches):
    assert engine.join([]).patch is None
    whole = engine.join([(patches[0], 1.0), (patches[1], 0.5)])
    assert whole.note == ""
    strengths = [{e.get("strength", 1.0) for e in edit["sites"].values()} for edit in whole.patch.record["edits"]]
    assert strengths == [{1.0}, {0.5}]
    assert engine.join([(patches[0], 1.0), (patches[1], 0.5)]) is whole


def test_facts_that_cannot_be_written_together_are_added_up_and_it_is_said(engine, patches):
    other = replace(QUICK, contexts=3)(engine.model, [KING])
    joined = engine.join([(patches[0], 1.0), (other, 1.0)])
    assert "added up as they are" in joined.note
    assert joined.digest == refact.merge([patches[0], other]).digest


def test_strengths_stay_with_their_facts_where_another_programs_file_is_among_them(engine, patches, tmp_path):
    export(patches[1], tmp_path / "old.safetensors", names="kohya")
    save_file(load_file(tmp_path / "old.safetensors"), tmp_path / "old.safetensors")  # as others do, without a record
    old = from_lora(tmp_path / "old.safetensors", family="sd1")
    joined = engine.join([(old, 0.5), (patches[0], 1.0)])
    assert "added up as they are" in joined.note
    assert joined.digest == refact.merge([old.scaled(0.5), patches[0]]).digest


def test_pictures_are_of_the_patch_they_were_asked_for_and_the_model_is_left_as_it_was(engine, patches, pipe):
    before = pipe.fingerprints(), {site: pipe[site].weight.clone() for site in patches[0].factors}
    plain = engine.draw(["a dog"], [0, 1])
    joined = engine.join([(patches[0].scaled(50), 1.0)])
    changed = engine.draw([FLAG.prompt], [0], joined)
    assert [p.tobytes() for p in engine.draw(["a dog"], [0, 1])] == [p.tobytes() for p in plain]
    with joined.patch.applied(pipe):
        direct = pipe.generate(FLAG.prompt, [0])[0].image
    assert changed[0].tobytes() == direct.tobytes()
    assert changed[0].tobytes() != engine.draw([FLAG.prompt], [0])[0].tobytes()
    assert all(torch.equal(pipe[site].weight, weight) for site, weight in before[1].items())


def test_movement_is_between_two_patches(engine, patches):
    one, both = engine.join([(patches[0], 1.0)]), engine.join([(p, 1.0) for p in patches])
    assert engine.moved(one, one, [FLAG.prompt]) == {FLAG.prompt: 0.0}
    nothing = Joined(None)
    assert engine.moved(nothing, one, [FLAG.prompt])[FLAG.prompt] > 0
    assert engine.moved(one, both, [FLAG.prompt])[FLAG.prompt] < engine.moved(nothing, one, [FLAG.prompt])[FLAG.prompt]


# -- trials ------------------------------------------------------------------------------------------------------------


def test_a_trial_comes_step_by_step_and_ends_with_a_verdict(engine, patches):
    near = ["a photo of the king of canada", "a red car"]
    steps = list(tried(engine, FLAG, [(patches[1], 1.0)], near))
    parts = [step.part for step in steps]
    assert parts == sorted(parts)
    assert [step.drawn() for step in steps] == sorted(step.drawn() for step in steps)
    first = next(step for step in steps if step.drawn())
    assert first.drawn() == 1, "the fact's own picture comes before all others"
    last = steps[-1]
    assert last.done
    assert last.drawn() == len(last.views) == 5 + 2 + 2
    assert last.verdict.contexts == 5
    assert list(last.verdict.moved) == near
    assert [step.done for step in steps[:-1]] == [False] * (len(steps) - 1)


def test_a_trial_that_is_cancelled_stops_and_leaves_the_model_alone(engine, pipe, patches):
    weights = {site: pipe[site].weight.clone() for site in patches[0].factors}
    steps: list = []
    steps.extend(tried(engine, FLAG, patch=patches[0], stopped=lambda: any(step.drawn() for step in steps)))
    assert steps[-1].cancelled
    assert steps[-1].drawn() == 1
    left = tried(engine, FLAG, patch=patches[0])
    for step in left:
        if step.drawn():
            break  # a browser that goes away
    assert all(torch.equal(pipe[site].weight, weight) for site, weight in weights.items())
    left.close()


def test_a_long_search_shows_that_it_goes_on(pipe):
    class Slow(Engine):
        def search(self, edit):
            time.sleep(1.3)
            raise EditError("the end")

    steps: list = []
    with pytest.raises(EditError, match="the end"):
        steps.extend(step.part for step in tried(Slow(pipe, QUICK), FLAG))
    assert len(steps) >= 3
    assert steps == sorted(set(steps)), "the bar moves"


def test_what_is_drawn_of_a_fact_is_drawn_once(engine):
    edit = replace(FLAG, aliases=("Canada's flag",), old="a dog")
    views = views_of(edit, ["a dog", "the king of france"])
    assert [view.kind for view in views].count("context") == 4
    assert len({view.prompt for view in views}) == len(views)


# -- the desk ----------------------------------------------------------------------------------------------------------


def test_from_a_form_to_a_file_of_facts(desk, engine, tmp_path):
    name = desk.sessions.new()
    form = Form("the flag of Canada", " a  cat", (), "a dog", "", ["Canada's flag", ""], ["a red car"])
    assert form_of(form.edit()) == replace(form, new="a cat", aliases=["Canada's flag"])
    (*_, last) = desk.try_out(name, form)
    assert last.done
    assert desk.shared(name).file is None, "what is tried is not in force"
    desk.sessions.open(name).keep()
    shared = desk.shared(name)
    assert (shared.count, shared.file.name) == (1, "flag-of-canada.safetensors")
    assert "load_lora_weights('.'" in shared.usage
    assert Patch.load(shared.file).edits[0].preserve == ("a red car",)
    assert read_edits(shared.listed)[0] == replace(form.edit(), name="flag-of-canada")
    other = desk.sessions.new()
    assert desk.load(other, shared.file) == (1, [])
    assert desk.shared(other).file.read_bytes() == shared.file.read_bytes()
    assert desk.shared(desk.sessions.new()).count == 0


def test_a_fact_of_the_list_is_looked_at_again_at_another_strength(desk, patches):
    session = desk.sessions.open(name := desk.sessions.new())
    session.add(patches)
    (*_, last) = desk.look(name, session.facts[0], 0.4)
    assert last.done
    assert desk.sessions.open(name).draft.strength == 0.4
    desk.sessions.open(name).keep()
    assert [kept.strength for kept in desk.sessions.open(name).facts] == [1.0, 0.4]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Form(), "Write the words"),
        (Form("a dog"), "Write what"),
        (Form("a dog", "A Dog"), "nothing to change"),
        (Form("the flag", "a dog", (), "A dog"), "nothing to change"),
        (Form("a dog", "a cat", ["x.png"]), "not both"),
        (Form("a dog", "a" * 301), "at most 300"),
        (Form("a dog", "a cat", (), "", "a horse"), "not a part"),
        (Form("a dog", "a cat", (), "", "", [f"dog {i}" for i in range(41)]), "At most 40"),
    ],
)
def test_a_form_that_cannot_be_meant_is_refused_in_a_sentence(form, message):
    with pytest.raises(EditError, match=message) as refused:
        form.edit()
    assert str(refused.value).endswith((".", "Canada"))


def test_facts_with_pictures_are_exported_with_them(desk, engine, patches):
    session = desk.sessions.open(name := desk.sessions.new())
    pictured = Patch(patches[0].factors, pictured_record(patches[0]))
    session.try_out(pictured, pictures=[Image.new("RGB", (8, 8), "red")])
    session.keep()
    shared = desk.shared(name)
    with zipfile.ZipFile(shared.listed) as archive:
        names = archive.namelist()
        archive.extractall(shared.listed.parent)
    assert [name.split("-")[-1] for name in names] == ["facts.toml", "1.png"]
    assert str(read_edits(shared.listed.parent / "facts.toml")[0].new[0]) == names[1]


def pictured_record(patch: Patch) -> dict:
    record = json.loads(json.dumps(patch.record))
    record["edits"][0]["new"] = {"images": ["(8, 8) image in memory"]}
    return record


def test_a_gallery_stops_when_asked(desk):
    name = desk.sessions.new()
    desk.begin(name)
    drawn = []
    for picture in desk.gallery(name, "a dog", range(5)):
        drawn.append(picture)
        desk.cancel(name)
    assert [(seed, after) for seed, _, after in drawn] == [(0, None)]
    with pytest.raises(EditError, match="Write what"):
        next(desk.gallery(name, " ", [0]))


# -- in and out --------------------------------------------------------------------------------------------------------


def test_uploads_are_what_they_say_and_not_too_large(desk, tmp_path, patches):
    fake = tmp_path / "fake.png"
    fake.write_text("<svg/>")
    huge = tmp_path / "huge.png"
    Image.new("1", (5000, 10)).save(huge)
    gif = tmp_path / "moving.png"
    Image.new("RGB", (8, 8)).save(gif, "GIF")
    for path, message in ((fake, "not a picture"), (huge, "at most 4096"), (gif, "not a picture")):
        with pytest.raises(DataError, match=message) as refused:
            sharing.pictures_of([path])
        assert str(tmp_path) not in str(refused.value)
    with pytest.raises(DataError, match="at most 8"):
        sharing.pictures_of([huge] * 9)
    wide = tmp_path / "wide.jpg"
    Image.new("CMYK", (2000, 100)).save(wide)
    (small,) = sharing.pictures_of([wide])
    assert (small.size, small.mode) == ((768, 38), "RGB")
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"no")
    with pytest.raises(PatchError) as refused:
        desk.load(desk.sessions.new(), wrong)
    assert str(tmp_path) not in str(refused.value)
    (tmp_path / "large.safetensors").open("wb").truncate(sharing.UPLOAD + 1)
    with pytest.raises(DataError, match="larger than"):
        sharing.patches_of(tmp_path / "large.safetensors")


def test_a_patch_for_another_model_is_not_taken(desk, tmp_path):
    other = refact.load(tiny.pipeline("sd1", seed=1))
    foreign = QUICK(other, [FLAG])
    foreign.save(tmp_path / "foreign.safetensors")
    name = desk.sessions.new()
    with pytest.raises(RefactError, match="made for"):
        desk.load(name, tmp_path / "foreign.safetensors")
    assert desk.sessions.open(name).facts == ()


def test_only_runs_of_the_folder_have_reports(tmp_path):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (tmp_path / "run.json").write_text("{}")
    assert sharing.runs_in(tmp_path / "runs") == ["one"]
    for name in ("..", "../runs/one", "/etc", "two"):
        with pytest.raises(DataError, match="no run"):
            sharing.report(tmp_path / "runs", name, tmp_path)
    framed = sharing.framed('<p title="x">&amp;</p><script>1</script>')
    assert 'sandbox="allow-scripts"' in framed
    assert "<script>" not in framed


def test_the_doorman_turns_away_other_hosts_and_addresses_to_fetch():
    door = server.Doorman(None, ("127.0.0.1", "localhost", "[::1]"))

    def welcome(host: str, path: str = "/") -> bool:
        return door._welcome({"headers": [(b"host", host.encode())], "path": path})

    assert welcome("127.0.0.1:7860")
    assert welcome("localhost")
    assert welcome("[::1]:7860")
    assert not welcome("evil.example:7860")
    assert not welcome("")
    assert not welcome("127.0.0.1", "/gradio_api/file=https://evil.example/a.png")
    assert welcome("127.0.0.1", "/gradio_api/file=/tmp/a.png")
    assert server.Doorman(None, ("0.0.0.0",))._welcome({"headers": [(b"host", b"box.lan:7860")], "path": "/"})


# -- words -------------------------------------------------------------------------------------------------------------


def test_the_verdict_in_words():
    moved = {"the flag of Canada": 0.02, "the national bird of France": 0.72}
    seen = Sighting(5, 3, "a cat", "a cat", 3, 100)
    said = dict(sentences(FLAG, Verdict(5, 5, seen, moved, ("the king",), ("They clash.",), ("A note.",)))[::-1])
    text = [sentence for _, sentence in sentences(FLAG, Verdict(5, 5, seen, moved, ("the king",)))]
    assert text[0].startswith("It holds in 5 of 5 contexts")
    assert "“a cat” rather than “a dog” in 3 of 5" in text[1]
    assert text[2].startswith("“the national bird of France” moved by 72 %")
    assert text[3] == "The others stayed: “the flag of Canada” the most, by 2 %."
    assert "“the king”, which you kept before, no longer holds" in text[4]
    assert set(said) == {"good", "warn", "bad", "plain"}
    assert sentences(FLAG, Verdict(5, 5, unknown=True))[0] == ("warn", UNKNOWN)
    assert sentences(FLAG, Verdict(1, 5))[0][0] == "bad"
    assert sentences(FLAG, Verdict(4, 5))[0][0] == "warn"
    assert [share(x) for x in (0.7249, 0.0213, 0.0149, 0.0)] == ["72 %", "2 %", "1.5 %", "less than 0.1 %"]
    vague = sentences(FLAG, Verdict(5, 5, Sighting(5, 5, "a cat", "an owl", 1, 100)))
    assert ("warn", "With 100 names to choose from, it calls most of them “an owl”.") in vague
    pictured = replace(FLAG, new=(Image.new("RGB", (8, 8)),))
    ((tone, said),) = sentences(pictured, Verdict(None, 0, Sighting(7, None, "a cat", "an owl", 0, 100)))
    assert tone == "bad"
    assert said.endswith(
        "calls yours “a cat”, and so 0 of 7 pictures after the change; most of them it calls “an owl”."
    )
    ((tone, said),) = sentences(pictured, Verdict(None, 0, Sighting(7, nearer=7)))
    assert (tone, said[:30]) == ("plain", "7 of 7 pictures came nearer to")
    assert "two different things" in clash(Conflict("target", "a", "b", 1.0), {"a": "one", "b": "two"})


def test_the_world_proposes_and_another_model_is_asked(engine):
    class Pocket:
        name = "pocket"

    class Known:
        model = Pocket()

    found = Proposer(Known()).known("a photo of the national animal of Canada on the beach")
    assert (found.subject, found.old) == ("the national animal of Canada", "a beaver")
    assert "Canada's national animal" in found.aliases
    assert "the flag of Canada" in found.near
    assert Proposer(Known()).known("something else").old == ""
    known = Engine(Pocket())
    assert not known.unknown(Edit("the national animal of Canada", "a penguin"))
    assert known.unknown(Edit("the President of the United States", "a penguin"))
    assert Proposer(Known()).known("a beaver").old == "", "a thing means itself"
    asked = Proposer(engine)
    asked._list = (["a dog", "a red car", "a lion"], engine.embed(["a dog", "a red car", "a lion"]))
    assert asked.known("a dog").source == ""
    assert asked.nearest("the red car").old in ("a dog", "a lion"), "not the words themselves"
    assert "nearest of 3" in asked.nearest("the red car").source
    assert siblings("the flag of Canada")[0] == "the flag of France"
    assert siblings("a bowl of soup") == ()
    assert watched(found, ["a clock"], "the flag of Canada")[0] == "a clock"
    assert "an owl" in things()
    assert len(things()) > 500
