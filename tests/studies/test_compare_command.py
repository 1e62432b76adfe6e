"""`graftwork compare` as a user types it, in this process and with workers."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from comparing import compare, tables_of

from graftwork.errors import OutputError
from graftwork.settings.yamlfile import dump_yaml
from graftwork.studies import workers
from graftwork.studies.records import run_folders
from graftwork.studies.study import Study


@pytest.fixture(scope="module")
def study(values, tmp_path_factory):
    """A study's file with paths relative to it: one task, one method, two rates, two seeds."""
    folder = tmp_path_factory.mktemp("study")
    words = dict(values()["tasks"]["words"]["task"])
    (folder / "words.csv").write_bytes(Path(words["data"]).read_bytes())
    tasks = {"words": {"task": {**words, "data": "words.csv"}}}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(values(tasks=tasks, methods={"lora": {"rank": 1}}), sort_keys=False))
    return file


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """What the study ends in, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    compare(study, output=folder)
    return tables_of(folder)


def test_a_study_is_run_beside_its_file_and_goes_on(graftwork, study, whole):
    ran = graftwork("compare", study, "--set", "seeds=1", "--tables-only")
    assert ran.status == 0
    assert "1 task, 1 method and setting: 2 runs of the search and 0 more" in ran.err
    assert "[2/2] words: lora, learning_rate=0.01, seed 0: validation accuracy " in ran.err
    header, row, last = ran.out.splitlines()
    assert header.split() == ["task", "method", "rate", "trained", "seeds", "metric", "validation", "test"]
    assert row.split()[:2] == ["words", "lora"]
    assert last == f"saved in {study.with_suffix('')}"
    folder = study.with_suffix("")
    assert not (folder / "report").exists()
    more = graftwork("compare", study, "--quiet", "--json")
    assert (more.status, more.err) == (0, "")
    drawn = (folder / "report" / "report.html").stat()
    assert graftwork("compare", study, "--quiet").status == 0
    assert (folder / "report" / "report.html").stat() == drawn
    found = json.loads(more.out)
    assert [(one["task"], one["seeds"]) for one in found["results"]] == [("words", 2)]
    assert tables_of(folder) == whole


def test_workers_end_with_the_same_tables(graftwork, study, whole, tmp_path):
    ran = graftwork("compare", study, "--output", tmp_path / "out", "--workers", "2", "--tables-only")
    assert ran.status == 0, ran.err + "".join(path.read_text() for path in (tmp_path / "out" / "workers").iterdir())
    assert tables_of(tmp_path / "out") == whole
    assert "[3/3] words: lora" in ran.err
    assert len(run_folders(tmp_path / "out")) == 3


def test_a_folder_of_something_else_is_left_alone(graftwork, study, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.yaml").write_bytes(study.read_bytes())
    ran = graftwork("compare", tmp_path / "mine" / "study.yaml", "--output", tmp_path / "mine")
    assert (ran.status, "is not empty, and no study's" in ran.err) == (2, True)
    assert (tmp_path / "mine" / "study.yaml").read_bytes() == study.read_bytes()
    assert graftwork("compare", study, "--output", study).status == 2


def test_what_is_wrong_is_said_with_the_flag(graftwork, study, tmp_path):
    for flags, said in (
        (["--train.epochs", "3"], "unknown key 'epochs'"),
        (["--workers", "0"], "--workers"),
        (["--report-to", "nowhere"], "unknown trackers nowhere"),
        (["--set", "seeds=zero"], "expected a number of seeds"),
    ):
        ran = graftwork("compare", study, "--output", tmp_path / "out", *flags)
        assert ran.status == 2
        assert said in ran.err
    assert not (tmp_path / "out").exists()
    assert graftwork("compare", tmp_path / "none.yaml").status == 2


@pytest.fixture
def started(monkeypatch, tmp_path):
    """A function that has workers be small programs; gives the numbers of those that were started."""

    def started(program):
        begun = []

        def start(study, folder, number, threads):
            begun.append(number)
            command = [sys.executable, "-c", program, str(len(begun))]
            return workers.subprocess.Popen(command, cwd=tmp_path)

        monkeypatch.setattr(workers, "start", start)
        monkeypatch.setattr(workers, "LOOK", 0.05)
        return begun

    return started


STUDY = Study.parse({"tasks": ["cola"], "methods": ["lora"]})
KILLED_ONCE = "import os, signal, sys; sys.argv[1] == '1' and os.kill(os.getpid(), signal.SIGKILL)"


def test_a_worker_that_is_killed_is_started_again(started, tmp_path):
    begun, said = started(KILLED_ONCE), []
    workers.run_workers(STUDY, tmp_path, 2, look=lambda: None, say=said.append)
    assert sorted(begun) == [1, 1, 2]
    assert said == ["worker 1 was killed (signal 9): it is started again"]


def test_workers_do_the_study_of_their_command(monkeypatch, tmp_path):
    from graftwork.studies import worker

    commands, read = [], []
    ended = SimpleNamespace(poll=lambda: 0)
    monkeypatch.setattr(workers.subprocess, "Popen", lambda command, **options: commands.append(command) or ended)
    monkeypatch.setattr(workers, "LOOK", 0.0)
    studies = [STUDY.model_copy(update={"seeds": seeds}) for seeds in ((0,), (0, 1))]
    for study in studies:
        (tmp_path / "study.yaml").write_text(dump_yaml(study.as_values()))
        workers.run_workers(study, tmp_path, 1, look=lambda: None, say=lambda line: None)
    monkeypatch.setattr(worker, "Plan", lambda study, folder: read.append(study))
    monkeypatch.setattr(worker, "work", lambda plan, announce: None)
    monkeypatch.setattr(worker, "_end_with", lambda parent: None)
    assert [worker.main(command[3:]) for command in commands] == [0, 0]
    assert read == studies


def test_workers_that_die_again_and_again_end_a_study(started, tmp_path):
    begun = started("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(OutputError, match=r"worker 1: status -9(.|\n)*1.log(.|\n)*fewer --workers"):
        workers.run_workers(STUDY, tmp_path, 1, look=lambda: None, say=lambda line: None)
    assert len(begun) == 1 + workers.RESTARTS


KILLED_WHILE_RUNS_END = """
import os, signal, sys
os.makedirs(f"runs/{sys.argv[1]}")
int(sys.argv[1]) < 7 and os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_is_started_again_for_as_long_as_runs_end(started, tmp_path):
    begun = started(KILLED_WHILE_RUNS_END)
    workers.run_workers(STUDY, tmp_path, 1, look=lambda: None, say=lambda line: None)
    assert len(begun) == 7 > 1 + workers.RESTARTS


def test_an_interrupt_ends_the_workers(started, tmp_path):
    begun = started("import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)")

    def look():
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.run_workers(STUDY, tmp_path, 1, look=look, say=lambda line: None)
    assert begun == [1]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_worker_ends_with_its_parent(monkeypatch):
    from graftwork.studies import worker

    sent = []
    monkeypatch.setattr(worker.os, "kill", lambda process, number: sent.append((process, number)))
    monkeypatch.setattr(worker, "LOOK", 0.0)
    start = time.monotonic()
    worker._end_with(os.getppid() + 1)
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert time.monotonic() - start < 5
