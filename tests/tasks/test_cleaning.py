"""What is done to data before they are checked: encodings, misread texts, spellings, rows that are left out."""

import logging

import datasets
import pytest

from graftwork.data.mojibake import repair
from graftwork.data.table import Table
from graftwork.errors import DataError, RecipeError
from graftwork.tasks import Cleaning, Task, find_task, load, load_split


def misread(text):
    """UTF-8 read as cp1252; what that lacks stays the byte it is."""
    return "".join(bytes([byte]).decode("cp1252") if ok(byte) else chr(byte) for byte in text.encode())


def ok(byte):
    return byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)


def saved_on_a_macintosh(text):
    """The bytes of a misread text in Mac Roman; what that lacks is _, and a control character stays a byte."""
    return b"".join(
        bytes([ord(c)]) if 0x80 <= ord(c) < 0xA0 else c.encode("mac_roman", "replace") for c in text
    ).replace(b"?", b"_")


TEXTS = ["don’t “quote” — it", "£5 é ñ à É", "😀 ❤️ 日本", "naïve café, plain", "ÀÁÂÃÄ", "œ š Ÿ €"]


@pytest.mark.parametrize("text", TEXTS)
def test_misread_texts_are_put_right(text):
    assert repair(misread(text)) == text
    assert repair(misread(misread(text))) == text
    assert repair(text) == text, "and what is right stays"


@pytest.mark.parametrize("text", ["don’t “quote” — it", "£5 é ñ à", "日本", "き"])
def test_so_are_those_that_a_macintosh_saved(text):
    assert repair(saved_on_a_macintosh(misread(text)).decode("mac_roman")) == text


def test_what_cannot_be_put_right_stays():
    assert repair("Ã, â€ and â") == "Ã, â€ and â"
    assert repair("endsâ€_") == "ends…"


def table(**columns):
    return Table("it", tuple(columns), columns, range(1, len(columns["text"]) + 1))


def cleaned(cleaning, needed=("text", "label"), **columns):
    found = cleaning.apply(table(**columns), texts=["text"], label="label", needed=needed)
    return found.columns, found.dropped


def test_labels_are_merged_and_left_out_with_their_reasons():
    cleaning = Cleaning(spellings={"y": "Yes", "NA": "N/A", "1": "Yes"}, drop_labels="N/A", drop_missing=True)
    columns, dropped = cleaned(
        cleaning,
        text=["a", " b ", "c", "  ", "e", None, "g"],
        label=["Yes", "y ", "NA", "No", " ", None, 1],
    )
    assert columns == {"text": ["a", "b", "g"], "label": ["Yes", "Yes", "Yes"]}
    assert dropped == {
        "label 'N/A'": [3],
        "nothing in column 'text'": [4, 6],
        "nothing in column 'label'": [5],
    }


def test_a_column_that_has_nothing_is_left_to_the_check():
    assert cleaned(Cleaning(drop_missing=True), text=["a", "b"], label=[None, None])[1] == {}


def test_a_row_may_lack_what_need_not_be_there():
    columns, dropped = cleaned(Cleaning(drop_missing=True), needed=["text"], text=["a", "b"], label=[None, "x"])
    assert (columns["label"], dropped) == ([None, "x"], {})


def test_rows_of_the_hubs_classes_are_spelled_as_others():
    own = Table("it", ("text", "label"), {"text": ["a"], "label": ["y"]}, [1], classes={"label": ("n", "y")})
    found = Cleaning(spellings={"y": "Yes"}).apply(own, texts=["text"], label="label", needed=[])
    assert (found.columns["label"], found.classes) == (["Yes"], {})
    assert Cleaning().apply(own, texts=["text"], label="label", needed=[]).classes == {"label": ("n", "y")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encodings": "utf-9"}, "Python knows no encoding 'utf-9'"),
        ({"encodings": "hex"}, "Python knows no encoding 'hex'"),
        ({"encodings": ()}, "at least 1"),
        ({"drop": True}, "unknown key 'drop'"),
    ],
)
def test_bad_cleaning_is_refused(fields, message):
    with pytest.raises(RecipeError, match=message):
        Cleaning(**fields)
    message = message.replace("key '", "key 'cleaning.")
    with pytest.raises(RecipeError, match=message):
        Task.parse({"name": "t", "text": "text", "cleaning": fields}, origin="t.yaml")


def test_tags_have_no_spellings():
    with pytest.raises(RecipeError, match="cleaning: a token-classification task has no spellings"):
        Task(name="t", kind="token-classification", text="w", label="t", cleaning={"drop_labels": "O"})


ROWS = [(f"text {i} £", ("ham", "spam")[i % 2]) for i in range(40)]


def task(data, **fields):
    return Task(**{"name": "t", "text": "text", "data": str(data), **fields})


def written(path, rows, encoding="utf-8", header="text,label\n", delimiter=","):
    path.write_bytes((header + "".join(delimiter.join(row) + "\n" for row in rows)).encode(encoding))
    return path


def test_a_file_is_read_in_the_first_encoding_that_it_is_in(tmp_path):
    path = written(tmp_path / "rows.csv", ROWS, "cp1252")
    with pytest.raises(DataError, match=r"is not UTF-8: byte 0xa3 .*\n.*\n.*cleaning.encodings"):
        load(task(path))
    data = load(task(path, cleaning={"encodings": "utf-8,cp1252"}))
    assert sorted({*data.train["text"], *data.validation["text"]}) == sorted(text for text, _ in ROWS)
    assert (
        "text 1 �" in load_split(task(path, cleaning={"replace_undecodable": True}, labels="ham,spam"), "train")["text"]
    )
    path = written(tmp_path / "as_utf8.csv", ROWS)
    assert load(task(path, cleaning={"encodings": "utf-8,cp1252"})).train["text"][0].endswith("£")


def test_what_is_left_out_is_counted_and_told(tmp_path, caplog):
    path = written(tmp_path / "rows.csv", [*ROWS, ("no label", ""), ("undecided", "?"), ("", "ham")])
    with pytest.raises(DataError, match="rows without a value"):
        load(task(path))
    cleaning = {"drop_missing": True, "drop_labels": "?"}
    with caplog.at_level(logging.INFO):
        data = load(task(path, cleaning=cleaning, test_fraction=0.1))
    assert data.task.labels == ("ham", "spam")
    assert sum(map(len, (data.train, data.validation, data.test))) == 40
    assert data.dropped == {
        "train": {"nothing in column 'text'": [44], "nothing in column 'label'": [42], "label '?'": [43]}
    }
    assert "left out 3 of 43 rows: 1 with nothing in column 'label', 1 with label '?', 1 with nothing" in caplog.text


def test_rows_without_any_of_several_labels_are_kept(tmp_path):
    path = written(tmp_path / "rows.csv", [("a", "x|y"), ("b", ""), ("c", "y"), *[(f"{i}", "x") for i in range(20)]])
    data = load(task(path, kind="multi-label-classification", cleaning={"drop_missing": True}))
    assert (len(data.train) + len(data.validation), data.dropped) == (23, {})


def test_targets_are_texts_and_numbers_may_be_missing(tmp_path):
    rows = [(f"a {i}", "donâ€™t ") for i in range(20)]
    path = written(tmp_path / "rows.csv", rows)
    assert set(load(task(path, kind="generation", cleaning={"repair_mojibake": True})).train["target"]) == {"don’t"}
    numbers = datasets.Dataset.from_dict(
        {"text": [f"{i}" for i in range(20)], "label": [1.0, 2.0] * 9 + [None, float("nan")]}
    )
    numbers.to_parquet(tmp_path / "rows.parquet")
    data = load(task(tmp_path / "rows.parquet", kind="regression", cleaning={"drop_missing": True}))
    assert (len(data.train) + len(data.validation), data.dropped) == (
        18,
        {"train": {"nothing in column 'label'": [19, 20]}},
    )


def test_a_test_split_without_labels_is_no_split(tmp_path, caplog):
    for name, rows in (("train", ROWS), ("validation", ROWS), ("test", [("a", ""), ("b", "")])):
        written(tmp_path / f"{name}.csv", rows)
    assert load(task(tmp_path, cleaning={"drop_missing": True})).test is None
    assert "has no labels" in caplog.text


def test_a_benchmarks_folder_is_read_in_other_encodings_as_well(tmp_path):
    rows = "".join(f"a {i} £\t{i % 2}\n" for i in range(4))
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_bytes(f"sentence\tlabel\n{rows}".encode("cp1252"))
    own = find_task("sst2").override(data=str(tmp_path), cleaning={"encodings": "cp1252"})
    assert load(own).train["text"][0] == "a 0 £"


# Lines of fields

LINES = [(label, f'{text} "unquoted') for text, label in ROWS]


def test_lines_without_a_header(tmp_path):
    written(tmp_path / "SPAM", LINES, header="", delimiter="\t")
    lines = task(tmp_path, layout="lines", header="label,text", splits={"train": "SPAM"})
    data = load(lines)
    assert sorted({*data.train["text"], *data.validation["text"]}) == sorted(text for _, text in LINES)
    assert load(lines.override(data=str(tmp_path / "SPAM"))).train["text"] == data.train["text"]


def test_lines_with_a_header_and_splits_of_usual_names(tmp_path):
    for name in ("train.txt", "dev.tsv"):
        written(tmp_path / name, LINES, header="label\ttext\n", delimiter="\t")
    data = load(task(tmp_path, layout="lines"))
    assert list(data.train["text"]) == list(data.validation["text"]) == [text for _, text in LINES]
    with (tmp_path / "train.txt").open("a") as file:
        file.write("spam\n")
    with pytest.raises(DataError, match=r"train.txt is malformed at line 42: 1 fields instead of the header's 2"):
        load(task(tmp_path, layout="lines"))


def test_json_has_its_own_names_among_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{i}", "label": "{i % 2}"}}\n' for i in range(20)))
    assert len(load(task(path, layout="lines", header="label,text")).train) == 18


def test_numbers_in_lines(tmp_path):
    written(tmp_path / "n.txt", [(f"{i}.5", f"t{i}") for i in range(20)], header="", delimiter="\t")
    own = task(tmp_path / "n.txt", kind="regression", layout="lines", header="label,text")
    assert 0.5 in [*load(own).train["label"], *load(own).validation["label"]]


# A file for each text

ENCODED = {"cleaning": {"encodings": "latin-1"}, "layout": "class-folders"}


def documents(folder):
    for name in ("rec.autos", "sci.med"):
        (folder / name).mkdir(parents=True)
        for i in range(15):
            (folder / name / f"{i}").write_bytes(f"From: é {name} {folder.name} {i}\n\nText".encode("latin-1"))
    (folder / "rec.autos" / ".hidden").touch()


def test_folders_of_classes(tmp_path):
    documents(tmp_path)
    data = load(task(tmp_path, **ENCODED))
    assert data.task.labels == ("rec.autos", "sci.med")
    assert (len(data.train), len(data.validation), data.test) == (27, 3, None)
    assert data.train["text"][0].startswith("From: é rec.autos")
    assert data.train["text"][0].endswith("Text")


def test_folders_of_splits(tmp_path):
    for name in ("by-date-train", "by-date-test"):
        documents(tmp_path / name)
    splits = {"train": "by-date-train", "test": "by-date-test"}
    data = load(task(tmp_path, **ENCODED, splits=splits))
    assert (len(data.train), len(data.validation), len(data.test)) == (27, 3, 30)
    assert all("by-date-test" in text for text in data.test["text"])
    with pytest.raises(DataError, match=r"there is no folder .*by-date-dev\n.*\n.*splits.validation"):
        load(task(tmp_path, **ENCODED, splits={**splits, "validation": "by-date-dev"}))


def test_folders_without_texts(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="has no files in folders of classes"):
        load(task(tmp_path, **ENCODED))
    documents(tmp_path / "b")
    with pytest.raises(DataError, match=r"b/rec.autos/0 is not UTF-8"):
        load(task(tmp_path / "b", layout="class-folders"))
