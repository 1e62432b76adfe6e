"""Every format, the seeded splits, and one clear error for each thing that can be wrong with data."""

import json
import re
from collections import Counter

import datasets
import pytest

from graftwork.errors import DataError, RecipeError
from graftwork.tasks import Task, load, load_split

ROWS = [{"text": f'text {i}, "quoted"\nand é', "label": ("ham", "spam")[i % 3 == 0]} for i in range(30)]


def task(data, **fields):
    return Task(**{"name": "t", "text": "text", "data": str(data), **fields})


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def delimited(rows, delimiter=","):
    quote = '"{}"'.format
    lines = [rows[0].keys(), *([quote(str(value).replace('"', '""')) for value in row.values()] for row in rows)]
    return "\n".join(delimiter.join(line) for line in lines) + "\n"


def json_lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


def csv(tmp_path, text, name="rows.csv"):
    return write(tmp_path / name, text)


def rows_of(dataset):
    return list(zip(dataset["text"], dataset["label"], strict=True))


WRITERS = {
    "csv": lambda path, rows: write(path, delimited(rows)),
    "tsv": lambda path, rows: write(path, delimited(rows, "\t")),
    "jsonl": lambda path, rows: write(path, json_lines(rows)),
    "json": lambda path, rows: write(path, json.dumps(rows)),
    "parquet": lambda path, rows: datasets.Dataset.from_list(rows).to_parquet(path),
}


@pytest.mark.parametrize("extension", WRITERS)
def test_file_formats(tmp_path, extension):
    WRITERS[extension](tmp_path / f"rows.{extension}", ROWS)
    data = load(task(tmp_path / f"rows.{extension}"))
    assert data.task.labels == ("ham", "spam")
    assert data.test is None
    assert (len(data.train), len(data.validation)) == (27, 3)
    both = rows_of(data.train) + rows_of(data.validation)
    assert sorted(both) == sorted((row["text"], ("ham", "spam").index(row["label"])) for row in ROWS)


@pytest.mark.parametrize("extension", WRITERS)
def test_folder_of_files(tmp_path, extension):
    for name, rows in (("train", ROWS[:20]), ("dev", ROWS[20:26]), ("test", ROWS[26:])):
        WRITERS[extension](tmp_path / f"{name}.{extension}", rows)
    data = load(task(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 6, 4)
    assert load_split(data.task, "test")[:] == data.test[:]


def test_byte_order_mark_and_pairs(tmp_path):
    path = write(tmp_path / "rows.csv", "text,other,label\na,b,x\nc,d,y\ne,f,x\n", "utf-8-sig")
    data = load(task(path, text_pair="other", validation_fraction=0.3))
    assert data.train.column_names == ["text", "text_pair", "label"]
    rows = [tuple(row.values()) for split in (data.train, data.validation) for row in split]
    assert sorted(rows) == [("a", "b", 0), ("c", "d", 1), ("e", "f", 0)]


def test_datasets_folders(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a", "m"])}
    )
    dataset = datasets.Dataset.from_dict({"text": list("abcdef"), "label": [0, 1, 0, 1, 0, 1]}, features=features)
    dataset.save_to_disk(tmp_path / "one")
    data = load(task(tmp_path / "one", validation_fraction=0.2))
    assert data.task.labels == ("z", "a", "m"), "a dataset's own order of classes is kept"
    assert (len(data.train), len(data.validation)) == (5, 1)

    datasets.DatasetDict({"train": dataset, "valid": dataset.select([3, 2])}).save_to_disk(tmp_path / "two")
    data = load(task(tmp_path / "two"))
    assert rows_of(data.validation) == [("d", 1), ("c", 0)]

    dataset.to_parquet(tmp_path / "rows.parquet")
    assert load(task(tmp_path / "rows.parquet", validation_fraction=0.2)).task.labels == ("z", "a", "m")


def test_explicit_splits(tmp_path):
    for name, rows in (("a", ROWS[:20]), ("b", ROWS[20:])):
        write(tmp_path / f"{name}.csv", delimited(rows))
    splits = {"train": "a.csv", "validation": "b.csv"}
    assert len(load(task(tmp_path, splits=splits)).validation) == 10
    with pytest.raises(DataError, match=r"no file .*c\.csv(.|\n)*splits.validation"):
        load(task(tmp_path, splits={**splits, "validation": "c.csv"}))
    with pytest.raises(DataError, match=r"splits are named, but .* is a single file"):
        load(task(tmp_path / "a.csv", splits=splits))


def test_hub(monkeypatch):
    parts = {"train": datasets.Dataset.from_list(ROWS), "unsupervised": datasets.Dataset.from_list(ROWS[:2])}
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or datasets.DatasetDict(parts))
    assert len(load(task("org/mail", subset="small")).train) == 27
    assert asked == [("org/mail", "small")]
    with pytest.raises(DataError, match=r"no split 'held'(.|\n)*unsupervised"):
        load(task("org/mail", splits={"validation": "held"}))


def test_hub_out_of_reach(monkeypatch):
    def refuse(*_):
        raise ConnectionError("Couldn't reach 'org/mail' on the Hub (OfflineModeIsEnabled)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"hub dataset org/mail cannot be loaded: Couldn't reach(.|\n)*--data"):
        load(task("org/mail"))


# Splits


def test_splits_are_seeded_disjoint_and_stratified(tmp_path):
    rows = [{"text": f"t{i}", "label": "rare" if i % 10 == 0 else "common"} for i in range(200)]
    path = write(tmp_path / "rows.csv", delimited(rows))
    declared = task(path, validation_fraction=0.1, test_fraction=0.2)
    data, again = load(declared), load(declared)
    splits = [data.train, data.validation, data.test]
    assert [len(split) for split in splits] == [140, 20, 40]
    assert len(set().union(*(split["text"] for split in splits))) == 200
    assert [Counter(split["label"])[1] for split in splits] == [14, 2, 4]
    assert [split[:] for split in (again.train, again.validation, again.test)] == [split[:] for split in splits]
    other = load(declared.override(split_seed=1))
    assert other.validation["text"][:] != data.validation["text"][:]

    assert load(declared, test=False).train[:] == data.train[:]
    assert load(declared, test=False).test is None
    for resolved in (declared, data.task):
        for name, split in zip(("train", "validation", "test"), splits, strict=True):
            assert load_split(resolved, name)[:] == split[:]


def test_every_class_stays_in_training(tmp_path):
    path = csv(tmp_path, "text,label\n" + "".join(f"t{i},{min(i, 9)}\n" for i in range(20)))
    for seed in range(20):
        assert set(load(task(path, split_seed=seed, validation_fraction=0.5)).train["label"]) == set(range(10))


def test_integer_labels_sort_as_numbers(tmp_path):
    path = csv(tmp_path, "text,label\n" + "".join(f"t{i},{i % 11}\n" for i in range(33)))
    assert load(task(path)).task.labels == tuple(str(i) for i in range(11))


def test_ids_are_accepted_for_named_classes(tmp_path):
    path = csv(tmp_path, "text,label\na,0\nb,1\nc,1\nd,0\n")
    data = load(task(path, labels=("no", "yes"), label_ids=True))
    assert dict(rows_of(data.train) + rows_of(data.validation)) == {"a": 0, "b": 1, "c": 1, "d": 0}
    with pytest.raises(DataError, match="label_ids"):
        load(task(path, labels=("no", "yes")))


def test_regression(tmp_path):
    path = csv(tmp_path, "text,label\n" + "".join(f"t{i},{i / 4}\n" for i in range(10)))
    data = load(task(path, kind="regression", test_fraction=0.2))
    assert (len(data.train), len(data.validation), len(data.test)) == (7, 1, 2)
    rows = [row for split in (data.train, data.validation, data.test) for row in rows_of(split)]
    assert sorted(rows) == [(f"t{i}", i / 4) for i in range(10)]
    assert data.train.features["label"].dtype == "float64"
    assert data.task.labels is None


# Errors


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.csv", "txt,label\na,x\n", r"rows.csv has no column 'text'(.|\n)*--text one of label, txt"),
        ("rows.csv", "txt,lable\na,x\n", r"no column 'text', 'label'(.|\n)*change: --text, --label"),
        ("rows.csv", "text,label\na,x\n,y\n\n,x\n", r"2 of 3 rows without a value in column 'text': lines 3, 5\n"),
        ("rows.csv", 'text,label\n"a\nb",x\nc,\n', r"1 of 2 rows without a value in column 'label': line 4\n"),
        ("rows.jsonl", '{"text": null, "label": 1}\n', r"column 'text': line 1\n"),
        ("rows.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', r"column 'label': line 2\n"),
        ("rows.jsonl", '{"text": 3, "label": 1}\n', "has 3 in column 'text', which is not a text: line 1"),
        ("rows.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "malformed at line 2, column 8"),
        ("rows.jsonl", '{"text": "a", "label": 1}\n[1]\n', "malformed at line 2: list instead of an object"),
        ("rows.json", '[{"text": "a",\n "label"}]', "malformed at line 2"),
        ("rows.csv", "text,label\na,x,z\nb\n", "malformed at lines 2, 3: 3 fields instead of the header's 2"),
        ("rows.csv", 'text,label\na,x\n"b"c,x\n', "malformed at line 3: .*expected after"),
        ("rows.csv", 'text,label\na,x\n"b,x\n', "malformed at line 3: unexpected end"),
        ("rows.csv", "text,text,label\na,b,x\n", "two columns 'text'"),
        ("rows.csv", "", "rows.csv is empty"),
        ("rows.csv", "text,label\n", r"rows.csv has no rows(.|\n)*train split"),
        ("rows.parquet", "no parquet", "not a readable Parquet file"),
        ("rows.txt", "a", r"of an unsupported file type(.|\n)*\.csv, \.tsv, \.json, \.jsonl, \.parquet"),
        (
            "rows.csv",
            "text,label\n" + "".join(f"a{i},x\n" for i in range(9)),
            "has the label 'x' in column 'label' for every row",
        ),
        ("rows.csv", "text,label\na,x\nb,y\n", "has 2 rows, too few to hold 1 out for validation"),
    ],
)
def test_malformed_file(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        load(task(write(tmp_path / name, text)))


def test_not_utf8(tmp_path):
    path = write(tmp_path / "rows.csv", "text,label\ncafé,x\n", "latin-1")
    with pytest.raises(DataError, match=r"rows.csv is not UTF-8: byte 0xe9 at offset 14(.|\n)*save .* as UTF-8"):
        load(task(path))


@pytest.mark.parametrize("data", ["gone.csv", "gone/rows.parquet", "/gone/folder", "gone.xlsx"])
def test_missing_file(data):
    with pytest.raises(DataError, match=r"there is no file or folder(.|\n)*--data"):
        load(task(data))


def test_no_data():
    with pytest.raises(DataError, match=r"task t has no data(.|\n)*--data"):
        load(Task(name="t", text="text"))


def test_labels_that_training_never_saw(tmp_path):
    csv(tmp_path, "text,label\na,x\nb,y\n", "train.csv")
    csv(tmp_path, "text,label\na,x\nb,Y\nc,z\n", "validation.csv")
    with pytest.raises(DataError, match=r"validation.csv has 2 rows whose label .*'Y', 'z' at lines 3, 4"):
        load(task(tmp_path))
    with pytest.raises(DataError, match=r"validation.csv has 2 rows"):
        load_split(task(tmp_path, labels=("x", "y")), "validation")
    with pytest.raises(DataError, match=r"train.csv has 1 rows .*'y' at line 3"):
        load(task(tmp_path, labels=("x", "q")))


@pytest.mark.parametrize(
    "value", ["high", "nan", "inf", "1e999", "1_0", "1_0.5", "1e1_0", "\u0661\u0662", "0x10", "1 0", ".", "1e"]
)
def test_regression_labels_that_are_no_numbers(tmp_path, value):
    path = csv(tmp_path, f"text,label\na,1\nb,{value}\nc,2\n")
    with pytest.raises(
        DataError, match=f"has {re.escape(repr(value))} in column 'label', which is not a finite number: line 3"
    ):
        load_split(task(path, kind="regression", validation_fraction=0), "train")


@pytest.mark.parametrize("value", ["-1.5", "+2", " 3 ", ".5", "1.", "1e-3", "2E+2", "010"])
def test_numbers_as_text(tmp_path, value):
    path = csv(tmp_path, f'text,label\na,1\nb,"{value}"\nc,2\n')
    assert load_split(task(path, kind="regression", validation_fraction=0), "train")["label"][1] == float(value)


def test_a_whole_number_that_no_float_holds(tmp_path):
    path = write(tmp_path / "rows.jsonl", json_lines([{"text": "a", "label": 10**400}, {"text": "b", "label": 1}]))
    with pytest.raises(DataError, match="finite number: line 1"):
        load_split(task(path, kind="regression", validation_fraction=0), "train")


ARABIC = "\u0661"
"""A one, to Python."""


def test_labels_of_other_digits_sort_as_names(tmp_path):
    path = csv(tmp_path, "text,label\n" + "".join(f"t{i},{('10', '9', ARABIC)[i % 3]}\n" for i in range(30)))
    assert load(task(path)).task.labels == ("10", "9", ARABIC)


def test_f1_needs_two_classes(tmp_path):
    path = csv(tmp_path, "text,label\n" + "".join(f"t{i},{i % 3}\n" for i in range(12)))
    with pytest.raises(RecipeError, match="'f1' is for two classes, and the task has 3"):
        load(task(path, metrics=("f1",)))


def test_splits_that_are_not_there(tmp_path):
    path = csv(tmp_path, "text,label\na,x\nb,y\nc,x\n")
    with pytest.raises(DataError, match=r"no labelled validation split(.|\n)*validation_fraction"):
        load(task(path, validation_fraction=0))
    with pytest.raises(DataError, match=r"no labelled test split(.|\n)*test_fraction"):
        load_split(task(path), "test")
    with pytest.raises(
        DataError, match=r"unknown split 'tst'\n  expected: train, validation, test\n  change: --split$"
    ):
        load_split(task(path), "tst")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files of a known name"):
        load(task(tmp_path / "empty"))
    csv(tmp_path / "two", "text,label\na,x\n", "train.csv")
    csv(tmp_path / "two", "{}", "train.jsonl")
    with pytest.raises(DataError, match=r"more than one file for train: train.csv, train.jsonl"):
        load(task(tmp_path / "two"))
    csv(tmp_path / "dev", "text,label\na,x\n", "dev.csv")
    with pytest.raises(DataError, match="no labelled train split"):
        load(task(tmp_path / "dev"))
    assert len(load_split(task(tmp_path / "dev", labels=("x", "y")), "validation")) == 1


def test_a_test_file_without_labels_is_no_split(tmp_path):
    csv(tmp_path, "text,label\n" + "".join(f"a{i},x\nb{i},y\n" for i in range(9)), "train.csv")
    csv(tmp_path, "text\na\n", "test.csv")
    assert load(task(tmp_path), test=False).test is None
    assert load(task(tmp_path)).test is None
    csv(tmp_path, "text,label\na,x\nb,\n", "test.csv")
    with pytest.raises(DataError, match=r"test.csv .*label"):
        load(task(tmp_path))
    csv(tmp_path, "text,label\n", "test.csv")
    with pytest.raises(DataError, match=r"test.csv"):
        load(task(tmp_path))


def test_damaged_dataset_folder(tmp_path):
    write(tmp_path / "state.json", "{")
    with pytest.raises(DataError, match="not a readable dataset"):
        load(task(tmp_path))


def test_long_fields(tmp_path):
    long = "x" * 200_000
    path = csv(tmp_path, f"text,label\n{long},a\n{long}y,b\nz,a\n")
    assert max(map(len, load(task(path)).train["text"])) >= 200_000
