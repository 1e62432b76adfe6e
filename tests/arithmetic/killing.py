"""A process that works and is killed at each step in which it changes a file or folder."""

import os
import sys
from collections.abc import Callable

STEPS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
"""What Python says of changes of folders, beside the opening of a file to be written."""

KILLED = 9


def in_child(work: Callable[[], object]) -> int:
    """The exit status of a process that works, and may be killed within."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_before(step: int, work: Callable[[], object]) -> bool:
    """Whether a process that works was killed before its n-th change, from 1 on; False: it has ended well before."""

    def run() -> None:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in STEPS:
                count += 1
                if count == step:
                    os._exit(KILLED)

        sys.addaudithook(hook)
        work()

    status = in_child(run)
    assert status in (0, KILLED)
    return status == KILLED
