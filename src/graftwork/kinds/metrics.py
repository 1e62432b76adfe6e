"""The metrics that kinds of task are scored by, over scikit-learn, scipy, seqeval, sacrebleu and rouge-score.

Each is on the scale of the library that it comes from: BLEU and chrF from 0 to 100, all others of their kind from 0 to
1. The notation is N rows and C classes (or, of a multiple choice, the most choices of any row).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.errors import DivergedError

if TYPE_CHECKING:
    import numpy


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        function: function from predictions and labels to the value. Both are ids (N,) of classes or choices, numbers
            (N,) for regression, or N lists of tags; for generation, N texts and N lists of references. None: the value
            is not computed from predictions (the loss).
        greater_is_better: whether a higher value is better.
        best: the value of perfect predictions.
        binary: whether the metric is for two classes only, with class 1 as the positive one.
        spans: whether the metric needs tags that mark spans, such as B-PER, I-PER and O.
        kinds: the kinds of task that the metric suits.
    """

    function: Callable[[Any, Any], float] | None
    greater_is_better: bool = True
    best: float = 1.0
    binary: bool = False
    spans: bool = False
    kinds: tuple[str, ...] = ()

    def goodness(self, value: float) -> float:
        """A value on a scale that all metrics have in common: 1 is perfect, and more is better. One that is the better
        the lower it is, such as a loss, is 1 / (1 + value).
        """
        return value / self.best if self.greater_is_better else 1 / (1 + value)


def accuracy(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    return float((predictions == labels).mean())


def f1(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))


def f1_macro(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    """The mean F1 over the classes that the labels have.

    scikit-learn leaves it to the predictions, too, over which classes it is: one that no row has, once predicted, makes
    one more. Here they are the same whatever is predicted. That they are the labels' and not all of the task's makes a
    perfect prediction 1; it is what scikit-learn gives where no absent class is predicted, and for SuperGLUE's CB.
    """
    import numpy as np
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, labels=np.unique(labels), average="macro", zero_division=0.0))


def matthews(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from sklearn.metrics import matthews_corrcoef

    if constant(predictions) or constant(labels):
        # The value scikit-learn gives too, but it warns where both hold the same single class.
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def pearson(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from scipy.stats import pearsonr

    return 0.0 if flat(predictions, labels) else float(pearsonr(predictions, labels).statistic)


def spearman(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from scipy.stats import spearmanr

    return 0.0 if flat(predictions, labels) else float(spearmanr(predictions, labels).statistic)


def r2(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    """R², the coefficient of determination: 1 - Σ (said - there)² / Σ (there - mean)².

    1 where all is right, 0 where nothing but the labels' mean is known, and below 0 where that would be better. Unlike
    a correlation it falls when the numbers are off in place or scale. Of labels that are all the same it is 0.0.
    """
    if constant(labels):
        return 0.0
    return float(1 - ((predictions - labels) ** 2).sum() / ((labels - labels.mean()) ** 2).sum())


def mse(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    return float(((predictions - labels) ** 2).mean())


def mae(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    return float(abs(predictions - labels).mean())


def constant(values: "numpy.ndarray") -> bool:
    """Whether they are all the same, but for float64's rounding."""
    import numpy as np

    return bool(np.ptp(values) <= 1e-13 * np.abs(values).max())


def flat(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> bool:
    """Whether there is no correlation to speak of: the labels are one number, or but for rounding the predictions are.

    It is then reported as 0.0: a head that says the same of every row knows nothing of the task, and a number, unlike
    NaN, can be compared with the next checkpoint's.

    What a collapsed head says still varies, by what rounding does to the states that it reads and to its sums, and that
    noise has a correlation of its own with the labels (0.1, for instance). In bfloat16 a state is known to 1 part in
    256: predictions that vary by less than that share of the labels' variation are noise. So are those that differ by
    some units of the last place in which float32 holds them.
    """
    import numpy as np

    scale = max(COARSEST * np.std(labels), FINEST * np.abs(predictions).max())
    return constant(labels) or bool(np.std(predictions) <= scale)


COARSEST = 2.0**-8
"""The spacing of bfloat16, relative to the number."""

FINEST = 2.0**-22
"""Four spacings of float32, relative to the number: a sum of a head's products is no nearer."""


Tags = Sequence[Sequence[str]]
References = Sequence[Sequence[str]]


def token_accuracy(predictions: Tags, labels: Tags) -> float:
    right = sum(
        a == b for said, there in zip(predictions, labels, strict=True) for a, b in zip(said, there, strict=True)
    )
    return right / sum(map(len, labels))


# seqeval counts spans as the CoNLL-2003 shared task's conlleval does: an I-X without its B-X begins a span.


def span_f1(predictions: Tags, labels: Tags) -> float:
    from seqeval.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0))


def span_precision(predictions: Tags, labels: Tags) -> float:
    from seqeval.metrics import precision_score

    return float(precision_score(labels, predictions, zero_division=0))


def span_recall(predictions: Tags, labels: Tags) -> float:
    from seqeval.metrics import recall_score

    return float(recall_score(labels, predictions, zero_division=0))


def streams(references: References) -> Any:
    """The first reference of each row, the second of each, …, as sacrebleu wants them; None where a row has fewer."""
    return [[row[i] if i < len(row) else None for row in references] for i in range(max(map(len, references)))]


def bleu(predictions: Sequence[str], references: References) -> float:
    from sacrebleu import corpus_bleu

    # `force` only silences a message about texts that look tokenized.
    return float(corpus_bleu(list(predictions), streams(references), force=True).score)


def chrf(predictions: Sequence[str], references: References) -> float:
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(list(predictions), streams(references)).score)


def rouge(name: str) -> Callable[[Sequence[str], References], float]:
    def mean_f1(predictions: Sequence[str], references: References) -> float:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer

        # The scorer's default as well, but it would log so each time. Lower case, and only a-z and 0-9 are kept.
        scorer = RougeScorer([name], tokenizer=DefaultTokenizer())
        rows = zip(predictions, references, strict=True)
        scores = [float(scorer.score_multi(known, said)[name].fmeasure) for said, known in rows]
        return sum(scores) / len(scores)

    return mean_f1


def exact_match(predictions: Sequence[str], references: References) -> float:
    rows = zip(predictions, references, strict=True)
    return sum(said.strip() in [text.strip() for text in known] for said, known in rows) / len(predictions)


def refuse_not_finite(usable: "numpy.ndarray") -> None:
    """Refuse predictions that are not finite.

    Args:
        usable: (N, …), whether each number is.

    Raises:
        DivergedError: some are not.
    """
    wrong = int((~usable.reshape(len(usable), -1)).any(axis=1).sum())
    if wrong:
        raise DivergedError(
            f"the predictions of {wrong} of {len(usable)} rows are not finite",
            expected="finite numbers",
            change="the learning rate (lower), or the precision",
        )


def as_numbers(
    predictions: Any, labels: Any, *, ranks: int, kind: str, label_ranks: int = 1
) -> "tuple[numpy.ndarray, numpy.ndarray]":
    """Predictions in float64, and labels, of as many rows.

    Args:
        ranks, label_ranks: dimensions of the predictions, and of the labels.

    Raises:
        ValueError: the shapes do not fit, or there are no rows.
    """
    import numpy as np

    # Half precision would overflow in the squares and tie in the ranks.
    predictions, labels = np.asarray(predictions, dtype=np.float64), np.asarray(labels)
    if ranks == 1 and predictions.ndim == 2 and predictions.shape[1] == 1:
        predictions = predictions[:, 0]
    if (
        predictions.ndim != ranks
        or labels.ndim != label_ranks
        or labels.shape[:1] != predictions.shape[:1]
        or not len(labels)
    ):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} do not fit {kind}")
    return predictions, labels
