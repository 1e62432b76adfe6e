"""An adapter's folder is written whole or not at all, whatever the system says of it, and replaces nothing else."""

import os
import resource
from contextlib import contextmanager
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path

import pytest

from graftwork import folders
from graftwork.adapters import Adapter, folder, tensorfile
from graftwork.errors import OutputError


def names(path) -> set[str]:
    return {file.name for file in path.iterdir()}


def contents(path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("failing", ["tensorfile.save", "folder.model_card", "folders._put"])
def test_a_write_that_fails_leaves_nothing_or_the_old_folder(adapter, saved, tmp_path, monkeypatch, failing):
    before = contents(saved)

    def fail(*args, **kwargs):
        raise OSError(ENOSPC, "No space left on device")

    module, name = failing.split(".")
    monkeypatch.setattr({"folder": folder, "folders": folders, "tensorfile": tensorfile}[module], name, fail)
    for path in (tmp_path / "new", saved):
        with pytest.raises(OutputError) as refusal:
            adapter.save(path, overwrite=True)
        assert refusal.value.problem == f"{str(path)!r} cannot be written: No space left on device"
    assert names(tmp_path) == {"a"}
    assert contents(saved) == before


@contextmanager
def files_of_at_most(size):
    """Inside, the system refuses to write a file further than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 200, 1_500])
def test_a_file_that_the_system_does_not_write_leaves_the_old_folder(adapter, saved, tmp_path, size):
    before = contents(saved)
    with files_of_at_most(size), pytest.raises(OutputError, match=r"cannot be written: File too large"):
        adapter.save(saved, overwrite=True)
    assert contents(saved) == before
    assert names(tmp_path) == {"a"}


def test_a_rename_that_fails_leaves_the_old_folder(adapter, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_exchange", lambda new, old: False)
    before, rename, calls = contents(saved), Path.rename, []

    def fail_second(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError("cannot rename")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OutputError, match="cannot rename"):
        adapter.save(saved, overwrite=True)
    assert [path.name for path in calls[:3]] == ["a", "new", "old"]
    assert names(tmp_path) == {"a"}
    assert contents(saved) == before


def test_everything_is_on_the_disk_before_it_appears(adapter, tmp_path, monkeypatch):
    """Else a machine that stops leaves the new name with files that are empty."""
    synced, put, plain = set(), [], folders._put

    def note(new, *args, **kwargs):
        put.append({str(path.relative_to(new.parent)) for path in (new, *new.rglob("*"))} - synced)
        plain(new, *args, **kwargs)

    monkeypatch.setattr(folders, "_put", note)
    monkeypatch.setattr(os, "fsync", lambda number: synced.add(named(number)))

    def named(number):
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        return str(path.relative_to(path.parents[0] if path.name == "new" else path.parents[1]))

    adapter.save(tmp_path / "a")
    assert put == [set()]
    assert str(tmp_path.relative_to(tmp_path.parents[1])) in synced, "and the folder in which it does, afterwards"


def test_an_output_that_has_appeared_meanwhile_is_left_alone(adapter, tmp_path, monkeypatch):
    def appear(new, *args, **kwargs):
        monkeypatch.setattr(folders, "_put", plain)
        adapter.save(tmp_path / "a")
        plain(new, *args, **kwargs)

    plain = folders._put
    other = replace(adapter, seed=5)
    monkeypatch.setattr(folders, "_put", appear)
    with pytest.raises(OutputError, match=r"was written by another process"):
        other.save(tmp_path / "a")
    assert Adapter.load(tmp_path / "a").seed == adapter.seed
    assert names(tmp_path) == {"a"}


def test_only_an_adapters_folder_is_overwritten(adapter, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is not an adapter's folder"):
        adapter.save(home, overwrite=True)
    assert names(home) == {"thesis.txt"}
    (tmp_path / "empty").mkdir()
    adapter.save(tmp_path / "empty", overwrite=True)
    adapter.save(tmp_path / "empty", overwrite=True)
    assert Adapter.load(tmp_path / "empty").digest == adapter.digest


def test_an_output_that_cannot_be_made(adapter, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be created"):
        adapter.save(tmp_path / "file" / "below")


def test_a_link_to_a_folder_stays_a_link(adapter, saved, tmp_path):
    (tmp_path / "link").symlink_to(saved)
    adapter.save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == {"a", "link"}
