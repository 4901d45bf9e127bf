"""The short form of the campaign, each kind of file in processes of its own; the long form is run by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["patches", "facts", "folders", "caches"])
def test_no_spoiled_file_does_harm(name) -> None:
    words = [sys.executable, "-m", "tests.campaign", name, "--short", "--seed", "7"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert " 0 failures" in done.stdout


def test_the_campaign_sees_what_goes_wrong(tmp_path) -> None:
    """Crashes, escapes, forged lines, files written elsewhere and slow attempts are counted."""
    code = f"""
import json, sys, time
from pathlib import Path
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parent)!r}]
from tests.campaign.watch import Watch
from refact.errors import RefactError
watch = Watch(Path({str(tmp_path / "allowed")!r}))
def slow():
    begun = time.process_time()
    while time.process_time() < begun + 2.2: pass
def refuse(): raise RefactError("no")
watch.attempt("fine", lambda: 1)
watch.attempt("refused", refuse)
watch.attempt("crash", lambda: 1 / 0)
watch.attempt("write", lambda: open({str(tmp_path / "elsewhere")!r}, "w").close())
watch.attempt("run", lambda: __import__("os").system("true"))
watch.attempt("slow", slow)
watch.attempt("memory", lambda: len(bytearray(600_000_000).hex()[:1]) if False else len(b"x" * 600_000_000))
watch.check_text("escape", "a\\x1b[2J")
watch.check_text("forged", "a\\nFORGED holds")
print(json.dumps(watch.form()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for case in ("crash", "write", "run", "slow", "memory", "escape", "forged"):
        assert f'"{case}: ' in done.stdout, (case, done.stdout)
    assert '"fine' not in done.stdout
    assert '"refused: ' not in done.stdout
