"""One of several processes that work on a study: `python -m graftwork.studies.worker FOLDER --study FILE --parent PID`.

It reads the study from a file, runs what nobody else runs, and ends when nothing is left, or when the process that
started it has gone.
"""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

from graftwork.errors import GraftworkError
from graftwork.studies.plan import Plan
from graftwork.studies.study import Study
from graftwork.studies.work_loop import work

LOOK = 1.0
"""Seconds between two looks whether the parent still lives."""


def main(arguments: list[str] | None = None) -> int:
    """Work on a study; gives the exit status."""
    parser = argparse.ArgumentParser(prog="graftwork.studies.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    threading.Thread(target=_end_with, args=(given.parent,), daemon=True).start()
    import torch

    torch.set_num_threads(given.threads)
    try:
        plan = Plan(Study.from_yaml(given.study), given.folder)
        work(plan, lambda job, record: print(f"{record.state}: {job.label}", flush=True))
    except GraftworkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _end_with(parent: int) -> None:
    """End when the parent has ended: nobody would wait for what is done."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
