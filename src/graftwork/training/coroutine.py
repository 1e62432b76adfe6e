"""A function that waits in its middle, however deep in code that knows nothing of it: a generator made of a thread."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any

# greenlet does this in one thread, where torch has one gradient mode, autocast and device for all: runs need their own.


class ThreadCoroutine:
    """A function and its caller that take turns: while one of them runs, the other one waits.

    The caller's side is a generator's: `send`, `throw` and `close`. The function's side is `ask`, which waits for the
    caller's answer. Nothing ever runs at the same time, so that nothing needs a lock and each run is the same.

    Attributes:
        ended: whether the function has returned or raised.

    Args:
        function: runs with the first `send`.
        name: the thread's.
    """

    def __init__(self, function: Callable[[], Any], *, name: str) -> None:
        self._function = function
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._questions: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        # Both are set by the function's side when it stops: an interrupt can take its caller's mind off what it said.
        self._running = False
        self.ended = False

    def ask(self, question: Any) -> Any:
        """Of the function: let the caller go on, and wait for its answer."""
        self._running = False
        self._questions.put((question, None))
        answer, error = self._answers.get()
        if error is not None:
            raise error
        return answer

    def send(self, answer: Any = None) -> Any:
        """Of the caller: let the function go on with the answer to what it asked; gives what it asks next, or None when
        it has returned.

        Raises:
            BaseException: what the function raised.
        """
        return self._turn(answer, None)

    def throw(self, error: BaseException) -> Any:
        """Of the caller: the same with an error, which `ask` raises, in the place of an answer."""
        return self._turn(None, error)

    def close(self) -> None:
        """Of the caller: end the function where it waits; if it runs because its caller was interrupted, where it next
        asks something. Does nothing when it has ended.
        """
        if self._thread.ident is None:
            self.ended = True
        while not self.ended:
            try:
                if self._running:
                    self._receive()
                else:
                    self.throw(GeneratorExit())
            except (Exception, GeneratorExit):
                continue

    def _turn(self, answer: Any, error: BaseException | None) -> Any:
        self._running = True
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._answers.put((answer, error))
        return self._receive()

    def _receive(self) -> Any:
        """What the function asks next. An interrupt of the keyboard that comes here leaves the function running."""
        question, error = self._questions.get()
        if error is not None:
            raise error
        return question

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self.ended, self._running = True, False
        self._questions.put((None, error))
