"""Studies on a Ray cluster: what each worker has, a worker that is lost, machines that cannot work, no cluster."""

import json
import secrets
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Thread, current_thread
from types import SimpleNamespace

import psutil
import pytest
import yaml
from comparing import compare, tables_of

from graftwork.errors import OutputError, RecipeError
from graftwork.studies import cluster
from graftwork.studies.cluster import Share, share
from graftwork.studies.study import Study

STUDY = Study.parse({"tasks": ["cola"], "methods": ["lora"]})

RAY = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""
"""A cluster of this machine, until its input ends."""


@pytest.fixture(scope="module")
def address():
    """Of a Ray cluster."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        # Otherwise Ray makes a token in the home folder. It reads these when it is imported, which none has done yet.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", RAY], text=True, **pipes) as holder:
            found = holder.stdout.readline().strip()
            assert found, holder.communicate()[1]
            yield found
            holder.communicate("\n")


@pytest.fixture(scope="module")
def study(values, tmp_path_factory):
    """A study's file: one task, one method, two rates, two seeds."""
    tasks = {"words": values()["tasks"]["words"]}
    file = tmp_path_factory.mktemp("study") / "study.yaml"
    file.write_text(yaml.safe_dump(values(tasks=tasks, methods={"lora": {"rank": 1}}), sort_keys=False))
    return file


def kill_worker(folder, killed):
    """Kill a worker that has begun a run, and the task of Ray, as the loss of its machine does."""
    end = time.monotonic() + 120
    while not killed and time.monotonic() < end:
        for owner in folder.glob("runs/.*.running/owner.json"):
            try:
                worker = psutil.Process(json.loads(owner.read_text())["pid"])
                task = worker.parent()
                if not task.name().startswith("ray::"):
                    continue
                task.kill()
                worker.kill()
            except (OSError, ValueError, AttributeError, psutil.Error):
                continue  # it has just ended
            killed.append(owner.parent.name[1:].removesuffix(".running"))
            break
        time.sleep(0.002)


# One worker: several of them share runs out as those of one machine do.
def test_a_lost_worker_changes_nothing(graftwork, address, study, tmp_path):
    whole, folder, killed = tmp_path / "whole", tmp_path / "lost", []
    compare(study, output=whole)
    Thread(target=kill_worker, args=(folder, killed), daemon=True).start()
    ran = graftwork("compare", study, "--output", folder, "--ray", address, "--workers", "1", "--tables-only")
    log = (folder / "workers" / "1.log").read_text()
    assert ran.status == 0, ran.err + log
    assert tables_of(folder) == tables_of(whole)
    assert "Ray cluster of 1 machine: 1 worker, each with 1 thread" in ran.err
    assert "worker 1 was killed (signal 9): it is started again" in ran.err
    assert "[3/3] words: lora" in ran.err
    assert "Ray: WorkerCrashedError: " in log
    done = [line for line in log.splitlines() if line.startswith("done: ")]
    assert len(done) == len(set(done)) == 3
    assert (folder / "runs" / killed[0] / "result.json").is_file()
    assert [*folder.glob("runs/.*"), *folder.glob("workers/.*")] == []


def test_machines_with_another_folder_are_refused(graftwork, address, study, tmp_path, monkeypatch):
    plain = cluster._token

    @contextmanager
    def elsewhere(folder):
        with plain(folder) as token:
            (folder / "workers" / f".{token}.ray" / "token").unlink()
            yield token

    monkeypatch.setattr(cluster, "_token", elsewhere)
    ran = graftwork("compare", study, "--output", tmp_path / "out", "--ray", address)
    assert ran.status == 2
    assert f"machines of the Ray cluster cannot work on the study in '{tmp_path / 'out'}'" in ran.err
    assert f"{socket.gethostname()}: {tmp_path / 'out' / 'workers'}/." in ran.err
    assert "No such file or directory\n  expected: storage that all machines have at the same path" in ran.err
    assert not (tmp_path / "out" / "workers").exists()


# -- without Ray -----------------------------------------------------------------------------------------------------


def test_a_machine_must_read_and_write_the_folder(tmp_path):
    left = tmp_path / "workers" / ".0123456789abcdef.ray"  # by a command that was killed
    left.mkdir(parents=True)
    with cluster._token(tmp_path) as token:
        place = tmp_path / "workers" / f".{token}.ray"
        assert [*(tmp_path / "workers").iterdir()] == [place]
        assert cluster._answer(str(tmp_path), token, "one")[1] == ""
        assert (place / "one").read_text() == token
        status, problem = cluster._work(str(tmp_path / "none"), 1, 1, token, "study.yaml")
        assert (status, problem) == (2, f"{tmp_path}/none/workers/.{token}.ray/token: No such file or directory")
        (place / "token").write_text("other")
        assert cluster._answer(str(tmp_path), token, "two")[1] == f"{place}/token: other contents"
    assert [*(tmp_path / "workers").iterdir()] == []


SMALL, LARGE, FAST = {"CPU": 4.0}, {"CPU": 16.0}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("machines", "workers", "threads", "expected"),
    [
        ([SMALL, LARGE], None, 4, Share(5, 4, 0.0)),
        ([SMALL, LARGE], None, 8, Share(2, 8, 0.0)),
        ([SMALL, SMALL], None, 8, Share(2, 4, 0.0)),
        ([SMALL, LARGE], 5, 1, Share(5, 4, 0.0)),
        ([SMALL, LARGE], 2, 1, Share(2, 8, 0.0)),
        ([SMALL], 9, 4, Share(9, 1, 0.0)),
        ([FAST, FAST, LARGE], None, 1, Share(4, 4, 1.0)),
        ([FAST, FAST, LARGE], 3, 1, Share(3, 4, 1.0)),
        ([FAST, FAST], 6, 1, Share(6, 2, 0.5)),
        ([], None, 4, Share(1, 4, 0.0)),
        ([], 3, 4, Share(3, 4, 0.0)),
    ],
)
def test_what_each_worker_has(machines, workers, threads, expected):
    assert share(machines, workers, threads) == expected


def unused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto"])
def test_no_cluster_is_said_at_once(graftwork, study, tmp_path, monkeypatch, address):
    address = address.format(unused_port())
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port()}")
    begun = time.monotonic()
    ran = graftwork("compare", study, "--output", tmp_path, "--ray", address)
    assert time.monotonic() - begun < 30
    assert ran.status == 2
    assert "no Ray cluster can be reached at '" in ran.err
    assert "Connection refused\n  expected: auto, local, HOST:PORT or ray://HOST:PORT" in ran.err


@pytest.mark.parametrize("address", ["", "somewhere", "host:port", "ray://"])
def test_what_is_no_address_is_refused(address, tmp_path):
    with pytest.raises(RecipeError, match="--ray is '"):
        cluster.run_on_ray(address, STUDY, tmp_path, 1, threads=1, look=lambda: None, say=lambda line: None)


def test_a_cluster_that_does_not_answer_is_given_up(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "CONNECTING", "import time; time.sleep(30)")
    monkeypatch.setattr(cluster, "CONNECT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RecipeError, match=f"'{address}': no answer within 0 seconds"):
            cluster.run_on_ray(address, STUDY, tmp_path, 1, threads=1, look=lambda: None, say=lambda line: None)


def test_what_ray_says_of_a_cluster_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "CONNECTING", "print('another version of Ray'); raise SystemExit(1)")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"ray://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(RecipeError, match=f"'{address}': another version of Ray"):
            cluster.run_on_ray(address, STUDY, tmp_path, 1, threads=1, look=lambda: None, say=lambda line: None)


def test_a_process_that_is_connected_already_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(cluster, "refuse_without_ray", lambda: None)
    with pytest.raises(RecipeError, match="connected with a Ray cluster already"), cluster._connected("local"):
        pass


def test_the_thread_that_starts_a_cluster_lives_as_long_as_it_is_used(monkeypatch):
    # Linux ends children with the thread that has started them, if they ask for it (PR_SET_PDEATHSIG), as Ray's do.
    threads = []
    ray = SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **settings: threads.append(current_thread()),
        shutdown=lambda: threads.append(threads[0].is_alive()),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "refuse_without_ray", lambda: None)
    with cluster._connected("local") as connected:
        assert connected is ray
        time.sleep(0.05)
        assert threads[0].is_alive()
    threads[0].join(5)
    assert (threads[1], threads[0].is_alive()) == (True, False)


class LostError(Exception):
    """What Ray says of a task that is gone."""


class RaisedError(LostError):
    """What Ray says of a task that has raised an error."""


@pytest.mark.parametrize(
    ("outcome", "status", "noted"),
    [
        ((0, ""), 0, ""),
        ((-9, ""), -9, ""),
        (LostError("gone"), -9, "Ray: LostError: gone"),
        (RaisedError("bad"), 1, "Ray: RaisedError: bad"),
    ],
)
def test_how_a_task_ended_is_how_its_worker_ended(outcome, status, noted, tmp_path):
    def get(task):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    errors = SimpleNamespace(RayError=LostError, RayTaskError=RaisedError)
    ray = SimpleNamespace(exceptions=errors, wait=lambda tasks, timeout: (tasks, []), get=get)
    (tmp_path / "workers").mkdir()
    assert cluster._RayWorker(ray, "task", tmp_path, 1).poll() == status
    log = tmp_path / "workers" / "1.log"
    assert (log.read_text() if log.exists() else "").strip() == noted


def test_a_worker_without_the_folder_ends_the_study(tmp_path):
    ray = SimpleNamespace(
        exceptions=SimpleNamespace(RayError=LostError, RayTaskError=RaisedError),
        wait=lambda tasks, timeout: (tasks, []),
        get=lambda task: (2, "/shared: No such file or directory"),
    )
    with pytest.raises(OutputError, match="worker 3: /shared: No such file"):
        cluster._RayWorker(ray, "task", tmp_path, 3).poll()


def test_ray_is_asked_for_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'pip install "graftwork\[cluster\]"'):
        compare("none.yaml", ray="auto")
