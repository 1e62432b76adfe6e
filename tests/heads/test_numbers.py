"""Heads that say numbers: standardised inside, on the labels' scale outside."""

import json
import logging
import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tiny import batch_for, make_backbone, outdate

from graftwork import AdaptedModel
from graftwork.adapters import Adapter, TaskIdentity
from graftwork.adapters.folder import CONFIG
from graftwork.heads import FeatureHead, PooledHead, States
from graftwork.heads.numbers import Scale
from graftwork.kinds.heads import AnyHead, head_for
from graftwork.methods import FeatureExtraction, HeadOnly

PRICES = [50_000.0, 150_000.0, 100_000.0, 60_000.0]
MEAN, DEVIATION = 90_000.0, math.sqrt(1.55e9)
"""Deviations (-40, 60, 10, -30) thousand: their squares' mean is (1600 + 3600 + 100 + 900) / 4 millions."""

HEADS = {
    "pooled": PooledHead(kind="regression", num_outputs=1, pooling="first", dropout=0.0),
    "mixed": FeatureHead(task="regression", num_outputs=1, dropout=0.0),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_fitted_head_says_numbers_on_the_labels_scale(head):
    fitted = head.fitted(PRICES)
    assert (fitted.scale.mean, fitted.scale.deviation) == (MEAN, pytest.approx(DEVIATION))
    assert head.scale is None
    backbone = make_backbone("bert")
    parameters = {
        name: torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        for name, p in head.declare(backbone).items()
    }
    last = torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(1))
    states = States(last=last, layers=(last,) * 3)
    plain = head.logits(states, parameters, training=False)
    said = fitted.logits(states, parameters, training=False)
    # Half a unit of the last place of 100,000 in float32 is 0.004.
    torch.testing.assert_close(said, plain * fitted.scale.deviation + MEAN, rtol=0, atol=0.02)
    assert torch.equal(fitted.decide(said, None, parameters), said[:, 0])

    labels = torch.tensor(PRICES)
    loss = fitted.loss(said, labels, states, parameters)
    errors = ((said[:, 0] - labels) / DEVIATION) ** 2
    torch.testing.assert_close(loss, errors.mean(), rtol=1e-6, atol=0)
    # Whoever says the mean of all rows loses 1, and without a scale the variance.
    mean = torch.full((4, 1), MEAN)
    assert float(fitted.loss(mean, labels, states, parameters)) == pytest.approx(1.0)
    assert float(head.loss(mean, labels, states, parameters)) == pytest.approx(DEVIATION**2)
    apart = fitted.divergence(said, mean, labels)
    torch.testing.assert_close(apart, (((said - mean) / DEVIATION) ** 2).mean(), rtol=1e-6, atol=0)


def test_other_heads_have_no_scale():
    backbone = make_backbone("bert")
    for kind in ("classification", "token-classification", "multiple-choice"):
        head = head_for(kind, backbone, num_labels=3, pooling="first")
        assert head.fitted([0, 1, 2]) == head


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_every_number_is_counted(head):
    """-100 is a number, and marks nothing."""
    labels = torch.tensor([-100.0, 1.0, -100.0])
    assert {name: int(count) for name, count in head.counts(labels).items()} == {"labels": 3}
    said = torch.tensor([[-99.0], [1.0], [-100.0]])
    assert float(head.loss(said, labels, States(), {})) == pytest.approx(1 / 3)


def test_labels_that_are_all_the_same_have_no_scale_of_their_own():
    for value in (0.0, 0.1, 1e20):
        scale = Scale.of([value] * 7)
        assert (scale.mean, scale.deviation) == (pytest.approx(value), 1.0)


def test_labels_far_from_zero_are_told_of(caplog):
    with caplog.at_level(logging.WARNING):
        Scale.of([2_000.0, 2_001.0])
        assert not caplog.records
        Scale.of([1.7e9, 1.7e9 + 1_000])
    assert "subtract a constant" in caplog.text


@pytest.mark.parametrize(
    "scale", [{"mean": "x", "deviation": 1}, {"mean": 0, "deviation": 0}, {"mean": math.nan, "deviation": 1}]
)
def test_a_scale_that_is_none_is_refused(scale):
    content = {**HEADS["pooled"].model_dump(), "scale": scale}
    with pytest.raises(ValidationError):
        TypeAdapter(AnyHead).validate_python(content)


@pytest.mark.parametrize("case", HEADS)
def test_it_is_saved_with_the_adapter_and_old_ones_say_what_they_said(case, tmp_path):
    backbone = make_backbone("bert")
    method = HeadOnly() if case == "pooled" else FeatureExtraction(dropout=0.0)
    adapter = Adapter.create(backbone, method, HEADS[case].fitted(PRICES), TaskIdentity(name="prices"))
    adapter.save(tmp_path / "a")
    assert Adapter.load(tmp_path / "a").head == adapter.head
    # As it was written before there was a scale.
    content = json.loads((tmp_path / "a" / CONFIG).read_text())
    del content["head"]["scale"]
    (tmp_path / "a" / CONFIG).write_text(json.dumps(content))
    outdate(tmp_path / "a")
    old = Adapter.load(tmp_path / "a")
    assert old.head == HEADS[case]
    batch = batch_for(backbone, 5, 4)
    model = AdaptedModel(backbone, {"new": adapter, "old": old})
    with torch.no_grad():
        new, was = (model(**batch, adapters=name).logits for name in ("new", "old"))
    assert was.abs().max() < 10
    torch.testing.assert_close(new, was * adapter.head.scale.deviation + MEAN, rtol=1e-6, atol=0)
