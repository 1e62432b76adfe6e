"""The baseline of a run: a linear model on the frozen backbone's embeddings.

Each text, or pair encoded together, becomes the mean over the last layer's states of its tokens; on these numbers,
standardised by the training rows' mean and deviation, logistic regression is fitted, or ridge regression where the
label is a number. Of a few regularisation strengths, the one with the best validation score is used. The
adapter's score above it shows what tuning was worth.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from graftwork.backbones import Backbone
from graftwork.encoding import TaskIdentity, TextEncoder
from graftwork.heads import States
from graftwork.heads.pooled import pool
from graftwork.kinds import KINDS
from graftwork.kinds.scoring import compute
from graftwork.tasks import Task, TaskData
from graftwork.training.display import SILENT, Bar, Display

if TYPE_CHECKING:
    import numpy

Scores = dict[str, dict[str, float]]
"""By split, then by metric."""

ROWS = 10_000
"""Rows to fit on at most: the first ones. Those that are scored are all rows, as an adapter's are."""

BATCH = 64
"""Rows in one pass. It is the same in every run, because rounding depends on it."""

MARGIN = 0.01
"""An adapter is said to be below the baseline where it is so by more than this share of it: less is chance."""

logger = logging.getLogger(__name__)


def baseline(backbone: Backbone, data: TaskData, identity: TaskIdentity, display: Display = SILENT) -> Scores:
    """The baseline's scores on the validation split, and on the test split where there is one; empty where there can be
    no baseline.

    Args:
        backbone: with no adapter that acts.
        data: the task's.
        identity: how its texts are cut.
        display: where a bar shows how far it is.
    """
    kind = KINDS[data.task.kind]
    if kind.baseline is None:
        return {}
    train = data.train.select(range(min(ROWS, len(data.train))))
    splits = {"train": train, "validation": data.validation, **({} if data.test is None else {"test": data.test})}
    # The backbone alone has no rows for added tokens.
    encoder = TextEncoder(backbone, identity.model_copy(update={"added_tokens": ()}))
    total = sum(map(len, splits.values()))
    with display.bar(f"{data.task.name}, baseline", total, "rows") as bar:
        found = {name: embeddings(backbone, encoder, kind.inputs_of(rows), bar) for name, rows in splits.items()}
        bar.move(note=f"fitting {kind.baseline}")
        scores = probe(data.task, found, {name: kind.labels_of(rows) for name, rows in splits.items()})
        bar.move(note="")
    return scores


def embeddings(
    backbone: Backbone, encoder: TextEncoder, texts: Sequence[Any], bar: Bar | None = None
) -> "numpy.ndarray":
    """(N, d), float32: of each text the mean over the last layer's states, of an encoder-decoder the encoder's.

    Args:
        bar: it is moved on by each text.
    """
    model = backbone.base.get_encoder() if backbone.is_encoder_decoder else backbone.base
    rows = encoder.encode(texts)
    made = torch.empty(len(rows), backbone.hidden_size)
    with torch.no_grad():
        for places, batch in encoder.batches(rows, BATCH):
            last = model(**batch).last_hidden_state
            made[places] = pool(States(last=last, mask=batch.get("attention_mask")), "mean").cpu()
            if bar is not None:
                bar.advance(len(places))
    return made.numpy()


def probe(task: Task, vectors: Mapping[str, "numpy.ndarray"], labels: Mapping[str, Sequence[Any]]) -> Scores:
    """The scores of a linear model that is fitted on the split `train`, on the other ones; the strength with the best
    score on `validation`, by the task's first metric, is taken. Empty where nothing can be fitted.

    Args:
        vectors: (N, d) by split.
        labels: N of each.
    """
    import numpy as np

    y = {name: np.asarray(own) for name, own in labels.items()}
    if not all(np.isfinite(own).all() for own in vectors.values()):
        logger.warning("no baseline was measured: the backbone's states are not finite (--dtype)")
        return {}
    if len(np.unique(y["train"])) < 2:
        return {}
    kind, best = KINDS[task.kind], None
    main = kind.metrics[task.main_metric]
    for model in _models(task.kind):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged: it is a score, near enough
            model.fit(vectors["train"], y["train"])
        said = kind.linear_outcomes(model, vectors, y, task.labels or ())
        scores = {name: compute(task.metrics, task.kind, own, y[name]) for name, own in said.items() if name != "train"}
        value = scores["validation"][task.metrics[0]] * (1 if main.greater_is_better else -1)
        if best is None or value > best[0]:
            best = value, scores
    assert best is not None
    return best[1]


def below(task: Task, metrics: Mapping[str, Mapping[str, float]], scores: Scores) -> str:
    """A warning that an adapter is worse than the baseline on the validation split, with what to try; else empty."""
    if not scores:
        return ""
    name, sign = task.metrics[0], 1 if KINDS[task.kind].metrics[task.main_metric].greater_is_better else -1
    own, other = metrics["validation"][name], scores["validation"][name]
    if sign * (other - own) <= MARGIN * abs(other):
        return ""
    linear = KINDS[task.kind].baseline
    return (
        f"the adapter's validation {name} is {own:.4f}, and that of {linear} on the frozen embeddings "
        f"{other:.4f}: train longer (--train.num_train_epochs), with a higher learning rate (--train.learning_rate, "
        "--train.head_learning_rate), or with another pooling (--pooling)"
    )


def _models(kind: str) -> list[Any]:
    """Those that are compared, the strongest penalty first."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return [make_pipeline(StandardScaler(), model) for model in KINDS[kind].linear_models()]
