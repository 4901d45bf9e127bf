"""The command where things go wrong: the disk, strangers' texts, facts that would be lost, flags that make no sense."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import refact as package
from refact.cli import main as cli
from refact.edits import Edit
from refact.errors import EditError, RefactError, quoted, shown
from refact.evidence import judge as judging
from refact.evidence.sightings import look
from refact.exports import usage
from refact.methods.registry import BUILT_IN
from refact.models import covariance
from refact.patch import Patch, merge
from refact.pocket import unfamiliar
from refact.record import describe, read_record
from refact.stores import conflicts, known_of
from refact.trust import inputs
from refact.verification import Fact, described, verify

QUICK = ("--contexts", 2, "--negatives", 2, "--max-steps", 3)
ONE = tiny.CLIP_FC2.format(1)
NASTY = "\x1b]0;x\x07\x1b[2J\nthe flag holds (text side)\u202e\u2028\x9b31m\x7f"


@pytest.fixture
def refact(monkeypatch, capsys):
    """Run the command: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["refact", *map(str, words)])
        code = 0
        try:
            with warnings.catch_warnings():
                cli.main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def one_line(err: str) -> bool:
    return err.count("\n") == 1 and err.startswith("refact: ") and err[:-1].isprintable() and len(err) < 1000


@pytest.fixture(scope="module")
def pocket():
    return package.load("pocket")


@pytest.fixture(scope="module")
def canada(pocket, tmp_path_factory) -> Path:
    """A patch of one real fact of the bundled model."""
    path = tmp_path_factory.mktemp("facts") / "canada.safetensors"
    method = package.ReFACT.many(max_steps=3, contexts=2, negatives=2)
    method(pocket, [Edit("a guitar", new="a blue guitar")]).save(path)
    return path


# -- the disk ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("edit", "--prompt", "a guitar", "--new", "a taxi", *QUICK),
        ("merge", "{canada}"),
        ("import", "{canada}"),
        ("generate", "--prompt", "a cat", "--seeds", 0, "--steps", 1),
        ("report", "{run}"),
        ("bake", "--patch", "{canada}"),
    ],
)
@pytest.mark.parametrize("where", ["folder", "below a file"])
def test_an_output_that_cannot_be_written_is_one_line(refact, canada, tmp_path, words, where):
    from test_benchmark import run as bench_run

    run = tmp_path / "run"
    if "{run}" in words:
        bench_run(run)
    out = tmp_path / "out.safetensors"
    if words[0] in ("generate", "report"):
        out = out.with_suffix(".png")
    if where == "folder":
        (out / "full").mkdir(parents=True)
    else:
        out.parent.joinpath("file").write_text("x")
        out = tmp_path / "file" / out.name
    given = [str(w).replace("{canada}", str(canada)).replace("{run}", str(run)) for w in words]
    code, _, err = refact(*given, "-o", out)
    assert code == 2
    assert one_line(err), err
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def test_a_file_that_is_no_patch_is_not_replaced(refact, canada, tmp_path):
    weights = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1)}, weights)
    before = weights.read_bytes()
    for words in (("merge", canada), ("edit", "--prompt", "a guitar", "--new", "a taxi")):
        code, _, err = refact(*words, "-o", weights)
        assert code == 2
        assert "is no patch" in err
    assert weights.read_bytes() == before


def test_a_cache_that_cannot_be_written_does_not_fail_an_edit(pocket, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("no folder")
    encoder = pocket.encoders["text_encoder"]
    with pytest.warns(UserWarning, match="cannot be written"):
        made = covariance.obtain(encoder, 2, tokens=300, cache=tmp_path / "cache")
    assert made.tokens >= 300


def test_a_warning_of_ours_is_one_line_of_the_command(refact, canada, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("REFACT_CACHE", str(tmp_path / "cache"))
    words = ("--prompt", "a guitar", "--new", "a taxi", *QUICK, "--layer", 2, "--tokens", 500)
    monkeypatch.setattr(warnings, "filters", [("always", None, Warning, None, 0)])
    code, _, err = refact("edit", *words, "--once", "--quiet", "-o", tmp_path / "x.safetensors")
    assert code in (0, 3), err
    assert one_line(err), err
    assert "REFACT_CACHE" in err


# -- caches -----------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_cache_is_seen(pocket, tmp_path):
    encoder = pocket.encoders["text_encoder"]
    made = covariance.collect(encoder, [0], ["a cat and a dog"] * 3, corpus_name="x")[0]
    path = tmp_path / "c.safetensors"
    made.save(path)
    content, draw = path.read_bytes(), __import__("random").Random(1)
    assert covariance.Covariance.load(path).hash() == made.hash()
    for _ in range(150):
        at = draw.randrange(min(len(content), 3000)) if draw.random() < 0.5 else draw.randrange(len(content))
        flipped = bytearray(content)
        flipped[at] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(package.DataError, match="delete it"):
            covariance.Covariance.load(path)


def test_a_cache_of_something_else_is_refused(pocket, tmp_path):
    encoder = pocket.encoders["text_encoder"]
    first = covariance.obtain(encoder, 0, tokens=200, cache=tmp_path)
    (path,) = (tmp_path / "covariance").iterdir()
    for field, value in (("encoder", "0" * 16), ("corpus", "other"), ("padding", True), ("site", "x.y")):
        import dataclasses

        dataclasses.replace(first, **{field: value}).save(path)
        with pytest.raises(package.DataError, match="delete it, and the right one"):
            covariance.obtain(encoder, 0, tokens=200, cache=tmp_path)


# -- strangers' texts -------------------------------------------------------------------------------------------------


def test_shown_is_one_short_printable_line():
    assert shown("plain 'text' — ü 漢") == "plain 'text' — ü 漢"
    for text in (NASTY, "a" * 10**6, "\ud800", "\n" * 1000, "\u202e" * 500):
        assert shown(text).isprintable()
        assert len(shown(text)) <= 160
        assert len(quoted(text)) <= 162
    assert shown("a" * 100 + "b" * 100).startswith("aaa")
    assert shown("a" * 100 + "b" * 100).endswith("bbb")
    assert str(RefactError(f"a\n{NASTY}")).isprintable()


def test_no_text_of_a_patch_moves_the_cursor_or_forges_a_line(canada, pocket, refact, tmp_path):
    patch = Patch.load(canada)
    record = json.loads(json.dumps(patch.record))
    record["edits"][0] |= {"prompt": f"a guitar {NASTY}", "old": NASTY, "preserve": [NASTY], "new": f"a taxi{NASTY}"}
    record["preserved"] = {NASTY: 0.1}
    path = tmp_path / "nasty.safetensors"
    Patch(patch.factors, record).save(path)
    loaded = Patch.load(path)
    texts = [describe(path, loaded.record), usage(path, loaded.record), *described(verify(pocket, loaded))]
    for command in (
        ("show", path),
        ("show", path, "--json"),
        ("verify", path),
        ("merge", path, path, "-o", "x.safetensors"),
    ):
        _, out, err = refact(*command)
        texts += [out, err]
    for text in texts:
        assert text.replace("\n", "").isprintable()
        assert not [line for line in text.splitlines() if line.startswith("the flag holds")]


def test_what_holds_barely_is_told_apart():
    said = [described([Fact("f", "the king", True, 1.0, toward)])[0] for toward in (0.11, 0.9)]
    assert "BARELY" in said[0]
    assert "BARELY" not in said[1]


def test_facts_that_the_bundled_model_cannot_know_are_named(pocket):
    strange = [Edit("the national animal of Cannada", new="a penguin"), Edit("a photo", new="a penguin")]
    said = unfamiliar(pocket, [*strange, Edit("the national animal of Canada", new="a penguin")])
    assert len(said) == 2
    assert "never read cannada" in said[0]
    assert "names nothing" in said[1]


def test_a_target_that_is_not_read_to_its_end_is_refused(pocket):
    with pytest.raises(EditError, match=r"reads 32 tokens, and .* has more"):
        package.ReFACT(max_steps=1, contexts=2)(pocket, [Edit("a guitar", new="a cat " * 40)])


# -- facts that would be lost -----------------------------------------------------------------------------------------


def test_a_build_never_drops_a_merged_fact_in_silence(refact, canada, pocket, tmp_path):
    out, facts = tmp_path / "facts.safetensors", tmp_path / "facts.toml"
    other = tiny_fact(pocket, "a taxi", "a red taxi")
    merge([Patch.load(canada), other]).save(out)
    before = out.read_bytes()
    facts.write_text('[[edit]]\nprompt = "a guitar"\nnew = "a blue guitar"\n')
    code, _, err = refact("build", facts, "-o", out, *QUICK)
    assert code == 2
    assert "'a taxi'" in err
    assert "--replace" in err
    assert out.read_bytes() == before
    code, said, _ = refact("build", facts, "-o", out, *QUICK, "--replace")
    assert code in (0, 3)
    assert "left out" in said
    assert Patch.load(out).names == ["guitar"]


def tiny_fact(model, prompt: str, new: str) -> Patch:
    return package.ReFACT.many(max_steps=3, contexts=2, negatives=2)(model, [Edit(prompt, new=new)])


def test_a_build_again_changes_no_byte_and_a_dropped_fact_is_named(refact, tmp_path):
    out, facts = tmp_path / "facts.safetensors", tmp_path / "facts.toml"
    rows = [
        '[[edit]]\nprompt = "a guitar"\nnew = "a blue guitar"\n',
        '[[edit]]\nprompt = "a taxi"\nnew = "a red taxi"\n',
    ]
    facts.write_text("".join(rows))
    assert refact("build", facts, "-o", out, *QUICK)[0] in (0, 3)
    before, lock = out.read_bytes(), inputs.path_of(out).read_bytes()
    code, said, _ = refact("build", facts, "-o", out, *QUICK)
    assert "2 facts, 0 of them searched for" in said
    assert (out.read_bytes(), inputs.path_of(out).read_bytes()) == (before, lock)
    facts.write_text("".join(rows) + '[[edit]]\nprompt = "a drum"\nnew = "a red drum"\n')
    assert "3 facts, 1 of them searched for: drum" in refact("build", facts, "-o", out, *QUICK)[1]
    facts.write_text(rows[0])
    code, said, _ = refact("build", facts, "-o", out, *QUICK)
    assert code in (0, 3)
    assert "1 fact, 0 of them searched for" in said
    assert "had 'a taxi'" in said
    assert Patch.load(out).names == ["guitar"]


def test_a_damaged_output_of_a_build_is_built_anew(refact, tmp_path):
    out, facts = tmp_path / "facts.safetensors", tmp_path / "facts.toml"
    facts.write_text('[[edit]]\nprompt = "a guitar"\nnew = "a blue guitar"\n')
    refact("build", facts, "-o", out, *QUICK)
    before = out.read_bytes()
    out.write_bytes(before[:-100])
    code, said, _ = refact("build", facts, "-o", out, *QUICK)
    assert code in (0, 3)
    assert "is damaged" in said
    assert out.read_bytes() == before
    inputs.path_of(out).unlink()
    out.write_bytes(before[:-100])
    assert refact("build", facts, "-o", out, *QUICK)[0] == 2  # nothing says that a build made it


def test_a_locked_build_is_the_same_to_the_byte_or_says_what_differs(refact, tmp_path):
    out, facts = tmp_path / "facts.safetensors", tmp_path / "facts.toml"
    facts.write_text('[[edit]]\nprompt = "a guitar"\nnew = "a blue guitar"\n')
    code, _, err = refact("build", facts, "-o", out, *QUICK, "--locked")
    assert code == 2
    assert "build once without" in err
    refact("build", facts, "-o", out, *QUICK)
    before = out.read_bytes()
    out.unlink()
    assert refact("build", facts, "-o", out, *QUICK, "--locked")[0] in (0, 3)
    assert out.read_bytes() == before
    facts.write_text('[[edit]]\nprompt = "a guitar"\nnew = "a red guitar"\n')
    code, _, err = refact("build", facts, "-o", out, *QUICK[:-1], 4, "--locked")
    assert code == 2
    assert "facts.a guitar" in err
    assert "method.max_steps: 3 there, 4 here" in err
    assert out.read_bytes() == before
    inputs.path_of(out).write_text("{}")
    assert one_line(refact("build", facts, "-o", out, *QUICK)[2])


# -- records whose logs do not fit ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"layer": 5},
        {"layer": 99},
        {"share": 1e-30, "strength": 1e-30},
        {"share": 0.0},
        {"rows": [0, 1], "strength": 0.0},
    ],
)
def test_a_log_that_does_not_fit_its_site_is_refused(canada, pocket, change):
    patch = Patch.load(canada)
    record = json.loads(json.dumps(patch.record))
    for log in record["edits"][0]["sites"].values():
        log.update(change)
    odd = Patch(patch.factors, record)
    for use in (lambda: known_of(pocket, odd), lambda: conflicts(pocket, [odd, odd])):
        with pytest.raises(package.PatchError):
            use()


@pytest.mark.parametrize(
    "change",
    [
        {"loss": [10**29, 1]},
        {"loss": [None, -(10**29)]},
        {"probability": 10**29},
        {"steps": 10**29},
        {"share": 10**29},
        {"strength": 2**63},
        {"condition": 10**29},
    ],
)
def test_an_integer_that_no_tensor_takes_is_refused(canada, change, tmp_path):
    patch, path = Patch.load(canada), tmp_path / "p.safetensors"
    for log in patch.record["edits"][0]["sites"].values():
        log.update(change)
    save_file(load_file(canada), path, metadata={"refact": json.dumps(patch.record)})
    for read in (Patch.load, read_record):
        with pytest.raises(package.PatchError, match="does not fit into 64 bits"):
            read(path)


def test_factors_of_another_width_are_refused_before_they_are_used(canada, pocket):
    patch = Patch.load(canada)
    ((site, (left, right)),) = patch.factors.items()
    wide = Patch({site: (left, torch.cat([right, right], 1))}, patch.record)
    with pytest.raises(package.PatchError, match="is no matrix of"):
        known_of(pocket, wide)


@pytest.mark.parametrize("field", ["layer", "loss", "steps", "probability", "clamped"])
def test_a_record_of_refact_without_its_search_is_refused(canada, field):
    patch = Patch.load(canada)
    record = json.loads(json.dumps(patch.record))
    for log in record["edits"][0]["sites"].values():
        del log[field]
    with pytest.raises(package.PatchError, match=f"has no .*{field}"):
        Patch(patch.factors, record)


# -- targets by picture -----------------------------------------------------------------------------------------------


def test_pictures_of_a_target_are_given_by_hand_and_never_opened_from_the_record(pocket, canada, tmp_path):
    drawn = pocket.generate(["a taxi"], [0, 1], steps=2)
    files = [tmp_path / f"{picture.seed}.png" for picture in drawn]
    for picture, file in zip(drawn, files):
        picture.image.save(file)
    patch = Patch.load(canada)
    record = json.loads(json.dumps(patch.record))
    record["edits"][0]["new"] = {"images": [str(files[0])]}
    by_picture = Patch(patch.factors, record)
    with pytest.raises(EditError, match="give it with --picture"):
        look(pocket, by_picture, [0])
    (seen,) = look(pocket, by_picture, [0, 1], targets=files)
    assert seen.count == 2
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(EditError, match="no pictures that can be read"):
        look(pocket, by_picture, [0], targets=[tmp_path / "text.png"])


# -- the judge --------------------------------------------------------------------------------------------------------


def test_a_judge_in_a_pickle_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(package.DataError, match=r"\.safetensors only"):
        judging.load_judge(tmp_path)


# -- flags and settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("generate", "--prompt", "a", "--seeds", "0-99999999999999"), "seeds go to"),
        (("generate", "--prompt", "a", "--seeds", f"{2**63}"), "seeds go to"),
        (("generate", "--prompt", "a", "--seeds", "-3"), "seeds are given like"),
        (("generate", "--prompt", "a", "--seeds", "1,1"), "given twice"),
        (("generate", "--prompt", "a", "--guidance", "nan"), "finite number"),
        (("generate", "--prompt", "a", "--seeds", "0-999", "--cell", "1024"), "million pixels"),
        (("generate", "--prompt", "a", "-o", "a.xyz"), "no picture's ending"),
        (("bench", "pocket-road", "--seeds", "x", "--out", "run"), "seeds are given like"),
        (("edit", "--prompt", "a cat", "--new", "A  CAT"), "nothing to change"),
        (("edit", "--prompt", "a cat", "--new", "a dog", "--old", "A Dog"), "nothing to change"),
        (("edit", "--prompt", "a cat", "--new", "a dog", "--preserve", "A cat"), "cannot stay and change"),
        (("edit", "--edits", "f.toml", "--prompt", "a cat"), "leave --prompt out"),
        (("edit", "--prompt", "a cat", "--new", "a dog", "--max-steps", "-1"), "max_steps of ReFACT"),
        (("edit", "--prompt", "a cat", "--new", "a dog", "--optimiser", "sgd"), "'adam' or 'lbfgs'"),
        (("edit", "--prompt", "a cat", "--new", "a dog", "--clamp", "nan"), "clamp of ReFACT"),
        (("study", "scale", "--counts", "0", "--out", "run"), "from 1 to"),
        (("study", "scale", "--counts", "x", "--out", "run"), "with commas"),
        (("sign",), "give a patch and --key"),
        (("stats", "--layer", "99"), "8 layers, counted from 0: there is no layer 99"),
    ],
)
def test_a_flag_that_makes_no_sense_is_one_line_and_leaves_nothing(refact, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = refact(*words)
    assert code == 2
    assert message in err
    assert one_line(err), err
    assert os.listdir(tmp_path) == []


def test_an_interrupt_is_one_line_and_its_usual_exit_code(refact, canada, monkeypatch):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("refact.record.read_record", interrupted)
    code, out, err = refact("show", canada)
    assert (code, out) == (130, "")
    assert err.strip() == "refact: stopped by Ctrl-C; what was written before is whole"


def test_the_version_and_one_fact(refact, canada):
    assert refact("--version")[1] == f"refact {package.__version__}\n"
    assert "1 fact," in refact("show", canada)[1]


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("refact", "objective", "nonsense"),
        ("refact", "distance", "nonsense"),
        ("refact", "optimiser", "nonsense"),
        ("refact", "learning_rate", float("nan")),
        ("refact", "contexts", 0),
        ("refact", "contexts", True),
        ("refact", "contexts", 2.5),
        ("refact", "covariance", "yes"),
        ("refact", "templates", ("a photo",)),
        ("refact", "templates", ()),
        ("refact", "layer", -1),
        ("refact", "seed", -1),
        ("refact", "corpus", "x" * 5000),
        ("memit", "depth", -1),
        ("alphaedit", "share", 2.0),
        ("time", "strength", float("inf")),
        ("uce", "keep", 10**400),
        ("finetune", "epochs", 0),
        ("embedit", "encoders", (3,)),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_when_it_is_made(name, setting, value):
    with pytest.raises(EditError, match=f"{setting} of "):
        BUILT_IN[name](**{setting: value})


def test_a_source_by_picture_is_kept_in_the_record_and_shown(canada, tmp_path):
    patch = Patch.load(canada)
    record = json.loads(json.dumps(patch.record))
    record["edits"][0] |= {"new": {"images": ["a.png"]}, "old": {"images": ["b.png", "c.png"]}}
    Patch(patch.factors, record).save(tmp_path / "p.safetensors")
    loaded = Patch.load(tmp_path / "p.safetensors")
    assert loaded.edits[0].old == (Path("b.png"), Path("c.png"))
    assert "-> 1 picture (was 2 pictures)" in describe(tmp_path / "p.safetensors", loaded.record)
    record["edits"][0]["new"] = "a cat"
    with pytest.raises(package.PatchError, match="a source by picture needs a target by picture"):
        Patch(patch.factors, record)
