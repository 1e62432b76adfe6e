"""Several processes that work on one study, and what is done when one of them dies."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from graftwork.errors import OutputError

LOGS = "workers"
"""In a study's folder: what its processes say, a file each."""

LOOK = 0.5
"""Seconds between two looks at the processes."""

RESTARTS = 3
"""How often a process is started again that was killed."""


def run_workers(folder: Path, count: int, *, look: Callable[[], None], say: Callable[[str], None]) -> None:
    """Have so many processes work on a study, until nothing is left of it.

    Each computes with an equal share of the machine's cores. A process that is killed is started again, and goes on
    with the run that it had begun, unless another one has taken that.

    Args:
        folder: the study's, with its file.
        count: how many.
        look: is called again and again meanwhile.
        say: is told what happens to processes.

    Raises:
        OutputError: processes were killed again and again, or could not work.
    """
    (folder / LOGS).mkdir(exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // count)
    running = {number: _start(folder, number, threads) for number in range(1, count + 1)}
    restarts = dict.fromkeys(running, 0)
    broken: dict[int, int] = {}
    try:
        while running:
            time.sleep(LOOK)
            look()
            for number, process in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[number]
                if status < 0 and restarts[number] < RESTARTS:
                    restarts[number] += 1
                    say(f"worker {number} was killed (signal {-status}): it is started again")
                    running[number] = _start(folder, number, threads)
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
        log = folder / LOGS / f"{number}.log"
        raise OutputError(
            f"{len(broken)} of {count} workers stopped before the study had ended (worker {number}: status {status})",
            expected="processes that end by themselves",
            change=f"what {log} says; a process that the system kills may need more memory: fewer --workers",
        )


def _start(folder: Path, number: int, threads: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "graftwork.studies.worker", str(folder)]
    command += ["--parent", str(os.getpid()), "--threads", str(threads)]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
    with (folder / LOGS / f"{number}.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
