"""The metrics a task may be judged by, as one table, over scikit-learn and scipy.

`METRICS` is data: each row says which kind of task the metric suits, whether more is better, and how it is computed.
The notation is N rows and C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from graftwork.errors import RecipeError, nearest

if TYPE_CHECKING:
    import numpy

Kind = Literal["classification", "regression"]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        function: (predictions, labels) -> value; both are class ids (N,) for classification, numbers (N,) for
            regression.
        kind: the kind of task it suits.
        greater_is_better: whether the best checkpoint has the greatest value.
        binary: whether it is defined for two classes only; class 1 is then the positive one.
    """

    function: Callable[["numpy.ndarray", "numpy.ndarray"], float]
    kind: Kind
    greater_is_better: bool = True
    binary: bool = False


def _accuracy(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    return float((predictions == labels).mean())


def _f1(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))


def _f1_macro(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _matthews(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions) or _constant(labels):
        # The value scikit-learn gives too, but it warns where both hold the same single class.
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from scipy.stats import pearsonr

    return 0.0 if _constant(predictions) or _constant(labels) else float(pearsonr(predictions, labels).statistic)


def _spearman(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from scipy.stats import spearmanr

    return 0.0 if _constant(predictions) or _constant(labels) else float(spearmanr(predictions, labels).statistic)


def _mse(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    return float(((predictions - labels) ** 2).mean())


def _mae(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    return float(abs(predictions - labels).mean())


def _constant(values: "numpy.ndarray") -> bool:
    """Whether a correlation with `values` is undefined.

    It is then reported as 0.0: a head that says the same of every row knows nothing of the task, and a number, unlike
    NaN, can be compared with the next checkpoint's.
    """
    import numpy as np

    # Floats that differ by rounding only are constant too: their correlation is noise.
    return bool(np.ptp(values) <= 1e-13 * np.abs(values).max())


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, "classification"),
    "f1": Metric(_f1, "classification", binary=True),
    "f1_macro": Metric(_f1_macro, "classification"),
    "matthews_correlation": Metric(_matthews, "classification"),
    "pearson": Metric(_pearson, "regression"),
    "spearman": Metric(_spearman, "regression"),
    "mse": Metric(_mse, "regression", greater_is_better=False),
    "mae": Metric(_mae, "regression", greater_is_better=False),
}

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "f1_macro"),
    "regression": ("pearson", "spearman", "mse"),
}


def check_metrics(names: Sequence[str], kind: Kind, num_classes: int | None = None) -> None:
    """Refuses metrics that do not exist or do not suit the task.

    Args:
        names: the metrics' names.
        kind: the task's kind.
        num_classes: the number of classes, where it is known.

    Raises:
        RecipeError: a name is unknown, of the other kind, or for two classes when there are more.
    """
    suitable = [name for name, metric in METRICS.items() if metric.kind == kind]
    for name in names:
        if name not in METRICS:
            raise RecipeError(f"there is no metric {name!r}", expected=nearest(name, METRICS), change="metrics")
        if METRICS[name].kind != kind:
            raise RecipeError(
                f"metric {name!r} is for {METRICS[name].kind}, and the task's kind is {kind}",
                expected=nearest(name, suitable),
                change="metrics, or kind",
            )
        if METRICS[name].binary and num_classes is not None and num_classes != 2:
            raise RecipeError(
                f"metric {name!r} is for two classes, and the task has {num_classes}",
                expected=nearest(name, [other for other in suitable if not METRICS[other].binary]),
                change="metrics",
            )


def compute(
    names: Sequence[str], kind: Kind, predictions: "numpy.ndarray", labels: "numpy.ndarray"
) -> dict[str, float]:
    """The named metrics of one model's predictions.

    Args:
        names: keys of `METRICS`.
        kind: the task's kind.
        predictions: logits (N, C) for classification; (N,) or (N, 1) for regression.
        labels: class ids (N,) for classification; numbers (N,) for regression.

    Returns:
        One value for each name, in the order given. Where a correlation is undefined, because the predictions or the
        labels are constant, it is 0.0.

    Raises:
        RecipeError: a name is unknown or does not suit the kind, or the predictions are not finite.
        ValueError: the shapes do not fit, or there are no rows.
    """
    import numpy as np

    # Half precision would overflow in the squares and tie in the ranks.
    predictions = np.asarray(predictions, dtype=np.float64)
    labels = np.asarray(labels)
    if kind == "regression" and predictions.ndim == 2 and predictions.shape[1] == 1:
        predictions = predictions[:, 0]
    ranks = 2 if kind == "classification" else 1
    if predictions.ndim != ranks or labels.shape != predictions.shape[:1] or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} do not fit {kind}")
    check_metrics(names, kind, predictions.shape[1] if kind == "classification" else None)
    wrong = int((~np.isfinite(predictions)).reshape(len(labels), -1).any(axis=1).sum())
    if wrong:
        raise RecipeError(
            f"the predictions of {wrong} of {len(labels)} rows are not finite",
            expected="finite numbers",
            change="the learning rate (lower), or the precision",
        )
    if kind == "classification":
        predictions = predictions.argmax(axis=1)
    else:
        labels = labels.astype(np.float64)
    return {name: METRICS[name].function(predictions, labels) for name in names}
