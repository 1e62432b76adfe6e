"""Several processes that work on one study, and what is done when one of them dies."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from graftwork.errors import OutputError
from graftwork.folders import write_whole
from graftwork.settings.yamlfile import dump_yaml
from graftwork.studies.records import run_folders
from graftwork.studies.study import Study

LOGS = "workers"
"""In a study's folder: what its processes say, a file each, and the studies that they were started for."""

LOOK = 0.5
"""Seconds between two looks at the processes."""

RESTARTS = 3
"""How often a process that is killed is started again while no run of the study ends."""


class Worker(Protocol):
    """A process that works on a study, here or on another machine."""

    def poll(self) -> int | None:
        """Its exit status, negative when it was killed; None while it runs."""

    def terminate(self) -> None:
        """Have it end."""

    def wait(self) -> object:
        """Wait until it has ended."""


def run_workers(
    study: Study, folder: Path, count: int, *, look: Callable[[], None], say: Callable[[str], None]
) -> None:
    """Have so many processes of this machine work on a study in its folder; see `attend`. Each computes with an equal
    share of the cores."""
    threads = max(1, (os.cpu_count() or 1) // count)
    file = keep(study, folder)
    attend(lambda number: start(file, folder, number, threads), folder, count, look=look, say=say)


def attend(
    begin: Callable[[int], Worker],
    folder: Path,
    count: int,
    *,
    look: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Have so many processes work on a study, until nothing is left of it.

    A process that is killed is started again, and goes on with the run that it had begun, unless another one has taken
    that.

    Args:
        begin: starts the worker of a number, from 1.
        folder: the study's, with its file.
        count: how many.
        look: is called again and again meanwhile.
        say: is told what happens to processes.

    Raises:
        OutputError: processes were killed again and again, or could not work.
    """
    (folder / LOGS).mkdir(exist_ok=True)
    running: dict[int, Worker] = {}
    restarts = dict.fromkeys(range(1, count + 1), 0)
    ended = len(run_folders(folder))
    broken: dict[int, int] = {}
    try:
        running |= {number: begin(number) for number in restarts}
        while running:
            time.sleep(LOOK)
            look()
            for number, process in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[number]
                if ended < (now := len(run_folders(folder))):
                    ended, restarts = now, dict.fromkeys(restarts, 0)
                if status < 0 and restarts[number] < RESTARTS:
                    restarts[number] += 1
                    say(f"worker {number} was killed (signal {-status}): it is started again")
                    running[number] = begin(number)
                elif status:
                    broken[number] = status
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    look()
    if broken:
        number, status = next(iter(broken.items()))
        log = log_of(folder, number)
        raise OutputError(
            f"{len(broken)} of {count} workers stopped before the study had ended (worker {number}: status {status})",
            expected="processes that end by themselves",
            change=f"what {log} says; a process that the system kills may need more memory: fewer --workers",
        )


def keep(study: Study, folder: Path) -> Path:
    """The file that workers read a study from: one of its own for each study, as another command may write that of the
    folder anew while they are started."""
    text = dump_yaml({**study.as_values(), "name": study.name})
    file = folder / LOGS / f"study.{sha256(text.encode()).hexdigest()[:16]}.yaml"
    file.parent.mkdir(exist_ok=True)
    write_whole(file, text)
    return file


def log_of(folder: Path, number: int) -> Path:
    """What a worker has said."""
    return folder / LOGS / f"{number}.log"


def start(study: Path, folder: Path, number: int, threads: int) -> subprocess.Popen[bytes]:
    """Start a worker on this machine, as a child of this process, for the study in a file."""
    command = [sys.executable, "-m", "graftwork.studies.worker", str(folder), "--study", str(study)]
    command += ["--parent", str(os.getpid()), "--threads", str(threads)]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
    with log_of(folder, number).open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
