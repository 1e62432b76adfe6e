"""Multi-label classification: several of C labels of a text, or of a pair of texts, or none of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from graftwork.data.columns import Columns, Content, label_ids, label_text
from graftwork.data.table import Table
from graftwork.errors import DataError, MethodError, nearest
from graftwork.heads import IGNORED, PooledHead, States
from graftwork.heads.head import OutputType
from graftwork.heads.losses import LABELS
from graftwork.kinds.classification import C, Classification
from graftwork.kinds.kind import MORE, ProblemType, TaskLike
from graftwork.kinds.metrics import Metric, as_numbers, refuse_not_finite
from graftwork.kinds.prediction import Prediction, check_finite, widen

if TYPE_CHECKING:
    import datasets
    import numpy

    from graftwork.backbones import Backbone, Pooling
    from graftwork.encoding.identity import TaskIdentity
    from graftwork.heads import Head

NAME: Literal["multi-label-classification"] = "multi-label-classification"

SEPARATOR = "|"
"""Between the labels of a row, where they are one text."""


class MultiLabelHead(PooledHead):
    """Multi-label classification: a probability for each label, sigmoid(W · dropout(pooled) + b).

    Attributes:
        thresholds: for each label, the minimum probability at which it is predicted. None: 0.5. After training they are
            chosen on the validation rows, for the best F1 of each label.
    """

    kind: Literal["multi-label-classification"] = NAME  # type: ignore[assignment] # one of a kind of its own
    thresholds: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] | None = None

    @model_validator(mode="after")
    def _a_threshold_each(self) -> "MultiLabelHead":
        if self.thresholds is not None and len(self.thresholds) != self.num_outputs:
            raise ValueError(f"thresholds: {len(self.thresholds)} are given for {self.num_outputs} labels")
        return self

    @property
    def num_labels(self) -> int:
        return self.num_outputs

    @property
    def output_type(self) -> OutputType:
        return "labels"

    def sums(
        self, logits: Tensor, labels: Tensor, states: States, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Binary cross-entropy of each label of each row."""
        real = labels != IGNORED
        each = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
        return {LABELS: (each * real).sum()}

    def decide(self, logits: Tensor, mask: Tensor | None, parameters: Mapping[str, Tensor]) -> Tensor:
        """1 for each label that is given."""
        return (self.margins(logits) >= 0).long()

    def margins(self, logits: Tensor) -> Tensor:
        """How far logits are above those of the thresholds."""
        if self.thresholds is None:
            return logits
        # Near 1 a probability of float32 has too few digits.
        return logits - torch.tensor(self.thresholds, dtype=torch.float64).logit().to(logits)

    def calibrated(self, predictions: Any, labels: Any) -> "MultiLabelHead":
        chosen = [best_threshold(own, there) for own, there in zip(predictions.T, labels.T, strict=True)]
        return self.model_copy(update={"thresholds": tuple(chosen)})

    def apart(self, one: Tensor, other: Tensor, labels: Tensor) -> Tensor:
        """Half the sum of the two Kullback-Leibler divergences of each label's probability."""
        found = torch.zeros((), device=one.device)
        for a, b in ((one, other), (other, one)):
            p = torch.stack([F.logsigmoid(-a), F.logsigmoid(a)])
            q = torch.stack([F.logsigmoid(-b), F.logsigmoid(b)]).detach()
            found = found + (F.kl_div(p, q, reduction="none", log_target=True).sum(dim=0) * (labels != IGNORED)).sum()
        return found / 2


def best_threshold(logits: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    """The probability from which on a label is given, so that the F1 is the best: half-way between two rows' logits.
    Of several the one nearest to 0.5; 0.5 of a label that all rows have, or none.

    Args:
        logits: (N,).
        labels: (N,), 1 where a row has the label.
    """
    import numpy as np

    if len(set(labels.tolist())) < 2:
        return 0.5
    order = np.argsort(logits, kind="stable")
    sorted_logits, there = logits[order], labels[order]
    # With the first k rows below the threshold.
    right = there.sum() - np.concatenate([[0], np.cumsum(there)])
    given = len(there) - np.arange(len(there) + 1)
    scores = 2 * right / (given + there.sum())
    below = np.concatenate([[sorted_logits[0] - 1], sorted_logits])
    above = np.concatenate([sorted_logits, [sorted_logits[-1] + 1]])
    between = (below + above) / 2
    possible = below < above  # rows of equal logits are on one side
    usual = float(2 * ((logits >= 0) & (labels == 1)).sum() / max(1, (logits >= 0).sum() + labels.sum()))
    best = scores[possible].max()
    if usual >= best:
        return 0.5
    found = between[possible & (scores >= best)]
    nearest_one = float(found[np.abs(found).argmin()])
    # No further than float64 can tell from 0 and 1.
    return float(1 / (1 + np.exp(-np.clip(nearest_one, -30.0, 30.0))))


def _is_labels(value: Any) -> bool:
    return _is_label(value) or (isinstance(value, list) and all(map(_is_label, value)))


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int | float)


SEVERAL = Content("list of labels, or text with | between them", _is_labels, optional=True)


def _subset_accuracy(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    return float(((predictions >= 0) == labels).all(axis=1).mean())


def _f1(average: str) -> Any:
    def f1(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
        """The F1 over all labels of all rows, or the mean over those that rows have."""
        from sklearn.metrics import f1_score

        there = labels.any(axis=0)
        if not there.any():
            return 0.0
        own = slice(None) if average == "micro" else there
        return float(f1_score(labels[:, own], predictions[:, own] >= 0, average=average, zero_division=0.0))

    return f1


def _auc(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    """The mean area under the ROC curve, over the labels that some rows have and some have not; 0.5 without any."""
    from sklearn.metrics import roc_auc_score

    mixed = labels.any(axis=0) & ~labels.all(axis=0)
    return float(roc_auc_score(labels[:, mixed], predictions[:, mixed], average="macro")) if mixed.any() else 0.5


class MultiLabelClassification(Classification):
    """Several of C labels, or none.

    Columns of its datasets: those of classification, with `label` a list of 0 and 1, one for each label.
    """

    name = NAME
    label = SEVERAL
    one_class = False
    options: ClassVar[tuple[str, ...]] = ("labels", "label_ids")
    layouts = ()
    metrics: ClassVar[Mapping[str, Metric]] = {
        "f1_micro": Metric(_f1("micro")),
        "f1_macro": Metric(_f1("macro")),
        "subset_accuracy": Metric(_subset_accuracy),
        "roc_auc": Metric(_auc),
    }
    usual_metrics = 4
    problem_type: ClassVar[ProblemType | None] = "multi_label_classification"

    def label_columns(self, label: str) -> tuple[str, ...]:
        # A column of 0 and 1 for each label, with commas between them; else the one that holds a row's labels.
        return tuple(name.strip() for name in label.split(",") if name.strip())

    def gathered(self, label: str, table: Table) -> Table:
        columns = self.label_columns(label)
        if len(columns) == 1 or label in table.names:
            return table
        missing = [name for name in columns if name not in table.names]
        if missing:
            raise DataError(
                f"{table.origin} has no column {', '.join(map(repr, missing))}",
                expected=f"--label {nearest(missing[0], table.names)}",
                change="--label",
            )
        given = {name: [_one_or_none(value) for value in table.columns[name]] for name in columns}
        for name, values in given.items():
            wrong = [row for row, value in enumerate(values) if value is None]
            if wrong:
                raise DataError(
                    f"{table.origin} has {table.columns[name][wrong[0]]!r} in column {name!r}, which is neither 0 nor "
                    f"1: {table.places(wrong)}",
                    expected="a column of 0 and 1 for each label",
                    change="those rows, or --label",
                )
        lists = [[name for name in columns if given[name][row]] for row in range(len(table))]
        return replace(
            table,
            names=(*table.names, label),
            columns={**table.columns, label: lists},
            classes={**table.classes, label: columns},
        )

    def misfits(self, task: TaskLike, table: Table) -> list[tuple[str, str, str]]:
        values = table.columns[task.label]
        names = [_names(value) for value in values]
        twice = [row for row, own in enumerate(names) if len(set(own)) < len(own)]
        if twice:
            problem = f"a label more than once: {table.places(twice)}"
            return [(problem, "each label of a row once; or a column of 0 and 1 for each label", "--label")]
        if (
            task.labels is None
            and not table.classes.get(task.label)
            and {n for own in names for n in own} == {"0", "1"}
        ):
            problem = f"only the labels 0 and 1 in column {task.label!r}"
            return [
                (problem, "the labels of a row; or a column of 0 and 1 for each of them", "--label, as --label a,b")
            ]
        return []

    def label_names(self, values: Sequence[Any]) -> list[list[str]]:
        return [_names(value) for value in values]

    def columns(self, task: TaskLike, table: Table, *, grouped: bool) -> Columns:
        from datasets import List, Value

        texts: Columns = {field: (Value("string"), table.columns[own[0]]) for field, own in task.inputs.items()}
        names, labels = self.label_names(table.columns[task.label]), task.labels or ()
        found = label_ids(table, task.label, names, labels, as_ids=task.label_ids, layout="table")
        rows = [[int(i in own) for i in range(len(labels))] for own in found]
        return {**texts, "label": (List(Value("int64")), rows)}

    def named_labels(self, label: Any, names: Sequence[str]) -> list[str]:
        return [name for name, one in zip(names, label, strict=True) if one]

    def head(self, backbone: "Backbone", *, num_labels: int, pooling: "Pooling", **fields: Any) -> "Head":
        return MultiLabelHead(num_outputs=num_labels, pooling=pooling, **fields)

    def feature_head(self, *, num_labels: int, **fields: Any) -> "Head":
        raise MethodError(
            "feature extraction has no task model that gives an input several labels",
            expected="a method that tunes the backbone, or head-only",
            change="--method",
        )

    def plain(
        self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
    ) -> tuple[list[Any], list[Any]]:
        import numpy as np

        assert names is not None
        said, there = (
            [[names[int(i)] for i in np.flatnonzero(row)] for row in own]
            for own in (np.asarray(predictions) >= 0, labels)
        )
        return said, there

    def from_plain(
        self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
    ) -> tuple[Any, Any]:
        import numpy as np

        said, there = (
            np.asarray([[float(name in row) for name in names or ()] for row in own]) for own in (predictions, labels)
        )
        return said - 0.5, there.astype(int)

    def read(self, task: "TaskIdentity", head: "Head", logits: Tensor, inputs: Sequence[Any]) -> list[Prediction]:
        check_finite(logits)
        labels = task.labels or tuple(str(i) for i in range(logits.shape[-1]))
        found = []
        for given, row in zip(head.decide(logits, None, {}).tolist(), logits.sigmoid().tolist(), strict=True):
            own = tuple(label for label, one in zip(labels, given, strict=True) if one)
            found.append(Prediction(labels=own, scores=dict(zip(labels, row, strict=True))))
        return found

    def cells(self, found: Prediction) -> list[str]:
        scores = found.scores or {}
        return [SEPARATOR.join(found.labels or ()), " ".join(f"{scores[label]:.4f}" for label in found.labels or ())]

    def outcome(
        self, task: TaskLike, head: "Head", outputs: Mapping[int, Any], rows: "datasets.Dataset"
    ) -> tuple[Any, Any]:
        import numpy as np

        return cast(MultiLabelHead, head).margins(widen(outputs)).numpy(), np.asarray(self.labels_of(rows))

    def prepare(self, predictions: Any, labels: Any) -> tuple[Any, Any]:
        import numpy as np

        said, there = as_numbers(predictions, labels, ranks=2, kind=self.name, label_ranks=2)
        if said.shape != there.shape:
            raise ValueError(f"predictions {said.shape} and labels {there.shape} do not fit {self.name}")
        refuse_not_finite(np.isfinite(said))
        return said, there.astype(bool)

    def chance_warning(self, task: TaskLike, predictions: Any, labels: Any) -> tuple[str, str]:
        said, there = self.prepare(predictions, labels)
        if (said >= 0).any() or not there.any():
            return "", ""
        return f"the adapter gives no row a label, and {there.any(axis=1).mean():.0%} of the rows have one", MORE

    def linear_models(self) -> list[Any]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier

        return [OneVsRestClassifier(LogisticRegression(C=c, max_iter=200)) for c in C]

    def linear_outcomes(
        self,
        model: Any,
        vectors: "Mapping[str, numpy.ndarray]",
        labels: "Mapping[str, numpy.ndarray]",
        names: Sequence[str],
    ) -> "dict[str, numpy.ndarray]":
        import numpy as np

        logits = super().linear_outcomes(model, vectors, labels, names)
        pairs = zip(logits["validation"].T, labels["validation"].T, strict=True)
        chosen = np.array([best_threshold(own, there) for own, there in pairs])
        return {split: own - np.log(chosen / (1 - chosen)) for split, own in logits.items()}

    def linear_predictions(self, model: Any, vectors: "numpy.ndarray", labels: Sequence[str]) -> "numpy.ndarray":
        import numpy as np

        p = np.clip(np.asarray(model.predict_proba(vectors)), 1e-12, 1 - 1e-12)
        logits: numpy.ndarray = np.log(p / (1 - p))
        return logits


def _one_or_none(value: Any) -> bool | None:
    """Whether 0 or 1 is 1; None of anything else."""
    text = label_text(value).strip().lower() if value is not None else ""
    return {"0": False, "1": True, "false": False, "true": True}.get(text)


def _names(value: Any) -> list[str]:
    """A row's labels."""
    if value is None or value != value:  # NaN stands for None in a column of floats
        return []
    parts = [label_text(own) for own in value] if isinstance(value, list) else label_text(value).split(SEPARATOR)
    return [part.strip() for part in parts if part.strip()]
