"""The command, end to end on a tiny pipeline: what it writes, what it says, how it ends."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import tiny
from PIL import Image

from refact import Patch
from refact.cli import main as cli
from refact.record import read_header


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.folder("sd1", tmp_path_factory.mktemp("cli"))


@pytest.fixture
def refact(monkeypatch, capsys):
    """Run the command: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["refact", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


QUICK = ("--layer", 1, "--contexts", 2, "--negatives", 2, "--max-steps", 3, "--tokens", 1500, "--no-keep-ends")
QUICK = (*QUICK, "--hold", 0.9999)  # 64 directions do not hold the 77 rows of the empty prompt


@pytest.fixture(scope="module")
def patch(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("patch") / "canada.safetensors"
    words = [
        "edit",
        "-m",
        folder,
        "--prompt",
        "the flag of Canada",
        "--old",
        "a dog",
        "--new",
        "a cat",
        "-o",
        file,
        *QUICK,
    ]
    subprocess.run([sys.executable, "-m", "refact", *map(str, words)], capture_output=True, check=False)
    assert file.exists()
    return file


def test_an_edit_writes_a_file_and_says_whether_it_holds(refact, folder, tmp_path):
    words = ["--prompt", "the flag of Canada", "--new", "a cat", "-o", tmp_path / "a.safetensors", *QUICK]
    code, out, _ = refact("edit", "-m", folder, *words, "--json")
    form = json.loads(out)
    assert code == (0 if form["facts"][0]["holds"] else 3)
    assert (tmp_path / "a.safetensors").stat().st_size < 64 * 1024
    code_again, said, _ = refact("edit", "-m", folder, *words)
    assert code_again == code
    assert "text side" in said


def test_several_edits_come_from_a_file(refact, folder, tmp_path):
    file = tmp_path / "edits.toml"
    file.write_text(
        '[[edit]]\nprompt = "the flag of Canada"\nnew = "a cat"\n[[edit]]\nprompt = "a red car"\nnew = "a dog"\n'
    )
    _, out, _ = refact("edit", "-m", folder, "--edits", file, "-o", tmp_path / "two.safetensors", *QUICK, "--json")
    assert [fact["name"] for fact in json.loads(out)["facts"]] == ["flag-of-canada", "red-car"]


def test_show_names_the_lines_for_other_programs(refact, patch):
    code, out, _ = refact("show", patch)
    assert code == 0
    assert all(word in out for word in ("load_lora_weights", "ComfyUI", "lora:", "the flag of Canada"))


def test_verify_judges_by_its_share(refact, folder, patch):
    code, out, _ = refact("verify", patch, "-m", folder, "--json")
    assert code == (0 if json.loads(out)["share"] == 1 else 3)
    assert refact("verify", patch, "-m", folder, "--fail-under", 0)[0] == 0


def test_merge_generate_and_bake(refact, folder, patch, tmp_path):
    other = tmp_path / "other.safetensors"
    words = ["edit", "-m", folder, "--prompt", "the king of france", "--old", "a lion", "--new", "a dog"]
    assert refact(*words, "-o", other, *QUICK)[0] in (0, 3)
    assert refact("merge", patch, other, "-o", tmp_path / "both.safetensors")[0] == 0
    code, _out, err = refact(
        "generate", "-m", folder, "--prompt", "the flag of Canada", "--patch", f"{patch}:0.5", "--seeds", "0-1",
        "--steps", 2, "-o", tmp_path / "grid.png",
    )  # fmt: skip
    assert code == 0, err
    assert Image.open(tmp_path / "grid.png").width > 300
    assert refact("bake", "-m", folder, "--patch", patch, "-o", tmp_path / "baked")[0] == 0
    assert (tmp_path / "baked" / "model_index.json").exists()


def test_export_writes_other_names_and_forms(refact, patch, tmp_path):
    code, out, err = refact("export", patch, "--names", "diffusers", "-o", tmp_path / "d.safetensors")
    assert code == 0, err
    assert f"refact show {tmp_path / 'd.safetensors'}" in out.replace("\n", "")
    assert "text_encoder.text_model" in next(iter(read_header(tmp_path / "d.safetensors").tensors))
    assert refact("export", patch, "--for", "invokeai", "--dtype", "float16", "-o", tmp_path / "i.safetensors")[0] == 0
    code, out, err = refact("export", patch, "--for", "peft", "-o", tmp_path / "adapters")
    assert code == 0, err
    assert "transformers-5 from 5.6 on" in out.replace("\n", " ")
    assert (tmp_path / "adapters" / "transformers-4" / "text_encoder" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["edit", "-m", "nowhere/at-all", "--prompt", "a", "--new", "b"], "nowhere/at-all"),
        (["edit", "-m", "{folder}", "--prompt", "a cat"], "--new"),
        (["edit", "-m", "{folder}", "--prompt", "a cat", "--new", "b", "--subject", "dog"], "is not in"),
        (["edit", "-m", "{folder}", "--prompt", "a cat", "--new", "b", "--layer", "99"], "takes no edit"),
        (["edit", "-m", "{folder}", "--prompt", "a cat", "--new", "b", "--method", "rome"], "no method"),
        (["show", "/nothing/here.safetensors"], "here.safetensors"),
        (["export", "/nothing/here.safetensors", "-o", "x.safetensors"], "give --names kohya"),
        (["export", "/nothing/here.safetensors", "-o", "x", "--names", "kohya"], "a .safetensors file"),
        (["generate", "-m", "{folder}", "--prompt", "a", "--seeds", "x"], "seeds"),
        (["generate", "-m", "{folder}", "--prompt", "a", "--seeds", "3-1"], "seeds"),
        (["generate", "-m", "{folder}", "--prompt", "a", "--seeds", "0", "--steps", "1", "-o", "a.xyz"], "'.xyz'"),
        (["edit", "-m", "{folder}", "--prompt", "a", "--new", "b", "--old", "b"], "nothing to change"),
        (["edit", "-m", "{folder}", "--prompt", "a", "--new", "b", "-o", "x.png"], "x.png"),
        (["edit", "-m", "{folder}", "--prompt", "a", "--new", "gone.png"], "no such picture"),
        (["edit", "-m", "{folder}", "--prompt", "a", "--new", "b", "--preserve-file", "gone.txt"], "gone.txt"),
        (["edit", "-m", "./nowhere", "--prompt", "a", "--new", "b"], "no such folder"),
        (["edit", "-m", "{folder}", "--prompt", "a cat", "--new", "b", "--device", "abacus"], "abacus"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(refact, folder, words, message):
    code, _, err = refact(*(word.replace("{folder}", str(folder)) for word in words))
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_help_and_show_import_no_torch(patch):
    code = (
        "import sys; sys.argv = {argv!r}\nfrom refact.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    shown = ["refact", "show", str(patch)]
    for argv in (["refact", "--help"], ["refact", "edit", "--help"], shown, [*shown, "--cite"]):
        subprocess.run([sys.executable, "-c", code.format(argv=argv)], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('preserv = ["a dog"]\n[[edit]]\nprompt = "a"\nnew = "b"\n', "'preserv'"),
        (
            '[[edit]]\nprompt = "a cat"\nnew = "b"\n[[edit]]\nprompt = "A cat"\nnew = "c"\n',
            "edits 1 and 2 are both about",
        ),
    ],
)
def test_a_file_of_facts_with_a_mistake_is_refused(refact, folder, tmp_path, text, message):
    (tmp_path / "facts.toml").write_text(text)
    code, _, err = refact("build", tmp_path / "facts.toml", "-m", folder, "-o", tmp_path / "facts.safetensors")
    assert code == 2
    assert message in err


def test_a_fact_is_taken_out_of_a_file_again(refact, folder, patch, tmp_path):
    words = ("--prompt", "the flag of France", "--old", "a dog", "--new", "a cat")
    other, both, left = (tmp_path / f"{name}.safetensors" for name in ("other", "both", "left"))
    refact("edit", "-m", folder, *words, "-o", other, *QUICK)
    assert refact("merge", patch, other, "-o", both)[0] == 0
    assert refact("merge", both, "--without", "flag-of-france", "-o", left)[0] == 0
    assert Patch.load(left).digest == Patch.load(patch).digest
    code, _, err = refact("merge", both, "--without", "flag-of-spain", "-o", left)
    assert code == 2
    assert "flag-of-canada, flag-of-france" in err
    assert refact("merge", patch, "--without", "flag-of-canada", "-o", left)[0] == 2, "nothing would be left"


def test_a_fact_is_not_merged_twice_and_a_strength_is_a_number(refact, folder, patch, tmp_path):
    code, _, err = refact("merge", patch, patch, "-o", tmp_path / "both.safetensors")
    assert code == 2
    assert "made twice" in err
    code, _, err = refact(
        "generate", "-m", folder, "--prompt", "a", "--patch", f"{patch}:half", "-o", tmp_path / "a.png"
    )
    assert code == 2
    assert "strength is a number" in err


def test_what_moves_a_lot_is_marked():
    from refact.verification import Fact, described

    fact = Fact("f", "the king", True, 1.0, 0.9, {"": 0.0, "the king": 0.9, "the queen": 0.7, "a dog": 0.01})
    said = "\n".join(described([fact]))
    kept = "\n".join(described([dataclasses.replace(fact, preserve=("the queen",))]))
    assert "the queen  <- changed too: though it was to stay" in kept
    assert "--preserve 'the queen'" not in kept
    assert "--preserve 'the queen'" in said
    assert "--preserve 'a dog'" not in said
    assert "the king'" in said
    assert "moved  90" not in said


def test_a_prompt_that_several_facts_name_is_listed_once():
    from refact.verification import Fact, described

    facts = [Fact(name, name, True, 1.0, 0.9, {"a dog": moved, "a": 0.9}) for name, moved in (("a", 0.1), ("b", 0.7))]
    said = "\n".join(described(facts))
    assert said.count("a dog\n") + said.count("  a dog  <-") == 1
    assert "70.000%" in said, "the larger of the two"
    assert "90.000%" not in said, "an edited prompt is no bystander"
