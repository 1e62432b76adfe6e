"""Tagging, multiple choice and generation: the columns of every format, the splits, and what can be wrong."""

import json
from collections import Counter

import datasets
import pytest

from graftwork.errors import DataError
from graftwork.tasks import Task, find_task, load, load_split

FIELDS = {
    "token-classification": {"text": "words", "label": "tags"},
    "multiple-choice": {"text": "question", "choices": "a,b,c"},
    "generation": {"text": "source", "label": "target"},
}


def task(data, kind, **fields):
    return Task(**{"name": "t", "kind": kind, "data": str(data), **FIELDS[kind], **fields})


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def json_lines(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def rows_of(dataset):
    return [tuple(row.values()) for row in dataset]


# Tagging

CONLL = "-DOCSTART- -X- -X- O\r\n\r\nEU NNP I-NP B-ORG\r\nrejects VBZ I-VP O\r\n\r\n\r\nPeter NNP I-NP B-PER\r\n"
SENTENCES = [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter"], ["B-PER"])]


def tagging(data, **fields):
    return task(data, "token-classification", **{"layout": "conll", **fields})


def named_tags(dataset, labels):
    return [(words, [labels[i] for i in tags]) for words, tags in rows_of(dataset)]


@pytest.mark.parametrize(
    "content", [CONLL, CONLL.replace(" ", "\t"), CONLL.replace("\r", ""), CONLL.rstrip() + "\n\n\n"]
)
def test_conll(tmp_path, content):
    for name in ("train.txt", "valid.txt", "test.conll"):
        write(tmp_path / name, content)
    data = load(tagging(tmp_path))
    assert data.task.labels == ("O", "B-ORG", "B-PER"), "O is the first"
    for split in (data.train, data.validation, data.test):
        assert split.column_names == ["words", "tags"]
        assert named_tags(split, data.task.labels) == SENTENCES
    assert load_split(data.task, "test")[:] == data.test[:]


def test_conll_header_and_files_of_other_names(tmp_path):
    write(tmp_path / "eng.train", CONLL)
    write(tmp_path / "eng.testa", CONLL)
    splits = {"train": "eng.train", "validation": "eng.testa"}
    declared = tagging(tmp_path, header="words,tags,chunk,ner", splits=splits, metrics="token_accuracy")
    data = load(declared)
    assert data.task.labels == ("NNP", "VBZ")
    assert data.train["tags"][:] == [[0, 1], [0]]
    with pytest.raises(
        DataError, match=r"eng.testa is malformed at lines 3, 4, 7: .*(.|\n)*3 fields in each line .words, tags, ner."
    ):
        load(declared.override(header="words,tags,ner"))


def test_words_may_hold_any_space_but_the_separator(tmp_path):
    declared = tagging(tmp_path, labels="O,B-X", validation_fraction=0)
    write(tmp_path / "train.txt", "5\u00a0000 B-X\n\na O\n")
    assert load_split(declared, "train")["words"][0] == ["5\u00a0000"]
    write(tmp_path / "train.txt", "New York\tB-X\n\na\tO\n")
    assert load_split(declared, "train")["words"][0] == ["New York"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU B-ORG\nrejects\n\na O\nb\n", "train.txt is malformed at lines 2, 5: 'rejects'"),
        ("EU\tB-ORG\nrejects\t\n", "malformed at line 2"),
        ("EU\nrejects O\n", r"malformed at line 1: 'EU'(.|\n)*2 fields in each line"),
        ("EU X B-ORG\nrejects O\n", r"malformed at line 2(.|\n)*3 fields in each line"),
        ("-DOCSTART- O\n\n", "train.txt has no rows"),
        ("", "train.txt is empty"),
        ("a O\n\nb O\n\nc O\n", "has the label 'O' in column 'tags' for every row"),
        ("a O\n\nb NN\n", r"train.txt has 2 rows, too few"),
    ],
)
def test_malformed_conll(tmp_path, content, message):
    write(tmp_path / "train.txt", content)
    with pytest.raises(DataError, match=message):
        load(tagging(tmp_path))


def test_tags_that_training_never_saw(tmp_path):
    write(tmp_path / "train.txt", CONLL)
    write(tmp_path / "dev.txt", "a O\n\nb B-LOC\nc I-LOC\n\nd B-MISC\n")
    with pytest.raises(DataError, match=r"dev.txt has 2 rows .*'B-LOC', 'B-MISC', 'I-LOC' at lines 3, 6"):
        load(tagging(tmp_path))


TAGGED = [{"words": ["EU", "rejects", str(i)], "tags": ["B-ORG", "O", "O"]} for i in range(20)]


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "ids", "hub"])
def test_tables_of_lists(tmp_path, form, monkeypatch):
    ids = [{**row, "tags": [2, 0, 0]} for row in TAGGED]
    fields = {"layout": "table", "validation_fraction": 0.1}
    if form == "parquet":
        datasets.Dataset.from_list(TAGGED).to_parquet(tmp_path / "rows.parquet")
    elif form == "ids":
        json_lines(tmp_path / "rows.jsonl", ids)
        fields |= {"labels": "O,B-PER,B-ORG", "label_ids": True}
    elif form == "hub":
        label = datasets.ClassLabel(names=["O", "B-PER", "B-ORG"])
        features = datasets.Features({"words": datasets.List(datasets.Value("string")), "tags": datasets.List(label)})
        parts = {"train": datasets.Dataset.from_list(ids, features=features)}
        monkeypatch.setattr(datasets, "load_dataset", lambda *_: parts)
    else:
        text = json.dumps(TAGGED) if form == "json" else "\n".join(map(json.dumps, TAGGED))
        write(tmp_path / f"rows.{form}", text)
    extension = "jsonl" if form == "ids" else form
    data = load(tagging("org/news" if form == "hub" else tmp_path / f"rows.{extension}", **fields))
    assert data.task.labels == (("O", "B-PER", "B-ORG") if form in ("ids", "hub") else ("O", "B-ORG"))
    assert (len(data.train), len(data.validation)) == (18, 2)
    found = named_tags(data.train, data.task.labels) + named_tags(data.validation, data.task.labels)
    assert sorted(found) == sorted(tuple(row.values()) for row in TAGGED)


def test_wrong_lists_are_all_said_at_once(tmp_path):
    rows = [
        *TAGGED,
        {"words": "EU", "tags": ["O"]},
        {"words": [], "tags": None},
        {"words": ["a", ""], "tags": ["O", 1.5]},
    ]
    path = json_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load(tagging(path))
    for message in (
        "'EU' in column 'words', which is not a list of words: lines 21, 22, 23",
        "1 of 23 rows without a value in column 'tags': line 22",
        "['O', 1.5] in column 'tags', which is not a list of tags: line 23",
    ):
        assert message in str(caught.value)
    path = json_lines(tmp_path / "rows.jsonl", [*TAGGED, {"words": ["a", "b"], "tags": ["O"]}])
    with pytest.raises(DataError, match=r"1 rows with other numbers of words than of tags .2 and 1.: line 21"):
        load(tagging(path))
    with pytest.raises(DataError, match=r"rows.jsonl has its own column names"):
        load(tagging(path, header="words,tags"))


def test_a_rare_tag_stays_in_training(tmp_path):
    rows = [f"w{i} O\nx B-{'ABCDEFGH'[i] if i < 8 else 'Z'}\n" for i in range(30)]
    path = write(tmp_path / "rows.txt", "\n".join(rows))
    for seed in range(10):
        data = load(tagging(path, split_seed=seed, validation_fraction=0.5))
        assert len(data.validation) == 15
        assert {tag for tags in data.train["tags"] for tag in tags} == set(range(len(data.task.labels)))


# Multiple choice

QUESTIONS = [{"question": f"q{i}", "a": f"a{i}", "b": f"b{i}", "c": f"c{i}", "label": i % 3} for i in range(20)]


def choosing(data, **fields):
    return task(data, "multiple-choice", **fields)


@pytest.mark.parametrize("labels", [None, "A,B,C", "1,2,3"])
def test_columns_of_choices(tmp_path, labels):
    names = labels.split(",") if labels else "012"
    lines = [f"{row['question']},{row['a']},{row['b']},{row['c']},{names[row['label']]}" for row in QUESTIONS]
    data = load(choosing(write(tmp_path / "rows.csv", "\n".join(["question,a,b,c,label", *lines])), labels=labels))
    assert data.train.column_names == ["text", "choices", "label"]
    expected = [(f"q{i}", [f"a{i}", f"b{i}", f"c{i}"], i % 3) for i in range(20)]
    assert sorted(rows_of(data.train) + rows_of(data.validation)) == sorted(expected)
    assert data.task.labels == (tuple(names) if labels else None)


def test_a_column_of_lists_of_choices(tmp_path):
    rows = [{"question": f"q{i}", "options": list("abcd"[: 2 + i % 3]), "label": 1 + i % 3 % 2} for i in range(9)]
    data = load(choosing(json_lines(tmp_path / "rows.jsonl", rows), choices="options", labels="0,1,2"))
    found = {text: (choices, label) for text, choices, label in rows_of(data.train) + rows_of(data.validation)}
    assert found == {row["question"]: (row["options"], row["label"]) for row in rows}
    rows[3]["label"] = 2
    with pytest.raises(
        DataError, match=r"1 rows whose label in column 'label' names none of their choices: '2' at line 4"
    ):
        load(choosing(json_lines(tmp_path / "rows.jsonl", rows), choices="options"))
    rows[3]["options"], rows[4]["options"] = ["a"], "a"
    with pytest.raises(DataError, match=r"which is not a list of two choices or more: lines 4, 5"):
        load(choosing(json_lines(tmp_path / "rows.jsonl", rows), choices="options"))


def test_choices_of_a_dataset_with_class_names(monkeypatch):
    features = {name: datasets.Value("string") for name in ("question", "a", "b", "c")}
    features["label"] = datasets.ClassLabel(names=["first", "second", "third"])
    parts = {"train": datasets.Dataset.from_list(QUESTIONS, features=datasets.Features(features))}
    parts["test"] = parts["train"].select(range(2)).map(lambda _: {"label": -1})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: parts)
    data = load(choosing("org/quiz"))
    assert data.train["label"][:] == [int(text[1:]) % 3 for text in data.train["text"]]
    assert data.test is None


def test_choices_that_count_from_one(tmp_path, caplog):
    rows = [{**row, "label": row["label"] + 1} for row in QUESTIONS]
    with pytest.raises(DataError, match=r"6 rows .*'3' at lines 3, 6, 9, 12, 15 and 1 more(.|\n)*1,2,3,4"):
        load_split(choosing(json_lines(tmp_path / "rows.jsonl", rows), validation_fraction=0), "train")
    path = json_lines(tmp_path / "rows.jsonl", [row for row in rows if row["label"] < 3])
    load_split(choosing(path, validation_fraction=0), "train")
    assert "never has the first choice (0)" in caplog.text


def test_missing_columns_of_choices(tmp_path):
    path = json_lines(tmp_path / "rows.jsonl", [{"question": "q", "a": "x", "label": 0}] * 5)
    with pytest.raises(DataError, match=r"no column 'b', 'c'(.|\n)*change: --choices"):
        load(choosing(path))


# Generation

PAIRS = [{"source": f"s{i // 3}", "target": f"t{i}"} for i in range(60)]


def generation(data, **fields):
    return task(data, "generation", **fields)


def test_sources_are_not_parted(tmp_path):
    path = json_lines(tmp_path / "rows.jsonl", [PAIRS[i * 7 % 60] for i in range(60)])
    data = load(generation(path, validation_fraction=0.1, test_fraction=0.2))
    assert data.train.column_names == ["text", "target"]
    assert data.validation.column_names == data.test.column_names == ["text", "target", "references"]
    assert [len(split) for split in (data.train, data.validation, data.test)] == [42, 2, 4]
    sources = [set(split["text"]) for split in (data.train, data.validation, data.test)]
    assert len(set().union(*sources)) == sum(map(len, sources)) == 20
    assert set(Counter(data.train["text"]).values()) == {3}, "a row for each target"
    for text, target, references in [*rows_of(data.validation), *rows_of(data.test)]:
        number = int(text[1:])
        assert sorted(references) == sorted(f"t{3 * number + i}" for i in range(3))
        assert target == references[0]


def test_rows_of_one_file_grouped_or_not(tmp_path):
    declared = generation(json_lines(tmp_path / "rows.jsonl", PAIRS), validation_fraction=0)
    assert rows_of(load_split(declared, "train"))[:2] == [("s0", "t0"), ("s0", "t1")]
    grouped = load_split(declared, "train", grouped=True)
    assert rows_of(grouped)[1] == ("s1", "t3", ["t3", "t4", "t5"])
    declared = declared.override(validation_fraction=0.5)
    assert len(load_split(declared, "validation", grouped=False)) == 30
    assert len(load_split(declared, "validation")) == 10


def test_generation_needs_texts(tmp_path):
    path = json_lines(
        tmp_path / "rows.jsonl", [*PAIRS, {"source": "s", "target": ["a"]}, {"source": None, "target": "t"}]
    )
    with pytest.raises(DataError) as caught:
        load(generation(path))
    assert "1 of 62 rows without a value in column 'source': line 62" in str(caught.value)
    assert "['a'] in column 'target', which is not a text: line 61" in str(caught.value)
    path = json_lines(tmp_path / "rows.jsonl", PAIRS[:3])
    with pytest.raises(DataError, match="has 1 sources, too few to hold 1 out for validation"):
        load(generation(path))


def test_a_test_file_without_targets_is_no_split(tmp_path):
    json_lines(tmp_path / "train.jsonl", PAIRS)
    json_lines(tmp_path / "test.jsonl", [{"source": "s"}])
    assert load(generation(tmp_path)).test is None


def e2e(folder, *names):
    for name in names:
        write(folder / name, '"mr","ref"\n' + "".join(f"{name} {i // 2},ref {i}\n" for i in range(20)))
    return find_task("e2e_nlg").override(data=str(folder))


def test_e2e_release(tmp_path):
    data = load(e2e(tmp_path, "trainset.csv", "devset.csv", "testset_w_refs.csv"))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [20, 10, 10]
    assert data.test[0] == {"text": "testset_w_refs.csv 0", "target": "ref 0", "references": ["ref 0", "ref 1"]}


def test_e2e_without_its_training_file(tmp_path, caplog):
    caplog.set_level("INFO", "graftwork")
    task = e2e(tmp_path, "devset.csv", "testset_w_refs.csv")
    with pytest.raises(DataError, match=r"trainset.csv is missing(.|\n)*devset.csv(.|\n)*--task.splits.train FILE"):
        load(task)
    data = load(task.override(splits={"train": "devset.csv"}, validation_fraction=0.2))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [16, 2, 10]
    assert "devset.csv: held out 2 of 10 sources for validation" in caplog.text
    with pytest.raises(DataError, match=r"has none of trainset.csv, devset.csv, testset_w_refs.csv"):
        load(task.override(data=str(write(tmp_path / "other" / "x.csv", "").parent)))


@pytest.mark.parametrize(
    ("name", "expected"), [("conll2003", "train.txt, valid.txt, test.txt"), ("e2e_nlg", "E2E release")]
)
def test_tasks_that_want_data(name, expected):
    with pytest.raises(DataError, match=rf"task {name} has no data\n.*{expected}"):
        load(find_task(name))
