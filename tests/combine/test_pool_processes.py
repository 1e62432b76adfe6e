"""A pool and several processes: one is killed while a student is trained, and others read while one adds."""

import shutil

import pytest
from combine.test_pool import METHOD, TRAIN, WORDS, task_of
from training.workbench import KilledError, contents

from graftwork import Pool, tune
from graftwork.combine import pool as pools
from graftwork.combine.adding import WORKING
from graftwork.errors import AdapterError
from graftwork.training.trainer import AdapterTrainer


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return {name: task_of(folder, name, 60) for name in WORDS}


@pytest.fixture(scope="module")
def alone(backbone, tasks):
    return {name: tune(backbone, task=tasks[name], method=METHOD, **{**TRAIN, "max_steps": 2}) for name in "ab"}


def test_killed_while_its_student_is_trained_it_goes_on_to_the_same_bytes(
    backbone, tasks, alone, tmp_path, monkeypatch
):
    folder, settings = tmp_path / "pool", {**TRAIN, "max_steps": 8, "eval_strategy": "steps", "eval_steps": 3}
    pool = Pool(folder, backbone=backbone, capacity=1, method=METHOD)
    pool.add(tasks["a"], adapter=alone["a"])
    shutil.copytree(folder, tmp_path / "before")
    steps, dies = [], []
    plain = AdapterTrainer.training_step

    def noted(self, model, inputs, *args, **kwargs):
        steps.append(self.state.global_step)
        if steps[-1] in dies:
            # Of a process that is killed nothing is tidied up: what is there now is what is left.
            shutil.copytree(folder, tmp_path / "killed")
            raise KilledError
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "training_step", noted)
    pool.add(tasks["b"], adapter=alone["b"], **settings)
    whole = contents(folder)
    assert steps == [*range(8)], "the student alone is trained"

    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "before", folder)
    dies.append(5)
    with pytest.raises(KilledError):
        Pool(folder, backbone=backbone).add(tasks["b"], adapter=alone["b"], **settings)
    shutil.rmtree(folder)
    (tmp_path / "killed").rename(folder)
    assert [*(folder / WORKING).glob("**/checkpoint-3")]
    dies.clear()
    steps.clear()
    again = Pool(folder, backbone=backbone)
    assert again.tasks == ("a",)
    again.add(tasks["b"], adapter=alone["b"], **settings)
    assert steps == [*range(3, 8)], "from the last checkpoint"
    assert contents(folder) == whole


def test_a_reader_follows_a_pool_to_which_another_process_adds(backbone, tasks, alone, tmp_path):
    writer = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    writer.add(tasks["a"], adapter=alone["a"])
    readers = [Pool(tmp_path / "pool", backbone=backbone) for _ in range(3)]
    writer.add(tasks["b"], adapter=alone["b"], max_steps=2)
    assert readers[0].predict(["one good two"], "a") == writer.predict(["one good two"], "a")
    assert readers[0].tasks == ("a", "b")
    assert readers[1].nbytes == writer.nbytes
    assert readers[2].adapter("a").digest == writer.adapter("a").digest
    # Before it has read anything of it, it does not know the new task.
    with pytest.raises(AdapterError, match="no task 'c'"):
        readers[2].adapter("c")


def test_tasks_that_come_while_members_are_read(backbone, tasks, alone, tmp_path, monkeypatch):
    """Each time that the pool was read, it is another one by the time that the member is, as long as tasks come."""
    pool = Pool(tmp_path / "pool", backbone=backbone, capacity=1, method=METHOD)
    pool.add(tasks["a"], adapter=alone["a"])
    left = ["b", "c"]
    plain = pools.read_member

    def late(folder, digest):
        if left:
            name = left.pop(0)
            Pool(folder, backbone=backbone).add(tasks[name], **{**TRAIN, "max_steps": 1})
        return plain(folder, digest)

    reader = Pool(tmp_path / "pool", backbone=backbone)
    with monkeypatch.context() as patch:
        patch.setattr(pools, "read_member", late)
        found = reader.adapter("a")
    assert not left
    assert reader.tasks == ("a", "b", "c")
    assert found.digest == Pool(tmp_path / "pool", backbone=backbone).adapter("a").digest


def test_a_member_that_is_missing_is_still_an_error(backbone, tasks, alone, tmp_path):
    pool = Pool(tmp_path / "pool", backbone=backbone, method=METHOD)
    pool.add(tasks["a"], adapter=alone["a"])
    shutil.rmtree(tmp_path / "pool" / "adapters")
    with pytest.raises(AdapterError, match="does not exist"):
        pool.adapter("a")
