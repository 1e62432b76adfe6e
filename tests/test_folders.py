"""A folder is held by one process at a time, and what killed processes left goes without harm to anybody's."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from graftwork.errors import InProgressError, OutputError
from graftwork.folders import LOCK, NEW, OLD, OWNER, HeldFolder, Owner, replacing_folder, resolved_path, sweep

HOLD = """
import os, sys, time
from pathlib import Path
from graftwork.folders import HeldFolder
held = HeldFolder.take(Path(sys.argv[1]), "work")
if "fork" in sys.argv and os.fork() == 0:
    os.close(1)
    time.sleep(30)
    os._exit(0)
print("held", flush=True)
time.sleep(30)
"""
"""A process that holds a folder; with a child, where that is asked for."""


@pytest.fixture
def holder(tmp_path):
    """Have another process hold a folder."""
    running = []

    def holder(folder, *options):
        command = [sys.executable, "-c", HOLD, str(folder), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        running.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield holder
    for process in running:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Held


def test_another_process_is_told_of(holder, tmp_path):
    process = holder(tmp_path / "a")
    begun = time.monotonic()
    with pytest.raises(InProgressError) as refusal:
        HeldFolder.take(tmp_path / "a", "a run to 'it'")
    assert time.monotonic() - begun < 1, "nobody waits for who says who it is"
    since = json.loads((tmp_path / "a" / OWNER).read_text())["since"]
    assert refusal.value.problem == (
        f"a run to 'it' is in progress: process {process.pid} on host {socket.gethostname()}, since {since}"
    )
    assert isinstance(refusal.value, OutputError)


@pytest.mark.parametrize("options", [[], ["fork"]], ids=["alone", "with a child that lives on"])
def test_a_killed_process_holds_nothing(holder, tmp_path, options):
    process = holder(tmp_path / "a", *options)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert Owner.of(tmp_path / "a").pid == process.pid
    held = HeldFolder.take(tmp_path / "a", "it")
    assert Owner.of(tmp_path / "a").pid == os.getpid()
    held.remove()
    assert names(tmp_path) == []


def test_of_the_threads_of_a_process_one_holds_it(tmp_path):
    barrier, taken, refused = threading.Barrier(8), [], []

    def take():
        barrier.wait()
        try:
            taken.append(HeldFolder.take(tmp_path / "a", "it"))
        except InProgressError as error:
            refused.append(error.problem)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 7)
    assert all(f"process {os.getpid()} (this one)" in problem for problem in refused)
    taken[0].release()


def test_a_folder_is_held_by_one_also_while_it_comes_and_goes(tmp_path):
    """Who waits for a folder that is removed by its holder must not hold the removed one."""
    inside, most = [], []

    def work():
        rounds = 0
        while rounds < 10:
            try:
                held = HeldFolder.take(tmp_path / "a", "it")
            except InProgressError:
                continue
            inside.append(1)
            most.append(len(inside))
            rounds += 1
            time.sleep(0.0005)
            inside.pop()
            held.remove()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 40
    assert names(tmp_path) == []


def leave(folder, **changes):
    """What a killed process left that held a folder."""
    folder.mkdir()
    (folder / LOCK).touch()
    (folder / OWNER).write_text(json.dumps(asdict(replace(Owner.this_process(), **changes))))


@pytest.mark.parametrize(
    "changes", [{"pid": 2**22 + 1}, {"began": 5.0}, {}], ids=["gone", "its number is another's", "as it is"]
)
def test_a_free_lock_is_nobodys(tmp_path, changes):
    leave(tmp_path / "a", **changes)
    assert Owner.of(tmp_path / "a").running == (not changes)
    HeldFolder.take(tmp_path / "a", "it").release()
    assert names(tmp_path / "a") == [LOCK]


def test_another_host_cannot_be_looked_at(tmp_path):
    leave(tmp_path / "a", host="far", pid=12, since="2026-01-01")
    for _ in range(2):
        with pytest.raises(InProgressError) as refusal:
            HeldFolder.take(tmp_path / "a", "a run")
        assert (
            "process 12 on host far, since 2026-01-01; this host cannot tell whether it still runs"
            in refusal.value.problem
        )
        assert str(tmp_path / "a" / OWNER) in refusal.value.change
    (tmp_path / "a" / OWNER).unlink()
    HeldFolder.take(tmp_path / "a", "a run").remove()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1}'])
def test_a_note_that_says_nothing(tmp_path, content):
    leave(tmp_path / "a")
    (tmp_path / "a" / OWNER).write_text(content)
    held = HeldFolder.take(tmp_path / "a", "it")
    held.restore()
    assert (tmp_path / "a" / OWNER).read_text() == content


def test_all_in_it_goes_in_order(tmp_path, monkeypatch):
    held = HeldFolder.take(tmp_path / "a", "it")
    for name in ("one", "three", "two"):
        (tmp_path / "a" / name).touch()
    (tmp_path / "a" / "sub" / "below").mkdir(parents=True)
    left = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **kwargs: (left.append(path.name), unlink(path, **kwargs)))
    held.clear(last=("two", "one"))
    assert left == ["three", "two", "one"]
    assert names(tmp_path / "a") == [LOCK, OWNER]
    held.remove()
    assert names(tmp_path) == []


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(OutputError, match=r"cannot be locked: No locks available(.|\n)*--output"):
        HeldFolder.take(tmp_path / "a", "it")


# Replaced


def write(folder, text):
    with replacing_folder(folder, overwrite=True) as new:
        (new / "x").write_text(text)


def leave_half(folder, name, **changes):
    """What is left of a process that was killed while it replaced a folder."""
    leave(folder.parent / name, **changes)
    (folder.parent / name / NEW).mkdir()
    (folder.parent / name / NEW / "x").write_text("half")


def test_what_a_killed_process_left_goes(tmp_path):
    leave_half(tmp_path / "a", ".a.abcdef_1")
    (tmp_path / ".a.00000000").mkdir()
    write(tmp_path / "a", "whole")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "whole"


def test_what_is_not_ours_or_is_in_use_stays(holder, tmp_path):
    leave_half(tmp_path / "a", ".a.elsewher", host="far")
    leave_half(tmp_path / "a", ".a.b.tuning")
    leave_half(tmp_path / "a", ".b.abcdefgh")
    (tmp_path / ".a.versions").mkdir()
    (tmp_path / ".a.versions" / "mine").touch()
    (tmp_path / ".a.abcdefgh").write_text("a file")
    holder(tmp_path / ".a.inuse_00")
    before = names(tmp_path)
    write(tmp_path / "a", "whole")
    assert names(tmp_path) == sorted([*before, "a"])
    assert names(tmp_path / ".a.versions") == ["mine"]


def test_a_folder_that_stood_aside_is_put_back(tmp_path):
    leave_half(tmp_path / "a", ".a.abcdefgh")
    (tmp_path / ".a.abcdefgh" / OLD).mkdir()
    (tmp_path / ".a.abcdefgh" / OLD / "x").write_text("old")
    sweep(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "old"


def test_a_folder_that_goes_while_it_is_swept_is_not_made_again(tmp_path, monkeypatch):
    leave_half(tmp_path / "a", ".a.abcdefgh")

    def acquire(lock, **options):
        shutil.rmtree(Path(lock.lock_file).parent)
        raise FileNotFoundError

    monkeypatch.setattr("graftwork.folders.FileLock.acquire", acquire)
    sweep(tmp_path / "a")
    assert names(tmp_path) == []


def test_many_write_one_folder_at_once(tmp_path):
    failures = []

    def work(text):
        try:
            for _ in range(10):
                write(tmp_path / "a", text)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "x").read_text() in "abcd"


# Paths


def test_a_settled_path_means_the_same_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "blob").touch()
    (tmp_path / "real" / "x.csv").symlink_to("blob")
    monkeypatch.chdir(tmp_path / "real")
    for given in ("x.csv", "./x.csv", "../real/x.csv", "../link/x.csv", tmp_path / "link" / "x.csv"):
        assert resolved_path(Path(given)) == str(tmp_path / "real" / "x.csv"), "the ending of a link's own name counts"
    assert resolved_path(Path(".")) == str(tmp_path / "real")
    assert resolved_path(Path("..")) == str(tmp_path)
