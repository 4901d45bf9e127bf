"""Files are there whole or not at all: full disks, kills, links, permissions, two processes in one folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from refact.errors import DataError
from refact.trust import disk


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_makes_its_folder_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "a" / "b.json"
    disk.write(path, b"one")
    disk.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert beside(path.parent) == ["b.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    disk.write(path, b"one")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left") as error:
        disk.write(path, b"two")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"one"
    assert beside(tmp_path) == ["a.json"]


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        disk.write(tmp_path / "a.json", b"two")
    assert beside(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="permissions and links of POSIX")
def test_permissions_are_the_umasks_or_those_that_were_there_and_links_stay_links(tmp_path):
    path, link = tmp_path / "a", tmp_path / "link"
    before = os.umask(0o027)
    try:
        disk.write(path, b"one")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    link.symlink_to("a")
    disk.write(link, b"two")
    assert link.is_symlink()
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o604


def test_a_folder_comes_whole_or_not_at_all(tmp_path):
    with disk.folder(tmp_path / "out") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "out").exists()
    assert beside(tmp_path / "out") == ["file"]

    def fails():
        with disk.folder(tmp_path / "other") as partial:
            (partial / "file").write_text("x")
            raise KeyError("broken")

    with pytest.raises(KeyError):
        fails()
    assert beside(tmp_path) == ["out"]


WRITER = """
import sys, time
from pathlib import Path
from refact.trust import disk
path, size = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
for turn in range(10**6):
    disk.write(path, bytes([65 + turn % 26]) * size)
"""


@pytest.mark.skipif(os.name == "nt", reason="kills of POSIX")
def test_kills_leave_one_whole_file_and_the_next_write_clears_up(tmp_path):
    path, size = tmp_path / "a", 3_000_000
    disk.write(path, b"A" * size)
    partial = 0
    for turn in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, str(size)], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(0.003 * turn)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = path.read_bytes()
        assert len(content) == size
        assert len(set(content)) == 1
        partial += len(beside(tmp_path)) - 1
    assert partial > 0  # some kills came while a file was being written
    disk.write(path, b"done")
    assert beside(tmp_path) == ["a"]


def test_leftovers_of_others_stay(tmp_path):
    mine, theirs = tmp_path / f"{disk._stem(tmp_path / 'a')}{os.getpid()}.0.part", tmp_path / ".a.elsewhere-1.0.part"
    for left in (mine, theirs):
        left.write_text("x")
    disk.write(tmp_path / "a", b"x")
    assert mine.exists()
    assert theirs.exists()


HOLDER = """
import sys, time
from refact.trust import disk
with disk.locked(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_one_process_works_in_a_folder_and_its_death_frees_it(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(DataError, match="another process is working in"), disk.locked(tmp_path / "run"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with disk.locked(tmp_path / "run"):
        pass


def test_a_folder_in_which_nothing_was_made_is_gone(tmp_path):
    @disk.alone
    def work(out, fail):
        if fail:
            raise DataError("no")
        (out / "file").write_text("x")

    with pytest.raises(DataError, match="no"):
        work(out=tmp_path / "run", fail=True)
    assert beside(tmp_path) == []
    work(tmp_path / "run", False)
    assert beside(tmp_path / "run") == [".lock", "file"]


def test_threads_write_one_file(tmp_path):
    contents = [bytes([65 + number]) * 100_000 for number in range(4)]
    threads = [threading.Thread(target=disk.write, args=(tmp_path / "a", content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert beside(tmp_path) == ["a"]


@pytest.mark.parametrize("place", ["file/x", "file", "folder", "new/folder/x"])
def test_a_name_that_cannot_be_written_is_known_before_the_work(tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    if place in ("file", "new/folder/x"):
        disk.check(tmp_path / place)
        assert not (tmp_path / "new").exists()
    else:
        with pytest.raises(DataError, match=r"cannot be written: .*is (a|no) folder"):
            disk.check(tmp_path / place)


def test_work_behind_is_done_in_order_and_all_of_it():
    done = []
    with disk.Behind(lambda x: time.sleep(0.01 * (3 - x)) or done.append(x)) as later:
        for x in range(3):
            later(x)
    assert done == [0, 1, 2]


def full(x):
    time.sleep(0.02)
    if x:
        raise OSError("the disk is full")


def behind(*given, error=None):
    with disk.Behind(full, most=5) as later:
        for x in given:
            later(x)
        if error:
            raise error


def test_what_fails_behind_reaches_the_caller():
    for count in (1, 50):
        with pytest.raises(OSError, match="the disk is full"):
            behind(0, *[1] * count)


def test_an_error_of_the_caller_is_the_one_that_is_raised():
    with pytest.raises(KeyError):
        behind(1, error=KeyError())
