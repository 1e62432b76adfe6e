"""The extra tasks and the domains of reviews, over small files of the shape of the published ones; and over those
themselves, where `GRAFTWORK_DATA` names the folder that holds them."""

import os
from collections import Counter
from pathlib import Path

import datasets
import pytest

from graftwork.errors import DataError, RecipeError
from graftwork.tasks import BUILTIN, find_task, load
from graftwork.tasks.extra import EXTRA, REVIEWS
from graftwork.tasks.known import ALL, ROWS, known_task, known_tasks

MAC = "don’t £5".encode().decode("cp1252").encode("mac_roman")
"""As the tables of crowdflower.com have it."""

# Task -> the columns of its file, its bytes for a row, spellings of labels in it (with what becomes of them).
CSV = {
    "airline_sentiment": ("tweet_id,airline_sentiment,text", b"don\xe2\x80\x99t \xf0\x9f\x98", {}),
    "corporate_messaging": ("_unit_id,category,text", MAC, {}),
    "disasters": ("_unit_id,choose_one,text", MAC, {"Can't Decide": None}),
    "economic_news_relevance": ("_unit_id,relevance,text", MAC, {"not sure": None}),
    "emotion": ("tweet_id,sentiment,content", "don’t".encode(), {}),
    "global_warming": ("n,existence,tweet", b"don't", {"Y": "Yes", "N": "No", "NA": None, "N/A": None, "": None}),
    "political_audience": ("_unit_id,audience,text", MAC, {}),
    "political_bias": ("n,bias,text", "don’t £5".encode().decode("cp1252").encode(), {}),
    "political_message": ("_unit_id,message,text", MAC, {}),
    "primary_emotions": ("_unit_id,emotion,sentence", b"don't", {}),
    "us_economic_performance": ("_unit_id,relevance,text", MAC, {"not sure": None}),
    "customer_complaints": ("Product,Issue,Consumer complaint narrative", b"don't", {"": None}),
}


def write_csv(folder, name):
    columns, text, spellings = CSV[name]
    task = BUILTIN[name]
    labels = task.labels or ("Late fees", "Fraud")
    lines = [columns.encode()]
    for label in (*labels, *spellings):
        lines += [b'%d,"%s","%s %s %d"' % (i, label.encode(), text, label.encode(), i) for i in range(30)]
    lines.append(b'0,"%s",' % labels[0].encode())
    (folder / task.splits["train"]).write_bytes(b"\n".join(lines) + b"\n")
    return labels, spellings


@pytest.mark.parametrize("name", CSV)
def test_a_table_is_read_cleaned_and_split(tmp_path, name):
    labels, spellings = write_csv(tmp_path, name)
    data = load(BUILTIN[name].override(data=str(tmp_path)))
    splits = (data.train, data.validation, data.test)
    assert data.task.labels == tuple(sorted(labels))
    counts = Counter(data.task.labels[i] for split in splits for i in split["label"])
    merged = Counter(spellings.values())
    assert counts == {label: 30 * (1 + merged[label]) for label in labels}
    rows = sum(counts.values())
    assert tuple(map(len, splits))[1:] == (round(rows / 10),) * 2
    dropped = data.dropped["train"]
    reasons = {
        label: "nothing in" if label == "" else f"label '{label}'" for label, new in spellings.items() if not new
    }
    assert sum(map(len, dropped.values())) == 30 * len(reasons) + 1
    assert any(reason.startswith("nothing in column") for reason in dropped)
    text = data.train["text"][0]
    assert text.startswith("don’t" if "don't" not in text else "don't")
    assert "â" not in text


def test_two_of_a_table_have_labels_of_its_own_words(tmp_path):
    for name in ("progressive_opinion", "progressive_stance"):
        task = BUILTIN[name]
        rows = "".join(f'"tweet {i}",{("FOR: it", "AGAINST: it")[i % 2]}\n' for i in range(40))
        (tmp_path / "progressive-tweet-sentiment.csv").write_text(f"tweet,{task.label}\n{rows}x,\n")
        data = load(task.override(data=str(tmp_path)))
        assert data.task.labels == ("AGAINST: it", "FOR: it")
        assert list(data.dropped["train"].values()) == [[42]]


def test_news_are_lines_without_quoting(tmp_path):
    line = '{i}\t"Fed {i} says\thttp://x\tReuters\t{label}\tstory\thost\t1394470370698\n'
    rows = [line.format(i=i, label="btem"[i % 4]) for i in range(80)]
    (tmp_path / "newsCorpora.csv").write_text("".join(rows))
    data = load(BUILTIN["news_aggregator"].override(data=str(tmp_path)))
    assert [data.task.labels[i] for i in data.train["label"][:4]] == [
        {"b": "business", "t": "technology", "e": "entertainment", "m": "health"}["btem"[int(text.split()[1]) % 4]]
        for text in data.train["text"][:4]
    ]


def test_messages_are_the_same_from_a_file_and_from_the_hub(tmp_path, monkeypatch):
    rows = [(("ham", "spam")[i % 4 == 0], f'message {i} "Ü') for i in range(60)]
    (tmp_path / "SMSSpamCollection").write_text("".join("\t".join(row) + "\r\n" for row in rows), newline="")
    features = datasets.Features({"sms": datasets.Value("string"), "label": datasets.ClassLabel(names=["ham", "spam"])})
    columns = {"sms": [f"{text}\n" for _, text in rows], "label": [label for label, _ in rows]}
    hub = {"train": datasets.Dataset.from_dict(columns, features=features)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *asked: hub if asked == ("ucirvine/sms_spam", None) else {})
    one, other = load(BUILTIN["sms_spam"]), load(BUILTIN["sms_spam"].override(data=str(tmp_path)))
    for split in ("train", "validation", "test"):
        assert getattr(one, split)[:] == getattr(other, split)[:]


def test_newsgroups_are_folders_or_the_hubs(tmp_path, monkeypatch):
    groups = BUILTIN["20_newsgroups"].labels
    for split in ("train", "test"):
        for group in groups:
            (tmp_path / f"20news-bydate-{split}" / group).mkdir(parents=True)
            for i in range(3):
                (tmp_path / f"20news-bydate-{split}" / group / f"{i}").write_bytes(
                    f"{split} {group} {i} é".encode("latin-1")
                )
    data = load(BUILTIN["20_newsgroups"].override(data=str(tmp_path)))
    assert (len(data.train), len(data.validation), len(data.test)) == (54, 6, 60)
    columns = {"text": [f"{i}" for i in range(40)], "label": [i % 20 for i in range(40)]}
    hub = datasets.Dataset.from_dict({**columns, "label_text": [groups[i % 20] for i in range(40)]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *asked: {"train": hub, "test": hub})
    assert list(load(BUILTIN["20_newsgroups"]).test["label"]) == columns["label"]


@pytest.mark.parametrize("name", ["fdu_mtl_mr", "fdu_mtl_dvd", "fdu_mtl_books"])
def test_domains_of_reviews(tmp_path, name):
    task = REVIEWS[name]
    dash = {"fdu_mtl_mr": b"\x96", "fdu_mtl_dvd": b"\xef\xbf", "fdu_mtl_books": "–".encode()}[name]
    for split, count in (("train", 80), ("test", 20)):
        lines = b"".join(b"%d\t %d a good %s book \x1e . \n" % (i % 2, i, dash) for i in range(count))
        (tmp_path / task.splits[split]).write_bytes(lines)
    data = load(task.override(data=str(tmp_path)))
    assert (len(data.train), len(data.validation), len(data.test)) == (70, 10, 20)
    mark = "�" if name == "fdu_mtl_dvd" else "–"
    assert data.test["text"][0] == f"0 a good {mark} book \x1e ."
    assert list(data.test["label"][:2]) == [0, 1]


def test_rows_with_one_text_stay_together(tmp_path):
    rows = "".join(f"tweet {i // 4},{('negative', 'neutral', 'positive')[i // 4 % 3]}\n" for i in range(240))
    (tmp_path / "Tweets.csv").write_text("text,airline_sentiment\n" + rows)
    data = load(BUILTIN["airline_sentiment"].override(data=str(tmp_path)))
    texts = [set(split["text"]) for split in (data.train, data.validation, data.test)]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 60


@pytest.mark.parametrize("name", [*EXTRA, *REVIEWS])
def test_what_is_missing_is_told_with_where_it_can_be_had(tmp_path, name):
    task = BUILTIN[name]
    assert task.homepage.startswith("http")
    if task.data is None:
        with pytest.raises(DataError) as caught:
            load(task)
        assert task.splits["train"] in str(caught.value)
        assert f"--data; the data can be had from {task.homepage}" in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"there is no (file|folder)") as caught:
        load(task.override(data=str(tmp_path / "empty")))
    assert task.homepage in str(caught.value)
    (tmp_path / "other.jsonl").write_text('{"a": "b"}\n' * 9)
    with pytest.raises(DataError, match="has no column") as caught:
        load(task.override(data=str(tmp_path / "other.jsonl"), splits={}))
    assert task.homepage in str(caught.value)


def test_what_is_known_before_data_are_read():
    assert [row.name for row in known_tasks()] == list(BUILTIN)
    assert set(ROWS) == set(BUILTIN)
    assert known_task("disasters").as_dict() == {
        "name": "disasters",
        "kind": "classification",
        "metric": "accuracy",
        "labels": 2,
        "rows": {ALL: 10860},
        "data": None,
        "source": "https://data.world/crowdflower",
    }
    assert (known_task("rte").data, known_task("digits").data) == (
        "hf://datasets/nyu-mll/glue",
        "the package scikit-learn",
    )
    assert all(row.source for row in known_tasks())
    with pytest.raises(RecipeError, match="unknown task"):
        known_task("disaster")


def test_a_task_file_can_be_a_built_in_task_with_other_data(tmp_path):
    write_csv(tmp_path, "disasters")
    path = tmp_path / "own.yaml"
    path.write_text("base: disasters\ndata: socialmedia-disaster-tweets-DFE.csv\n")
    task = find_task(str(path))
    assert (task.labels, task.cleaning) == (BUILTIN["disasters"].labels, BUILTIN["disasters"].cleaning)
    assert len(load(task).test) == 6
    path.write_text("base: disaster\n")
    with pytest.raises(RecipeError, match=r"own.yaml has an unknown base 'disaster'\n.*disasters"):
        find_task(str(path))


# The published files. Rows are those of table 3 of Houlsby et al. (2019), which has no counts of labels.
REAL = {
    "airline_sentiment": ("crowdflower", {"negative": 9178, "neutral": 3099, "positive": 2363}, 0),
    "corporate_messaging": (
        "crowdflower",
        {"Action": 724, "Dialogue": 226, "Exclude": 39, "Information": 2129},
        0,
    ),
    "disasters": ("crowdflower", {"Not Relevant": 6187, "Relevant": 4673}, 16),
    "emotion": ("crowdflower", None, 0),
    "global_warming": ("crowdflower", {"No": 1114, "Yes": 3111}, 1865),
    "political_bias": ("crowdflower/political_social_media.csv", {"neutral": 3689, "partisan": 1311}, 0),
    "primary_emotions": ("crowdflower", None, 0),
    "sms_spam": ("sms_spam", {"ham": 4827, "spam": 747}, 0),
    **{name: ("fdu_mtl", None, int(name == "fdu_mtl_sports_outdoors")) for name in REVIEWS},
}


@pytest.mark.parametrize("name", REAL)
def test_published_files(name):
    folder, labels, left_out = REAL[name]
    root = os.environ.get("GRAFTWORK_DATA")
    if root is None or not (Path(root) / folder).exists():
        pytest.skip(f"GRAFTWORK_DATA names no folder that holds {folder}")
    data = load(BUILTIN[name].override(data=str(Path(root) / folder)))
    splits = (data.train, data.validation, data.test)
    assert sum(map(len, splits)) == sum(ROWS[name].values()) - (left_out if name in REVIEWS else 0)
    assert sum(len(rows) for reasons in data.dropped.values() for rows in reasons.values()) == left_out
    if labels is not None:
        assert Counter(data.task.labels[i] for split in splits for i in split["label"]) == labels
    for split in splits:
        assert not any("â€" in text for text in split["text"])
