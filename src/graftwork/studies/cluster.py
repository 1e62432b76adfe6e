"""A study on a Ray cluster: tasks of Ray start the workers that `--workers` starts on one machine.

Ray decides where a worker runs, and says when one is lost. Runs are shared out as on one machine, through the study's
folder, which all machines of the cluster must have at the same path.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from threading import Event, Thread, current_thread, main_thread
from typing import Any

import graftwork
from graftwork.errors import OutputError, RecipeError, first_line
from graftwork.studies.claims import claimed
from graftwork.studies.study import Study
from graftwork.studies.workers import LOGS, Worker, attend, keep, log_of, start

ADDRESSES = "auto, local, HOST:PORT or ray://HOST:PORT of a Ray cluster that runs"

CLIENT_PORT = 10001
"""Where Ray's client is listened to, if `ray://HOST` says nothing else."""

REACH, CONNECT, ANSWER, END = 10.0, 90.0, 120.0, 10.0
"""Seconds in which the port must be open, Ray must be connected, all machines must have answered, and a worker must
have ended."""


CONNECTING = """
import logging, sys
import ray
try:
    ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)
except Exception as error:
    print(str(error).strip() or type(error).__name__)
    sys.exit(1)
"""
"""A program that finds out whether a cluster answers."""

PLACE, TOKEN = ".{}.ray", "token"
"""Beside what the workers say: the folder that all machines must have, and the file in it that they read."""


@dataclass(frozen=True)
class Share:
    """What each worker has of a cluster.

    Attributes:
        workers: how many there are.
        threads: CPUs of each.
        gpus: GPUs of each: a part of one is shared.
    """

    workers: int
    threads: int
    gpus: float


def refuse_without_ray() -> None:
    """Refuse a cluster where Ray is not installed.

    Raises:
        RecipeError: it is not.
    """
    if find_spec("ray") is None:
        raise RecipeError(
            "a study runs on a cluster by Ray, which is not installed",
            expected='pip install "graftwork[cluster]"',
            change="install it, or leave out --ray",
        )


def run_on_ray(
    address: str,
    study: Study,
    folder: Path,
    workers: int | None,
    *,
    threads: int,
    look: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Have the machines of a Ray cluster work on a study, until nothing is left of it.

    A worker that is killed, or whose machine is lost, is started again. The run that it had begun is taken up again.

    Args:
        address: of the cluster, as `ray.init` takes it.
        study: the study.
        folder: its folder.
        workers: how many. None: one for each GPU, or as many as there are CPUs for.
        threads: of each worker, where nothing says how many there are.
        look, say: as `attend` takes them.

    Raises:
        RecipeError: there is no cluster at the address.
        OutputError: a machine cannot work in the folder, or workers were killed again and again.
    """
    with _connected(address) as ray, _token(folder) as token:
        machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        _refuse_strangers(ray, machines, folder, token)
        own = share([node["Resources"] for node in machines], workers, threads)
        say(
            f"Ray cluster of {len(machines)} machine{'s' * (len(machines) != 1)}: {own.workers} "
            f"worker{'s' * (own.workers != 1)}, each with {own.threads} thread{'s' * (own.threads != 1)}"
            + (f" and {own.gpus:.3g} GPU" if own.gpus else "")
        )
        task = ray.remote(num_cpus=own.threads, num_gpus=own.gpus, max_retries=0)(_work)

        file = keep(study, folder)

        def begin(number: int) -> Worker:
            return _RayWorker(ray, task.remote(str(folder), number, own.threads, token, file.name), folder, number)

        attend(begin, folder, own.workers, look=look, say=say)


def share(machines: Sequence[Mapping[str, float]], workers: int | None, threads: int) -> Share:
    """What each worker has. Those that Ray has no room for wait until it has.

    Args:
        machines: Ray's resources of each: `CPU`, and `GPU` where there are some.
        workers: how many. None: one for each GPU; without GPUs, as many as there is room for.
        threads: of each worker, where neither the number of workers nor that of GPUs decides. A machine with fewer CPUs
            has fewer.
    """
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    count = workers or gpus
    together = -(-count // gpus) if gpus else 0  # that share a GPU

    def room(each: int) -> int:
        """How many workers with so many threads there is room for."""
        places = [(int(machine["CPU"]) // each, together * int(machine.get("GPU", 0))) for machine in machines]
        return sum(min(place) if gpus else place[0] for place in places)

    if not machines:  # some come when there is work
        return Share(count or 1, threads, 0.0)
    most = max(int(machine["CPU"]) for machine in machines)
    if count:
        threads = next((each for each in range(most, 1, -1) if room(each) >= count), 1)
    else:
        threads = min(threads, most)
        count = room(threads)
    return Share(count, threads, 1 / together if together else 0.0)


# -- on the machines of the cluster ----------------------------------------------------------------------------------


def _work(folder: str, number: int, threads: int, token: str, study: str) -> tuple[int, str]:
    """Start a worker, and wait until it has ended; gives its exit status and what is wrong with the folder.

    The worker is a process of its own: Ray's has threads and connections that training, which may fork, knows nothing
    of. It ends when Ray's ends.
    """
    if problem := _problem(folder, token, f"worker-{number}"):
        return 2, problem
    process = start(Path(folder) / LOGS / study, Path(folder), number, threads)
    try:
        return process.wait(), ""
    finally:
        process.terminate()
        process.wait()


def _answer(folder: str, token: str, name: str) -> tuple[str, str, str]:
    """The machine's name, what is wrong with the folder there, and the version of graftwork that it has."""
    return socket.gethostname(), _problem(folder, token, name), graftwork.__version__


def _problem(folder: str, token: str, name: str) -> str:
    """What keeps this machine from working in a study's folder: it reads what the command has written, and writes."""
    place = _place(Path(folder), token)
    try:
        if (place / TOKEN).read_text(encoding="ascii") != token:
            return f"{place / TOKEN}: other contents"
        (place / name).write_text(token, encoding="ascii")
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror or error}"
    return ""


# -- where the command runs ------------------------------------------------------------------------------------------


class _RayWorker:
    """A task of Ray that waits for a worker.

    Args:
        ray: the module.
        task: Ray's reference to it.
        folder: the study's.
        number: the worker's.
    """

    def __init__(self, ray: Any, task: Any, folder: Path, number: int) -> None:
        self._ray, self._task, self._folder, self._number = ray, task, folder, number

    def poll(self) -> int | None:
        errors = self._ray.exceptions
        if not self._ray.wait([self._task], timeout=0)[0]:
            return None
        try:
            status, problem = self._ray.get(self._task)
        except errors.RayTaskError as error:
            self._note(error)
            return 1
        except errors.RayError as error:  # it was killed, its machine was lost, or memory was short
            self._note(error)
            return -signal.SIGKILL
        if problem:
            raise _not_shared(self._folder, [f"worker {self._number}: {problem}"])
        return int(status)

    def terminate(self) -> None:
        with suppress(Exception):
            self._ray.cancel(self._task, force=True)

    def wait(self) -> None:
        with suppress(Exception):
            self._ray.wait([self._task], timeout=END)

    def _note(self, error: Exception) -> None:
        with suppress(OSError), log_of(self._folder, self._number).open("a", encoding="utf-8") as log:
            log.write(f"Ray: {type(error).__name__}: {error}\n")


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Inside, this process is connected with a cluster, which for `local` is made; gives the module.

    Raises:
        RecipeError: there is none at the address, or the process is connected already.
    """
    refuse_without_ray()
    # Ray tells its makers how it is used, unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _refuse_closed_port(address)
    if address != "local":
        _refuse_silence(address)
    import logging

    import ray

    if ray.is_initialized():
        raise RecipeError(
            "this process is connected with a Ray cluster already", expected="one that is not", change="ray.shutdown()"
        )
    logging.getLogger("ray").setLevel(logging.ERROR)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    failed: list[BaseException] = []
    tried, ended = Event(), Event()

    def connect() -> None:
        try:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
        except BaseException as error:
            failed.append(error)
        tried.set()
        ended.wait()  # the system ends the processes of a local cluster with the thread that has started them

    # Ray hears no interrupt meanwhile.
    handler = signal.getsignal(signal.SIGTERM)
    Thread(target=connect, name="Ray", daemon=True).start()
    try:
        if not tried.wait(CONNECT):
            raise _unreachable(address, f"no answer within {CONNECT:.0f} seconds")
        if failed:
            raise _unreachable(address, first_line(failed[0])) from failed[0]
        if current_thread() is main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own says where the signal came, and nothing to the user
        try:
            yield ray
        finally:
            ray.shutdown()
    finally:
        ended.set()


def _refuse_closed_port(address: str) -> None:
    """Refuse an address that nobody listens at, which Ray finds out in minutes.

    Raises:
        RecipeError: nobody does.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    client = address.startswith("ray://")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if client and not host:
        host, port = port, str(CLIENT_PORT)
    if not host or not port.isdecimal():
        if address not in ("auto", "local"):
            raise RecipeError(f"--ray is {address!r}", expected=ADDRESSES, change="--ray")
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, getattr(error, "strerror", None) or first_line(error)) from error


def _refuse_silence(address: str) -> None:
    """Refuse an address at which no cluster answers, which Ray tries for minutes. A process that gives up meanwhile may
    crash when it ends, so another one tries.

    Raises:
        RecipeError: none does.
    """
    command = [sys.executable, "-P", "-c", CONNECTING, address]
    try:
        tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CONNECT)
    except subprocess.TimeoutExpired:
        raise _unreachable(address, f"no answer within {CONNECT:.0f} seconds") from None
    if tried.returncode:
        said = (tried.stdout.strip() or tried.stderr.strip()).splitlines()
        raise _unreachable(address, said[0] if said else f"Ray ended with status {tried.returncode}")


def _unreachable(address: str, why: str) -> RecipeError:
    return RecipeError(
        f"no Ray cluster can be reached at {address!r}: {why}",
        expected=ADDRESSES,
        change="--ray, or RAY_AUTH_MODE and RAY_AUTH_TOKEN where the cluster asks for a token",
    )


@contextmanager
def _token(folder: Path) -> Iterator[str]:
    """Inside, there is a file in a study's folder by which machines find out that they have the same folder."""
    for left in (folder / LOGS).glob(PLACE.format("*")):
        with claimed(left, "work of a killed command") as claim:
            if claim is not None:
                claim.ended = True
    token = token_hex(8)
    place = _place(folder, token)
    with claimed(place, f"work in {folder}") as claim:
        assert claim is not None
        claim.ended = True
        (place / TOKEN).write_text(token, encoding="ascii")
        yield token


def _place(folder: Path, token: str) -> Path:
    """Where machines read and write, to find out whether they have a study's folder."""
    return folder / LOGS / PLACE.format(token)


def _refuse_strangers(ray: Any, machines: Sequence[Mapping[str, Any]], folder: Path, token: str) -> None:
    """Refuse machines that do not have the study's folder, or have another graftwork.

    Raises:
        OutputError: names all of them.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in machines:
        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, scheduling_strategy=there)(_answer)
        asked[task.remote(str(folder), token, node["NodeID"])] = node
    answered = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)[0] if asked else []
    problems = []
    for task, node in asked.items():
        name = node.get("NodeManagerHostname") or node["NodeID"]
        if task not in answered:
            problems.append(f"{name}: no answer within {ANSWER:.0f} seconds")
            continue
        try:
            name, problem, version = ray.get(task)
        except ray.exceptions.RayError as error:
            problems.append(f"{name}: {str(error).strip().splitlines()[-1]}")
            continue
        if not problem and not (_place(folder, token) / node["NodeID"]).is_file():
            problem = "what it writes there does not arrive here"
        if not problem and version != graftwork.__version__:
            problem = f"it has graftwork {version}, and not {graftwork.__version__}"
        if problem:
            problems.append(f"{name}: {problem}")
    if problems:
        raise _not_shared(folder, problems)


def _not_shared(folder: Path, problems: Sequence[str]) -> OutputError:
    return OutputError(
        f"machines of the Ray cluster cannot work on the study in {str(folder)!r}\n  " + "\n  ".join(problems),
        expected="storage that all machines have at the same path, and the same graftwork on each",
        change="--output",
    )
