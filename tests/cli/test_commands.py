"""Every command, as a user types it: what it prints, in words and as JSON, and that each flag is explained."""

import csv
import io
import json
import re
import sys

import pytest
from training.workbench import FAST, contents, flags, make_rows, names_in, write_csv

from graftwork import Adapter
from graftwork.cli.app import app
from graftwork.cli.table import print_table
from graftwork.methods import known_methods, make_method
from graftwork.settings.yamlfile import read_value

COMMANDS = [name for name in app if not name.startswith("-")]
KINDS = ("classes", "pairs", "numbers")


def type_in(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def cells(line):
    return re.split(r" {2,}", line)


def same_file(folder, name):
    return json.loads((folder / name).read_text())


# Tables


def test_a_row_too_wide_for_the_terminal_is_names_and_values(capsys, monkeypatch):
    row = {"task": "reviews", "validation accuracy": "0.8171"}
    print_table([row])
    assert capsys.readouterr().out == "task     validation accuracy\nreviews  0.8171\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    print_table([row])
    assert capsys.readouterr().out == "task                 reviews\nvalidation accuracy  0.8171\n"


# Help


def test_the_commands():
    assert [
        *(
            "tune",
            "tune-many",
            "compare",
            "runs",
            "report",
            "fuse",
            "distill",
            "consolidate",
            "merge",
            "extract",
            "landscape",
            "ablate",
            "glue-submission",
            "generate",
            "evaluate",
            "predict",
            "inspect",
            "list",
            "plan",
            "methods",
            "tasks",
            "env",
        )
    ] == COMMANDS


def plain(text):
    """Text without the boxes and line breaks of the terminal."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_flag_is_explained(graftwork, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    run = graftwork(name, "--help")
    assert (run.status, run.err) == (0, "")
    shown = plain(run.out)
    command = app[name]
    assert command.help
    assert plain(command.help.partition("\n\n    Parameters")[0]) in shown
    arguments = [own for own in command.assemble_argument_collection(parse_docstring=True) if own.name != "*"]
    assert len(arguments) >= (1 if name == "env" else 2)
    for argument in arguments:
        assert argument.parameter.help, f"{name} {argument.name} has no help"
        assert plain(argument.parameter.help) in shown
        assert all(flag in shown for flag in argument.names if flag.startswith("--"))


def test_program_help_lists_the_commands(graftwork):
    run = graftwork("--help")
    assert run.status == 0
    assert all(re.search(rf"^\W*{name}\s+\w", run.out, re.MULTILINE) for name in COMMANDS)


def test_version(graftwork):
    import graftwork as package

    assert graftwork("--version").out.strip() == package.__version__


@pytest.mark.parametrize(
    "arguments",
    [["tuen"], ["tune"], ["tune", "--outptu", "x"], ["predict"], ["inspect"], ["plan", "--labels", "0"]],
    ids=" ".join,
)
def test_command_line_that_cannot_be_parsed(graftwork, arguments):
    run = graftwork(*arguments)
    assert run.status == 2
    assert run.err.strip()
    assert run.out == ""


def test_unknown_flag_of_predict_is_no_text(graftwork, adapters):
    run = graftwork("predict", adapters / "classes", "--jsn", "good")
    assert run.status != 0
    assert run.out == ""
    assert "--jsn" in run.err


# tune


def test_tune_prints_json_and_nothing_else(graftwork, backbone_folder, data, tmp_path):
    arguments = ["--data", data["classes"], "--text", "text", "--backbone", backbone_folder, "--method", "head-only"]
    run = graftwork("tune", *arguments, "--output", tmp_path / "a", "--train.max_steps", "2", "--quiet", "--json")
    assert run.status == 0
    printed, adapter = json.loads(run.out), Adapter.load(tmp_path / "a")
    assert printed["metrics"] == adapter.metrics
    assert printed["trained"] == adapter.num_parameters == 2 * 32 + 2
    assert printed["bytes"] == len(contents(tmp_path / "a")["adapter.safetensors"])
    assert (printed["task"], printed["method"], printed["output"]) == ("classes", "head-only", str(tmp_path / "a"))
    assert run.err == ""


def test_tune_in_words(graftwork, backbone_folder, data, tmp_path):
    arguments = ["--data", data["classes"], "--text", "text", "--backbone", backbone_folder, "--train.max_steps=1"]
    run = graftwork("tune", *arguments, "--output", tmp_path / "a")
    header, values, compared, saved = run.out.splitlines()
    row = dict(zip(cells(header), cells(values), strict=True))
    assert row["method"] == "houlsby", "the method of the design, where none is named"
    scores = Adapter.load(tmp_path / "a").metrics["validation"]
    assert compared.startswith("logistic regression on the frozen embeddings: validation accuracy ")
    loading, first, second, *_ = run.err.splitlines()
    assert loading == f"loading backbone {backbone_folder}"
    assert first.startswith(f"backbone {backbone_folder} (bert-like, 0.0M) on cpu, bfloat16; method houlsby; ") or (
        "float32" in first
    )
    assert first.endswith(
        "; pooling mean (default); task classes (classification; 108 train, 12 validation rows, 2 classes)"
    )
    assert row["validation accuracy"] == f"{scores['accuracy']:.4f} (12 rows)"
    assert saved == f"saved in {tmp_path / 'a'}"
    assert second == (
        "1 step: batches of 32; learning rate 0.001, head 0.003; "
        "defaults (docs/defaults.md): batch size, learning rate, head's learning rate"
    )
    assert "classes: step 1 of 1, validation accuracy " in run.err, "progress goes to standard error"


def test_scores_of_a_few_rows_are_shown_with_their_number(graftwork, backbone_folder, tmp_path, caplog):
    """In the command's output, in the card, and by inspect."""
    rows = write_csv(tmp_path / "rows.csv", make_rows("classes", 20))
    shared = ["--backbone", backbone_folder, "--data", rows, "--text", "text", "--quiet", "--dtype", "float32"]
    run = graftwork("tune", *shared, "--output", tmp_path / "a", *flags(FAST))
    assert run.status == 0
    assert "(2 rows)" in run.out
    assert "validation has 2 rows" in caplog.text
    adapter = Adapter.load(tmp_path / "a")
    assert adapter.rows == {"validation": 2}
    shown = f"| validation | accuracy | {adapter.metrics['validation']['accuracy']:.4f} (2 rows) |"
    assert shown in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert "(2 rows)" in graftwork("inspect", tmp_path / "a").out


def test_tune_by_flags_by_a_recipe_and_by_its_own_recipe_is_the_same(graftwork, adapters, data, tmp_path):
    ran = graftwork("tune", adapters / "pairs" / "recipe.yaml", "--output", tmp_path / "again", "--quiet")
    assert ran.status == 0
    assert contents(tmp_path / "again") == contents(adapters / "pairs")


def test_flags_override_a_recipe(graftwork, adapters, tmp_path):
    overrides = ["--train.seed", "7", "--train.max_steps", "2", "--method.rank", "2", "--task.validation_fraction=0.3"]
    run = graftwork("tune", adapters / "classes" / "recipe.yaml", *overrides, "--output", tmp_path / "a", "--quiet")
    assert run.status == 0
    adapter = Adapter.load(tmp_path / "a")
    assert adapter.seed == 7
    assert adapter.method.rank == 2
    changed = {**adapter.recipe, "task": {**adapter.recipe["task"], "validation_fraction": 0.1}}
    changed["train"] = {**changed["train"], "seed": 0, "max_steps": -1}
    changed["method"] = {**changed["method"], "rank": 4}
    assert changed == Adapter.load(adapters / "classes").recipe, "and nothing else is changed"


def test_settings_without_a_method_are_the_default_methods(graftwork, backbone_folder, data, tmp_path):
    arguments = ["--data", data["classes"], "--text", "text", "--backbone", backbone_folder, "--train.max_steps", "1"]
    run = graftwork("tune", *arguments, "--method.bottleneck", "3", "--output", tmp_path / "a", "--quiet")
    assert run.status == 0, run.err
    assert Adapter.load(tmp_path / "a").method.model_dump()["bottleneck"] == 3


def test_resume_and_overwrite_flags(graftwork, adapters, tmp_path):
    recipe = adapters / "classes" / "recipe.yaml"
    run = graftwork("tune", recipe, "--output", tmp_path / "a", "--resume")
    assert (run.status, run.err.startswith("error: there is no interrupted run")) == (2, True)
    (tmp_path / "a").mkdir()
    run = graftwork("tune", recipe, "--output", tmp_path / "a", "--overwrite", "--quiet")
    assert run.status == 0
    assert contents(tmp_path / "a") == contents(adapters / "classes")
    assert names_in(tmp_path) == ["a"]


# evaluate


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_gives_the_scores_in_the_folder(graftwork, adapters, kind):
    scores = json.loads(graftwork("evaluate", adapters / kind, "--dtype", "float32", "--json").out)
    saved = same_file(adapters / kind, "adapter.json")["metrics"]["validation"]
    assert (scores.pop("task"), scores.pop("split")) == (kind, "validation")
    del saved["loss"]
    # Batches are padded otherwise here, and float32 rounds otherwise.
    assert scores == pytest.approx(saved, abs=1e-4)


def test_evaluate_in_words(graftwork, adapters):
    header, values = graftwork("evaluate", adapters / "classes", "--split", "train").out.splitlines()
    assert cells(header) == ["task", "split", "accuracy", "f1_macro"]
    assert cells(values)[:2] == ["classes", "train"]


def test_evaluate_scores_every_row_of_another_file(graftwork, adapters, tmp_path):
    # Some labels are turned round, so that the score says which rows were counted.
    rows = [
        {"review": row["text"], "verdict": row["label"] if i % 7 else "positive"}
        for i, row in enumerate(make_rows("classes", 37, seed=9))
    ]
    other = write_csv(tmp_path / "other.csv", rows)
    columns = ["--text", "review", "--label", "verdict"]
    run = graftwork("evaluate", adapters / "classes", "--data", other, *columns, "--batch-size", "5", "--json")
    said = graftwork("predict", adapters / "classes", "--file", other, "--text", "review", "--json").out.splitlines()
    right = [json.loads(line)["label"] == row["verdict"] for line, row in zip(said, rows, strict=True)]
    assert 0 < sum(right) < len(rows)
    assert json.loads(run.out)["accuracy"] == pytest.approx(sum(right) / len(rows))


# predict


def test_predict_arguments(graftwork, adapters):
    run = graftwork("predict", adapters / "classes", "one good two", "bad", "--dtype", "float32")
    lines = [line.split("\t") for line in run.out.splitlines()]
    assert [(label, text) for label, _, text in lines] == [("positive", "one good two"), ("negative", "bad")]
    assert all(0.5 < float(score) <= 1 for _, score, _ in lines)


def test_predict_texts_that_look_like_flags(graftwork, adapters):
    run = graftwork("predict", adapters / "classes", "--json", "--", "--good", "--train.seed", "-bad")
    assert [json.loads(line)["text"] for line in run.out.splitlines()] == ["--good", "--train.seed", "-bad"]


def test_predict_json(graftwork, adapters):
    run = graftwork("predict", adapters / "classes", "good caf\u00e9 \u65e5\u672c", "bad", "--json")
    first, second = map(json.loads, run.out.splitlines())
    assert first["text"] == "good caf\u00e9 \u65e5\u672c"
    assert "\u65e5" in run.out, "readable, not escaped"
    assert (first["label"], second["label"]) == ("positive", "negative")
    assert list(first["scores"]) == ["negative", "positive"]
    assert sum(first["scores"].values()) == pytest.approx(1)
    assert first["score"] == max(first["scores"].values())


def test_predict_numbers(graftwork, adapters):
    run = graftwork("predict", adapters / "numbers", "three good two", "three bad two", "--json")
    high, low = map(json.loads, run.out.splitlines())
    assert high.keys() == {"text", "label"}
    assert high["label"] > low["label"]
    words = graftwork("predict", adapters / "numbers", "three good two")
    assert words.out == f"{high['label']:.4f}\tthree good two\n"


def test_predict_standard_input(graftwork, adapters, monkeypatch):
    type_in(monkeypatch, "\ufeffone good\r\n\nbad two\n".encode())
    run = graftwork("predict", adapters / "classes", "--json")
    assert [json.loads(line)["text"] for line in run.out.splitlines()] == ["one good", "", "bad two"]


def test_predict_nothing(graftwork, adapters, monkeypatch):
    type_in(monkeypatch, b"")
    run = graftwork("predict", adapters / "classes")
    assert (run.status, run.out) == (0, "")


def test_predict_lines_of_a_file(graftwork, adapters, tmp_path):
    (tmp_path / "texts.txt").write_text('one good, "two"\nbad')
    run = graftwork("predict", adapters / "classes", "--file", tmp_path / "texts.txt", "--json", "--batch-size", "1")
    assert [json.loads(line)["text"] for line in run.out.splitlines()] == ['one good, "two"', "bad"]


def test_predict_a_table(graftwork, adapters, tmp_path):
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "review"], ["1", 'good, "fine"\nmore'], ["2", "bad"]])
    run = graftwork("predict", adapters / "classes", "--file", tmp_path / "rows.csv", "--text", "review", "--json")
    found = [json.loads(line) for line in run.out.splitlines()]
    assert [row["text"] for row in found] == ['good, "fine"\nmore', "bad"]
    assert [row["label"] for row in found] == ["positive", "negative"]


def test_predict_pairs(graftwork, adapters, data, tmp_path, monkeypatch):
    run = graftwork("predict", adapters / "pairs", "one good", "mild", "bad", "two mild")
    assert [line.split("\t")[::2] for line in run.out.splitlines()] == [["is good", "one good"], ["is bad", "bad"]]
    assert run.out.splitlines()[0].endswith("\tone good\tmild")
    type_in(monkeypatch, b"one good\tmild\nbad\ttwo mild\n")
    assert graftwork("predict", adapters / "pairs").out == run.out
    (tmp_path / "pairs.txt").write_text("one good\tmild\nbad\ttwo mild\n")
    assert graftwork("predict", adapters / "pairs", "--file", tmp_path / "pairs.txt").out == run.out
    table = graftwork(
        *("predict", adapters / "pairs", "--file", data["pairs"], "--text", "first", "--text-pair", "second", "--json")
    )
    found = [json.loads(line) for line in table.out.splitlines()]
    assert found[0]["text"] == list(make_rows("pairs")[0].values())[:2]
    right = [row["label"] == given["label"] for row, given in zip(found, make_rows("pairs"), strict=True)]
    assert sum(right) > 0.85 * len(right)


WRONG = {
    "odd number of texts": ("pairs", ["one", "two", "three"], None, ["3 texts cannot be split into pairs"]),
    "line without a tab": ("pairs", [], b"a\tb\nalone\n", ["standard input, line 2 is not a pair", "tab"]),
    "line with two tabs": ("pairs", [], b"a\tb\tc\n", ["line 1 is not a pair"]),
    "input that is not UTF-8": ("classes", [], b"good\ncaf\xe9\n", ["standard input is not UTF-8", "0xe9"]),
    "arguments and a file": ("classes", ["good", "--file", "rows.csv"], None, ["one of the two", "--file"]),
    "column without a table": ("classes", ["--text", "text"], None, ["--file TABLE --text COLUMN"]),
    "second column alone": ("classes", ["--file", "rows.csv", "--text-pair", "text"], None, ["--text COLUMN"]),
    "table without a column": ("classes", ["--file", "rows.csv"], None, ["rows.csv is a table", "--text"]),
    "unknown column": ("classes", ["--file", "rows.csv", "--text", "txet"], None, ["'txet'", "text", "--text"]),
    "missing text": ("classes", ["--file", "gap.csv", "--text", "text"], None, ["gap.csv", "'text'", "line 3"]),
    "missing table": ("classes", ["--file", "gone.csv", "--text", "text"], None, ["gone.csv", "change: --file"]),
    "unknown kind of table": ("classes", ["--file", "a.txt", "--text", "text"], None, ["a.txt", "change: --file"]),
    "missing file": ("classes", ["--file", "gone.txt"], None, ["gone.txt cannot be read", "--file"]),
    "folder for a file": ("classes", ["--file", "."], None, ["cannot be read", "--file"]),
    "one column for pairs": ("pairs", ["--file", "rows.csv", "--text", "text"], None, ["over pairs", "--text-pair"]),
    "two columns for texts": (
        "classes",
        ["--file", "rows.csv", "--text", "text", "--text-pair", "label"],
        None,
        ["single texts", "--text only"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_predict_refuses(graftwork, adapters, tmp_path, monkeypatch, case):
    kind, arguments, typed, named = WRONG[case]
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "rows.csv", make_rows("classes", 4))
    (tmp_path / "gap.csv").write_text('text,label\ngood,x\n"",y\n')
    (tmp_path / "a.txt").write_text("good\n")
    if typed is not None:
        type_in(monkeypatch, typed)
    run = graftwork("predict", adapters / kind, *arguments)
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith("error: ")
    assert [fragment for fragment in named if fragment not in run.err] == [], run.err


# inspect, plan, env


@pytest.mark.parametrize("kind", KINDS)
def test_inspect(graftwork, adapters, kind):
    adapter = Adapter.load(adapters / kind)
    run = graftwork("inspect", adapters / kind, "--json")
    found, saved = json.loads(run.out), same_file(adapters / kind, "adapter.json")
    shared = ["method", "task", "head", "backbone", "metrics", "seed", "versions"]
    assert {key: found[key] for key in shared} == {key: saved[key] for key in shared}
    assert (found["pooling"], found["pooling_source"]) == ("mean", "default")
    assert found["parameters"] == adapter.num_parameters
    assert found["bytes"] == len(contents(adapters / kind)["adapter.safetensors"])
    assert found["tensors"] == {name: list(tensor.shape) for name, tensor in adapter.tensors.items()}
    words = graftwork("inspect", adapters / kind).out
    assert re.search(r"^pooling +mean \(default\)$", words, re.MULTILINE)
    [value] = {f"{next(iter(scores.values())):.4f}" for scores in adapter.baseline.values()}
    assert re.search(rf"^baseline validation \w+ +{value} \(12 rows\)$", words, re.MULTILINE)
    assert f"{adapter.num_parameters:,} in {len(adapter.tensors)} tensors" in words
    assert all(f"{value:.4f}" in words for value in adapter.metrics["validation"].values())
    assert adapter.backbone.fingerprint[:12] in words
    values = json.loads(re.search(r"targets=(\[.*?\])", words)[1]), json.loads(re.search(r"rank=(\w+)", words)[1])
    assert values == (list(adapter.method.targets), adapter.method.rank)


BERT_BASE = {"model_type": "bert", "architectures": ["BertModel"]}  # every size is the class's default


@pytest.fixture
def bert_base(tmp_path):
    """BERT-base, by its configuration alone."""
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps(BERT_BASE))
    return tmp_path / "bert"


def test_methods_are_listed_in_100_columns(graftwork, bert_base):
    shown = graftwork("methods", "--backbone", bert_base).out
    table, _, below = shown.partition("\n\n")
    header, *lines = table.splitlines()
    assert header.split(maxsplit=3) == ["method", "trained", "merges", "when to use it"]
    assert max(map(len, lines)) <= 100
    assert str(bert_base) in below
    for line, (name, named) in zip(lines, known_methods().items(), strict=True):
        trained, merges, when = line.removeprefix(name).split(maxsplit=2)
        assert merges == ("no" if make_method(name).unmergeable else "yes")
        assert when == named.when
        assert int(trained.replace(",", "")) >= 0
    listed = json.loads(graftwork("methods", "--backbone", bert_base, "--json").out)
    assert [(row["name"], row["when"]) for row in listed] == [(name, n.when) for name, n in known_methods().items()]


def test_methods_that_a_backbone_refuses_are_named_with_the_reason(graftwork, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "architectures": ["ResNetModel"]}))
    table, _, below = graftwork("methods", "--backbone", tmp_path).out.partition("\n\n")
    refused = {line.split()[0] for line in table.splitlines() if line.split()[1] == "refused"}
    assert refused
    assert all(f"  {name}: " in below for name in refused)
    assert "refused on " in graftwork("methods", "prompt-tuning", "--backbone", tmp_path).out


@pytest.mark.parametrize("name", known_methods())
def test_one_method_is_shown_whole(graftwork, bert_base, name):
    method, shown = make_method(name), graftwork("methods", name, "--backbone", bert_base).out
    pairs = dict(re.split(r"  +", line, maxsplit=1) for line in shown.splitlines())
    assert pairs["merges"] == (f"no: {method.unmergeable}" if method.unmergeable else "yes")
    assert float(pairs["--train.learning_rate"]) == method.learning_rate
    settings = {key.removeprefix("--method."): read_value(v) for key, v in pairs.items() if key.startswith("--method.")}
    assert make_method(name, settings) == method
    assert settings.keys() == type(method).model_fields.keys()
    found = json.loads(graftwork("methods", name, "--backbone", bert_base, "--json").out)
    assert found["defaults"].keys() == settings.keys()
    assert f"{found['trained']:,} on " in pairs["trained"]


def test_a_method_is_found_by_any_spelling_and_a_wrong_one_refused(graftwork, bert_base):
    assert "full-fine-tuning" in graftwork("methods", "Full_Fine_Tuning", "--backbone", bert_base).out
    ran = graftwork("methods", "houlbsy", "--backbone", bert_base)
    assert ran.status == 2
    assert "unknown method 'houlbsy'" in ran.err


def test_plan_counts_bert_base_from_its_configuration_alone(graftwork, bert_base):
    arguments = ["plan", "--backbone", bert_base, "--method", "houlsby", "--method.bottleneck", "64"]
    found = json.loads(graftwork(*arguments, "--json").out)
    # Houlsby et al. 2019: 2md + m + d twice a layer; 25 layer norms of 2d; 2 classes.
    d, m, layers = 768, 64, 12
    assert found["trained"]["adapter"] == 2 * layers * (2 * m * d + m + d) == 2_379_264
    assert found["trained"]["norms"] == 25 * 2 * d == 38_400
    assert found["trained"]["head"] == 2 * d + 2 == 1_538
    assert found["trained"]["total"] == 2_379_264 + 38_400 + 1_538
    assert found["backbone"] == 109_482_240
    assert found["percent"] == pytest.approx(100 * found["trained"]["total"] / found["backbone"])
    words = graftwork(*arguments).out
    assert "2,379,264" in words
    assert "109,482,240" in words
    three = json.loads(graftwork(*arguments, "--labels", "3", "--json").out)
    assert three["trained"]["head"] == 3 * d + 3


def test_plan_counts_what_tune_trains(graftwork, adapters, backbone_folder):
    arguments = ["plan", "--backbone", backbone_folder, "--method", "lora", "--method.rank", "4", "--json"]
    assert (
        json.loads(graftwork(*arguments).out)["trained"]["total"] == Adapter.load(adapters / "classes").num_parameters
    )


@pytest.mark.parametrize("labels", ["0", "-1", "two"])
def test_plan_refuses_a_number_of_labels(graftwork, backbone_folder, labels):
    run = graftwork("plan", "--backbone", backbone_folder, "--method", "lora", "--labels", labels)
    assert run.status != 0
    assert run.out == ""
    assert "--labels" in run.err


def test_env(graftwork):
    import torch

    found = json.loads(graftwork("env", "--json").out)
    assert found["torch"] == torch.__version__
    assert {"python", "graftwork", "transformers", "platform", "device", "dtype auto", "backbones"} <= found.keys()
    lines = graftwork("env").out.splitlines()
    assert len(lines) == len(found)
    assert f"torch {torch.__version__}" in [" ".join(line.split()) for line in lines]


def test_fast_settings_are_written_as_flags():
    assert flags({"learning_rate": 0.01}) == ["--train.learning_rate", "0.01"]
    assert len(flags(FAST)) == 2 * len(FAST)
