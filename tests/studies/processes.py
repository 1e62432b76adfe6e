"""What the tests of processes run in a process of their own: graftwork is imported once, and each work on a study is a
fork of it, which begins at once and can be killed.

Run as `python processes.py WHAT STUDY`, in the folder for the outputs. Prints one line of JSON.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comparing import tables_of

from graftwork.cli import main
from graftwork.studies import running, working
from graftwork.studies.comparing import compare

assert main
assert compare


def fork(study: str, output: str, *flags: str) -> int:
    """Begin to work on a study; gives the process. It notes each run that it does."""
    child = os.fork()
    if child:
        return child
    status = 1
    plain = running.run

    def run(job: Any, store: Any, claim: Any) -> Any:
        note(output, f"{os.getpid()} {job.hash}")
        return plain(job, store, claim)

    working.run = run
    try:
        with Path(f"{os.getpid()}.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            main(["compare", study, "--output", output, *flags])
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


def both(study: str) -> Any:
    """Two processes begin to work on one study at the same time; a third one comes and is killed."""
    processes = [fork(study, "both") for _ in range(3)]
    while not Path("both.runs").exists() or str(processes[2]) not in Path("both.runs").read_text():
        time.sleep(0.01)
    os.kill(processes[2], signal.SIGKILL)
    statuses = [wait(process) for process in processes]
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
    chosen: dict[str, Callable[[str], Any]] = {"kills": kills, "both": both}
    print(json.dumps(chosen[sys.argv[1]](sys.argv[2])))
