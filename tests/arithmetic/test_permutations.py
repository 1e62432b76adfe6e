"""Permutation specifications: what they move leaves every model's function as it was."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, GENERATORS, inputs_for, make_backbone, make_config, randomised
from transformers import (
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from graftwork.arithmetic.alignment.permutations import Group
from graftwork.arithmetic.alignment.specifications import checkpoint_specification, specification_of
from graftwork.backbones import Backbone
from graftwork.backbones.families.symmetries import Symmetries
from graftwork.errors import BackboneError, WeightsError

PRESERVED = 1e-12
"""Relative to the largest output, in float64: sums in another order."""


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """Norms that transformers computes in float32, whatever a model's precision, are computed in float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def outputs(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


def same(found, expected):
    assert (found - expected).abs().max() <= PRESERVED * expected.abs().max()


def units(specification):
    """Groups without the place where they stand."""
    return {name.rpartition(".")[2] for name in specification.groups}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_permuted_backbone_computes_the_same(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    inputs = inputs_for(backbone.model, 7, 4)
    before = outputs(backbone.model, **inputs)
    specification = specification_of(backbone)
    permutations = specification.random(seed=1)
    assert permutations.num_moved > 0
    permuted = permutations.apply(backbone.model.state_dict())
    backbone.model.load_state_dict(permuted)
    after = outputs(backbone.model, **inputs)
    stream = (
        "residual" if "residual" in specification.groups else max(n for n in specification.groups if "residual" in n)
    )
    moved = before[0].index_select(1 if before[0].dim() == 4 else -1, permutations[stream])
    same(after[0], moved)
    if "pooler" in specification.groups:
        same(after.pooler_output, before.pooler_output[:, permutations["pooler"]])


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_permuted_language_model_gives_the_same_logits(kind):
    backbone = make_backbone(kind, dtype=torch.float64, head=True)
    inputs = inputs_for(backbone.model, 7, 4)
    before = outputs(backbone.model, **inputs).logits
    backbone.model.load_state_dict(specification_of(backbone).random().apply(backbone.model.state_dict()))
    same(outputs(backbone.model, **inputs).logits, before)


HEADS = [
    *((AutoModelForSequenceClassification, kind) for kind in ("bert", "roberta", "electra", "distilbert", "albert")),
    *((AutoModelForSequenceClassification, kind) for kind in ("deberta-v2", "mpnet", "gpt2", "llama", "qwen2")),
    *((AutoModelForTokenClassification, kind) for kind in ("bert", "roberta", "distilbert", "deberta-v2")),
    *((AutoModelForQuestionAnswering, kind) for kind in ("bert", "distilbert")),
    *((AutoModelForImageClassification, kind) for kind in ("vit", "dinov2", "resnet")),
]


@pytest.mark.parametrize(("auto", "kind"), HEADS)
def test_a_permuted_checkpoint_with_a_head_gives_the_same_logits(auto, kind, tmp_path):
    fields = {} if auto is AutoModelForQuestionAnswering else {"num_labels": 3}
    model = randomised(auto.from_config(make_config(kind, pad_token_id=0, **fields))).to(torch.float64).eval()
    inputs = inputs_for(model, 7, 4)
    before = outputs(model, **inputs)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    specification = checkpoint_specification(
        Backbone.outline(str(tmp_path)), {name: tuple(tensor.shape) for name, tensor in stored.items()}
    )
    permuted = {name: tensor.contiguous() for name, tensor in specification.random(seed=2).apply(stored).items()}
    save_file(permuted, tmp_path / "model.safetensors", metadata={"format": "pt"})
    after = outputs(auto.from_pretrained(tmp_path, dtype=torch.float64).eval(), **inputs)
    same(after[0], before[0])
    if auto is AutoModelForQuestionAnswering:
        same(after[1], before[1])


GROUPS = {
    "bert": "embeddings residual pooler units heads query_units value_units",
    "gpt2": "residual units heads query_units value_units",
    "llama": "residual units heads queries value_units",
    "vit": "residual pooler units heads query_units value_units",
    "t5": "residual units",
    "resnet": "residual.0 residual.1 residual.2 first second",
}


@pytest.mark.parametrize("kind", GROUPS)
def test_the_groups_of_a_family(kind):
    groups = specification_of(make_backbone(kind)).groups
    found = {name if name.startswith("residual") else name.rpartition(".")[2] for name in groups}
    assert found == {*GROUPS[kind].split()} - {"embeddings"}
    if kind == "llama":
        assert groups["layers.1.attention.queries"] == Group(2, within="layers.1.attention.heads")
        assert groups["layers.1.attention.heads"] == Group(2)


def test_an_unknown_head_and_a_family_without_a_table_are_refused(monkeypatch):
    backbone = make_backbone("bert")
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"'cls\.predictions\.weight' is neither of the backbone nor of a task head"):
        checkpoint_specification(backbone, {**shapes, "cls.predictions.weight": (3, 32)})
    monkeypatch.setattr(backbone, "family", replace(backbone.family, symmetries=None))
    with pytest.raises(BackboneError, match="not known which units of the family 'bert-like'"):
        specification_of(backbone)
    partial = Symmetries(axes={"embeddings.word": (None, "residual")})
    monkeypatch.setattr(backbone, "family", replace(backbone.family, symmetries=partial))
    with pytest.raises(BackboneError, match=r"say nothing of 'embeddings\.position'"):
        specification_of(backbone)
