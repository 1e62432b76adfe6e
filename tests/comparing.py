"""What the tests of studies work with: a tiny study, and what is compared of what it leaves."""

from pathlib import Path

import pytest
from training.workbench import make_rows, write_csv

QUICK = {
    "head_learning_rate": 0.03,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
}


@pytest.fixture(scope="session")
def values(backbone_folder, tmp_path_factory):
    """A function that gives the values of a study of two tasks and two methods, with changes."""
    folder = tmp_path_factory.mktemp("rows")
    words = write_csv(folder / "words.csv", make_rows("classes", 60))
    numbers = write_csv(folder / "numbers.csv", make_rows("numbers", 60))
    split = {"validation_fraction": 0.2, "test_fraction": 0.2}

    def values(**changes):
        given = {
            "backbone": str(backbone_folder),
            "dtype": "float32",
            "tasks": {
                "words": {"task": {"text": "text", "data": str(words), **split}},
                "numbers": {"task": {"kind": "regression", "text": "text", "data": str(numbers), **split}},
            },
            "methods": {"lora": {"rank": 2}, "bitfit": {}},
            "train": QUICK,
            "search": {"grid": {"learning_rate": [0.003, 0.01]}},
            "seeds": 2,
        }
        return {key: value for key, value in {**given, **changes}.items() if value is not None}

    return values


TABLES = ("results.csv", "summary.csv", "search.csv", "comparisons.csv", "chosen.json")


def tables_of(folder: Path) -> dict[str, bytes]:
    """What must be the same, byte for byte, whatever happened on the way."""
    return {name: (folder / name).read_bytes() for name in TABLES}
