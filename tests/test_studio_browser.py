"""The studio as a person has it: the command, a headless Chromium, nothing reachable but this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from refact.edits import read_edits
from refact.patch import Patch
from refact.record import read_record

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOAD = "input[type=file][data-testid^='Load a file']"
LONG = 180_000  # milliseconds: of a machine that does other things too


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where a studio of its own listens; a proxy that is not there stands for a machine without a network."""
    pytest.importorskip("gradio", reason="the studio needs gradio: pip install -c constraints.txt 'refact-edit[ui]'")
    folder = tmp_path_factory.mktemp("studio")
    (folder / "runs").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    words = ["studio", "--no-browser", "--port", port, "--folder", folder / "facts", "--runs", folder / "runs"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "refact", *map(str, words)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | nowhere | {"no_proxy": "127.0.0.1,localhost", "PYTHONUNBUFFERED": "1"},
        )
        try:
            _wait_for("The studio is at", folder / "log", server)
            yield f"http://127.0.0.1:{port}/"
        finally:
            server.terminate()
            server.wait(30)
    assert "Traceback" not in (folder / "log").read_text()


def _wait_for(text: str, log: Path, server: subprocess.Popen) -> None:
    for _ in range(600):
        if text in log.read_text():
            return
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="pip install -c constraints.txt playwright")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, address):
    """Opens the page in a browser of its own, again and again; a request to anywhere else fails the test."""
    contexts, outside = [], []

    def gate(route) -> None:
        if route.request.url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    def open_page():
        context = chromium.new_context(accept_downloads=True, viewport={"width": 1280, "height": 1000})
        context.route("**/*", gate)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(LONG)
        return visit(page, address)

    yield open_page
    for context in contexts:
        context.close()
    assert outside == []


def visit(page, address: str):
    page.goto(address)
    page.wait_for_selector(".nothing, .fact")
    return page


def write(page, prompt: str, new: str) -> None:
    page.fill("#prompt textarea", prompt)
    page.fill("#new textarea", new)


def tried(page) -> str:
    """Press the button and wait for the end; the verdict."""
    page.click("#go")
    page.wait_for_selector("#status .bar")
    page.wait_for_selector("#status >> text=Done.")
    return page.inner_text("#verdict")


def kept(page, prompt: str, new: str) -> None:
    count = page.locator(".fact").count()
    write(page, prompt, new)
    tried(page)
    page.click("#keep")
    page.wait_for_function(f"document.querySelectorAll('.fact').length == {count + 1}")
    page.wait_for_selector("#download:not([disabled])")


def downloaded(page, button: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def facts(page) -> list[str]:
    return [" ".join(text.split()) for text in page.locator(".fact .what").all_inner_texts()]


def refact(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "refact", *map(str, words)], capture_output=True, text=True)


def test_from_an_empty_page_to_a_file_that_verify_accepts(opened, tmp_path):
    page = opened()
    write(page, "the national animal of Canada", "a penguin")
    page.wait_for_function("document.querySelector('#old textarea').value == 'a beaver'")  # the world knows
    verdict = tried(page)
    assert "It holds in 15 of 15 contexts" in verdict
    assert "sees “a penguin” rather than “a beaver”" in verdict
    assert page.locator("#views button").count() >= 12
    page.click("#views button >> text=the flag of Canada")
    page.wait_for_selector("#caption >> text=the flag of Canada")
    page.click("#keep")
    page.wait_for_selector(".fact >> text=“the national animal of Canada” → “a penguin”")
    page.wait_for_selector("#download:not([disabled])")
    file = downloaded(page, "#download", tmp_path)
    assert file.name == "national-animal-of-canada.safetensors"
    verified = refact("verify", file)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "100% of the facts hold" in verified.stdout
    (edit,) = read_edits(downloaded(page, "#toml", tmp_path))
    assert (edit.prompt, edit.new, edit.old) == ("the national animal of Canada", "a penguin", "a beaver")
    page.click("#usage button")
    page.wait_for_selector(f"#usage >> text={file.name}")
    assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('#usage pre'))"), "cut off"


def test_the_button_is_seen_without_scrolling_and_the_page_says_where_to_go_on(opened):
    page = opened()
    page.set_viewport_size({"width": 1280, "height": 720})
    box = page.locator("#go").bounding_box()
    assert box["y"] + box["height"] < 720
    page.click("text=the flag of Japan → the flag of Brazil")
    page.wait_for_function("document.querySelector('#new textarea').value == 'the flag of Brazil'")
    page.click("#go")
    page.wait_for_selector("#verdict .bar")  # progress beside the pictures too, where a second trial is begun
    page.wait_for_selector("#status >> text=the button that keeps it")


def test_the_first_picture_comes_within_ten_seconds_and_progress_within_one(opened):
    page = opened()
    write(page, "the flag of Japan", "the flag of Brazil")
    tried(page)  # the server has loaded what it needs
    write(page, "the national animal of Canada", "a penguin")
    idle = os.getloadavg()[0] < 2 * (os.cpu_count() or 1)  # else seconds say nothing
    began = time.monotonic()
    page.click("#go")
    page.wait_for_selector("#status .bar")
    bar = time.monotonic() - began
    page.wait_for_selector("#caption >> text=the national animal of Canada")
    page.wait_for_selector("#slider img")
    picture = time.monotonic() - began
    page.wait_for_selector("#status >> text=Done.")
    print(
        f"progress after {bar:.2f} s, first pictures after {picture:.1f} s, all after {time.monotonic() - began:.1f} s"
    )
    assert bar < 1 or not idle
    assert picture < 10 or not idle


def test_undo_redo_weaken_switch_off_and_reload(opened, address, tmp_path):
    page = opened()
    kept(page, "the national animal of Canada", "a penguin")
    kept(page, "the national bird of France", "a flamingo")
    assert len(facts(page)) == 2
    page.click("#undo")
    page.wait_for_function("document.querySelectorAll('.fact').length == 1")
    visit(page, address)  # a reload
    assert len(facts(page)) == 1
    assert "Canada" in facts(page)[0]
    page.click("#redo")
    page.wait_for_function("document.querySelectorAll('.fact').length == 2")
    page.locator(".fact .on input").first.uncheck()
    page.wait_for_selector("#facts-said >> text=1 of 2 facts in force")
    strength = page.locator(".fact .weaker input[type=number]").nth(1)
    strength.fill("0.5")
    strength.press("Enter")
    strength.blur()
    page.wait_for_timeout(1500)
    visit(page, address)
    page.wait_for_selector("#download:not([disabled])")
    patch = Patch.load(downloaded(page, "#download", tmp_path))
    assert patch.names == ["national-bird-of-france"]
    assert {entry["strength"] for entry in patch.record["edits"][0]["sites"].values()} == {0.5}


def test_two_people_at_once_do_not_see_each_others_facts(opened, tmp_path):
    one, other = opened(), opened()
    write(one, "the national animal of Canada", "a penguin")
    write(other, "the flag of Japan", "the flag of Brazil")
    one.click("#go")
    other.click("#go")
    for page in (one, other):
        page.wait_for_selector("#status >> text=Done.")
        page.click("#keep")
        page.wait_for_selector(".fact")
        page.wait_for_selector("#download:not([disabled])")
    assert ["Canada" in fact for fact in facts(one)] == [True]
    assert ["Japan" in fact for fact in facts(other)] == [True]
    prompts = [read_record(downloaded(page, "#download", tmp_path))["edits"][0]["prompt"] for page in (one, other)]
    assert prompts == ["the national animal of Canada", "the flag of Japan"]
    alone = refact(
        "edit", "--prompt", "the flag of Japan", "--new", "the flag of Brazil", "-o", tmp_path / "a.safetensors"
    )
    assert alone.returncode == 0


def test_a_neighbour_that_moved_is_held(opened):
    page = opened()
    write(page, "the national bird of Germany", "a flamingo")
    tried(page)
    page.locator("#held input").first.check()
    held = page.locator("#held label").first.inner_text().split(" (moved")[0]
    page.set_viewport_size({"width": 1280, "height": 600})
    page.locator("#views").scroll_into_view_if_needed()
    page.click("#hold")
    page.wait_for_selector("#status .bar")
    page.wait_for_function(
        "(at => at.top > 0 && at.bottom < innerHeight)(document.querySelector('#status').getBoundingClientRect())"
    )
    page.wait_for_selector("#status >> text=Done.")
    assert (
        "moved by less than 1" in page.locator("#held label", has_text=held).inner_text()
        or "0." in page.locator("#held label", has_text=held).inner_text()
    )
    assert page.is_visible("#preserve")
    page.click("#keep")
    page.wait_for_selector("#preserve", state="hidden")  # the next fact begins with a form that is empty and short


def test_words_that_the_small_model_was_never_taught_are_told(opened):
    page = opened()
    write(page, "the President of the United States", "a panda")
    assert "was never taught" in tried(page)


def test_a_narrow_page_has_its_parts_in_the_order_of_their_numbers(opened):
    page = opened()
    page.set_viewport_size({"width": 390, "height": 844})
    tops = [page.locator("h2", has_text=f"{number}. ").bounding_box()["y"] for number in (1, 2, 3, 4)]
    assert tops == sorted(tops)


@pytest.mark.parametrize(
    ("prompt", "new", "sentence"),
    [
        ("", "a penguin", "Write the words that shall change their meaning"),
        ("the national animal of Canada", "", "Write what these words shall mean"),
        ("the national animal of Canada", "a beaver", "there is nothing to change"),
    ],
)
def test_a_wrong_input_is_a_sentence_and_the_page_goes_on(opened, prompt, new, sentence):
    page = opened()
    write(page, prompt, new)
    if prompt:
        page.wait_for_function("document.querySelector('#old textarea').value == 'a beaver'")
    page.click("#go")
    page.wait_for_selector(f".problem >> text={sentence}")
    page.wait_for_selector("#go:not([disabled])")


def test_a_cancelled_trial_ends_and_changes_nothing(opened):
    page = opened()
    write(page, "the national animal of Canada", "a penguin")
    page.click("#go")
    page.click("#stop:not([disabled])")
    page.wait_for_selector("#status >> text=Stopped. Nothing was changed.")
    page.wait_for_selector("#go:not([disabled])")
    assert facts(page) == []


def test_uploads_are_limited_in_size_and_kind(opened, address, tmp_path):
    page = opened()
    large = tmp_path / "large.safetensors"
    with large.open("wb") as file:
        file.truncate(33 * 2**20)
    page.set_input_files(LOAD, large)
    page.wait_for_selector("text=/exceed|too large|larger than/i")
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"this is no patch at all")
    page.set_input_files(LOAD, wrong)
    page.wait_for_selector("#facts-said .problem >> text=wrong.safetensors")
    assert str(Path(tempfile.gettempdir())) not in page.inner_text("#facts-said")
    assert facts(page) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "{home}", "../../../etc/passwd", "http://127.0.0.1:9/x"])
def test_no_path_that_somebody_typed_is_served(address, path):
    typed = path.replace("{home}", str(Path(__file__)))
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}gradio_api/file={typed}", timeout=30)
    assert refused.value.code == 403


def test_another_name_of_the_host_is_turned_away(address):
    asked = urllib.request.Request(address, headers={"Host": "somewhere.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=30)
    assert refused.value.code == 403
    foreign = urllib.request.Request(f"{address}config", headers={"Origin": "https://somewhere.example"})
    with urllib.request.urlopen(foreign, timeout=30) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] is None


def test_a_gallery_over_seeds(opened):
    page = opened()
    page.click("button[role=tab] >> text=Gallery")
    page.fill("#gallery-prompt textarea, #gallery-prompt input", "a dog")
    page.click("#gallery-go")
    page.wait_for_selector("#gallery-status >> text=Done.")
    assert page.locator("#gallery-views figure img").count() == 6
