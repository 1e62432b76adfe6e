"""Rows that are held out: equal inputs stay together, classes in proportion, and splits of before are as they were."""

import json
import random
from collections import Counter

import pytest
from PIL import Image

from graftwork.errors import DataError
from graftwork.tasks import Task, load

FIELDS = {
    "classification": {"text": "text", "label": "label"},
    "pairs": {"kind": "classification", "text": "text", "text_pair": "other", "label": "label"},
    "regression": {"kind": "regression", "text": "text", "label": "number"},
    "token-classification": {"kind": "token-classification", "text": "words", "label": "tags"},
    "multiple-choice": {"kind": "multiple-choice", "text": "text", "choices": "choices", "label": "place"},
    "several-columns": {"kind": "multiple-choice", "text": "text", "choices": ("other", "label"), "label": "place"},
    "generation": {"kind": "generation", "text": "text", "label": "other"},
}


def make(i):
    """A row of which nothing is another's."""
    return {
        "text": f"text {i}",
        "other": f"other {i}",
        "label": ("rare", "often", "often", "often")[i % 4],
        "number": i / 4,
        "words": [f"word{i}", "end"],
        "tags": [("B-A", "O", "B-B")[i % 3], "O"],
        "choices": [f"choice {i}", "none"],
        "place": i % 2,
    }


def task(folder, case, rows, **fields):
    path = folder / f"{case}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "name": case,
        "data": str(path),
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
        **FIELDS[case],
        **fields,
    }
    return Task.parse(given, origin="the test")


def inputs(split):
    """What the rows ask, as one text each."""
    names = [name for name in ("text", "text_pair", "words", "choices") if name in split.column_names]
    return [json.dumps([row[name] for name in names]) for row in split]


def splits(data):
    return {"train": data.train, "validation": data.validation, "test": data.test}


OF_NO_CLASS = {"validation": [20, 24, 31, 38, 51, 54], "test": [2, 3, 13, 43, 46, 56]}
OF_CLASSES = {"validation": [0, 1, 6, 21, 23, 24], "test": [12, 14, 34, 46, 47, 51]}

BEFORE = {
    **dict.fromkeys(("classification", "pairs"), OF_CLASSES),
    **dict.fromkeys(("regression", "multiple-choice", "several-columns", "generation"), OF_NO_CLASS),
    "token-classification": {"validation": [20, 23, 32, 43, 50, 58], "test": [2, 3, 13, 27, 46, 49]},
}
"""The held-out rows' numbers, as they were drawn before equal inputs were kept together."""


@pytest.mark.parametrize("case", FIELDS)
def test_data_without_duplicates_are_split_as_they_were(case, tmp_path):
    data = load(task(tmp_path, case, [make(i) for i in range(60)]))
    found = {}
    for name in ("validation", "test"):
        split = splits(data)[name]
        found[name] = [
            int((row.get("text") or row["words"][0]).removeprefix("text ").removeprefix("word")) for row in split
        ]
    assert found == BEFORE[case]


@pytest.mark.parametrize("case", FIELDS)
@pytest.mark.parametrize("seed", range(5))
def test_equal_inputs_are_in_one_split(case, seed, tmp_path):
    """Each input is there one to six times, with labels that differ."""
    source = random.Random(seed)
    rows = []
    for i in range(40):
        for _ in range(source.randint(1, 6)):
            row = {**make(i), "number": source.random(), "place": source.randint(0, 1)}
            label = source.choice(("rare", "often", "often"))
            # Of these two the label is a target, or a choice.
            rows.append(row if case in ("generation", "several-columns") else {**row, "label": label})
    source.shuffle(rows)
    data = load(task(tmp_path, case, rows, split_seed=seed, validation_fraction=0.2, test_fraction=0.1))
    found = {name: set(inputs(split)) for name, split in splits(data).items()}
    assert not found["train"] & found["validation"]
    assert not found["train"] & found["test"]
    assert not found["validation"] & found["test"]
    if case != "generation":
        sizes = {name: len(split) for name, split in splits(data).items()}
        assert sum(sizes.values()) == len(rows)
        # An input more or less.
        assert sizes["validation"] == pytest.approx(0.2 * len(rows), abs=6)
        assert sizes["test"] == pytest.approx(0.1 * len(rows), abs=6)


def test_a_part_of_an_input_is_no_input(tmp_path):
    """One text beside different ones, and a question with other choices, may be in both splits."""
    for case, changes in (("pairs", "other"), ("multiple-choice", "choices")):
        rows = [{**make(0), changes: make(i)[changes], "label": make(i)["label"]} for i in range(60)]
        data = load(task(tmp_path, case, rows))
        assert [len(split) for split in splits(data).values()] == [48, 6, 6]


def test_classes_are_held_out_in_proportion_also_among_equal_inputs(tmp_path):
    rows = [{**make(i), "label": "rare" if i % 10 == 0 else "common"} for i in range(200) for _ in range(1 + i % 3)]
    data = load(task(tmp_path, "classification", rows, validation_fraction=0.2, test_fraction=0.0))
    assert len(data.validation) == pytest.approx(0.2 * len(rows), abs=4)
    rare = data.task.labels.index("rare")
    share = Counter(data.validation["label"])[rare] / len(data.validation)
    assert share == pytest.approx(0.1, abs=0.02)


def test_few_inputs_that_come_often(tmp_path):
    """24 rows of four texts: one of them is held out, with all of its rows."""
    rows = [{**make(i % 4), "label": ("a", "b")[i % 2]} for i in range(24)]
    for seed in range(10):
        data = load(task(tmp_path, "classification", rows, test_fraction=0.0, split_seed=seed))
        assert (len(data.train), len(data.validation)) == (18, 6)
        assert not set(inputs(data.train)) & set(inputs(data.validation))
        assert set(data.train["label"]) == {0, 1}
    with pytest.raises(DataError, match="24 rows with 2 different inputs, too few to hold 2 out for validation"):
        load(
            task(
                tmp_path,
                "classification",
                [{**make(i % 2), "label": "ab"[i % 2]} for i in range(24)],
                test_fraction=0.0,
            )
        )


def test_an_input_of_most_rows_is_trained_on(tmp_path):
    rows = [{**make(0), "number": i} for i in range(60)] + [make(i) for i in range(1, 41)]
    for seed in range(10):
        data = load(task(tmp_path, "regression", rows, test_fraction=0.0, split_seed=seed))
        assert (len(data.train), len(data.validation)) == (90, 10)


@pytest.mark.parametrize("kind", ["files", "bytes"])
def test_equal_images_are_in_one_split(tmp_path, kind):
    """By what they show and not by what they are called."""
    rows = []
    for i in range(60):
        folder = tmp_path / "images" / ("bright", "dark")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shade = 10 * (i // 4) + (100 if i % 2 else 0)
        Image.new("L", (8, 8), shade % 256).save(folder / f"{i}.png")
        rows.append({"image": {"bytes": (folder / f"{i}.png").read_bytes(), "path": None}, "label": folder.name})
    path = tmp_path / "images"
    if kind == "bytes":
        import datasets

        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        path = tmp_path / "rows.parquet"
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    data = load(Task(name="i", kind="image-classification", data=str(path), validation_fraction=0.2))
    train, validation = ({image.tobytes() for image in split["image"]} for split in (data.train, data.validation))
    assert not train & validation
    assert len(data.validation) == pytest.approx(12, abs=2)


def test_rows_beyond_the_most_are_left_and_classes_keep_their_proportions(tmp_path):
    rows = [make(i) for i in range(200)]
    own = {"validation_fraction": 0.2, "test_fraction": 0.1}
    whole = splits(load(task(tmp_path, "classification", rows, **own)))
    data = splits(load(task(tmp_path, "classification", rows, **own, max_rows={"train": 60, "validation": 8})))
    assert {split: len(own) for split, own in data.items()} == {"train": 60, "validation": 8, "test": 20}
    assert all(set(inputs(data[split])) <= set(inputs(whole[split])) for split in whole)
    assert Counter(data["train"]["label"]) == {0: 45, 1: 15}
    other = load(task(tmp_path, "classification", rows, **own, max_rows={"train": 60}, split_seed=3))
    assert set(inputs(other.train)) != set(inputs(data["train"]))


def test_rows_with_equal_inputs_stay_together_below_the_most(tmp_path):
    rows = [make(i // 3) | {"label": ("often", "rare")[(i // 3) % 2]} for i in range(120)]
    data = load(task(tmp_path, "classification", rows, validation_fraction=0.1, max_rows={"train": 50}))
    counted = Counter(inputs(data.train))
    assert 40 <= len(data.train) <= 50
    assert set(counted.values()) == {3}


def test_too_few_rows_for_every_class_are_refused(tmp_path):
    rows = [make(i) for i in range(60)]
    with pytest.raises(DataError, match=r"1 rows of (.|\n)*max_rows\.train"):
        load(task(tmp_path, "classification", rows, max_rows={"train": 1}))
