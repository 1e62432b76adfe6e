"""The losses of distillation, against float64 code that writes their formulas out."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from graftwork.errors import MethodError
from graftwork.heads import ChoiceHead, FeatureHead, PooledHead, States, TokenHead
from graftwork.heads.distilling import DistillationLoss, require_distillable
from graftwork.heads.numbers import Scale
from graftwork.heads.objectives import ConsistencyLoss, LossInputs
from graftwork.kinds.multi_label import MultiLabelHead

RANDOM = np.random.RandomState(0)
S, T = RANDOM.normal(size=(5, 3)), 2 * RANDOM.normal(size=(5, 3))
LABELS = np.array([0, 2, 1, 1, 0])


def inputs(head, logits, labels, teacher, *, items=None, vectors=None, states=None, again=None):
    outputs = {"logits": torch.tensor(teacher)} | ({} if vectors is None else {"vectors": torch.tensor(vectors)})
    return LossInputs(
        head=head,
        parameters={},
        states=states or States(),
        logits=torch.tensor(logits),
        labels=torch.tensor(labels),
        items=items,
        again=again,
        teacher=outputs,
    )


def classes(num_outputs=3):
    return PooledHead(kind="classification", num_outputs=num_outputs, pooling="first")


def kl(s, t, temperature):
    p = softmax(t / temperature, axis=-1)
    return (p * (log_softmax(t / temperature, axis=-1) - log_softmax(s / temperature, axis=-1))).sum(axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_divergence_at_a_temperature(alpha, temperature):
    ce = -log_softmax(S, axis=-1)[np.arange(5), LABELS].mean()
    expected = (1 - alpha) * ce + alpha * temperature**2 * kl(S, T, temperature).mean()
    found = DistillationLoss(alpha, temperature)(inputs(classes(), S, LABELS, T))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_centred():
    target = T - T.mean(axis=1, keepdims=True)
    found = DistillationLoss(1.0, loss="centred")(inputs(classes(), S, LABELS, T))
    assert found.item() == pytest.approx(((S - target) ** 2).mean(), rel=1e-12)
    # One output is not centred: its target would be 0 whatever the teacher says.
    one = DistillationLoss(1.0, loss="centred")(inputs(classes(1), S[:, :1], LABELS * 0, T[:, :1]))
    assert one.item() == pytest.approx(((S - T)[:, 0] ** 2).mean(), rel=1e-12)


@pytest.mark.parametrize("loss", ["logits", "centred"])
def test_numbers_are_standardised_as_labels_are(loss):
    scale = Scale(mean=7.0, deviation=3.0)
    head = PooledHead(kind="regression", num_outputs=1, pooling="first", scale=scale)
    labels = RANDOM.normal(size=5)
    found = DistillationLoss(0.25, 2.0, loss)(inputs(head, S[:, :1], labels, T[:, :1]))
    own, taught = ((S[:, 0] - labels) / 3) ** 2, ((S[:, 0] - T[:, 0]) / 3) ** 2
    assert found.item() == pytest.approx(0.75 * own.mean() + 0.25 * taught.mean(), rel=1e-12)


def test_several_labels_are_choices_between_two_each():
    head = MultiLabelHead(num_outputs=3, pooling="first")
    p, q = expit(T / 2), expit(S / 2)
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    labels = np.ones((5, 3), dtype=np.int64)
    found = DistillationLoss(1.0, 2.0)(inputs(head, S, labels, T))
    assert found.item() == pytest.approx(4 * divergence.mean(), rel=1e-10)
    squared = DistillationLoss(1.0, loss="centred")(inputs(head, S, labels, T))
    assert squared.item() == pytest.approx(((S - T) ** 2).mean(), rel=1e-12)


def test_tags_are_compared_where_there_is_a_label_and_a_teacher():
    s, t = RANDOM.normal(size=(2, 4, 3)), RANDOM.normal(size=(2, 4, 3))
    labels = np.array([[-100, 0, 1, -100], [-100, 2, -100, -100]])
    t[0, 2] = np.nan  # a word that the teacher was not given
    t[0, 0] = np.nan
    found = DistillationLoss(1.0, 2.0)(inputs(TokenHead(num_outputs=3), s, labels, t))
    expected = 4 * (kl(s[0, 1], t[0, 1], 2.0) + kl(s[1, 1], t[1, 1], 2.0)) / 3
    assert found.item() == pytest.approx(expected, rel=1e-12)
    logits = torch.tensor(s, requires_grad=True)
    given = inputs(TokenHead(num_outputs=3), s, labels, t)
    DistillationLoss(0.5)(LossInputs(**{**vars(given), "logits": logits})).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("head", [classes(), MultiLabelHead(num_outputs=3, pooling="first")])
def test_vectors(head):
    states, vectors = RANDOM.normal(size=(5, 4, 6)).astype(np.float32), RANDOM.normal(size=(5, 6))
    labels = LABELS if head.kind == "classification" else np.ones((5, 3), dtype=np.int64)
    given = inputs(head, S, labels, T, vectors=vectors, states=States(last=torch.tensor(states)))
    without = DistillationLoss(1.0)(given).item()
    found = DistillationLoss(1.0, hidden=0.5)(given).item()
    assert found - without == pytest.approx(0.5 * ((states[:, 0] - vectors) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize("loss", ["logits", "centred"])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_batches_of_a_step_add_up_to_the_joined_batch(alpha, loss):
    objective, whole = DistillationLoss(alpha, 2.0, loss), inputs(classes(), S, LABELS, T)
    counts = classes().step_counts([{"labels": torch.tensor(LABELS)}])
    parts = [inputs(classes(), S[own], LABELS[own], T[own], items=counts) for own in (slice(0, 1), slice(1, 5))]
    assert sum(map(objective, parts)).item() == pytest.approx(objective(whole).item(), rel=1e-12)


def test_two_passes_keep_their_divergence():
    other = torch.tensor(S + 0.1)
    given = inputs(classes(), S, LABELS, T, again=lambda: other)
    found = ConsistencyLoss(2, DistillationLoss(1.0))(given)
    apart = classes().divergence(torch.tensor(S), other, torch.tensor(LABELS))
    assert found.item() == pytest.approx(DistillationLoss(1.0)(given).item() + apart.item(), rel=1e-12)


@pytest.mark.parametrize(
    "head",
    [
        ChoiceHead(pooling="first"),
        FeatureHead(task="token-classification", model="bilstm-crf", num_outputs=3),
        FeatureHead(task="multiple-choice", num_outputs=1),
    ],
)
def test_heads_that_cannot_learn_are_refused(head):
    with pytest.raises(MethodError, match="cannot learn from teachers"):
        require_distillable(head)
