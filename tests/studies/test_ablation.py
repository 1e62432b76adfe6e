"""Span ablation: every span against the adapter without its ops there, and what it costs."""

import csv
import json
from contextlib import contextmanager
from dataclasses import replace

import datasets
import pytest
import torch
from closeness import close
from tiny import SAMPLES, make_adapter, make_backbone
from training.workbench import FAST

from graftwork import (
    AdaptedModel,
    Adapter,
    Backbone,
    FeatureExtraction,
    HeadOnly,
    Houlsby,
    LoRA,
    Task,
    evaluate,
    tune,
)
from graftwork.errors import AdapterError, OutputError
from graftwork.studies.ablation import Ablation
from graftwork.studies.spans import Layers, apart, measure, runs
from graftwork.training.display import SILENT
from graftwork.training.scoring import Scorer

TEXTS = ["good film", "a bad bad film", "the man sleeps", "good good man and a film", "bad", "a film and a man"]
ROWS = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2, 0, 1, 2]})
TASK = Task(name="t", text="text", labels=("a", "b", "c"))
LAYERS = 3
SPANS = [(x, y) for x in range(LAYERS) for y in range(x, LAYERS)]
ACTING = (
    *("houlsby-shared", "pfeiffer-deep", "parallel", "hyperformer", "hypergrid", "dora", "vera", "bitfit"),
    *("prefix-tuning", "full-fine-tuning-top", "union", "fuse"),
)
"""A method of each kind of op and of each way to share tensors between layers."""


def backbone_of(kind="bert", **fields):
    return make_backbone(kind, tokenizer=True, **fields)


@contextmanager
def scoring(adapter, backbone, *, task=TASK, rows=ROWS):
    model = AdaptedModel(backbone)
    try:
        model.add("t", adapter)
        yield Scorer(model, "t", task, rows, batch_size=4)
    finally:
        model.detach()


def measured(adapter, backbone, **given):
    with scoring(adapter, backbone, **given) as scorer:
        return measure(scorer)


def each_alone(adapter, backbone, **given):
    """The whole and each span, by an evaluation of its own."""
    with scoring(adapter, backbone, **given) as scorer:
        version = scorer.model.residents["t"]
        layers = Layers.of(version)
        return apart(scorer, version, layers, layers.spans, SILENT)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(torch.tensor(found[name]), torch.tensor(value))


UNTRAINED = ("lora", "ia3", "bitfit", "full-fine-tuning", "houlsby-not-shared")
"""Untrained, they change nothing; the last one where what leads up is 0."""


@pytest.mark.parametrize("name", UNTRAINED)
def test_each_span_is_an_adapter_that_is_untrained_there(name):
    backbone = backbone_of(num_hidden_layers=LAYERS)
    adapter = make_adapter(backbone, SAMPLES[name], trained=True)
    start = make_adapter(backbone, SAMPLES[name]).tensors
    _, made = measured(adapter, backbone)
    with scoring(adapter, backbone) as scorer:
        same(made.whole, scorer())
    assert list(made.spans) == SPANS
    for x, y in SPANS:
        inside = tuple(f"layers.{layer}." for layer in range(x, y + 1))
        tensors = {
            own: (tensor * 0 if own.endswith((".up", ".up_bias")) else start[own]) if own.startswith(inside) else tensor
            for own, tensor in adapter.tensors.items()
        }
        with scoring(replace(adapter, tensors=tensors), backbone) as scorer:
            same(made.spans[x, y], scorer())
    assert len({scores["loss"] for scores in made.spans.values()} | {made.whole["loss"]}) == len(SPANS) + 1


@pytest.mark.parametrize("name", ACTING)
def test_spans_of_every_method_are_what_evaluations_say(name):
    backbone = backbone_of()
    adapter = make_adapter(backbone, SAMPLES[name], trained=True)
    _, made = measured(adapter, backbone)
    assert not made.apart
    whole, found = each_alone(adapter, backbone)
    same(made.whole, whole)
    assert made.spans.keys() == found.keys()
    for span, scores in found.items():
        same(made.spans[span], scores)


ONE_STACK = ("distilbert", "deberta-v2", "modernbert", "gpt2", "gemma2", "phi3")


@pytest.mark.parametrize("kind", ONE_STACK)
def test_spans_of_every_family_are_what_evaluations_say(kind):
    backbone = backbone_of(kind)
    adapter = make_adapter(backbone, LoRA(rank=2, targets="*.query,*.up"), trained=True, pooling="mean")
    layers, made = measured(adapter, backbone)
    assert layers.names == ("0", "1")
    assert not made.apart
    whole, found = each_alone(adapter, backbone)
    same(made.whole, whole)
    for span, scores in found.items():
        same(made.spans[span], scores)


def test_the_layers_of_an_encoder_decoder_come_one_after_the_other():
    backbone = backbone_of("t5")
    adapter = make_adapter(backbone, LoRA(rank=2, targets="decoder.*.query"), trained=True, pooling="mean")
    layers, made = measured(adapter, backbone)
    assert layers.names == ("encoder 0", "encoder 1", "decoder 0", "decoder 1")
    assert "encoder-decoder" in made.apart
    assert made.evaluations == 1 + 3
    assert made.spans[0, 1] == made.whole
    assert made.spans[0, 2] == made.spans[2, 2] != made.whole


def test_layers_with_one_set_of_weights_are_one_layer():
    backbone = backbone_of("albert")
    layers, made = measured(make_adapter(backbone, LoRA(rank=2), trained=True, pooling="mean"), backbone)
    assert layers.names == ("0",)
    assert "its layers need more of those below" in made.apart
    assert made.spans[0, 0] != made.whole


def layer_runs(backbone):
    """Notes the layer of each run over a batch of four rows: whether passes can begin at a layer is tried with two."""
    calls = []
    for number, layer in enumerate(backbone.model.encoder.layer):
        # A module within: what stands for a layer is called, too, where the layer does not run.
        within = layer.intermediate.dense
        within.register_forward_hook(lambda _, given, __, n=number: calls.append(n) if len(given[0]) == 4 else None)
    return calls


@pytest.mark.parametrize("count", [1, 2, 4])
def test_layers_run_as_often_as_is_said(count):
    backbone = backbone_of(num_hidden_layers=count)
    calls = layer_runs(backbone)
    adapter = make_adapter(backbone, Houlsby(bottleneck=4), trained=True)
    with scoring(adapter, backbone) as scorer:
        scorer()
        assert calls == list(range(count))
        calls.clear()
        _, made = measure(scorer)
    each = count + count * (count + 1) // 2 + (count - 1) * count * (count + 1) // 6
    assert len(calls) == runs(count, list(made.spans)) == each
    assert made.evaluations == each / count == pytest.approx((count**2 + 3 * count + 8) / 6)
    assert made.evaluations <= 1 + count * (count + 1) / 2
    # Layer k gets: the adapter's states, those that left a span before, and those within one.
    for layer in range(count):
        assert calls.count(layer) == 1 + layer * (layer + 1) / 2 + (layer + 1)


def test_layers_without_ops_take_no_runs_of_their_own():
    backbone = backbone_of(num_hidden_layers=5)
    calls = layer_runs(backbone)
    adapter = make_adapter(backbone, LoRA(rank=2, targets="layers.1.*.query,layers.3.*.query"), trained=True)
    with scoring(adapter, backbone) as scorer:
        layers, made = measure(scorer)
    # The whole; without layers from 1 on; without layer 1; without layers from 3 on.
    assert calls == [*range(5), 1, 2, 3, 4, 2, 3, 4, 3, 4]
    assert made.evaluations == 14 / 5
    assert layers.cut((0, 0)) is layers.cut((2, 2)) is layers.cut((4, 4)) is None
    assert (layers.cut((0, 2)), layers.cut((0, 4)), layers.cut((2, 4))) == ((1, 1), (1, 3), (3, 3))
    assert made.spans[2, 2] == made.whole
    assert made.spans[0, 1] == made.spans[1, 2] != made.spans[0, 4] == made.spans[1, 3]
    _, found = each_alone(adapter, backbone)
    for span, scores in found.items():
        same(made.spans[span], scores)


CHOICES = {"text": TEXTS[:3], "choices": [["a film", "a man"], ["bad", "good", "the"], ["good", "bad"]]}
KINDS = {
    "token-classification": (
        Task(name="t", kind="token-classification", text="words", label="tags", labels=("O", "B-X", "I-X")),
        {"words": [text.split() for text in TEXTS], "tags": [[i % 3 for i, _ in enumerate(t.split())] for t in TEXTS]},
    ),
    "regression": (Task(name="t", kind="regression", text="text"), {"text": TEXTS, "label": [0.0, 1, 2, 0, 1, 3]}),
    "multiple-choice": (
        Task(name="t", kind="multiple-choice", text="text", choices=("choices",)),
        {**CHOICES, "label": [0, 2, 1]},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_spans_of_every_kind_of_task_are_what_evaluations_say(kind):
    task, columns = KINDS[kind]
    backbone = backbone_of()
    adapter = make_adapter(backbone, Houlsby(bottleneck=4), trained=True, kind=kind)
    given = {"task": task, "rows": datasets.Dataset.from_dict(columns)}
    _, made = measured(adapter, backbone, **given)
    assert not made.apart
    whole, found = each_alone(adapter, backbone, **given)
    same(made.whole, whole)
    for span, scores in found.items():
        same(made.spans[span], scores)


def test_a_head_that_reads_all_layers_is_evaluated_for_each_span():
    backbone = backbone_of()
    head = make_adapter(backbone, FeatureExtraction(dropout=0.0)).head
    adapter = make_adapter(backbone, LoRA(rank=2), trained=True, head=head)
    _, made = measured(adapter, backbone)
    assert made.apart == "the head reads the states of all layers"
    assert made.evaluations == 1 + 3


def test_texts_are_generated_for_each_span():
    backbone = backbone_of("gpt2", head=True)
    adapter = Adapter.new(backbone, LoRA(rank=2), kind="generation", name="t", separator=" good ", max_length=20)
    start = {name: tensor.clone() for name, tensor in adapter.tensors.items()}
    generator = torch.Generator().manual_seed(0)
    for tensor in adapter.tensors.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    limited = {"task": adapter.task.model_copy(update={"max_new_tokens": 3})}
    columns = {"text": TEXTS[:2], "target": TEXTS[2:4], "references": [[text] for text in TEXTS[2:4]]}
    given = {
        "task": Task(name="t", kind="generation", text="text", label="target", separator=" good ", metrics=("chrf",)),
        "rows": datasets.Dataset.from_dict(columns),
    }
    _, made = measured(replace(adapter, **limited), backbone, **given)
    assert made.apart == "texts are generated"
    assert made.whole.keys() == {"loss", "chrf"}
    tensors = {
        name: start[name] if name.startswith("layers.1.") else tensor for name, tensor in adapter.tensors.items()
    }
    with scoring(replace(adapter, tensors=tensors, **limited), backbone, **given) as scorer:
        same(made.spans[1, 1], scorer())


def test_an_adapter_that_acts_in_no_layer_is_refused():
    backbone = backbone_of()
    with pytest.raises(AdapterError, match="head-only, does not act in any layer"):
        measured(make_adapter(backbone, HeadOnly()), backbone)


# The result and the command


def small(metric=0.5, spans=None):
    found = {(0, 0): 0.4, (0, 1): 0.0, (1, 1): 0.6} if spans is None else spans
    return Ablation(
        about={"task": "t"},
        metric="score",
        layers=("0", "1"),
        whole={"loss": 1.0, "score": metric},
        spans={span: {"loss": 2.0, "score": score} for span, score in found.items()},
        evaluations=3.0,
    )


def test_changes_are_relative():
    made = small()
    assert made.change((0, 0)) == pytest.approx(-0.2)
    assert made.change((1, 1)) == pytest.approx(0.2)
    assert made.change((0, 1)) == -1.0
    assert made.change((0, 1), "loss") == 1.0
    assert small(-0.5).change((0, 0)) == pytest.approx(1.8)
    assert small(0.0).change((0, 0)) is None


def heat_map(made):
    [panel, *_] = made.figure.draw().axes
    [image] = panel.get_images()
    return panel, image.get_array()


def test_the_heat_map_has_the_first_layer_down_and_the_last_one_to_the_right():
    panel, shown = heat_map(small())
    assert shown.mask.tolist() == [[False, False], [True, False]]
    assert shown[0].tolist() == pytest.approx([-20.0, -100.0])
    assert shown[1, 1] == pytest.approx(20.0)
    assert panel.yaxis_inverted()
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("last bypassed layer", "first bypassed layer")
    assert sorted(text.get_text() for text in panel.texts) == ["-100", "-20", "20"]
    _, plain = heat_map(small(0.0))
    assert plain[0].tolist() == pytest.approx([0.4, 0.0])


def test_what_is_saved(tmp_path):
    small().save(tmp_path / "out")
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert files.keys() == {"ablation.csv", "ablation.json", "ablation.png", "ablation.svg"}
    assert files["ablation.csv"].decode().splitlines()[:2] == [
        "first,last,relative_change,loss,score",
        f"0,0,{(0.4 - 0.5) / 0.5},2.0,0.4",
    ]
    assert json.loads(files["ablation.json"]) == {
        "task": "t",
        "metric": "score",
        "scores": {"loss": 1.0, "score": 0.5},
        "layers": 2,
        "spans": 3,
        "evaluations": 3.0,
    }
    with pytest.raises(OutputError, match="exists already"):
        small().save(tmp_path / "out")
    small().save(tmp_path / "out", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    small(0.0).save(tmp_path / "zero")
    assert (tmp_path / "zero" / "ablation.csv").read_text().splitlines()[1] == "0,0,,2.0,0.4"


@pytest.fixture(scope="module")
def tuned(backbone, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "lora"
    task = Task(name="classes", text="text", data=str(data["classes"]))
    tune(backbone, task=task, method=LoRA(rank=2), output=folder, **{**FAST, "num_train_epochs": 1})
    return folder


def test_the_command_measures_what_evaluate_does(tuned, graftwork, tmp_path, data):
    usual = (tuned, "--dtype", "float32", "--quiet", "--output", tmp_path / "out")
    ran = graftwork("ablate", *usual)
    assert (ran.status, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["bypassed", "none", "layer", "layer", "all", "3"]
    record = json.loads((tmp_path / "out" / "ablation.json").read_text())
    adapter = Adapter.load(tuned)
    backbone = Backbone.load(adapter.backbone.name, dtype="float32")
    whole = evaluate(adapter, backbone=backbone)
    assert {name: record["scores"][name] for name in whole} == whole
    assert (record["method"], record["rows"], record["evaluations"]) == ("lora", 12, 3.0)
    with (tmp_path / "out" / "ablation.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    muted = {name: tensor * 0 if name.endswith(".B") else tensor for name, tensor in adapter.tensors.items()}
    alone = evaluate(replace(adapter, tensors=muted), backbone=backbone)
    [last] = [row for row in rows if (row["first"], row["last"]) == ("0", "1")]
    assert {name: float(last[name]) for name in alone} == alone
    assert "exists already" in graftwork("ablate", *usual).err
    others = ("--data", data["classes"], "--rows", 5, "--batch-size", 2)
    ran = graftwork("ablate", *usual, "--overwrite", "--json", *others)
    assert json.loads(ran.out)["rows"] == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "nothing"], "unknown task 'nothing'"),
        (["--task", "conll2003"], "is of kind token-classification"),
        (["--text", "other"], "without data"),
        (["--split", "test", "--data", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_cannot_be_measured_is_refused(tuned, graftwork, tmp_path, arguments, said):
    ran = graftwork("ablate", tuned, "--quiet", "--output", tmp_path / "out", *arguments)
    assert ran.status == 2
    assert said in ran.err
    assert not (tmp_path / "out").exists()
