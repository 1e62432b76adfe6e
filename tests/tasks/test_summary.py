"""What is said of a task's data: rows, labels, lengths, examples, and what was left out."""

import json

import pytest
from tiny import VOCABULARY

from graftwork.errors import BackboneError, DataError
from graftwork.tasks import Lengths, Task, summarize


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of whole words, in a folder."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("words")
    BertTokenizer(vocab=VOCABULARY, do_lower_case=True).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return str(folder)


def summary(folder, rows, *, backbone=None, examples=5, **fields):
    """Of rows that are the training split and the validation split as well."""
    folder.mkdir(exist_ok=True)
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(**{"name": "t", "text": "text", "data": str(folder), **fields})
    return summarize(task, backbone=backbone, examples=examples)


def test_classes(tmp_path, words):
    texts = ["a film", "the man sleeps", "?", "good " * 600, "a very gripping film", "?"]
    rows = [{"text": text, "label": "?" if text == "?" else "ba"[i % 2]} for i, text in enumerate(texts)]
    found = summary(tmp_path, rows, backbone=words, examples=2, cleaning={"drop_labels": "?"})
    assert set(found.splits) == {"train", "validation"}
    train = found.splits["train"]
    assert (train.rows, list(train.labels.items())) == (4, [("a", 2), ("b", 2)])
    # [CLS] and [SEP] are counted, and nothing is cut.
    assert train.lengths == Lengths(median=5.5, percentile_95=602, longest=602)
    assert found.dropped == {split: {"label '?'": [3, 6]} for split in ("train", "validation")}
    assert found.examples == [("a film", "b"), (("good " * 600).strip(), "a")], "at even distances"
    told = json.loads(json.dumps(found.as_dict()))
    assert told["dropped"]["train"] == {"label '?'": {"rows": 2, "first": [3, 6]}}
    assert told["splits"]["train"]["lengths"]["longest"] == 602


def test_the_percentile_is_a_length_that_a_text_has(tmp_path, words):
    rows = [{"text": "good " * i, "label": "ab"[i % 2]} for i in range(1, 101)]
    lengths = summary(tmp_path, rows, backbone=words).splits["train"].lengths
    assert lengths == Lengths(median=52.5, percentile_95=97, longest=102)


def test_pairs_and_numbers(tmp_path, words):
    rows = [{"text": "a film", "other": "good", "label": float(number)} for number in (1, 2, 6)]
    found = summary(tmp_path, rows, backbone=words, kind="regression", text_pair="other")
    train = found.splits["train"]
    assert train.lengths == Lengths(6.0, 6, 6), "[CLS] a film [SEP] good [SEP]"
    assert (train.numbers, train.labels) == ((1.0, 3.0, 6.0), {})
    assert found.examples[0] == (("a film", "good"), 1.0)


def test_tags(tmp_path, words):
    rows = [{"text": ["a", "film"], "label": ["O", ("B-X", "I-X")[i % 2]]} for i in range(4)]
    found = summary(tmp_path, rows, backbone=words, kind="token-classification")
    assert found.splits["train"].lengths == Lengths(4.0, 4, 4)
    assert found.splits["train"].labels == {"O": 4, "B-X": 2, "I-X": 2}
    assert found.examples[0] == (["a", "film"], ["O", "B-X"])


def test_choices(tmp_path, words):
    rows = [{"text": "a film", "choices": ["good", "very " * (i + 1)], "label": i % 2} for i in range(3)]
    found = summary(tmp_path, rows, backbone=words, kind="multiple-choice", choices="choices")
    assert found.splits["train"].lengths == Lengths(7.0, 8, 8), "with the longest choice"
    assert found.examples[0][0] == ("a film", ["good", "very "])


def test_sources_and_targets(tmp_path, words):
    rows = [{"text": "very " * (i // 2), "label": "is good " * i} for i in range(1, 5)]
    found = summary(tmp_path, rows, backbone=words, kind="generation")
    assert (found.splits["train"].rows, found.splits["validation"].rows) == (4, 3)
    assert found.splits["train"].lengths == Lengths(3.0, 4, 4)
    assert found.splits["train"].targets == Lengths(7.0, 10, 10)
    assert found.examples[3] == ("very very ", "is good " * 4)


def test_several_labels(tmp_path):
    rows = [{"text": "a film", "label": ["x", "y"][: i % 3]} for i in range(6)]
    found = summary(tmp_path, rows, kind="multi-label-classification")
    assert found.splits["train"].labels == {"x": 4, "y": 2}
    assert [label for _, label in found.examples[:3]] == [[], ["x"], ["x", "y"]]


def test_images_have_no_lengths(words):
    found = summarize("digits", backbone=words, examples=2)
    assert found.splits["train"].lengths is None
    assert sum(found.splits["train"].labels.values()) == found.splits["train"].rows
    assert found.examples[0][0] == "image of 8 × 8 pixels"


def test_without_a_backbone_nothing_is_tokenized(tmp_path):
    rows = [{"text": f"{i}", "label": "ab"[i % 2]} for i in range(4)]
    found = summary(tmp_path, rows)
    assert (found.tokenizer, found.splits["train"].lengths) == (None, None)
    assert summarize(Task(name="t", text="text"), data=str(tmp_path)).splits == found.splits
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BackboneError, match="tokenizer"):
        summarize(Task(name="t", text="text"), data=str(tmp_path), backbone=str(tmp_path))
    with pytest.raises(DataError, match=r"there is no file or folder nowhere.csv"):
        summarize(Task(name="t", text="text", data="nowhere.csv"))
