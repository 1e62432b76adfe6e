"""Studies: a grid of measurements is recorded one by one, and taken up where it stopped."""

import json
from functools import partial
from pathlib import Path

import pytest

from studies import every_method, fast_step
from studies.grid import Grid, markdown


def measure(letter, number, *, calls):
    """Fails for the number 2, and leaves a trace of each call."""
    (calls / f"{letter}{number}").touch(exist_ok=False)
    if number == 2:
        raise ValueError("two is too many")
    return {"score": number / 10}


@pytest.fixture
def grid(tmp_path):
    return Grid(tmp_path / "r.jsonl", ("letter", "number"), tmp_path / "R.md", lambda records: f"{len(records)} found")


def test_a_grid_is_recorded_and_taken_up(grid, tmp_path):
    grid.records.write_text(json.dumps({"letter": "a", "number": 1, "score": 0.7}) + "\n")
    wanted = [(letter, number) for letter in "ab" for number in (1, 2)]
    failures = grid.run(wanted, partial(measure, calls=tmp_path), workers=1)
    assert [failure.splitlines()[-1] for failure in failures] == ["ValueError: two is too many"] * 2
    assert {path.name for path in tmp_path.iterdir()} == {"r.jsonl", "R.md", "a2", "b1", "b2"}
    assert grid.recorded() == [
        {"letter": "a", "number": 1, "score": 0.7},
        {"letter": "b", "number": 1, "score": 0.1},
    ]
    assert grid.page.read_text() == "2 found"


def test_markdown():
    assert markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_every_method_is_in_the_study():
    from graftwork.methods import METHODS, NAMED  # not for each process that measures

    assert set(every_method.methods()) == {*METHODS, *NAMED} - {"union"}


def test_a_table_of_some_cells():
    cell = {"metric": "f1", "steps": 1, "seconds": 12.0}
    records = [
        {"task": "mrpc", "method": "lora", "score": 0.5, "trained": 11, **cell},
        {"task": "rte", "method": "lora", "score": 0.25, "trained": 10, **cell, "metric": "accuracy"},
        {"task": "rte", "method": "ia3", "score": 0.125, "trained": 1_000, **cell, "metric": "accuracy"},
    ]
    *_, header, _, lora, ia3 = every_method.report(records).strip().splitlines()
    assert header == "| method | trained | mrpc (f1) | rte (accuracy) | seconds |"
    assert lora == "| lora | 10 | 0.500 | 0.250 | 12 + 12 |"
    assert ia3 == "| ia3 | 1,000 |  | 0.125 | - + 12 |"


def test_the_interval_is_students():
    mean, half = fast_step.interval([1.0, 2.0, 3.0])
    assert mean == 2
    # t of 0.975 at two degrees of freedom is 4.303.
    assert half == pytest.approx(4.3027 * 1 / 3**0.5, rel=1e-4)
    assert fast_step.interval([1.0]) == (1.0, float("inf"))


def test_the_published_pages_are_those_of_the_records():
    for grid in (every_method.GRID, fast_step.GRID):
        if Path(grid.page).exists():
            assert grid.page.read_text(encoding="utf-8") == grid.report(grid.recorded())
