"""A coroutine and its caller take turns."""

import threading

import pytest

from graftwork.training.coroutine import ThreadCoroutine


def test_questions_and_answers_come_in_turn():
    said = []

    def count():
        for number in range(3):
            said.append((number, coroutine.ask(number)))

    coroutine = ThreadCoroutine(count, name="counting")
    assert [coroutine.send(), coroutine.send("a"), coroutine.send("b")] == [0, 1, 2]
    assert not coroutine.ended
    assert coroutine.send("c") is None
    assert coroutine.ended
    assert said == [(0, "a"), (1, "b"), (2, "c")]


def test_errors_go_both_ways():
    def careful():
        try:
            coroutine.ask("first")
        except KeyError:
            coroutine.ask("second")
        raise ValueError("its own")

    coroutine = ThreadCoroutine(careful, name="failing")
    assert coroutine.send() == "first"
    assert coroutine.throw(KeyError("given")) == "second"
    with pytest.raises(ValueError, match="its own"):
        coroutine.send()
    assert coroutine.ended


def test_closing_ends_it_where_it_waits():
    left = []

    def wait():
        try:
            coroutine.ask("something")
        finally:
            left.append(threading.current_thread().name)

    coroutine = ThreadCoroutine(wait, name="waiting")
    coroutine.send()
    coroutine.close()
    coroutine.close()
    assert (coroutine.ended, left) == (True, ["waiting"])
    never = ThreadCoroutine(wait, name="never begun")
    never.close()
    assert never.ended


@pytest.mark.parametrize("ends", [False, True], ids=["asks", "ends"])
def test_an_interrupt_just_as_an_answer_has_come(ends):
    """It has been taken out of the queue then, and nobody knows of it."""

    def function():
        if not ends:
            coroutine.ask(1)

    coroutine = ThreadCoroutine(function, name="it")
    take = coroutine._questions.get

    class Interrupting:
        put = coroutine._questions.put

        def get(self):
            take()
            coroutine._questions = kept
            raise KeyboardInterrupt

    kept, coroutine._questions = coroutine._questions, Interrupting()
    with pytest.raises(KeyboardInterrupt):
        coroutine.send()
    closing = threading.Thread(target=coroutine.close, daemon=True)
    closing.start()
    closing.join(5)
    assert coroutine.ended
    assert not closing.is_alive()
