"""Whenever a run is killed, fails or is interrupted, what it leaves is told apart and taken up."""

import os
import resource
import shutil
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from training.short import LORA, SHORT
from training.workbench import at_step, contents, killed, names_in

from graftwork import Adapter, folders, tune_many
from graftwork.errors import GraftworkError, InterruptedRunError, OutputError, RecipeError
from graftwork.folders import OWNER, HeldFolder
from graftwork.training import many
from graftwork.training.outputs import MARK
from graftwork.training.trainer import AdapterTrainer, last_checkpoint


@contextmanager
def snapshots(folder, into):
    """What lies in a folder before each change of names inside: what a process would leave that was killed there."""
    number, busy = count(), []

    def watched(plain):
        def change(*args, **kwargs):
            if not busy:
                busy.append(True)
                shutil.copytree(folder, into / f"{next(number):03}")
                busy.pop()
            return plain(*args, **kwargs)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in ("unlink", "rmdir", "rename", "replace", "mkdir"):
            patch.setattr(os, name, watched(getattr(os, name)))
        patch.setattr(folders, "_exchange", watched(folders._exchange))
        yield


def distinct(snapshots):
    """Of snapshots those in which other names lie, in the folder and in those in it, or another adapter."""
    found = {}
    for snapshot in sorted(snapshots.iterdir()):
        adapter = snapshot / "a" / "adapter.json"
        names = sorted(str(path.relative_to(snapshot)) for path in (*snapshot.glob("*"), *snapshot.glob("*/*")))
        found.setdefault((*names, adapter.read_text() if adapter.exists() else ""), snapshot)
    return list(found.values())


# Killed while it ends


@pytest.fixture(scope="module")
def ending(run, tmp_path_factory):
    """What a run leaves that is killed anywhere from its last step on: while the adapter is written, put in its place,
    and what it worked in is removed. Of one that writes a new adapter and of one that replaces another."""
    folder = tmp_path_factory.mktemp("ending")
    plain = AdapterTrainer.train

    def train(self, **kwargs):
        found = plain(self, **kwargs)
        watching.enter_context(snapshots(folder / case / "work", folder / case / "left"))
        return found

    for case, overwrite in (("new", False), ("replaced", True)):
        (folder / case / "work").mkdir(parents=True)
        (folder / case / "left").mkdir()
        if overwrite:
            run(folder / case / "work" / "a", seed=5)
        with pytest.MonkeyPatch.context() as patch, ExitStack() as watching:
            patch.setattr(AdapterTrainer, "train", train)
            run(folder / case / "work" / "a", overwrite=overwrite)
    return folder


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
@pytest.mark.parametrize("case", ["new", "replaced"])
def test_killed_while_it_ends(run, whole, ending, tmp_path, case, overwrite):
    left = distinct(ending / case / "left")
    seen = set()
    for i, snapshot in enumerate(left):
        place = tmp_path / f"{i}"
        shutil.copytree(snapshot, place)
        old = contents(place / "a") == whole[5] if (place / "a").exists() else None
        seen.add((old, (place / ".a.tuning" / MARK).exists(), (place / ".a.tuning" / "recipe.yaml").exists()))
        assert old is True or not (place / "a").exists() or contents(place / "a") == whole[0], "never half of one"
        if old and not overwrite:
            with pytest.raises(OutputError, match=r"exists already(.|\n)*--overwrite"):
                run(place / "a", resume=True)
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AdapterTrainer, "training_step", None)  # all steps have been done
            run(place / "a", resume=True, overwrite=overwrite)
        assert contents(place / "a") == whole[0]
        assert names_in(place) == ["a"], f"from {names_in(snapshot)}"
    absent = True if case == "replaced" else None
    assert {(absent, False, True), (absent, True, True), (False, True, True), (False, True, False)} <= seen
    assert (False, False, False) in seen


def test_what_has_ended_can_be_begun_anew(run, whole, ending, tmp_path):
    for i, snapshot in enumerate(distinct(ending / "new" / "left")[-2:]):
        place = tmp_path / f"{i}"
        shutil.copytree(snapshot, place)
        with pytest.raises(OutputError, match="exists already"):
            run(place / "a")
        with pytest.raises(RecipeError, match=r"is finished, and was tuned by another recipe: train\.seed was 0, is 5"):
            run(place / "a", resume=True, seed=5)
        run(place / "a", overwrite=True, seed=5)
        assert contents(place / "a") == whole[5]
        assert names_in(place) == ["a"]


def test_several_killed_while_one_ends(backbone, task, tmp_path):
    adapters = {
        "one": {"task": task, "method": LORA, "train": {"max_steps": 2}},
        "two": {"task": task, "method": LORA, "train": {"seed": 5}},
    }
    (tmp_path / "work").mkdir()
    (tmp_path / "left").mkdir()
    plain = many._Member._finish

    def finish(self):
        if self.name == "one":
            with snapshots(tmp_path / "work", tmp_path / "left"):
                plain(self)
        else:
            plain(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many._Member, "_finish", finish)
        tune_many(backbone, adapters, output=tmp_path / "work", **SHORT)
    for snapshot in distinct(tmp_path / "left")[::4]:
        found = tune_many(backbone, adapters, output=snapshot, resume=True, **SHORT)
        assert list(found) == ["one", "two"]
        assert names_in(snapshot) == ["one", "two"]
        assert contents(snapshot / "one") == contents(tmp_path / "work" / "one")


# Killed while it begins


def test_killed_while_another_run_is_discarded(run, whole, tmp_path):
    """No run takes up checkpoints of another one's recipe."""
    (tmp_path / "work").mkdir()
    (tmp_path / "left").mkdir()
    with killed(at_step(5)):
        run(tmp_path / "work" / "a", seed=5)
    with snapshots(tmp_path / "work", tmp_path / "left"):
        run(tmp_path / "work" / "a", overwrite=True, max_steps=1)
    ended = {0: 0, 5: 0}
    for snapshot in distinct(tmp_path / "left"):
        if (snapshot / "a").exists() or "max_steps: 1\n" in str(contents(snapshot).get(".a.tuning/recipe.yaml")):
            continue
        for seed in (0, 5):
            place = tmp_path / "place"
            shutil.copytree(snapshot, place)
            with suppress(RecipeError):
                run(place / "a", resume=True, seed=seed)
                assert contents(place / "a") == whole[seed]
                assert names_in(place) == ["a"]
                ended[seed] += 1
            shutil.rmtree(place)
    assert ended[5] > 1, "it was gone on with while its recipe was there"


def test_checkpoints_of_no_recipe_are_not_taken_up(run, whole, tmp_path, caplog):
    """As an older graftwork left them that was killed while it removed its folder."""
    with killed(at_step(5)):
        run(tmp_path / "a", seed=5)
    (tmp_path / ".a.tuning" / "recipe.yaml").unlink()
    run(tmp_path / "a", resume=True)
    assert "to no known recipe" in caplog.text
    assert contents(tmp_path / "a") == whole[0]


def test_a_folder_in_which_nothing_had_begun_is_in_nobodys_way(run, tmp_path):
    (tmp_path / ".a.tuning").mkdir()
    (tmp_path / ".a.tuning" / "lock").touch()
    run(tmp_path / "a", max_steps=1)
    assert names_in(tmp_path) == ["a"]


# Refused, failed, interrupted


def test_what_is_refused_leaves_nothing(run, tmp_path):
    run(tmp_path / "a", max_steps=1)
    for changes in ({}, {"resume": True}):
        with pytest.raises(GraftworkError):
            run(tmp_path / "a", **changes)
    with pytest.raises(GraftworkError, match="max_length"):
        run(tmp_path / "deep" / "er" / "b", max_length=10_000)
    assert names_in(tmp_path) == ["a"]


def interrupt_at(step, patch, error=KeyboardInterrupt):
    plain = AdapterTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == step:
            raise error
        return plain(self, *args, **kwargs)

    patch.setattr(AdapterTrainer, "training_step", interrupted)


@pytest.mark.parametrize(("step", "said"), [(1, "nothing is kept"), (5, "kept up to step 4")])
def test_an_interrupt_says_what_is_kept(run, whole, tmp_path, monkeypatch, step, said):
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(InterruptedRunError, match=said) as stop:
            run(tmp_path / "a")
    assert isinstance(stop.value, KeyboardInterrupt)
    assert stop.value.resumable == (step == 5)
    assert names_in(tmp_path) == ([".a.tuning"] if stop.value.resumable else [])
    if stop.value.resumable:
        assert not (tmp_path / ".a.tuning" / OWNER).exists(), "it can be gone on with on another host"
        run(tmp_path / "a", resume=True)
        assert contents(tmp_path / "a") == whole[0]


def test_an_interrupt_once_the_adapter_is_there(run, whole, tmp_path, monkeypatch):
    plain = HeldFolder.remove

    def remove(self, last=()):
        if self.folder.name == ".a.tuning":
            raise KeyboardInterrupt
        plain(self, last)

    with monkeypatch.context() as patch:
        patch.setattr(HeldFolder, "remove", remove)
        with pytest.raises(InterruptedRunError, match="is finished and saved") as stop:
            run(tmp_path / "a")
    assert not stop.value.resumable
    assert contents(tmp_path / "a") == whole[0]
    run(tmp_path / "a", resume=True)
    assert names_in(tmp_path) == ["a"]


def test_what_has_no_output_cannot_be_gone_on_with(backbone, run, task, monkeypatch):
    """It lay in a temporary folder, which has gone."""
    interrupt_at(5, monkeypatch)
    for call in (
        lambda: run(None),
        lambda: tune_many(backbone, {"one": {"task": task, "method": LORA}}, **SHORT),
    ):
        with pytest.raises(KeyboardInterrupt) as stop:
            call()
        assert not isinstance(stop.value, InterruptedRunError)


def test_a_checkpoint_that_cannot_be_written(run, whole, tmp_path):
    run(tmp_path / "a", seed=5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with killed(at_step(3)):
        run(tmp_path / "a", overwrite=True)
    state = last_checkpoint(tmp_path / ".a.tuning") / "optimizer.pt"
    resource.setrlimit(resource.RLIMIT_FSIZE, (state.stat().st_size - 1, before[1]))
    try:
        with pytest.raises(OutputError, match=r"checkpoint-4' cannot be written(.|\n)*make room"):
            run(tmp_path / "a", overwrite=True, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path / "a") == whole[5], "the old one is there"
    run(tmp_path / "a", overwrite=True, resume=True)
    assert contents(tmp_path / "a") == whole[0]
    assert names_in(tmp_path) == ["a"]


@pytest.mark.parametrize("failing", ["fill_folder", "write_whole"])
def test_an_adapter_that_cannot_be_written(run, whole, tmp_path, monkeypatch, failing):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    run(tmp_path / "a", seed=5)
    with killed(at_step(5)):
        run(tmp_path / "a", overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(f"graftwork.training.outputs.{failing}", fail)
        with pytest.raises(OutputError, match="No space left on device"):
            run(tmp_path / "a", overwrite=True, resume=True)
    assert contents(tmp_path / "a") == whole[5]
    assert names_in(tmp_path) == [".a.tuning", "a"]
    run(tmp_path / "a", overwrite=True, resume=True)
    assert contents(tmp_path / "a") == whole[0]
    assert Path(tmp_path / "a").is_dir()
    assert Adapter.load(tmp_path / "a").seed == 0
