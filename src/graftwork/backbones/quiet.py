"""Keeps transformers' progress bars and reports off the screen while graftwork loads a model, and puts them back
after.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from transformers.utils import logging

_lock = Lock()
_inside = 0
_before = (0, False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors are shown inside; verbosity and progress bars are as before afterwards, also after an exception. They
    are the process's: where several threads are inside, it is the last one to leave that puts them back.
    """
    global _inside, _before
    with _lock:
        _inside += 1
        if _inside == 1:
            _before = logging.get_verbosity(), logging.is_progress_bar_enabled()
            logging.set_verbosity_error()  # type: ignore[no-untyped-call]
            logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                verbosity, bars = _before
                logging.set_verbosity(verbosity)
                if bars:
                    logging.enable_progress_bar()  # type: ignore[no-untyped-call]
