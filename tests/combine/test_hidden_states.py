"""Distillation of hidden states: of texts and of words, from teachers of the same width and of others."""

import pytest
import torch
from combine.teaching import save_teacher, steps_noted
from training.kinds import tag_rows, write_jsonl
from training.workbench import FAST, at_step, contents, killed, make_backbone, names_in
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from graftwork import AdaptedModel, Adapter, LoRA, Task, distill, tune
from graftwork.distillation.pretrained import PretrainedTeacher
from graftwork.distillation.teachers import AdapterTeacher
from graftwork.errors import RecipeError
from graftwork.heads.projection import Projection
from graftwork.training.seeds import seed_of
from graftwork.training.trainer import AID

STUDENT = LoRA(rank=2)
LABELS = ["negative", "positive"]
WIDTH = 32
"""Of the student's backbone."""

WORDS = {"text": "words", "label": "tags", "metrics": "token_accuracy"}


@pytest.fixture
def task(texts):
    return Task(name="texts", text="text", data=str(texts))


@pytest.fixture
def words(tmp_path):
    return Task(
        name="tags", kind="token-classification", data=str(write_jsonl(tmp_path / "words.jsonl", tag_rows(60))), **WORDS
    )


def last_states(backbone, adapter, texts):
    """The student's last states, in float64, and the mask."""
    batch = backbone.require_tokenizer()(texts, padding=True, return_tensors="pt")
    model = AdaptedModel(backbone, {"a": adapter})
    try:
        with torch.no_grad():
            states = model(**batch, adapters="a", output_hidden_states=True).hidden_states[-1]
    finally:
        model.detach()
    return states.double(), batch["attention_mask"]


def states_of_model(model, folder, texts):
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states[-1]
    return states.double(), batch["attention_mask"]


def mean(states, mask):
    mask = mask.double()[..., None]
    return (states * mask).sum(1) / mask.sum(1)


def drawn(width, seed=0):
    """The projection that a run of that seed begins with."""
    projection = Projection(WIDTH, width, torch.Generator().manual_seed(seed_of("projection", seed)))
    return projection.weight.detach().double()


def first_loss(backbone, hidden, **options):
    """What hidden states add to the first step's loss, with the batch's texts and the student before it."""
    settings = {**FAST, "max_steps": 1, "per_device_train_batch_size": 16, "prefix_cache": "off", "alpha": 1.0}
    with steps_noted() as seen:
        for own in (0.0, hidden):
            distill(backbone, method=STUDENT, hidden=own, **options, **settings)
    [(_, without, *_), (batch, found, student, _)] = seen
    return found - without, batch, student


@pytest.mark.parametrize("width", [16, 48])
def test_vectors_are_projected_to_those_of_a_teacher_of_another_width(backbone, task, tmp_path, width):
    model = save_teacher(tmp_path / "t", BertForSequenceClassification, LABELS, width=width)
    found, batch, student = first_loss(backbone, 0.5, teachers=tmp_path / "t", task=task, pooling="mean")
    texts = backbone.require_tokenizer().batch_decode(batch["input_ids"], skip_special_tokens=True)
    h = mean(*last_states(backbone, student, texts))
    t = mean(*states_of_model(model, tmp_path / "t", texts))
    expected = 0.5 * (h @ drawn(width).T - t).square().mean().item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_projection_learns_as_a_head_does_and_is_no_part_of_the_adapter(backbone, task, tmp_path):
    save_teacher(tmp_path / "t", BertForSequenceClassification, LABELS, width=48)
    settings = {**FAST, "max_steps": 30, "weight_decay": 0.1, "lr_scheduler_type": "constant", "prefix_cache": "off"}
    with steps_noted() as seen:
        student, plain = (
            distill(
                backbone,
                teachers=tmp_path / "t",
                task=task,
                method=STUDENT,
                output=tmp_path / f"s{hidden}",
                hidden=hidden,
                **settings,
            )
            for hidden in (10.0, 0.0)
        )
    assert student.num_parameters == plain.num_parameters
    assert {*student.tensors} == {*plain.tensors} == {*Adapter.load(tmp_path / "s10.0").tensors}
    assert names_in(tmp_path / "s10.0") == names_in(tmp_path / "s0.0")
    trainer, losses = seen[0][3], [loss for _, loss, *_ in seen[:30]]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert (trainer.projection.weight - drawn(48)).abs().max() > 0.01
    [group] = [
        own for own in trainer.optimizer.param_groups if any(p is trainer.projection.weight for p in own["params"])
    ]
    assert (group["lr"], group["weight_decay"]) == (FAST["head_learning_rate"], 0.1)
    assert seen[30][3].projection is None


@pytest.mark.parametrize("step", [3, 13])
def test_a_killed_run_with_a_projection_resumes_to_the_same_bytes(backbone, task, tmp_path, step):
    save_teacher(tmp_path / "t", BertForSequenceClassification, LABELS, width=48)
    settings = {**FAST, "eval_strategy": "steps", "eval_steps": 5, "max_steps": 16, "hidden": 0.5}

    def run(output, **options):
        options = {**settings, **options}
        return distill(backbone, teachers=tmp_path / "t", task=task, method=STUDENT, output=output, **options)

    run(tmp_path / "whole")
    with killed(at_step(step)):
        run(tmp_path / "a")
    checkpoints = [*(tmp_path / ".a.tuning").glob("checkpoint-*")]
    assert bool(checkpoints) == (step > 5)
    assert all((own / AID).is_file() for own in checkpoints)
    run(tmp_path / "a", resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")
    other = run(tmp_path / "other", seed=1)
    assert not torch.equal(drawn(48, 1), drawn(48, 0))
    assert other.num_parameters == Adapter.load(tmp_path / "whole").num_parameters


# Words


def words_expected(batch, h, t, project=lambda h: h):
    """The mean over words, which have their labels at their first pieces."""
    there = batch["labels"] != -100
    assert there.sum() > 30
    return (project(h[there]) - t[there]).square().mean().item()


def test_words_are_compared_with_those_of_a_wider_model(backbone, words, tmp_path):
    model = save_teacher(tmp_path / "t", BertForTokenClassification, ["O", "B-BAD", "B-GOOD"], width=48)
    found, batch, student = first_loss(backbone, 0.5, teachers=tmp_path / "t", task=words)
    texts = backbone.require_tokenizer().batch_decode(batch["input_ids"], skip_special_tokens=True)
    h, t = last_states(backbone, student, texts)[0], states_of_model(model, tmp_path / "t", texts)[0]
    P = drawn(48)
    assert found == pytest.approx(0.5 * words_expected(batch, h, t, lambda h: h @ P.T), rel=1e-4)


def test_words_are_compared_with_those_of_an_adapter(backbone, words, tmp_path):
    teacher = tune(backbone, task=words, method=LoRA(rank=4), output=tmp_path / "t", **{**FAST, "max_steps": 8})
    found, batch, student = first_loss(backbone, 2.0, teachers=tmp_path / "t", task=words)
    texts = backbone.require_tokenizer().batch_decode(batch["input_ids"], skip_special_tokens=True)
    h, t = (last_states(backbone, own, texts)[0] for own in (student, teacher))
    assert found == pytest.approx(2 * words_expected(batch, h, t), rel=1e-4)


def test_texts_are_padded_at_their_ends_whatever_the_teachers_tokenizer_does(backbone, tmp_path):
    save_teacher(tmp_path / "t", BertForTokenClassification, ["O", "B-BAD", "B-GOOD"])
    sentences = [["good", "one", "two", "bad"], ["good"]]
    said = []
    for side in ("right", "left"):
        AutoTokenizer.from_pretrained(tmp_path / "t", padding_side=side).save_pretrained(tmp_path / "t")
        teacher = PretrainedTeacher(
            str(tmp_path / "t"), kind="token-classification", pairs=False, max_length=64, device=backbone.device
        )
        said.append(teacher.logits(sentences, lambda more: None)[1])
    torch.testing.assert_close(*said)


# What is refused


def refused(backbone, task, match, **options):
    with pytest.raises(RecipeError, match=match):
        distill(backbone, task=task, hidden=1.0, **{"method": STUDENT, **FAST, **options})


def test_teachers_of_several_widths(backbone, teacher, task, tmp_path, monkeypatch):
    for kind in (AdapterTeacher, PretrainedTeacher):
        monkeypatch.setattr(kind, "logits", lambda *_: pytest.fail("asked"))
    save_teacher(tmp_path / "wide", BertForSequenceClassification, LABELS, width=48)
    match = r"'.*wide' have 48 numbers, and those of '.*' 32: they have no mean(.|\n)*--hidden"
    refused(backbone, task, match, teachers=[teacher, tmp_path / "wide"])


def test_a_teacher_with_an_encoder_and_a_decoder(backbone, task, tmp_path, monkeypatch):
    monkeypatch.setattr(PretrainedTeacher, "logits", lambda *_: pytest.fail("asked"))
    make_backbone(tmp_path / "bart")
    config = BartConfig(
        vocab_size=20,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        id2label=dict(enumerate(LABELS)),
        eos_token_id=3,
    )
    BartForSequenceClassification(config).save_pretrained(tmp_path / "bart")
    match = r"has an encoder and a decoder(.|\n)*--hidden"
    refused(backbone, task, match, teachers=tmp_path / "bart")


def test_methods_that_leave_vectors_as_they_are(backbone, teacher, task):
    match = r"hidden would do nothing: method 'head-only' trains the head alone(.|\n)*--method"
    refused(backbone, task, match, teachers=teacher, method="head-only")


def test_heads_over_all_layers(backbone, teacher, task):
    refused(backbone, task, r"reads no one vector(.|\n)*--hidden", teachers=teacher, method="feature-extraction")
