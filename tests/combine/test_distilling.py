"""Distillation as a run: from adapters and Hugging Face models of any kind, on labelled and unlabelled texts."""

import json
import shutil

import pytest
import torch
from combine.teaching import save_teacher, say
from safetensors.torch import load_file
from training.kinds import tag_rows, write_jsonl
from training.workbench import (
    FAST,
    KilledError,
    at_step,
    contents,
    killed,
    make_backbone,
    make_rows,
    names_in,
    write_csv,
)
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    BertForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from graftwork import Adapter, Backbone, Fuse, Houlsby, LoRA, Pfeiffer, Task, distill, tune
from graftwork.distillation import outputs
from graftwork.distillation.outputs import averaged
from graftwork.distillation.pretrained import PretrainedTeacher
from graftwork.distillation.teachers import AdapterTeacher
from graftwork.errors import DataError, GraftworkError, InterruptedRunError, MethodError, RecipeError
from graftwork.methods import AdaMix, HeadOnly
from graftwork.training import Recipe, evaluate

STUDENT = LoRA(rank=2)


def test_an_unlabelled_student_agrees_with_its_teacher(backbone, teacher, texts, classes, tmp_path):
    task = Task(name="texts", text="text", data=str(texts))
    student = distill(
        backbone, teachers=teacher, task=task, method=STUDENT, output=tmp_path / "s", **{**FAST, "num_train_epochs": 4}
    )
    assert student.task.labels == Adapter.load(teacher).task.labels == ("negative", "positive")
    assert student.metrics["validation"]["accuracy"] == 1.0, "agreement with the teacher"
    # It has learnt the task, of which it saw no label.
    scores = evaluate(student, backbone=backbone, data=classes.data, columns={"text": "text", "label": "label"})
    assert scores["accuracy"] > 0.9
    loaded = Adapter.load(tmp_path / "s")
    [source] = loaded.recipe["distill"]["teachers"]
    assert source["folder"] == str(teacher)
    assert len(source["digest"]) == 32


def test_alpha_0_is_tuning_on_labels(backbone, teacher, classes, tmp_path):
    plain = tune(backbone, task=classes, method=STUDENT, **FAST)
    taught = distill(backbone, teachers=teacher, task=classes, method=STUDENT, alpha=0.0, **FAST)
    assert plain.tensors.keys() == taught.tensors.keys()
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(taught.tensors[name], tensor, rtol=1e-5, atol=1e-6)


def test_labels_of_a_task_in_another_order(backbone, teacher, classes, texts):
    task = Task(name="texts", text="text", data=str(texts), labels=("positive", "negative"))
    student = distill(backbone, teachers=teacher, task=task, method=STUDENT, **{**FAST, "num_train_epochs": 4})
    inputs = [row["text"] for row in make_rows("classes", 80, seed=7)]
    taught = say(backbone, Adapter.load(teacher), inputs).argmax(dim=1)
    assert (say(backbone, student, inputs).argmax(dim=1) == 1 - taught).float().mean() > 0.9


def test_methods_with_two_passes_and_methods_at_the_head(backbone, teacher, texts):
    task = Task(name="texts", text="text", data=str(texts))
    settings = {**FAST, "num_train_epochs": 4}
    for method in (AdaMix(bottleneck=6), HeadOnly()):
        student = distill(backbone, teachers=teacher, task=task, method=method, prefix_cache="auto", **settings)
        assert student.metrics["validation"]["accuracy"] > 0.6


def test_accumulated_steps_are_the_joined_ones(backbone, teacher, classes):
    settings = {**FAST, "max_steps": 3, "train_sampling_strategy": "random", "prefix_cache": "off"}
    method = HeadOnly()
    # Without dropout, which is drawn anew for each batch.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)
        whole, parts = (
            distill(backbone, teachers=teacher, task=classes, method=method, alpha=0.7, **{**settings, **own})
            for own in (
                {"per_device_train_batch_size": 8},
                {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
            )
        )
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(parts.tensors[name], tensor, rtol=1e-4, atol=1e-5)


# Teachers of other kinds


def test_a_larger_model_with_its_own_tokenizer_teaches(backbone, texts, tmp_path):
    model = save_teacher(tmp_path / "t", BertForSequenceClassification, ["negative", "positive"], width=48)
    task = Task(name="texts", text="text", data=str(texts))
    distill(backbone, teachers=tmp_path / "t", task=task, method=STUDENT, output=tmp_path / "s", loss="centred", **FAST)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "t")
    with torch.inference_mode():
        said = model(**tokenizer(["one good two"], return_tensors="pt")).logits
    student = say(backbone, Adapter.load(tmp_path / "s"), ["one good two"])
    assert student.shape == said.shape == (1, 2)


def test_tags_of_a_model_teach(backbone, tmp_path):
    labels = ["O", "B-BAD", "B-GOOD"]
    save_teacher(tmp_path / "t", BertForTokenClassification, labels, width=48)
    rows = [{"words": row["words"]} for row in tag_rows(40)]
    file = write_jsonl(tmp_path / "u.jsonl", rows)
    fields = {"text": "words", "metrics": "token_accuracy"}
    task = Task(name="tags", kind="token-classification", data=str(file), **fields)
    student = distill(backbone, teachers=tmp_path / "t", task=task, method=STUDENT, **FAST)
    assert student.task.labels == tuple(labels)
    assert student.metrics["validation"]["token_accuracy"] > 0.5


def test_numbers_teach(backbone, data, tmp_path):
    numbers = Task(name="numbers", kind="regression", text="text", data=str(data["numbers"]))
    settings = {**FAST, "num_train_epochs": 6}
    tune(backbone, task=numbers, method=LoRA(rank=4), output=tmp_path / "t", **settings)
    rows = [{"text": row["text"]} for row in make_rows("numbers", 90, seed=5)]
    task = Task(name="u", kind="regression", text="text", data=str(write_csv(tmp_path / "u" / "u.csv", rows)))
    student = distill(backbone, teachers=tmp_path / "t", task=task, method=STUDENT, **settings)
    assert student.metrics["validation"]["r2"] > 0.5


def test_an_ensemble_averages_probabilities(backbone, teacher, classes, texts, tmp_path):
    tune(backbone, task=classes, method=Houlsby(bottleneck=4), output=tmp_path / "second", **FAST)
    one, two = (say(backbone, Adapter.load(folder), ["one mild two"]) for folder in (teacher, tmp_path / "second"))
    expected = ((one.double().softmax(-1) + two.double().softmax(-1)) / 2).log()
    torch.testing.assert_close(averaged([one, two], "classes").double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(averaged([one, two], "numbers"), (one + two) / 2)
    both = ((one.double().sigmoid() + two.double().sigmoid()) / 2).logit()
    torch.testing.assert_close(averaged([one, two], "labels").double(), both, rtol=1e-4, atol=1e-4)
    task = Task(name="texts", text="text", data=str(texts))
    student = distill(backbone, teachers=[teacher, tmp_path / "second"], task=task, method=STUDENT, **FAST)
    assert len(student.recipe["distill"]["teachers"]) == 2


def test_an_adapter_of_another_backbone_teaches(backbone, other_backbone_folder, classes, texts, tmp_path):
    other = Backbone.load(str(other_backbone_folder), dtype="float32", device="cpu")
    tune(other, task=classes, method=LoRA(rank=4), output=tmp_path / "t", **{**FAST, "num_train_epochs": 4})
    task = Task(name="texts", text="text", data=str(texts))
    settings = {**FAST, "num_train_epochs": 4}
    student = distill(backbone, teachers=tmp_path / "t", task=task, method=STUDENT, hidden=0.1, **settings)
    assert student.metrics["validation"]["accuracy"] > 0.9


def test_a_fusion_becomes_one_adapter(backbone, teacher, classes, texts, tmp_path):
    for name in ("one", "two"):
        tune(backbone, task=classes, method=Pfeiffer(bottleneck=4), output=tmp_path / name, **FAST)
    parts = {name: Adapter.load(tmp_path / name) for name in ("one", "two")}
    settings = {**FAST, "num_train_epochs": 4}
    tune(backbone, task=classes, method=Fuse(parts=parts), output=tmp_path / "fused", **settings)
    task = Task(name="texts", text="text", data=str(texts))
    student = distill(backbone, teachers=tmp_path / "fused", task=task, method=Pfeiffer(bottleneck=4), **settings)
    assert student.num_bytes < Adapter.load(tmp_path / "fused").num_bytes / 2
    inputs = [row["text"] for row in make_rows("classes", 40, seed=9)]
    both = [say(backbone, own, inputs).argmax(dim=1) for own in (student, Adapter.load(tmp_path / "fused"))]
    assert (both[0] == both[1]).float().mean() > 0.8


# Resuming


@pytest.mark.parametrize("step", [3, 13])
def test_a_killed_run_resumes_to_the_same_bytes_and_asks_no_teacher_again(
    backbone, teacher, texts, tmp_path, step, monkeypatch
):
    task = Task(name="texts", text="text", data=str(texts))
    settings = {**FAST, "eval_strategy": "steps", "eval_steps": 5, "max_steps": 16, "hidden": 0.2}

    def run(output, **options):
        return distill(backbone, teachers=teacher, task=task, method=STUDENT, output=output, **settings, **options)

    run(tmp_path / "whole")
    with killed(at_step(step)):
        run(tmp_path / "a")
    kept = load_file(tmp_path / ".a.tuning" / "teacher-logits-000000.safetensors")
    assert len(kept["keys"]) == len({*map(bytes, kept["keys"].tolist())})
    monkeypatch.setattr("graftwork.distillation.teachers.AdapterTeacher.logits", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr("graftwork.distillation.teachers.AdapterTeacher.vectors", lambda *_: pytest.fail("asked again"))
    run(tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")
    assert names_in(tmp_path) == ["a", "whole"]


@pytest.mark.parametrize("labelled", [False, True], ids=["without labels", "with labels"])
@pytest.mark.parametrize("ask", ["logits", "vectors"])
def test_killed_in_the_teachers_pass_it_keeps_what_they_said(
    backbone, teacher, texts, classes, tmp_path, monkeypatch, labelled, ask
):
    task = classes if labelled else Task(name="texts", text="text", data=str(texts))
    monkeypatch.setattr(outputs, "PIECE", 20)
    settings = {**FAST, "max_steps": 2, "hidden": 0.2}

    def run(output, **options):
        return distill(backbone, teachers=teacher, task=task, method=STUDENT, output=output, **settings, **options)

    run(tmp_path / "whole")
    plain, asked = getattr(AdapterTeacher, ask), []

    def dying(self, inputs, *rest):
        if len(asked) == 2:
            shutil.copytree(tmp_path / ".a.tuning", tmp_path / "left")
            raise KilledError
        asked.extend([[*inputs]])
        return plain(self, inputs, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTeacher, ask, dying)
        with pytest.raises(KilledError):
            run(tmp_path / "a")
    shutil.rmtree(tmp_path / ".a.tuning", ignore_errors=True)
    (tmp_path / "left").rename(tmp_path / ".a.tuning")
    again = []

    def noted(self, inputs, *rest):
        again.extend(inputs)
        return plain(self, inputs, *rest)

    monkeypatch.setattr(AdapterTeacher, ask, noted)
    run(tmp_path / "a", resume=True)
    assert again
    assert not {text for own in asked for text in own} & {*again}
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_interrupted_in_the_teachers_pass_it_says_what_is_kept(backbone, teacher, texts, tmp_path, monkeypatch):
    task = Task(name="texts", text="text", data=str(texts))
    monkeypatch.setattr(outputs, "PIECE", 20)
    plain, asked = AdapterTeacher.logits, []

    def stopped(self, *given):
        asked.append(given)
        if len(asked) == at:
            raise KeyboardInterrupt
        return plain(self, *given)

    monkeypatch.setattr(AdapterTeacher, "logits", stopped)
    for at, said, resumable in ((1, "nothing is kept", False), (3, "what the teachers said so far is kept", True)):
        asked.clear()
        with pytest.raises(InterruptedRunError, match=said) as stop:
            distill(backbone, teachers=teacher, task=task, method=STUDENT, output=tmp_path / f"{at}", **FAST)
        assert stop.value.resumable == resumable
        assert (tmp_path / f".{at}.tuning").is_dir() == resumable


def test_a_teacher_that_has_changed_is_refused_on_resume(backbone, teacher, texts, tmp_path):
    shutil.copytree(teacher, tmp_path / "t")
    task = Task(name="texts", text="text", data=str(texts))
    settings = {**FAST, "eval_strategy": "steps", "eval_steps": 5, "max_steps": 16}
    with killed(at_step(8)):
        distill(backbone, teachers=tmp_path / "t", task=task, method=STUDENT, output=tmp_path / "a", **settings)
    adapter = Adapter.load(tmp_path / "t")
    tensors = {name: tensor + 0.01 for name, tensor in adapter.tensors.items()}
    Adapter(**{**vars(adapter), "tensors": tensors}).save(tmp_path / "t", overwrite=True)
    with pytest.raises(RecipeError, match=r"another recipe: distill\.teachers"):
        distill(
            backbone, teachers=tmp_path / "t", task=task, method=STUDENT, output=tmp_path / "a", resume=True, **settings
        )


# What is refused


def refused(kind, backbone, task, match, **options):
    with pytest.raises(kind, match=match):
        distill(backbone, task=task, method=STUDENT, **{**FAST, **options})


def test_other_labels(backbone, teacher, tmp_path):
    rows = [
        {"text": row["text"], "label": ("positive", "mixed")[i % 2]} for i, row in enumerate(make_rows("classes", 40))
    ]
    task = Task(name="t", text="text", data=str(write_csv(tmp_path / "d" / "d.csv", rows)))
    refused(RecipeError, backbone, task, "lacks 'mixed' and it has 'negative'(.|\n)*--teacher", teachers=teacher)


def test_unnamed_labels_of_a_model(backbone, classes, tmp_path):
    save_teacher(tmp_path / "t", BertForSequenceClassification, ["LABEL_0", "LABEL_1"])
    refused(RecipeError, backbone, classes, "lacks 'negative'(.|\n)*id2label", teachers=tmp_path / "t")


def test_what_is_no_teacher(backbone, classes, backbone_folder, tmp_path):
    refused(RecipeError, backbone, classes, "is not a folder", teachers=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused(RecipeError, backbone, classes, "has neither adapter.json nor config.json", teachers=tmp_path / "empty")
    refused(RecipeError, backbone, classes, "holds a BertModel, which has no head", teachers=backbone_folder)


def test_labels_with_a_share_and_none_there(backbone, teacher, texts):
    task = Task(name="texts", text="text", data=str(texts))
    refused(RecipeError, backbone, task, "alpha is 0.5(.|\n)*alpha 1, or data with labels", teachers=teacher, alpha=0.5)


def test_a_misspelt_column_of_labels_is_not_taken_for_none(backbone, teacher, texts):
    task = Task(name="texts", text="text", label="lable", data=str(texts))
    refused(DataError, backbone, task, "no column 'lable'", teachers=teacher)


def test_empty_texts(backbone, teacher, tmp_path):
    rows = [{"text": text} for text in ("one good", " ", "bad", *(f"{word} bad" for word in "abcdefgh"))]
    task = Task(name="t", text="text", data=str(write_jsonl(tmp_path / "d.jsonl", rows)))
    refused(DataError, backbone, task, "is empty(.|\n)*a text in every row", teachers=teacher)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": -1.0}, {"alpha": 1.5}, {"hidden": -1}])
def test_settings_out_of_range(backbone, teacher, classes, wrong):
    refused(RecipeError, backbone, classes, f"distill.{next(iter(wrong))}", teachers=teacher, **wrong)


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        ("classes", {"loss": "centred", "temperature": 3.0}, "'centred' has no temperature"),
        ("classes", {"alpha": 0.0, "temperature": 3.0}, "alpha is 0"),
        ("classes", {"alpha": 0.0, "loss": "centred"}, "alpha is 0"),
        ("numbers", {"temperature": 3.0}, "squared difference"),
        ("numbers", {"loss": "centred"}, "squared difference"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_settings_without_effect(backbone, teacher, classes, data, kind, settings, why):
    numbers = Task(name="numbers", kind="regression", text="text", data=str(data["numbers"]))
    name = [*settings][-1]
    task = {"classes": classes, "numbers": numbers}[kind]
    match = rf"{name}=.* would do nothing: .*{why}(.|\n)*--{name}"
    refused(RecipeError, backbone, task, match, teachers=teacher, **settings)


def test_a_backbone_that_is_gone(backbone, classes, tmp_path):
    other = Backbone.load(str(make_backbone(tmp_path / "b", seed=5)), dtype="float32", device="cpu")
    tune(other, task=classes, method=LoRA(rank=2), output=tmp_path / "t", **{**FAST, "max_steps": 1})
    shutil.rmtree(tmp_path / "b")
    refused(RecipeError, backbone, classes, "needs its own backbone", teachers=tmp_path / "t")


def test_a_long_text_has_as_many_tokens_as_the_teacher_has_positions(backbone, tmp_path):
    make_backbone(tmp_path / "roberta")
    config = RobertaConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        pad_token_id=1,
        id2label={0: "negative", 1: "positive"},
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path / "roberta")
    own = PretrainedTeacher(
        str(tmp_path / "roberta"), kind="classification", pairs=False, max_length=128, device=backbone.device
    )
    assert own.max_length == 18
    [said] = own.logits(["good " * 50], lambda more: None)
    assert said.shape == (1, 2)


def test_another_kind_of_task(backbone, teacher, data, tmp_path):
    numbers = Task(name="numbers", kind="regression", text="text", data=str(data["numbers"]))
    refused(RecipeError, backbone, numbers, "is for classification", teachers=teacher)
    pairs = Task(name="pairs", text="first", text_pair="second", data=str(data["pairs"]))
    refused(RecipeError, backbone, pairs, "over single texts, and the task is .* over pairs", teachers=teacher)
    save_teacher(tmp_path / "t", BertForSequenceClassification, ["negative", "positive"])
    refused(RecipeError, backbone, numbers, "2 outputs of problem type", teachers=tmp_path / "t")
    choices = Task(name="c", kind="multiple-choice", text="text", choices="a,b", data=str(data["classes"]))
    refused(MethodError, backbone, choices, "cannot learn from teachers", teachers=teacher)


def test_the_recipe_file_has_the_section(teacher, classes, tmp_path):
    recipe = Recipe.parse({"task": classes.model_dump(exclude_none=True), "distill": {"teachers": str(teacher)}})
    assert recipe.distill.teachers[0].folder == str(teacher)
    with pytest.raises(GraftworkError, match=r"distill\.teachers"):
        Recipe.parse({"task": "rte", "distill": {"teachers": []}})


# Commands


def test_the_command(graftwork, backbone_folder, teacher, texts, tmp_path):
    arguments = ["distill", "--data", texts, "--text", "text", "--backbone", backbone_folder, "--dtype", "float32"]
    settings = ["--method", "lora", "--train.num_train_epochs", "1", "--quiet"]
    run = graftwork(*arguments, *settings, "--teacher", teacher, "--output", tmp_path / "a", "--json")
    assert run.status == 0, run.err
    assert json.loads(run.out)["method"] == "lora"
    wrong = graftwork(*arguments, *settings, "--teacher", teacher, "--output", tmp_path / "b", "--temperature", "0")
    assert wrong.status == 2
    assert "distill.temperature" in wrong.err
    assert "--temperature" in wrong.err
    again = graftwork(*arguments, *settings, "--teacher", teacher, "--output", tmp_path / "b", "--alpha", "0.5")
    assert again.status == 2
    assert "change: --alpha" in again.err
