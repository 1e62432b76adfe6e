"""One run at a time works on an output, in one process or several; others leave it alone."""

import json
import os
import threading

import pytest
from training.short import LORA, SHORT
from training.workbench import at_step, contents, killed, names_in

from graftwork import Backbone, tune_many
from graftwork.errors import InProgressError, RecipeError
from graftwork.folders import OWNER, HeldFolder
from graftwork.training.trainer import AdapterTrainer


def test_a_run_in_progress_is_left_alone(run, tmp_path):
    with killed(at_step(3)):
        run(tmp_path / "a")
    held = HeldFolder.take(tmp_path / ".a.tuning", "it")
    before = contents(tmp_path / ".a.tuning")
    for changes in ({}, {"overwrite": True}, {"resume": True}, {"resume": True, "seed": 1}):
        with pytest.raises(
            InProgressError, match=f"in progress: process {os.getpid()} .this one. on host .*, since 20"
        ):
            run(tmp_path / "a", **changes)
        assert contents(tmp_path / ".a.tuning") == before
    held.release()
    run(tmp_path / "a", resume=True)
    assert names_in(tmp_path) == ["a"]


def test_another_seed_is_refused_and_nothing_is_lost(run, tmp_path):
    # Before the first checkpoint, where a run that fails leaves nothing.
    with killed(at_step(1)):
        run(tmp_path / "a")
    before = contents(tmp_path / ".a.tuning")
    with pytest.raises(RecipeError, match="seed was 0, is 1"):
        run(tmp_path / "a", resume=True, seed=1)
    assert contents(tmp_path / ".a.tuning") == before


def test_of_two_threads_one_tunes(run, whole, backbone_folder, tmp_path):
    backbones = [Backbone.load(str(backbone_folder), dtype="float32", device="cpu") for _ in range(2)]
    begun, ended, errors = threading.Event(), [], []
    plain = AdapterTrainer.training_step

    def step(self, *args, **kwargs):
        begun.set()
        assert second.is_alive() or errors
        second.join()
        return plain(self, *args, **kwargs)

    def tune_first():
        ended.append(run(tmp_path / "a", backbone=backbones[0]))

    def tune_second():
        begun.wait()
        try:
            run(tmp_path / "a", backbone=backbones[1], seed=5, overwrite=True)
        except InProgressError as error:
            errors.append(error)

    first, second = threading.Thread(target=tune_first), threading.Thread(target=tune_second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", step)
        second.start()
        first.start()
        first.join()
    assert len(ended) == len(errors) == 1
    assert contents(tmp_path / "a") == whole[0]
    assert names_in(tmp_path) == ["a"]


def test_several_are_held_each_and_all(backbone, task, tmp_path):
    adapters = {name: {"task": task, "method": LORA} for name in ("one", "two")}
    for held, said in ((".two.tuning", "a run to .*two"), (".tuning", "tuning of several adapters")):
        other = HeldFolder.take(tmp_path / held, said.replace(".*", " "))
        for options in ({}, {"overwrite": True}):
            with pytest.raises(InProgressError, match=said):
                tune_many(backbone, adapters, output=tmp_path, **options, **SHORT)
            assert names_in(tmp_path) == [held]
        other.remove()
    tune_many(backbone, adapters, output=tmp_path, **SHORT)
    assert names_in(tmp_path) == ["one", "two"]


def test_while_several_are_tuned_none_of_them_is_tuned_alone(backbone, backbone_folder, run, task, tmp_path):
    other = Backbone.load(str(backbone_folder), dtype="float32", device="cpu")
    plain, refused = AdapterTrainer.training_step, []

    def step(self, *args, **kwargs):
        for output in (tmp_path / "one", tmp_path / "two"):
            with pytest.raises(InProgressError):
                run(output, backbone=other, overwrite=True)
            refused.append(output)
        return plain(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", step)
        adapters = {name: {"task": task, "method": LORA} for name in ("one", "two")}
        tune_many(backbone, adapters, output=tmp_path, **{**SHORT, "max_steps": 1})
    assert len(refused) == 4
    assert names_in(tmp_path) == ["one", "two"]


def test_a_run_of_another_host_is_not_touched(run, tmp_path):
    with killed(at_step(3)):
        run(tmp_path / "a")
    owner = tmp_path / ".a.tuning" / OWNER
    owner.write_text(json.dumps({**json.loads(owner.read_text()), "host": "far"}))
    before = contents(tmp_path / ".a.tuning")
    for changes in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(InProgressError, match=r"on host far(.|\n)*whether it still runs(.|\n)*owner\.json"):
            run(tmp_path / "a", **changes)
    assert contents(tmp_path / ".a.tuning") == before
    owner.unlink()
    run(tmp_path / "a", resume=True)
