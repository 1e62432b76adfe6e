"""Merges of models' folders: what becomes of each tensor, recipes, dry runs, scores, and killed ones."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from arithmetic import formulas
from arithmetic.killing import killed_before
from arithmetic.models import save_classifier, save_tensors, tensors_in
from closeness import close
from tiny import make_config, make_model
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from graftwork.arithmetic import MergeRecipe, Weights, average, greedy_soup, merge, ties
from graftwork.arithmetic.merging.method import make_merge_method, settings_of
from graftwork.arithmetic.merging.table import MERGE_METHODS
from graftwork.errors import DivergedError, GraftworkError, MethodError, OutputError, RecipeError, WeightsError

BODY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three classifiers, the bare model, and one with a head."""
    where = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        save_classifier(where / name, seed)
    save_classifier(where / "pre", 8)
    make_model("bert", seed=9).save_pretrained(where / "bare")
    return where


def labelled(folder, labels):
    """Give a folder's head labels."""
    config = AutoConfig.from_pretrained(folder)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    config.save_pretrained(folder)
    return folder


OF_WEIGHTS = [name for name, own in MERGE_METHODS.items() if own.over != "adapters"]


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_every_method_makes_a_model_that_loads(name, models, tmp_path, graftwork):
    method = MERGE_METHODS[name]
    if method.scored:
        pytest.skip("it chooses by scores; see test_a_greedy_soup_is_chosen_by_scores")
    count = 3 if name == "analogy" else 2
    base = ["--base", models / "pre"] if method.base == "needed" else []
    ran = graftwork("merge", name, *[models / n for n in "abc"[:count]], *base, "--output", tmp_path / "out", "--quiet")
    assert (ran.status, ran.err) == (0, "")
    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert {*tensors_in(tmp_path / "out")} == {*tensors_in(models / "a")}
    again = graftwork("merge", tmp_path / "out" / "recipe.yaml", "--output", tmp_path / "again", "--quiet")
    assert again.status == 0, again.err
    files = [tmp_path / folder / "model.safetensors" for folder in ("out", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert method.paper in (tmp_path / "out" / "README.md").read_text()


def test_what_is_merged_is_the_formula(models, tmp_path):
    recipe = MergeRecipe(
        method={"name": "ties", "keep": 0.3, "scale": 0.7},
        models=[str(models / "a"), str(models / "b")],
        base=str(models / "pre"),
    )
    merge(recipe, tmp_path / "out")
    a, b, pre = (tensors_in(models / name) for name in ("a", "b", "pre"))
    expected = formulas.ties(
        [{n: own[n].double() - pre[n].double() for n in pre} for own in (a, b)], 0.3, "global", "mean"
    )
    found = tensors_in(tmp_path / "out")
    for name, tensor in found.items():
        # Vectors are rounded to float32 before they are compared.
        close(tensor.double(), pre[name].double() + 0.7 * expected[name], units=8, precision=torch.float32)


def test_what_becomes_of_heads(models, tmp_path):
    a, b, pre = (Weights.open(models / name) for name in ("a", "b", "pre"))

    def head(heads, base, method="arithmetic"):
        out = tmp_path / f"{heads}-{base}-{method}"
        recipe = MergeRecipe(
            method=method, models=[str(models / n) for n in "ab"], base=base and str(models / base), heads=heads
        )
        merge(recipe, out)
        found = Weights.open(out)
        return found.get("classifier.weight")

    own, other, first = (each["classifier.weight"] for each in (a, b, pre))
    close(head("average", "pre"), first + 0.3 * (own - first) + 0.3 * (other - first), units=4)
    close(head("average", "bare"), (own + other) / 2, units=4)
    assert torch.equal(head("keep", "pre"), own)
    assert torch.equal(head("base", "pre"), first)
    assert head("base", "bare") is None
    assert AutoModel.from_pretrained(tmp_path / "base-bare-arithmetic").pooler is not None
    close(head("average", None, "average"), (own + other) / 2, units=4)
    assert torch.equal(head("keep", None, "average"), own)


def test_heads_that_do_not_agree_are_refused_by_name(models, tmp_path):
    labelled(shutil.copytree(models / "a", tmp_path / "yes"), ["no", "yes"])
    labelled(shutil.copytree(models / "b", tmp_path / "bad"), ["bad", "good"])
    save_classifier(tmp_path / "three", 3, num_labels=3)

    def refused(*names, **fields):
        recipe = MergeRecipe(method="average", models=[str(tmp_path / name) for name in names], **fields)
        with pytest.raises(GraftworkError) as error:
            recipe.plan()
        return error.value

    assert "labels no, yes" in refused("yes", "bad").problem
    assert "--heads keep" in refused("yes", "bad").change
    assert "classifier.weight is (2, 32) in 'yes' and (3, 32) in 'three'" in refused("yes", "three").problem
    assert "--heads base takes the head of the base" in refused("yes", "bad", heads="base").problem
    kept = MergeRecipe(method="average", models=[str(tmp_path / n) for n in ("yes", "three")], heads="keep").plan()
    assert kept.named("kept") == ["classifier.bias", "classifier.weight"]
    assert kept.left_out == {1: ("classifier.bias", "classifier.weight")}


def test_other_types_of_numbers_are_refused_unless_one_is_chosen(models, tmp_path):
    Weights.open(models / "b").save(tmp_path / "half", dtype="bfloat16")
    given = {"method": "average", "models": [str(models / "a"), str(tmp_path / "half")]}
    with pytest.raises(WeightsError, match=r"is F32 in 'a' and BF16 in 'half'") as error:
        MergeRecipe(**given).plan()
    assert "--dtype" in error.value.change
    merge(MergeRecipe(**given, dtype="float32"), tmp_path / "out")
    a, half, found = (tensors_in(folder) for folder in (models / "a", tmp_path / "half", tmp_path / "out"))
    for name in found:
        close(found[name], (a[name] + half[name].float()) / 2, units=2)


def test_a_dry_run_reads_headers_alone_and_names_every_tensor(models, tmp_path, graftwork):
    """The numbers are not there, and torch is not imported."""
    for name in ("a", "b", "pre"):
        shutil.copytree(models / name, tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        size = file.stat().st_size
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        file.write_bytes(file.read_bytes()[:header])
        os.truncate(file, size)
    arguments = ["ties", "a", "b", "--base", "pre", "--dry-run"]
    program = (
        "import sys\nfrom graftwork.cli import main\n"
        f"try:\n    main({['merge', *arguments]!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    stored = tensors_in(models / "a")
    lines = ran.stdout.splitlines()
    assert {line.split()[0] for line in lines[1:-1]} == {*stored}
    assert all("merged" in line for line in lines[1:-1])
    size = sum(own.nbytes for own in stored.values())
    assert lines[-1].startswith("41 tensors (41 merged)")
    ran = graftwork("merge", "average", tmp_path / "a", tmp_path / "b", "--dry-run", "--json")
    content = json.loads(ran.out)
    assert (content["bytes"], content["bytes_read"]) == (size, 2 * size)


def test_a_dry_run_of_a_large_model_takes_a_second(tmp_path):
    """300 tensors of 100 MB each, of which the files hold nothing."""
    header, end = {}, 0
    for i in range(300):
        header[f"layers.{i}.weight"] = {"dtype": "BF16", "shape": [5000, 10_000], "data_offsets": [end, end + 10**8]}
        end += 10**8
    text = json.dumps(header).encode()
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        file = tmp_path / name / "model.safetensors"
        file.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(file, 8 + len(text) + end)
    start = time.process_time()
    plan = MergeRecipe(method="average", models=[str(tmp_path / name) for name in "ab"]).plan()
    assert time.process_time() - start < 1
    assert plan.nbytes == end


def test_settings_come_from_flags_and_recipes(models, tmp_path, graftwork):
    file = tmp_path / "merge.yaml"
    shutil.copytree(models / "a", tmp_path / "a")
    file.write_text(
        "method: {name: ties, keep: 0.5}\n"
        f"base: {models / 'pre'}\n"
        f"models:\n- a\n- {{model: {models / 'b'}, weight: [0.1, 0.9]}}\n"
    )
    ran = graftwork("merge", file, "--output", tmp_path / "out", "--method.scope", "tensor", "--quiet")
    assert ran.status == 0, ran.err
    weights = ["--weights", "[1, [0.1, 0.9]]"]
    flags = ["--base", models / "pre", "--method.keep", "0.5", "--method.scope", "tensor", "--quiet"]
    ran = graftwork("merge", "ties", tmp_path / "a", models / "b", *weights, *flags, "--output", tmp_path / "other")
    assert ran.status == 0, ran.err
    found = [tensors_in(tmp_path / name) for name in ("out", "other")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    ran = graftwork(
        "merge",
        "arithmetic",
        models / "a",
        "--base",
        models / "pre",
        "--weights",
        "-1",
        "--quiet",
        "--output",
        tmp_path / "not-a",
        "--method.scale",
        "1",
    )
    assert ran.status == 0, ran.err
    a, pre, negated = (Weights.open(folder) for folder in (models / "a", models / "pre", tmp_path / "not-a"))
    close(negated[BODY], 2 * pre[BODY] - a[BODY], units=4)


def test_what_a_merge_refuses(models, tmp_path, graftwork):
    a, b, out = models / "a", models / "b", tmp_path / "out"
    pre = ["--base", models / "pre"]
    for arguments, message in {
        ("tie", a, b, *pre): "unknown merge method 'tie'",
        ("ties", a, b): "what the models come from is not given",
        ("ties", a, b, *pre, "--method.kep", 1): "unknown key 'kep'",
        ("ties", a, b, *pre, "--method.keep", "x"): "invalid settings of merge method ties: keep",
        ("ties", a, b, *pre, "--method.keep", 2): "keep is 2.0",
        ("average", a): "average was given 1 models",
        ("average", a, b, *pre): "average does not use a base",
        ("average", a, b, "--weights", "1"): "1 weights are given for 2 models",
        ("average", a, b, "--weights", "1,x"): "invalid settings in the command line: models",
        ("average", a, b, "--train.seed", 1): "unknown setting 'train.seed' of merge",
        ("slerp", a, b, "--weights", "1,2"): "slerp takes no weights",
        ("soup", a, b): "no task is given",
        ("average", a, tmp_path / "none"): "does not exist",
        ("interpolate", a, b, "--sweep", "t=0,1"): "a sweep chooses by scores",
        ("interpolate", a, b, "--sweep", "s=0,1", "--task", "cola"): "interpolate has no setting 's'",
        ("interpolate", a, b, "--sweep", "t"): "names no values",
        ("average", a, b, "--dtype", "int8"): "unknown dtype 'int8'",
        ("average", a, b, *pre, "--heads", "base"): "does not use a base",
        (tmp_path / "none.yaml",): "cannot be read",
    }.items():
        ran = graftwork("merge", *arguments, "--output", out)
        assert ran.status == 2
        assert message in ran.err
        assert not out.exists()
    ran = graftwork("merge", "average", a, b)
    assert "no output is given" in ran.err
    ran = graftwork("merge", "average", a, b, "--output", models / "c")
    assert "exists already" in ran.err
    ran = graftwork("merge", "average", a, b, "--output", b, "--overwrite")
    assert "is one of the operands" in ran.err
    with pytest.raises(MethodError, match="unknown merge method"):
        make_merge_method("none")


def test_interpolation_from_a_base_is_wise_ft(models, tmp_path):
    recipe = MergeRecipe(
        method={"name": "interpolate", "t": 0.25}, models=[str(models / "a")], base=str(models / "pre")
    )
    merge(recipe, tmp_path / "out")
    a, pre, found = (tensors_in(folder) for folder in (models / "a", models / "pre", tmp_path / "out"))
    for name in found:
        close(found[name], 0.75 * pre[name] + 0.25 * a[name], units=2)


def test_the_methods_in_the_help(graftwork):
    help_text = " ".join(graftwork("merge", "--help").out.split())
    assert all(name in help_text for name in MERGE_METHODS)


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A task of classes, with its file."""
    where = tmp_path_factory.mktemp("task")
    texts = ["the film is good", "a book was bad", "very gripping", "not very dull", "the man sleeps", "a woman rests"]
    rows = [f"{text},{'good' if i % 2 else 'bad'}" for i, text in enumerate(texts * 4)]
    (where / "train.csv").write_text("\n".join(["text,label", *rows, *rows, ""]))
    (where / "validation.csv").write_text("\n".join(["text,label", *rows, ""]))
    (where / "task.yaml").write_text(
        "name: films\ntext: text\nsplits: {train: train.csv, validation: validation.csv}\n"
    )
    return where / "task.yaml"


def accuracy(folder, task):
    """By hand, with transformers alone."""
    from transformers import AutoTokenizer

    lines = (Path(task).parent / "validation.csv").read_text().splitlines()[1:]
    pairs = [line.split(",") for line in lines]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        said = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text, _ in pairs]
    return sum(("bad", "good")[own] == label for own, (_, label) in zip(said, pairs, strict=True)) / len(pairs)


def test_scores_of_the_result_and_every_operand(models, task, tmp_path, graftwork):
    arguments = ["average", models / "a", models / "b", "--task", task, "--output", tmp_path / "out", "--quiet"]
    ran = graftwork("merge", *arguments, "--json")
    assert ran.status == 0, ran.err
    scores = json.loads(ran.out)["scores"]
    assert [*scores] == ["result", "a", "b"]
    for name, folder in {"result": tmp_path / "out", "a": models / "a", "b": models / "b"}.items():
        assert scores[name]["films accuracy"] == pytest.approx(accuracy(folder, task))
    ran = graftwork("merge", *arguments, "--overwrite")
    assert ran.out.splitlines()[0].split() == ["model", "films", "accuracy", "films", "f1_macro"]


def test_each_model_s_head_is_used_for_its_task(models, task, tmp_path):
    labelled(shutil.copytree(models / "a", tmp_path / "a"), ["bad", "good"])
    labelled(shutil.copytree(models / "b", tmp_path / "b"), ["good", "bad"])
    other = task.with_name("other.yaml")
    other.write_text(task.read_text().replace("films", "shows"))
    recipe = MergeRecipe(
        method="arithmetic",
        models=[str(tmp_path / n) for n in "ab"],
        base=str(models / "bare"),
        heads="keep",
        tasks=[str(task), str(other)],
    )
    result = merge(recipe, tmp_path / "out")
    assert [*result.scores] == ["result", "bare", "a", "b"]
    assert all(
        {*own} == {f"{t} {m}" for t in ("films", "shows") for m in ("accuracy", "f1_macro")}
        for own in result.scores.values()
    )
    assert result.scores["a"]["films accuracy"] == pytest.approx(accuracy(tmp_path / "a", task))
    # The other model's body under this one's head, by hand; its labels stand in another order.
    swapped = Weights.open(tmp_path / "b").body | Weights.open(tmp_path / "a").head
    swapped.save(tmp_path / "swapped")
    labelled(tmp_path / "swapped", ["bad", "good"])
    assert result.scores["b"]["films accuracy"] == pytest.approx(accuracy(tmp_path / "swapped", task))
    with pytest.raises(RecipeError, match="2 tasks are given for 3 models"):
        merge(recipe.model_copy(update={"models": (*recipe.models, recipe.models[0])}), tmp_path / "none")


def test_a_sweep_takes_the_value_that_scores_best(models, task, tmp_path, graftwork):
    arguments = ["interpolate", models / "a", models / "b", "--task", task, "--sweep", "t=0,0.5,1", "--quiet", "--json"]
    ran = graftwork("merge", *arguments, "--output", tmp_path / "out")
    assert ran.status == 0, ran.err
    content = json.loads(ran.out)
    assert [row["value"] for row in content["sweep"]] == [0, 0.5, 1]
    scores = [row["films accuracy"] for row in content["sweep"]]
    assert scores[0] == pytest.approx(accuracy(models / "a", task))
    assert content["method"]["t"] == [0, 0.5, 1][scores.index(max(scores))]
    assert content["scores"]["result"]["films accuracy"] == pytest.approx(max(scores))


def test_a_task_that_a_head_does_not_fit_is_refused(models, task, tmp_path, graftwork):
    labelled(shutil.copytree(models / "a", tmp_path / "a"), ["no", "yes"])
    labelled(shutil.copytree(models / "b", tmp_path / "b"), ["no", "yes"])
    arguments = ["average", tmp_path / "a", tmp_path / "b", "--task", task, "--output", tmp_path / "out", "--quiet"]
    ran = graftwork("merge", *arguments)
    assert ran.status == 2
    assert "has other labels than the task" in ran.err
    assert "teacher" not in ran.err
    assert not (tmp_path / "out").exists()


def test_a_greedy_soup_by_hand():
    """Models are numbers, and the best mean of them is 1."""
    values = [0.0, 1.5, 0.9, 5.0, 1.2]
    models = [{"w": torch.tensor([value])} for value in values]
    found = greedy_soup(models, lambda own: -abs(float(own["w"]) - 1))
    # 0.9 first, 1.2 (mean 1.05) and 1.5 (mean 1.2, worse), 0.0 (mean 0.7, worse), 5.0 (worse).
    assert found.taken == (2, 4)
    close(found.soup["w"], torch.tensor([1.05]))
    assert found.scores == pytest.approx([-1, -0.5, -0.1, -4, -0.2])
    assert found.score == pytest.approx(-0.05, abs=1e-6)


def test_what_diverges_is_in_no_soup():
    def score(own):
        if own["w"] > 2:
            raise DivergedError("the loss is inf")
        return -abs(float(own["w"]) - 1)

    found = greedy_soup([{"w": torch.tensor([value])} for value in (5.0, 0.9, 1.2)], score)
    assert found.taken == (1, 2)
    assert found.scores[0] == float("-inf")
    with pytest.raises(DivergedError, match="the loss is inf"):
        greedy_soup([{"w": torch.tensor([value])} for value in (5.0, 6.0)], score)


def test_a_greedy_soup_is_chosen_by_scores(models, task, tmp_path, graftwork):
    arguments = ["soup", *[models / name for name in "abc"], "--task", task]
    ran = graftwork("merge", *arguments, "--output", tmp_path / "out")
    assert ran.status == 0, ran.err
    own = {name: accuracy(models / name, task) for name in "abc"}
    assert "the soup (" in ran.err
    assert accuracy(tmp_path / "out", task) >= max(own.values()) - 1e-9


# -- interrupted -----------------------------------------------------------------------------------------------------


def small(folder, seed):
    """A model's folder of four tensors."""
    folder.mkdir()
    tensors = {f"layers.{i}.weight": torch.full((40, 3), float(seed + i)) for i in range(4)}
    save_tensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_a_killed_merge_leaves_the_old_model_or_none(old, tmp_path):
    """Killed at each step in which something is opened to be written, made, copied, or renamed."""
    a, b = small(tmp_path / "a", 0), small(tmp_path / "b", 10)
    where = tmp_path / "where"
    where.mkdir()
    if old:
        small(where / "out", 77)
    before = tensors_in(where / "out") if old else None
    after = {name: own + 5 for name, own in tensors_in(a).items()}

    def run():
        merge(MergeRecipe(method="average", models=[str(a), str(b)]), where / "out", overwrite=old)

    killed = 0
    for step in range(1, 200):
        if not killed_before(step, run):
            break
        killed += 1
        if (where / "out").exists():
            found = tensors_in(where / "out")
            whole = [before, after] if old else [after]
            assert any({*own} == {*found} and all(torch.equal(found[n], own[n]) for n in own) for own in whole)
            assert (where / "out" / "config.json").is_file()
            if all(torch.equal(found[n], after[n]) for n in after):
                shutil.rmtree(where / "out")
                if old:
                    small(where / "out", 77)
        else:
            assert not old or any((path / "old").is_dir() for path in where.iterdir())
    assert killed > 10
    assert [path.name for path in where.iterdir()] == ["out"]  # nothing of the killed ones is left
    assert all(torch.equal(own, after[name]) for name, own in tensors_in(where / "out").items())


def test_a_full_disk_is_one_clear_error(models, tmp_path, monkeypatch, graftwork):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    ran = graftwork("merge", "average", models / "a", models / "b", "--output", tmp_path / "out", "--quiet")
    assert ran.status == 2
    assert "cannot be written: No space left on device" in ran.err
    assert "make room on the disk" in ran.err
    assert [*tmp_path.iterdir()] == []
    a = Weights.open(models / "a")
    with pytest.raises(OutputError, match="No space left"):
        (a - a * 0.5).save(tmp_path / "v.safetensors")
    assert [*tmp_path.iterdir()] == []


def test_averages_do_not_depend_on_how_a_model_is_stored(models, tmp_path):
    """In one file, in shards, pickled: the same numbers."""
    model = AutoModelForSequenceClassification.from_pretrained(models / "a")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    b = Weights.open(models / "b")
    found = [average([Weights.open(where), b]) for where in (models / "a", tmp_path / "shards")]
    assert all(torch.equal(found[0][name], found[1][name]) for name in b)
    pre = Weights.open(models / "pre")
    one, other = (ties([Weights.open(w) - pre, b - pre]) for w in (models / "a", tmp_path / "shards"))
    assert all(torch.equal(one[name], other[name]) for name in b)


def test_every_method_is_documented_with_its_settings():
    page = (Path(__file__).parents[2] / "docs" / "arithmetic.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    documented = {row[0].strip(" `"): row[3] for row in rows if len(row) == 5}
    assert {*documented} == {*OF_WEIGHTS}
    for name in OF_WEIGHTS:
        settled = make_merge_method(name).settled().settings.model_dump()
        written = documented[name].replace(",", " ").split()
        for setting in settings_of(name).model_fields:
            value = settled[setting]
            shown = (
                str(value).lower()
                if isinstance(value, bool)
                else f"{value:g}"
                if isinstance(value, float)
                else str(value)
            )
            place = written.index(f"`{setting}`")
            assert written[place + 1].rstrip(":") == shown, f"{name}.{setting}"


def test_what_lies_beside_the_weights(models, tmp_path):
    """The tokenizer and the modules behind the model come along; what another run left does not."""
    where = shutil.copytree(models / "a", tmp_path / "a")
    for name in ("1_Pooling", "checkpoint-5", "runs"):
        (where / name).mkdir()
        (where / name / "config.json").write_text("{}")
    (where / "2_Dense").mkdir()
    (where / "2_Dense" / "model.safetensors").write_bytes(b"weights of its own")
    paths = ["", "1_Pooling", "2_Dense", "../b"]
    (where / "modules.json").write_text(json.dumps([{"idx": i, "path": path} for i, path in enumerate(paths)]))
    for name in ("README.md", "all_results.json", "optimizer.pt", "tf_model.h5", ".hidden"):
        (where / name).write_text("another model's")
    (2 * Weights.open(where)).save(tmp_path / "out")
    expected = {"config.json", "model.safetensors", "modules.json", "1_Pooling", "2_Dense"}
    tokenizer = {path.name for path in where.iterdir() if "token" in path.name}
    assert tokenizer
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected | tokenizer
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").read_bytes() == b"weights of its own"


def test_memory_does_not_grow_with_the_models(tmp_path):
    """Of three models of 48 MB, in a process of its own."""
    for i in range(3):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "config.json").write_text('{"model_type": "llama"}')
        tensors = {name: torch.randn(size) for name, size in {"embed": 9_000_000, "rest": 3_000_000}.items()}
        save_tensors(tmp_path / f"{i}" / "model.safetensors", tensors)
    program = """
from pathlib import Path
from graftwork.arithmetic import Weights, ties

def peak():  # of this process alone; what getrusage says begins with that of the process that started it
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmHWM"))

base, a, b = (Weights.open(name) for name in "012")
ties([{"w": 1.0 * Weights.open("0")["rest"][:99]}] * 2)
before = peak()
(base + ties([a - base, b - base])).save("out")
print((peak() - before) / 1000)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert float(ran.stdout) < 100  # all of them together are 192


@pytest.mark.parametrize("heads", ["average", "keep", "base"])
def test_a_tied_head_follows_the_body_that_it_is_tied_to(heads, tmp_path):
    """Also where it is stored beside it, and heads are kept."""
    for seed, name in enumerate(("a", "b", "pre")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForMaskedLM.from_config(make_config("bert"))
        model.save_pretrained(tmp_path / name)
        stored = tensors_in(tmp_path / name)
        word = stored["bert.embeddings.word_embeddings.weight"]
        save_tensors(tmp_path / name / "model.safetensors", {**stored, "cls.predictions.decoder.weight": word.clone()})
    recipe = MergeRecipe(
        method="ties", models=[str(tmp_path / name) for name in "ab"], base=str(tmp_path / "pre"), heads=heads
    )
    merge(recipe, tmp_path / "out")
    found, pre = tensors_in(tmp_path / "out"), tensors_in(tmp_path / "pre")
    assert torch.equal(found["cls.predictions.decoder.weight"], found["bert.embeddings.word_embeddings.weight"])
    assert not torch.equal(found["cls.predictions.decoder.weight"], pre["cls.predictions.decoder.weight"])
    kept = {"average": None, "keep": "a", "base": "pre"}[heads]
    own = "cls.predictions.transform.dense.weight"
    assert kept is None or torch.equal(found[own], tensors_in(tmp_path / kept)[own])
