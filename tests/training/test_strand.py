"""A strand and its caller take turns."""

import threading

import pytest

from graftwork.training.strand import Strand


def test_questions_and_answers_come_in_turn():
    said = []

    def count():
        for number in range(3):
            said.append((number, strand.ask(number)))

    strand = Strand(count, name="counting")
    assert [strand.send(), strand.send("a"), strand.send("b")] == [0, 1, 2]
    assert not strand.ended
    assert strand.send("c") is None
    assert strand.ended
    assert said == [(0, "a"), (1, "b"), (2, "c")]


def test_errors_go_both_ways():
    def careful():
        try:
            strand.ask("first")
        except KeyError:
            strand.ask("second")
        raise ValueError("its own")

    strand = Strand(careful, name="failing")
    assert strand.send() == "first"
    assert strand.throw(KeyError("given")) == "second"
    with pytest.raises(ValueError, match="its own"):
        strand.send()
    assert strand.ended


def test_closing_ends_it_where_it_waits():
    left = []

    def wait():
        try:
            strand.ask("something")
        finally:
            left.append(threading.current_thread().name)

    strand = Strand(wait, name="waiting")
    strand.send()
    strand.close()
    strand.close()
    assert (strand.ended, left) == (True, ["waiting"])
    never = Strand(wait, name="never begun")
    never.close()
    assert never.ended


@pytest.mark.parametrize("ends", [False, True], ids=["asks", "ends"])
def test_an_interrupt_just_as_an_answer_has_come(ends):
    """It has been taken out of the queue then, and nobody knows of it."""

    def function():
        if not ends:
            strand.ask(1)

    strand = Strand(function, name="it")
    take = strand._questions.get

    class Interrupting:
        put = strand._questions.put

        def get(self):
            take()
            strand._questions = kept
            raise KeyboardInterrupt

    kept, strand._questions = strand._questions, Interrupting()
    with pytest.raises(KeyboardInterrupt):
        strand.send()
    closing = threading.Thread(target=strand.close, daemon=True)
    closing.start()
    closing.join(5)
    assert strand.ended
    assert not closing.is_alive()
