"""What the tests of processes run in a process of their own: graftwork is imported once, and each work on a study is a
fork of it, which begins at once and can be killed.

Run as `python processes.py`, in a folder with a study for each thing to be done: `kills.yaml`, `both.yaml`. Prints one
line of JSON.
"""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import torch
from comparing import tables_of

from graftwork.cli import main
from graftwork.studies import single_run, work_loop
from graftwork.studies.comparing import compare

assert main
assert compare


def fork(study: str, output: str, *flags: str) -> int:
    """Begin to work on a study; gives the process. It notes each run that it does."""
    child = os.fork()
    if child:
        return child
    status = 1
    plain = single_run.run

    def run(job: Any, store: Any, claim: Any) -> Any:
        note(output, f"{os.getpid()} {job.hash}")
        return plain(job, store, claim)

    work_loop.run = run
    try:
        with Path(f"{os.getpid()}.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            main(["compare", study, "--output", output, "--tables-only", *flags])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        os._exit(status)


def note(output: str, line: str) -> None:
    with Path(f"{output}.runs").open("a") as file:
        file.write(line + "\n")


def notes(output: str) -> list[list[str]]:
    """The process and the run of each run that was begun."""
    return [line.split() for line in Path(f"{output}.runs").read_text().splitlines()]


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def said(process: int) -> str:
    return Path(f"{process}.log").read_text()


def kills(study: str) -> Any:
    """A study is killed twice at random moments and gone on with."""
    start = time.monotonic()
    first = wait(fork(study, "whole"))
    usual = time.monotonic() - start
    killed = 0
    for _ in range(2):
        process = fork(study, "cut")
        time.sleep(random.uniform(0.15, 0.85) * usual)
        os.kill(process, signal.SIGKILL)
        killed += wait(process) == -signal.SIGKILL
    last = fork(study, "cut")
    status = wait(last)
    return {
        "statuses": [first, status],
        "killed": killed,
        "same": tables_of(Path("cut")) == tables_of(Path("whole")),
        "left": [path.name for path in Path("cut/runs").iterdir() if path.name.startswith(".")],
        "runs": len({run for _, run in notes("cut")}),
        "said": said(last),
    }


def begun_by(process: int) -> bool:
    return Path("both.runs").exists() and str(process) in Path("both.runs").read_text()


def both(study: str) -> Any:
    """Two processes begin to work on one study at the same time; a third one comes and is killed."""
    processes = [fork(study, "both") for _ in range(3)]
    statuses: list[int] = []
    # The others may be so fast that it finds nothing to do.
    while not begun_by(processes[2]):
        if (ended := os.waitpid(processes[2], os.WNOHANG))[0]:
            statuses = [os.waitstatus_to_exitcode(ended[1])]
            break
        time.sleep(0.01)
    else:
        os.kill(processes[2], signal.SIGKILL)
        statuses = [wait(processes[2])]
    statuses += [wait(process) for process in processes[:2]]
    begun = notes("both")
    ended = [run for process, run in begun if int(process) != processes[2]]
    return {
        "statuses": statuses,
        "twice": len(ended) - len(set(ended)),
        "shared": sorted({int(process) for process, _ in begun} - {processes[2]}) == sorted(processes[:2]),
        "runs": len({run for _, run in begun}),
        "tables": {name: text.decode() for name, text in tables_of(Path("both")).items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({what.__name__: what(f"{what.__name__}.yaml") for what in (kills, both)}))
