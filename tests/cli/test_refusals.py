"""Whatever is wrong gets one clear error, exit status 2, and nothing half-written."""

import re
import shutil
from dataclasses import replace

import pytest
from training.workbench import contents, make_backbone, make_rows, names_in, write_csv

from graftwork.adapters import Adapter
from graftwork.errors import AdapterError

ROWS = make_rows("classes", 30)
NUMBERS = make_rows("numbers", 30)


def rows(folder, name="rows.csv", changed=ROWS):
    return write_csv(folder / name, changed)


def with_row(changes, at=1, rows=ROWS):
    """The rows with one of them changed; row `at` is on line at + 2."""
    return [{**row, **changes} if i == at else row for i, row in enumerate(rows)]


def two_files(folder, train, dev):
    write_csv(folder / "two" / "train.csv", train)
    write_csv(folder / "two" / "dev.csv", dev)
    return folder / "two"


def header_only(folder):
    two_files(folder, ROWS, ROWS)
    (folder / "two" / "dev.csv").write_text("text,label\n")
    return folder / "two"


def latin(folder):
    (folder / "latin.csv").write_bytes("text,label\ncaf\u00e9,positive\nbad,negative\n".encode("latin-1"))
    return folder / "latin.csv"


def file(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


DATA = {
    "missing file": (lambda d: d / "gone.csv", [], ["gone.csv", "--data"]),
    "unknown kind of file": (lambda d: file(d, "a.xlsx", "x"), [], ["a.xlsx", ".csv", "--data"]),
    "missing text column": (rows, ["--text", "txet"], ["'txet'", "text", "--text", "rows.csv"]),
    "missing pair column": (rows, ["--text-pair", "other"], ["'other'", "--text-pair", "rows.csv"]),
    "missing label column": (rows, ["--label", "lable"], ["'lable'", "label", "--label", "rows.csv"]),
    "label that training never saw": (
        lambda d: two_files(d, ROWS, with_row({"label": "odd"})),
        [],
        ["dev.csv", "'odd'", "line 3", "one of negative, positive"],
    ),
    "one label only": (lambda d: rows(d, changed=ROWS[::2]), [], ["'negative'", "every row", "two classes"]),
    "empty split": (header_only, [], ["dev.csv has no rows", "validation", "--data"]),
    "text that is missing": (lambda d: rows(d, changed=with_row({"text": ""})), [], ["'text'", "line 3", "--text"]),
    "label that is missing": (lambda d: rows(d, changed=with_row({"label": ""})), [], ["'label'", "line 3", "--label"]),
    "not UTF-8": (latin, [], ["latin.csv is not UTF-8", "0xe9", "UTF-8"]),
    "labels that are no numbers": (
        lambda d: rows(d, changed=with_row({"label": "three"}, rows=NUMBERS)),
        ["--kind", "regression"],
        ["'three'", "'label'", "line 3", "--kind classification"],
    ),
    "unknown method": (rows, ["--method", "lorra"], ["'lorra'", "lora", "--method"]),
    "unknown method setting": (
        rows,
        ["--method", "lora", "--method.rnak", "4"],
        ["rnak", "settings of lora: rank", "--method.rnak"],
    ),
    "method setting of the wrong type": (
        rows,
        ["--method", "lora", "--method.rank", "many"],
        ["rank='many'", "--method.rank"],
    ),
    "unknown site pattern": (
        rows,
        ["--method", "lora", "--method.targets", "quary"],
        ["'quary'", "attention.query", "site pattern", "--method.targets"],
    ),
    "site of another kind": (
        rows,
        ["--method", "lora", "--method.targets", "layers.0.attention.norm"],
        ["'layers.0.attention.norm'", "kind norm"],
    ),
    "unknown training key": (rows, ["--train.sead", "3"], ["'train.sead'", "seed", "change: --train.sead"]),
    "training value of the wrong type": (rows, ["--train.seed", "three"], ["train.seed='three'"]),
    "no steps at all": (rows, ["--train.max_steps", "0"], ["train.max_steps=0"]),
    "unknown schedule": (rows, ["--train.lr_scheduler_type", "liner"], ["'liner'", "linear", "lr_scheduler_type"]),
    "schedule that needs more": (rows, ["--train.lr_scheduler_type", "warmup_stable_decay"], ["lr_scheduler_type"]),
    "tracker that is not installed": (rows, ["--report-to", "tensorboard"], ["tensorboard", "not installed"]),
    "seed out of range": (rows, ["--train.seed", "4294967296"], ["train.seed=4294967296"]),
    "unknown tracker": (rows, ["--report-to", "paper"], ["'paper'", "report_to"]),
    "longer than the backbone can take": (rows, ["--train.max_length", "65"], ["65", "at most 64", "max_length"]),
    "steps to score at, in epochs": (rows, ["--train.eval_steps", "5"], ["eval_steps", "eval_strategy=steps"]),
    "layers compiled and recomputed": (
        rows,
        ["--compile", "--train.gradient_checkpointing", "true"],
        ["torch_compile", "gradient_checkpointing"],
    ),
    "compiled by flag and by setting": (rows, ["--compile", "--train.torch_compile", "true"], ["train.torch_compile"]),
    "unknown task key": (rows, ["--task.lables", '["a", "b"]'], ["lables", "labels"]),
    "unknown top-level key": (rows, ["--set", "backbon=x"], ["'backbon'", "backbone", "change: --set"]),
    "key below a value": (rows, ["--train", "3"], []),
    "setting below a value": (rows, ["--set", "train=3", "--set", "train.seed=3"], ["'train' is 3"]),
    "setting given twice": (rows, ["--train.seed", "3", "--train.seed", "4"], ["'train.seed'", "twice"]),
    "flag and setting": (rows, ["--set", "task.text=text"], ["task.text", "one of the two"]),
    "method by flag and by setting": (rows, ["--method", "lora", "--set", "method.name=houlsby"], ["method"]),
    "task by flag and by setting": (rows, ["--task", "sst2", "--set", "task=cola"], ["task"]),
    "setting without a value": (rows, ["--set", "train.seed"], ["--train.seed has no value"]),
    "unknown task": (rows, ["--task", "sst3"], ["'sst3'", "sst2", "--task"]),
    "unknown metric": (rows, ["--task.metrics", '["acuracy"]'], ["'acuracy'", "accuracy", "metrics"]),
    "unknown precision": (rows, ["--dtype", "float8"], ["'float8'", "float32", "--dtype"]),
    "unknown pooling": (rows, ["--pooling", "max"], ["pooling='max'", "mean"]),
    "unknown backbone": (rows, ["--backbone", "./gone"], ["'./gone'", "--backbone"]),
}


def refused(run, *named):
    __tracebackhide__ = True
    assert run.status == 2, run
    assert re.match(r"(loading backbone .*\n)?(backbone .*\n)?error: ", run.err), run.err
    assert run.err.count("error: ") == 1
    assert run.out == ""
    missing = [fragment for fragment in named if fragment not in run.err]
    assert not missing, f"{missing} not in {run.err}"


@pytest.mark.parametrize("case", DATA)
def test_tune_refuses(graftwork, backbone_folder, tmp_path, case):
    make, arguments, named = DATA[case]
    data = make(tmp_path)
    before = names_in(tmp_path)
    usual = {"--backbone": backbone_folder, "--text": "text", "--train.max_steps": "1"}
    given = [part for flag, value in usual.items() if flag not in arguments for part in (flag, value)]
    source = ["--data", data]
    if case == "key below a value":
        run = graftwork("tune", *source, *given, *arguments, "--output", tmp_path / "out")
        assert run.status not in (0, None)
        assert "--train" in run.err + run.out
    else:
        refused(graftwork("tune", *source, *given, *arguments, "--output", tmp_path / "out"), *named)
    assert names_in(tmp_path) == before, "nothing is left behind"


def test_nothing_says_what_to_tune_on(graftwork, tmp_path):
    refused(graftwork("tune", "--output", tmp_path / "out"), "no task and no data", "--task", "--data", "--text")
    refused(graftwork("tune", "--data", "x.csv", "--output", tmp_path / "out"), "--text COLUMN")
    assert names_in(tmp_path) == []


def test_pooling_that_the_backbone_lacks(graftwork, tmp_path, data):
    from transformers import AutoTokenizer, BertModel

    folder = make_backbone(tmp_path / "plain")
    model = BertModel.from_pretrained(folder, add_pooling_layer=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = ["--data", data["classes"], "--text", "text", "--backbone", folder, "--pooling", "pooler"]
    refused(graftwork("tune", *arguments, "--output", tmp_path / "out"), "no pooling layer", "--pooling")
    assert names_in(tmp_path) == ["plain"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_output_that_exists(graftwork, backbone_folder, tmp_path, data, kind):
    output = tmp_path / "out"
    if kind == "file":
        output.write_text("mine")
    else:
        output.mkdir()
        (output / "mine").touch()
    run = graftwork(
        *("tune", "--data", data["classes"], "--text", "text", "--backbone", backbone_folder, "--output", output)
    )
    refused(run, str(output), "exists already", "--output")
    assert ("--overwrite" in run.err) == (kind == "folder")
    assert names_in(tmp_path) == ["out"]
    assert (output.read_text() == "mine") if kind == "file" else (names_in(output) == ["mine"])


# Recipes


RECIPES = {
    "missing": (None, ["recipe.yaml", "cannot be read"]),
    "not YAML": ("task: [", ["recipe.yaml", "not valid YAML at line 1"]),
    "no mapping": ("- a\n- b\n", ["recipe.yaml", "no keys"]),
    "empty": ("", ["recipe.yaml", "no keys"]),
    "unknown key": ("task: sst2\nmethdo: lora\n", ["recipe.yaml", "'methdo'", "method"]),
    "unknown training key": ("task: sst2\ntrain: {sead: 3}\n", ["recipe.yaml", "'train.sead'", "seed"]),
    "unknown task key": ("task: {base: sst2, lable: x}\n", ["lable", "label"]),
    "unknown method setting": ("task: {base: sst2}\nmethod: {name: lora, rnak: 3}\n", ["rnak", "rank"]),
    "no task": ("method: lora\n", ["recipe.yaml", "'task' is missing"]),
    "key given twice": ("task: sst2\nbackbone: a\nbackbone: b\n", ["recipe.yaml", "'backbone'", "twice"]),
    "settings that are none": ("task: sst2\ntrain:\n", ["recipe.yaml", "train"]),
}


@pytest.mark.parametrize("case", RECIPES)
@pytest.mark.parametrize("overrides", [[], ["--train.seed", "3"]], ids=["plain", "overridden"])
def test_recipe_is_refused(graftwork, tmp_path, monkeypatch, case, overrides):
    text, named = RECIPES[case]
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    before = names_in(tmp_path)
    if case == "settings that are none" and overrides:
        # The overriding flag fills what the file left empty; then the task's data cannot be reached.
        named = ["glue"]
    refused(graftwork("tune", "recipe.yaml", "--output", "out", *overrides), *named)
    assert names_in(tmp_path) == before


def test_recipe_that_is_not_utf8(graftwork, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"task: caf\xe9\n")
    refused(graftwork("tune", tmp_path / "recipe.yaml", "--output", tmp_path / "out"), "recipe.yaml", "UTF-8", "9")


@pytest.mark.parametrize("flag", ["--train.max_steps", "--train.seed", "--method.rank"])
def test_a_flag_without_its_value(graftwork, backbone_folder, data, tmp_path, flag):
    given = ["--data", data["classes"], "--text", "text", "--backbone", backbone_folder, "--method", "lora"]
    refused(graftwork("tune", *given, "--output", tmp_path / "a", flag, "--quiet"), f"{flag} has no value")
    assert names_in(tmp_path) == []


def test_plan_refuses_settings_that_are_not_the_methods(graftwork, backbone_folder):
    run = graftwork("plan", "--backbone", backbone_folder, "--method", "lora", "--train.seed", "3")
    refused(run, "train.seed", "method")


# Adapters that cannot be used


def cut(folder):
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def foreign(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter.safetensors")
    save_file({f"base_model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter.safetensors")


DAMAGE = {
    "tensors cut short": (cut, ["adapter.safetensors", "damaged"]),
    "tensors that are text": (
        lambda d: (d / "adapter.safetensors").write_text("text"),
        ["adapter.safetensors", "not a safetensors file"],
    ),
    "tensors of another library": (foreign, ["adapter.safetensors", "does not belong"]),
    "no tensors": (lambda d: (d / "adapter.safetensors").unlink(), ["has no adapter.safetensors"]),
    "no configuration": (lambda d: (d / "adapter.json").unlink(), ["not an adapter folder", "adapter.json"]),
    "half a configuration": (lambda d: (d / "adapter.json").write_text('{"schema'), ["adapter.json", "not JSON"]),
    "no folder": (shutil.rmtree, ["copy", "does not exist"]),
    "recipe that is not YAML": (lambda d: (d / "recipe.yaml").write_text("task: ["), ["recipe.yaml", "line 1"]),
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("command", ["evaluate", "predict", "inspect"])
def test_damaged_adapter(graftwork, adapters, tmp_path, case, command):
    damage, named = DAMAGE[case]
    shutil.copytree(adapters / "classes", tmp_path / "copy")
    damage(tmp_path / "copy")
    texts = ["good"] if command == "predict" else []
    refused(graftwork(command, tmp_path / "copy", *texts), *named)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_adapter_of_another_backbone(graftwork, adapters, other_backbone_folder, command):
    texts = ["good"] if command == "predict" else []
    arguments = [command, adapters / "classes", *texts, "--backbone", other_backbone_folder]
    refused(graftwork(*arguments), str(other_backbone_folder), "--backbone", "--allow-backbone-mismatch")
    quiet = ["--quiet"] if command == "evaluate" else []
    allowed = graftwork(*arguments, "--allow-backbone-mismatch", *quiet)
    assert (allowed.status, allowed.err) == (0, "")
    assert allowed.out.count("\n") == (1 if command == "predict" else 2)


def test_no_flag_allows_a_backbone_of_another_shape(graftwork, adapters, tmp_path):
    wide = make_backbone(tmp_path / "wide", hidden_size=64)
    run = graftwork("predict", adapters / "classes", "good", "--backbone", wide, "--allow-backbone-mismatch")
    refused(run, "hidden_size 64 instead of 32", "--backbone")
    assert "--allow-backbone-mismatch" not in run.err


def test_adapter_that_names_no_data_cannot_be_evaluated(graftwork, adapters, tmp_path):
    replace(Adapter.load(adapters / "classes"), recipe={}).save(tmp_path / "copy")
    refused(graftwork("evaluate", tmp_path / "copy"), "does not say on which data")


def test_evaluate_refuses_labels_that_the_adapter_does_not_know(graftwork, adapters, tmp_path):
    other = rows(tmp_path, "other.csv", with_row({"label": "odd"}))
    refused(graftwork("evaluate", adapters / "classes", "--data", other), "other.csv", "'odd'", "line 3")


def test_evaluate_refuses_a_split_that_is_not_there(graftwork, adapters):
    refused(graftwork("evaluate", adapters / "classes", "--split", "test"), "test split", "classes.csv")


def test_evaluate_refuses_columns_without_data(graftwork, adapters):
    refused(graftwork("evaluate", adapters / "classes", "--text", "other"), "text", "--data")


def test_refusals_leave_adapters_alone(graftwork, adapters, other_backbone_folder):
    before = contents(adapters)
    graftwork("evaluate", adapters / "classes", "--backbone", other_backbone_folder)
    assert contents(adapters) == before


def test_a_folder_of_several_adapters_says_whose_it_has(graftwork, adapters, data, tmp_path):
    """Such as `tune-many` makes, and `tune` with several tasks."""
    (adapters / ".hidden").mkdir(exist_ok=True)
    said = "is not an adapter's folder: it holds those of classes, numbers, pairs"
    with pytest.raises(AdapterError) as caught:
        Adapter.load(adapters)
    assert said in caught.value.problem
    assert caught.value.expected == f"one of them, such as {adapters / 'classes'}"
    new = ("--data", data["classes"], "--text", "text", "--output", tmp_path / "a")
    for command in (
        ("evaluate", adapters),
        ("predict", adapters, "one good two"),
        ("inspect", adapters),
        ("generate", adapters, "--output", tmp_path / "a"),
        ("fuse", adapters, adapters / "classes", *new),
        ("distill", "--teacher", adapters, *new),
        ("tune", *new, "--set", f"start={adapters}"),
    ):
        ran = graftwork(*command)
        assert ran.status == 2, command
        assert said in ran.err, (command, ran.err)
