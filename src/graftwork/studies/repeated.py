"""Warnings that each run of a study would give again: they are said once."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("graftwork.training.score_warnings", "graftwork.tasks.data", "graftwork.tasks.reading")


class _Once(logging.Filter):
    """Lets each message pass once."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self.said
        self.said.add(text)
        return new


@contextmanager
def said_once() -> Iterator[None]:
    """Inside, what is said of data and of the number of rows that were scored is said once."""
    once = _Once()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(once)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(once)
