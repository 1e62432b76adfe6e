"""`graftwork merge` of adapters, and of fine-tuned models by methods that read data, as a user types it."""

import ast
import json
import math
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from cli.conftest import graftwork
from closeness import close
from training.workbench import FAST, backbone, backbone_folder, names_in, one_thread, sentence, write_csv
from transformers import BertForSequenceClassification

from graftwork import Adapter, Houlsby, LoRA, arithmetic, tune
from graftwork.arithmetic import finetuned_adapter
from graftwork.arithmetic.adapters.differences import weights_of
from graftwork.arithmetic.merging.method import settings_of
from graftwork.arithmetic.merging.table import MERGE_METHODS
from graftwork.cli.app import app
from graftwork.settings.yamlfile import read_value
from graftwork.tasks import Task

__all__ = ["backbone", "backbone_folder", "graftwork", "one_thread"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Files of two tasks with different labels."""
    folder, found = tmp_path_factory.mktemp("tasks"), {}
    for seed, (name, words) in enumerate({"mood": ("bad", "good"), "pace": ("mild", "nine")}.items()):
        source = random.Random(seed)
        labels = (f"no {name}", name)
        rows = [{"text": sentence(source, words[i % 2]), "label": labels[i % 2]} for i in range(48)]
        data = write_csv(folder / f"{name}.csv", rows)
        found[name] = folder / f"{name}.yaml"
        lines = [f"name: {name}", "text: text", f"data: {data}", "metrics: accuracy", f"labels: [{', '.join(labels)}]"]
        found[name].write_text("\n".join(lines) + "\n")
    return found


@pytest.fixture(scope="module")
def adapters(backbone, tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, file) in enumerate(tasks.items()):
        task = Task.from_yaml(file)
        options = {**FAST, "num_train_epochs": 1, "seed": seed}
        tune(backbone, task=task, method=LoRA(rank=3), output=folder / name, **options)
        tune(backbone, task=task, method=Houlsby(bottleneck=3), output=folder / f"{name}-houlsby", **options)
    return folder


@pytest.fixture(scope="module")
def models(backbone_folder, tasks, tmp_path_factory):
    """Fully fine-tuned models of the backbone, with heads."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(tasks):
        torch.manual_seed(seed)
        model = BertForSequenceClassification.from_pretrained(backbone_folder, num_labels=2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.config.id2label = {0: f"no {name}", 1: name}
        model.save_pretrained(folder / name)
        for file in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
            if (backbone_folder / file).is_file():
                (folder / name / file).write_bytes((backbone_folder / file).read_bytes())
    return folder


def test_adapters_are_merged_into_one_with_the_heads_of_all_tasks(graftwork, adapters, tasks, tmp_path):
    own = [adapters / "mood", adapters / "pace"]
    scored = [part for file in tasks.values() for part in ("--task", file)]
    ran = graftwork("merge", "average", *own, "--output", tmp_path / "merged", *scored, "--quiet")
    assert (ran.status, ran.err) == (0, "")
    assert names_in(tmp_path) == ["merged"]
    assert names_in(tmp_path / "merged") == ["heads.yaml", "mood", "pace", "shared.safetensors"]
    assert [line.split()[0] for line in ran.out.splitlines()] == ["adapter", "merged", "mood", "pace", "saved"]
    assert graftwork("evaluate", tmp_path / "merged" / "mood", "--quiet").status == 0
    assert graftwork("predict", tmp_path / "merged" / "pace", "a good film").status == 0
    assert graftwork("inspect", tmp_path / "merged" / "pace").status == 0
    assert graftwork("list", tmp_path / "merged").status == 0


@pytest.mark.parametrize(
    ("method", "more", "made"),
    [
        ("arithmetic", ["--weights", "1,-0.5"], "lora"),
        ("ties", ["--method.keep", "0.5"], "full-fine-tuning"),
        ("ties", ["--method.keep", "0.5", "--rank", "2"], "lora"),
        ("knots", ["--method.keep", "0.3"], "lora"),
        ("knots", ["--method.formula", "dare", "--method.drop", "0.5"], "lora"),
        ("tsv-m", ["--rank", "4"], "lora"),
        ("tsv-m", [], "lora"),
        ("iso-c", [], "lora"),
        ("fisher", ["--method.examples", "8", "--rank", "3"], "lora"),
        ("regmean", ["--method.examples", "8"], "full-fine-tuning"),
    ],
)
def test_every_method_of_vectors_merges_adapters(graftwork, adapters, tmp_path, method, more, made):
    own = [adapters / "mood", adapters / "pace"]
    ran = graftwork("merge", method, *own, "--output", tmp_path / "merged", "--json", "--quiet", *more)
    assert (ran.status, ran.err) == (0, "")
    said = json.loads(ran.out)
    first = next(iter(said["heads"]))
    found = Adapter.load(tmp_path / "merged" if len(said["heads"]) == 1 else tmp_path / "merged" / first)
    assert found.method.name == made
    assert found.recipe["merged"]["method"]["name"] == method


def test_numbers_differ_from_tensor_to_tensor_where_they_are_asked_to(graftwork, backbone, adapters, tmp_path):
    own = [adapters / "mood", adapters / "pace"]
    more = ["--method.scale", '[{"filter": "layers.0.*", "value": 1.0}, {"value": 0.0}]', "--rank", 6, "--quiet"]
    ran = graftwork("merge", "arithmetic", *own, "--output", tmp_path / "merged", *more)
    assert (ran.status, ran.err) == (0, "")
    found = weights_of(Adapter.load(tmp_path / "merged" / "mood"), backbone)
    a, b = (weights_of(Adapter.load(folder), backbone) for folder in own)
    assert {name.split(".")[1] for name in found} == {"0"}
    for name, tensor in found.items():
        close(tensor, a[name] + b[name], 64, what=name)


def test_a_donor_and_learned_coefficients_are_told(graftwork, adapters, tmp_path):
    own = [adapters / "mood", adapters / "pace"]
    arguments = ["--method.points", 3, "--method.examples", 6, "--quiet"]
    ran = graftwork("merge", "donor", *own, "--output", tmp_path / "better", *arguments)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("mood counts ")
    assert Adapter.load(tmp_path / "better").metrics["validation"]
    arguments = ["--method.steps", 2, "--method.batch_size", 4, "--method.split", "train", "--quiet", "--json"]
    ran = graftwork("merge", "adamerging", *own, "--output", tmp_path / "learned", *arguments)
    assert (ran.status, ran.err) == (0, "")
    said = json.loads(ran.out)
    assert {"coefficients", "entropy", "transductive", "inductive"} <= said.keys()
    assert names_in(tmp_path) == ["better", "learned"]


def test_bottlenecks_are_merged_by_a_mean_alone(graftwork, adapters, tmp_path):
    own = [adapters / "mood-houlsby", adapters / "pace-houlsby"]
    ran = graftwork("merge", "average", *own, "--output", tmp_path / "merged", "--align", "units", "--quiet")
    assert (ran.status, ran.err) == (0, "")
    ran = graftwork("merge", "ties", *own, "--output", tmp_path / "ties", "--quiet")
    assert (ran.status, "by a mean only" in ran.err) == (2, True)
    assert names_in(tmp_path) == ["merged"]


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_fine_tuned_models_are_merged_into_models(
    graftwork, backbone, backbone_folder, models, tasks, tmp_path, method
):
    own = [models / "mood", models / "pace"]
    scored = [part for file in tasks.values() for part in ("--task", file)]
    more = ["--method.examples", "6", "--base", backbone_folder, "--quiet"]
    ran = graftwork("merge", method, *own, "--output", tmp_path / "merged", *scored, *more)
    assert (ran.status, ran.err) == (0, "")
    assert names_in(tmp_path / "merged") == ["heads.yaml", "mood", "pace"]
    each = [weights_of(finetuned_adapter(tmp_path / "merged" / name, backbone), backbone) for name in ("mood", "pace")]
    assert each[0].keys() == each[1].keys()
    ran = graftwork("merge", method, *own, "--output", tmp_path / "no", *more)
    assert (ran.status, "does not say on which data" in ran.err) == (2, True)


def test_the_documented_settings_and_defaults_are_so():
    page = (Path(__file__).parents[2] / "docs" / "merging-adapters.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (`\w+` [^|]*) \|$", page, re.MULTILINE))
    assert rows.keys() == {name for name, own in MERGE_METHODS.items() if own.over == "adapters"}
    for name, text in rows.items():
        made, named = settings_of(name), set()
        for part in text.split("; or "):  # the formulas of `knots` have settings of their own
            pairs = re.findall(r"`(\w+)` ([\w.]+)", part)
            written = {key: None if value == "none" else read_value(value) for key, value in pairs}
            if formula := re.match(r"(?:`formula` )?(\w+): ", part):
                chosen = {"formula": formula[1]}
                assert made(**written | chosen).settled() == made(**chosen).settled()
            else:
                assert made(**written) == made()
            named |= written.keys()
        assert named == made.model_fields.keys()


def test_a_single_head_of_models_is_a_model_s_folder(graftwork, backbone, backbone_folder, models, tasks, tmp_path):
    own = [models / "mood", models / "pace"]
    scored = [part for file in tasks.values() for part in ("--task", file)]
    more = ["--method.examples", 6, "--method.points", 2, "--base", backbone_folder, "--quiet"]
    arguments = ["--output", tmp_path / "merged", *scored]
    assert graftwork("merge", "regmean", *own, *arguments, *more[:2], *more[4:]).status == 0
    assert graftwork("merge", "donor", *own, *arguments, *more).status == 2
    assert graftwork("merge", "donor", *own, *arguments, *more, "--overwrite").status == 0
    assert names_in(tmp_path) == ["merged"]
    assert "recipe.yaml" in names_in(tmp_path / "merged")
    assert finetuned_adapter(tmp_path / "merged", backbone).task.labels == ("no mood", "mood")


def test_an_interrupted_merge_is_resumed_by_command(graftwork, adapters, tmp_path, monkeypatch):
    from graftwork.arithmetic.adapters.scores import SplitScorer

    own = [adapters / "mood", adapters / "pace"]
    command = [
        "merge",
        "donor",
        *own,
        "--output",
        tmp_path / "better",
        "--method.points",
        4,
        "--method.examples",
        6,
        "--quiet",
    ]
    plain, count = SplitScorer.__call__, []

    def counted(self, adapter):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return plain(self, adapter)

    monkeypatch.setattr(SplitScorer, "__call__", counted)
    ran = graftwork(*command)
    assert (ran.status, "--resume" in ran.err) == (130, True)
    assert names_in(tmp_path) == [".better.merging"]
    ran = graftwork(*command)
    assert (ran.status, "an interrupted merge" in ran.err) == (2, True)
    assert graftwork(*command, "--resume").status == 0
    assert len(count) == 5  # two before, the one that was interrupted, and two after
    assert names_in(tmp_path) == ["better"]
    ran = graftwork(*command, "--resume", "--overwrite")
    assert (ran.status, "there is no interrupted merge" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fisher", "--dtype", "bfloat16"], "--dtype would do nothing in a merge of adapters"),
        (["average", "--heads", "base"], "--heads base would do nothing in a merge of adapters"),
        (["donor", "--rank", "2", "--heads", "keep"], "--heads would do nothing: donor"),
        (["donor", "EXTRA"], "donor was given 3 adapters"),
        (["soup", "--weights", "1,2"], "--weights would do nothing: soup has no use for it"),
        (["soup", "--heads", "average"], "the heads of 'mood' and 'pace' cannot be averaged"),
        (["rebasin"], "'rebasin' is for whole models"),
        (["interpolate", "--sweep", "s=0,1"], "interpolate has no setting 's'"),
        (["regmean", "--weights", "1,2"], "--weights would do nothing: regmean has no use for it"),
        (["adamerging", "--heads", "keep"], "--heads would do nothing: adamerging"),
        (["slerp", "EXTRA"], "slerp was given 3 adapters"),
        (["slerp", "--weights", "1,2"], "--weights would do nothing: slerp has no use for it"),
        (["tie"], "unknown merge method 'tie'"),
        (["fisher", "--method.example", "3"], "unknown key 'example'"),
        (["average", "--train.seed", "1"], "unknown setting"),
        (["average", "--task", "a", "--task", "b", "--task", "c"], "3 tasks are given for 2 operands"),
    ],
)
def test_what_does_not_suit_adapters_is_refused(graftwork, adapters, tmp_path, arguments, said):
    method, *rest = [adapters / "mood-houlsby" if one == "EXTRA" else one for one in arguments]
    ran = graftwork("merge", method, adapters / "mood", adapters / "pace", "--output", tmp_path / "x", *rest, "--quiet")
    assert (ran.status, said in ran.err) == (2, True), ran.err
    assert names_in(tmp_path) == []


def test_every_flag_that_a_message_names_is_there():
    commands = [app[name] for name in ("merge", "extract", "landscape")]
    known = {flag for own in commands for one in own.assemble_argument_collection() for flag in one.names}
    known |= {f"--method.{name}" for method in MERGE_METHODS for name in settings_of(method).model_fields}
    package = Path(arithmetic.__file__).parent
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "change" and isinstance(node.value, ast.Constant):
                named = re.findall(r"--[a-z][a-z_.-]*[a-z]", str(node.value.value))
                assert not {*named} - known, f"{file.name} says {node.value.value!r}"


# -- dry runs, recipes, sweeps ---------------------------------------------------------------------------------------


def made_of(folder):
    """The tensors of a merge's folder as a plan calls them, with their shapes."""
    if (folder / "adapter.json").is_file():
        return {name: tuple(t.shape) for name, t in Adapter.load(folder).tensors.items()}
    found = {}
    for own in sorted(folder.glob("*/adapter.json")):
        for name, tensor in Adapter.load(own.parent).tensors.items():
            found[f"{own.parent.name}/{name}" if name.startswith("head.") else name] = tuple(tensor.shape)
    return found


@pytest.mark.parametrize(
    ("method", "names", "more"),
    [
        ("average", ["mood", "pace"], []),
        ("average", ["mood", "pace"], ["--rank", 2]),
        ("average", ["mood", "mood-again"], []),
        ("average", ["mood-houlsby", "pace-houlsby"], []),
        ("interpolate", ["mood"], []),
        ("slerp", ["mood", "pace"], ["--method.t", 0.25]),
        ("slerp", ["mood", "mood-again"], ["--rank", 4]),
        ("ties", ["mood", "pace"], ["--heads", "keep"]),
        ("ties", ["mood", "pace"], ["--rank", 4]),
        ("arithmetic", ["mood", "pace"], ["--weights", "1,-1"]),
        ("ties", ["mood", "mood-again"], ["--weights", "2,-1"]),
        ("emr", ["mood", "pace"], ["--method.task", 1]),
        ("knots", ["mood", "pace"], []),
        ("iso-c", ["mood", "pace"], []),
        ("tsv-m", ["mood", "pace"], ["--rank", 2]),
        ("knots", ["mood", "pace"], ["--weights", "1,0"]),
        ("fisher", ["mood", "pace"], ["--method.examples", 6, "--weights", "1,0"]),
        ("fisher", ["mood", "pace"], ["--method.examples", 6]),
        ("donor", ["mood", "pace"], ["--method.examples", 6, "--method.points", 2]),
        ("regmean", ["mood", "pace"], ["--method.examples", 6, "--rank", 3]),
        ("adamerging", ["mood", "pace"], ["--method.steps", 1, "--method.split", "train"]),
    ],
)
def test_a_dry_run_of_adapters_tells_every_tensor_and_head(graftwork, adapters, tmp_path, method, names, more):
    if not (adapters / "mood-again").exists():
        shutil.copytree(adapters / "mood", adapters / "mood-again")
    own = [adapters / name for name in names]
    told = graftwork("merge", method, *own, *more, "--dry-run", "--json")
    ran = graftwork("merge", method, *own, *more, "--output", tmp_path / "out", "--quiet", "--json")
    assert (told.status, told.err) == (ran.status, ran.err) == (0, "")
    plan, found = json.loads(told.out), made_of(tmp_path / "out")
    planned = {one["name"]: tuple(one["shape"]) for one in plan["tensors"]}
    assert planned.keys() == found.keys()
    assert {head["name"] for head in plan["heads"]} == json.loads(ran.out)["heads"].keys()
    first = next(iter(json.loads(ran.out)["heads"].values()))
    assert plan["method"] == first["method"]
    if plan["at_most"]:
        assert all(a <= b for name in found for a, b in zip(found[name], planned[name], strict=True))
    else:
        assert planned == found
    assert plan["bytes"] == sum(4 * math.prod(shape) for shape in planned.values())
    assert not plan["chosen"]
    assert bool(plan["reads"]) == (method in ("fisher", "donor", "regmean", "adamerging"))
    text = graftwork("merge", method, *own, *more, "--dry-run")
    assert text.status == 0
    assert f"gives {plan['method']}" in text.out


WRONG_NUMBERS = [
    ("ties", ["--method.keep", 1.5]),
    ("ties", ["--method.keep", "[0.1, 0.2]"]),
    ("ties", ["--method.scale", '[{"filter": "nowhere", "value": 0.5}, {"value": 1.0}]']),
    ("ties", ["--weights", '[[{"filter": "nowhere", "value": 2.0}, {"value": 1.0}], 1.0]']),
    ("dare", ["--method.drop", 1.0]),
    ("della", ["--method.drop", 0.95]),
    ("breadcrumbs", ["--method.keep", 0.9, "--method.outliers", 0.2]),
    ("emr", ["--method.task", 7]),
]
"""What is known to be wrong of numbers before any tensor is read."""


@pytest.mark.parametrize(
    ("method", "names", "more"),
    [
        ("average", ["mood", "mood-houlsby"], []),
        ("ties", ["mood-houlsby", "pace-houlsby"], []),
        ("average", ["mood-houlsby", "pace-houlsby"], ["--rank", 2]),
        ("average", ["mood", "pace"], ["--heads", "average"]),
        ("average", ["mood", "pace"], ["--align", "units"]),
        ("knots", ["mood", "pace"], ["--method.kep", 1]),
        ("arithmetic", ["mood-houlsby", "pace-houlsby"], []),
        ("adamerging", ["mood-houlsby", "pace-houlsby"], []),
        ("regmean", ["mood-houlsby", "pace-houlsby"], []),
        ("slerp", ["mood-houlsby", "pace-houlsby"], []),
        ("slerp", ["mood"], []),
        ("slerp", ["mood", "pace"], ["--method.t", '[{"filter": "nowhere", "value": 0.5}, {"value": 1.0}]']),
        ("soup", ["mood"], []),
        ("soup", ["mood", "mood-houlsby"], []),
        ("soup", ["mood-houlsby", "pace-houlsby"], ["--rank", 2]),
        ("soup", ["mood", "pace"], ["--heads", "average"]),
        ("soup", ["mood", "pace"], ["--sweep", "t=1,2"]),
        *((method, ["mood", "pace"], more) for method, more in WRONG_NUMBERS),
        ("knots", ["mood", "pace"], ["--method.keep", 1.5]),
        ("ties", ["mood", "pace"], ["--sweep", "keep=0.5,1.5"]),
    ],
)
def test_a_dry_run_refuses_what_the_merge_would(graftwork, adapters, tmp_path, method, names, more):
    refused_by_both(graftwork, method, [adapters / name for name in names], more, tmp_path / "out")


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *WRONG_NUMBERS,
        ("average", ["--weights", '[[{"filter": "nowhere", "value": 2.0}, {"value": 1.0}], 1.0]']),
        ("average", ["--weights", "1,-1"]),
        ("interpolate", ["--method.t", '[{"filter": "layer.0", "value": 1.0}]']),
        ("rebasin", ["--weights", '[[{"filter": "nowhere", "value": 2.0}, {"value": 1.0}], 1.0]']),
    ],
)
def test_a_dry_run_of_models_refuses_what_the_merge_would(graftwork, models, backbone_folder, tmp_path, method, more):
    base = ["--base", backbone_folder] if MERGE_METHODS[method].base == "needed" else []
    own, heads = [models / "mood", models / "pace"], ["--heads", "keep"]
    refused_by_both(graftwork, method, own, [*more, *base, *heads], tmp_path / "out")


def refused_by_both(graftwork, method, own, more, output):
    """A dry run and the merge say the same."""
    told = graftwork("merge", method, *own, *more, "--dry-run")
    ran = graftwork("merge", method, *own, *more, "--output", output, "--quiet")
    assert told.status == ran.status == 2
    assert told.err == ran.err
    assert not output.exists()


def test_a_dry_run_reads_no_numbers(graftwork, adapters, models, tasks, backbone_folder, tmp_path):
    """Neither of adapters nor of models."""
    for name in ("mood", "pace"):
        shutil.copytree(adapters / name, tmp_path / name)
        (tmp_path / name / "adapter.safetensors").write_bytes(b"")
        shutil.copytree(models / name, tmp_path / f"model-{name}")
        (tmp_path / f"model-{name}" / "model.safetensors").unlink()
    ran = graftwork("merge", "ties", tmp_path / "mood", tmp_path / "pace", "--dry-run")
    assert (ran.status, ran.err) == (0, "")
    assert "merged" in ran.out
    own = [tmp_path / "model-mood", tmp_path / "model-pace"]
    scored = [part for file in tasks.values() for part in ("--task", file)]
    more = ["--base", backbone_folder, *scored, "--dry-run"]
    ran = graftwork("merge", "fisher", *own, *more)
    assert (ran.status, ran.err) == (0, "")
    assert "pace/head.classifier.weight" in ran.out
    assert "reads texts and labels of mood" in ran.out
    ran = graftwork("merge", "fisher", *own, *more, "--heads", "average")
    assert (ran.status, "cannot be averaged" in ran.err) == (2, True)
    assert names_in(tmp_path) == ["model-mood", "model-pace", "mood", "pace"]


def test_a_recipe_of_adapters_makes_the_same_again(graftwork, adapters, tmp_path):
    lines = ["method: {name: ties, keep: 0.5}", "rank: 3", f"models: [{adapters / 'mood'}, pace]", "heads: keep"]
    shutil.copytree(adapters / "pace", tmp_path / "pace")
    (tmp_path / "merge.yaml").write_text("\n".join(lines) + "\n")
    ran = graftwork("merge", tmp_path / "merge.yaml", "--method.scale", 0.5, "--output", tmp_path / "out", "--quiet")
    assert (ran.status, ran.err) == (0, "")
    again = graftwork("merge", tmp_path / "out" / "heads.yaml", "--output", tmp_path / "again", "--quiet")
    assert (again.status, again.err) == (0, "")
    once = graftwork("merge", tmp_path / "out" / "mood" / "recipe.yaml", "--output", tmp_path / "once", "--quiet")
    assert (once.status, once.err) == (0, "")
    for name in ("mood", "pace"):
        digests = {Adapter.load(tmp_path / folder / name).digest for folder in ("out", "again", "once")}
        assert len(digests) == 1
    said = Adapter.load(tmp_path / "again" / "mood").recipe["merged"]["recipe"]
    expected = {"keep": 0.5, "scale": 0.5, "scope": "global", "combined": "mean"}
    assert said["method"] == {"name": "ties", **expected}
    assert (said["rank"], said["heads"]) == (3, "keep")


def test_a_sweep_takes_the_value_that_scores_best(graftwork, adapters, tasks, tmp_path):
    """Every value's scores are those of the merge with it."""
    values = (0.0, 0.4, 1.0)
    command = ["merge", "interpolate", adapters / "mood", "--task", tasks["mood"], "--quiet", "--json"]
    ran = graftwork(*command, "--sweep", "t=0,0.4,1", "--output", tmp_path / "swept")
    assert (ran.status, ran.err) == (0, "")
    swept = json.loads(ran.out)
    assert [one["value"] for one in swept["sweep"]] == list(values)
    single = {}
    for value in values:
        own = graftwork(*command, "--method.t", value, "--output", tmp_path / f"t-{value}")
        assert own.status == 0, own.err
        single[value] = json.loads(own.out)["scores"]["merged"]["mood accuracy"]
    assert [one["mood accuracy"] for one in swept["sweep"]] == list(single.values())
    best = max(values, key=lambda value: (single[value], -value))
    assert swept["method"]["t"] == best
    found = Adapter.load(tmp_path / "swept")
    assert found.digest == Adapter.load(tmp_path / f"t-{best}").digest
    assert "sweep" not in found.recipe["merged"]["recipe"]
    text = graftwork(*command[:-1], "--sweep", "t=0,1", "--output", tmp_path / "text")
    assert text.out.splitlines()[0].split() == ["value", "mood", "accuracy"]


@pytest.mark.parametrize("method", ["interpolate", "slerp"])
def test_all_values_of_a_sweep_are_scored_on_the_same_tasks(graftwork, adapters, tmp_path, method):
    """Also at the ends, where the result has the head of one task alone."""
    own = [adapters / "mood", adapters / "pace"]
    ran = graftwork("merge", method, *own, "--sweep", "t=0,0.5,1", "--output", tmp_path / "out", "--quiet", "--json")
    assert (ran.status, ran.err) == (0, "")
    each = json.loads(ran.out)["sweep"]
    assert [sorted({*one} - {"value"}) for one in each] == [["mood accuracy", "pace accuracy"]] * 3


def test_what_is_forgotten_is_not_scored_in_a_sweep(graftwork, adapters, tmp_path):
    own = [adapters / "mood", adapters / "pace", "--weights", "1,-1"]
    more = ["--sweep", "scale=0.5,1", "--output", tmp_path / "out", "--quiet", "--json"]
    ran = graftwork("merge", "arithmetic", *own, *more)
    assert (ran.status, ran.err) == (0, "")
    assert [sorted({*one} - {"value"}) for one in json.loads(ran.out)["sweep"]] == [["mood accuracy"]] * 2


def test_interpolation_of_adapters_goes_from_one_to_the_other(graftwork, backbone, adapters, tmp_path):
    a, b = (weights_of(Adapter.load(adapters / name), backbone) for name in ("mood", "pace"))
    own = [adapters / "mood", adapters / "pace"]
    for t in ("0.25", '[{"filter": "layers.0.*", "value": 0.0}, {"value": 1.0}]'):
        out = tmp_path / f"{len(t)}"
        ran = graftwork("merge", "interpolate", *own, "--method.t", t, "--output", out, "--heads", "keep", "--quiet")
        assert (ran.status, ran.err) == (0, "")
        found = weights_of(Adapter.load(out / "mood"), backbone)
        for name, tensor in found.items():
            share = 0.25 if t == "0.25" else float(name.split(".")[1] != "0")
            close(tensor, (1 - share) * a[name] + share * b[name], 64, what=name)


def test_the_table_of_methods_is_documented():
    folder = Path(__file__).parents[2] / "docs"
    page, other = ((folder / name).read_text(encoding="utf-8") for name in ("arithmetic.md", "merging-adapters.md"))
    page = page.replace("greedy ", "").replace("uniform ", "")
    for name, own in MERGE_METHODS.items():
        start = "one start" if own.start else "any"
        acts = " and ".join(own.acts)
        assert f"| `{name}` | {acts} | {own.base} | {own.reads} | {start} | {own.when} |" in page
        assert f"| {own.paper.partition(', arXiv')[0]}" in page.replace("soup, ", "").replace("WiSE-FT, ", "") or (
            own.over == "adapters" and own.paper.partition(" et al.")[0].partition(" &")[0] in other
        )


def test_the_help_has_every_method(graftwork):
    said = " ".join(graftwork("merge", "--help").out.split())
    assert all(name in said for name in MERGE_METHODS)
