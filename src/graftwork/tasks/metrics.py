"""The metrics a task may be judged by, as one table, over scikit-learn, scipy, seqeval, sacrebleu and rouge-score.

`METRICS` is data: each row says which kinds of task the metric suits, whether more is better, and how it is computed.
The notation is N rows and C classes (or, of a multiple choice, the most choices of any row).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from graftwork.errors import DivergedError, RecipeError, nearest

if TYPE_CHECKING:
    import numpy

Kind = Literal[
    "classification", "regression", "token-classification", "multiple-choice", "generation", "image-classification"
]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        function: (predictions, labels) -> value. Both are ids (N,) of classes or choices, numbers (N,) for regression,
            N lists of tags for tagging; of generation they are N texts and N lists of references. None: the value is
            not one of predictions, and whoever runs the model gives it.
        kinds: the kinds of task it suits.
        greater_is_better: whether the best checkpoint has the greatest value.
        binary: whether it is defined for two classes only; class 1 is then the positive one.
        spans: whether it is defined only for tags that mark spans, as B-PER, I-PER and O do.
    """

    function: Callable[[Any, Any], float] | None
    kinds: tuple[Kind, ...]
    greater_is_better: bool = True
    binary: bool = False
    spans: bool = False


def _accuracy(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    return float((predictions == labels).mean())


def _f1(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, zero_division=0.0))


def _f1_macro(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    """The mean F1 over the classes that the labels have.

    scikit-learn leaves it to the predictions, too, over which classes it is: one that no row has, once predicted, makes
    one more. Here they are the same whatever is predicted. That they are the labels' and not all of the task's makes a
    perfect prediction 1; it is what scikit-learn gives where no absent class is predicted, and for SuperGLUE's CB.
    """
    import numpy as np
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, labels=np.unique(labels), average="macro", zero_division=0.0))


def _matthews(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(predictions) or _constant(labels):
        # The value scikit-learn gives too, but it warns where both hold the same single class.
        return 0.0
    return float(matthews_corrcoef(labels, predictions))


def _pearson(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from scipy.stats import pearsonr

    return 0.0 if _flat(predictions, labels) else float(pearsonr(predictions, labels).statistic)


def _spearman(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    from scipy.stats import spearmanr

    return 0.0 if _flat(predictions, labels) else float(spearmanr(predictions, labels).statistic)


def _r2(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    """R², the coefficient of determination: 1 - Σ (said - there)² / Σ (there - mean)².

    1 where all is right, 0 where nothing but the labels' mean is known, and below 0 where that would be better. Unlike
    a correlation it falls when the numbers are off in place or scale. Of labels that are all the same it is 0.0.
    """
    if _constant(labels):
        return 0.0
    return float(1 - ((predictions - labels) ** 2).sum() / ((labels - labels.mean()) ** 2).sum())


def _mse(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    return float(((predictions - labels) ** 2).mean())


def _mae(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> float:
    return float(abs(predictions - labels).mean())


def _constant(values: "numpy.ndarray") -> bool:
    """Whether they are all the same, but for float64's rounding."""
    import numpy as np

    return bool(np.ptp(values) <= 1e-13 * np.abs(values).max())


def _flat(predictions: "numpy.ndarray", labels: "numpy.ndarray") -> bool:
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
    return _constant(labels) or bool(np.std(predictions) <= scale)


COARSEST = 2.0**-8
"""The spacing of bfloat16, relative to the number."""

FINEST = 2.0**-22
"""Four spacings of float32, relative to the number: a sum of a head's products is no nearer."""


Tags = Sequence[Sequence[str]]
References = Sequence[Sequence[str]]


def _token_accuracy(predictions: Tags, labels: Tags) -> float:
    right = sum(
        a == b for said, there in zip(predictions, labels, strict=True) for a, b in zip(said, there, strict=True)
    )
    return right / sum(map(len, labels))


# seqeval counts spans as the CoNLL-2003 shared task's conlleval does: an I-X without its B-X begins a span.


def _span_f1(predictions: Tags, labels: Tags) -> float:
    from seqeval.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0))


def _span_precision(predictions: Tags, labels: Tags) -> float:
    from seqeval.metrics import precision_score

    return float(precision_score(labels, predictions, zero_division=0))


def _span_recall(predictions: Tags, labels: Tags) -> float:
    from seqeval.metrics import recall_score

    return float(recall_score(labels, predictions, zero_division=0))


def _streams(references: References) -> Any:
    """The first reference of each row, the second of each, …, as sacrebleu wants them; None where a row has fewer."""
    return [[row[i] if i < len(row) else None for row in references] for i in range(max(map(len, references)))]


def _bleu(predictions: Sequence[str], references: References) -> float:
    from sacrebleu import corpus_bleu

    # `force` only silences a message about texts that look tokenized.
    return float(corpus_bleu(list(predictions), _streams(references), force=True).score)


def _chrf(predictions: Sequence[str], references: References) -> float:
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(list(predictions), _streams(references)).score)


def _rouge(name: str) -> Callable[[Sequence[str], References], float]:
    def mean_f1(predictions: Sequence[str], references: References) -> float:
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer

        # The scorer's default as well, but it would log so each time. Lower case, and only a-z and 0-9 are kept.
        scorer = RougeScorer([name], tokenizer=DefaultTokenizer())
        rows = zip(predictions, references, strict=True)
        scores = [float(scorer.score_multi(known, said)[name].fmeasure) for said, known in rows]
        return sum(scores) / len(scores)

    return mean_f1


def _exact_match(predictions: Sequence[str], references: References) -> float:
    rows = zip(predictions, references, strict=True)
    return sum(said.strip() in [text.strip() for text in known] for said, known in rows) / len(predictions)


_CLASSES: tuple[Kind, ...] = ("classification", "image-classification")
_TAGGING: tuple[Kind, ...] = ("token-classification",)
_GENERATION: tuple[Kind, ...] = ("generation",)

# Each on the scale of the library it comes from: BLEU and chrF from 0 to 100, all others of their kind from 0 to 1.
METRICS: dict[str, Metric] = {
    "accuracy": Metric(_accuracy, (*_CLASSES, "multiple-choice")),
    "f1": Metric(_f1, _CLASSES, binary=True),
    "f1_macro": Metric(_f1_macro, _CLASSES),
    "matthews_correlation": Metric(_matthews, _CLASSES),
    "r2": Metric(_r2, ("regression",)),
    "pearson": Metric(_pearson, ("regression",)),
    "spearman": Metric(_spearman, ("regression",)),
    "mse": Metric(_mse, ("regression",), greater_is_better=False),
    "mae": Metric(_mae, ("regression",), greater_is_better=False),
    "seqeval_f1": Metric(_span_f1, _TAGGING, spans=True),
    "seqeval_precision": Metric(_span_precision, _TAGGING, spans=True),
    "seqeval_recall": Metric(_span_recall, _TAGGING, spans=True),
    "token_accuracy": Metric(_token_accuracy, _TAGGING),
    "loss": Metric(None, _GENERATION, greater_is_better=False),
    "bleu": Metric(_bleu, _GENERATION),
    "chrf": Metric(_chrf, _GENERATION),
    "rouge1": Metric(_rouge("rouge1"), _GENERATION),
    "rouge2": Metric(_rouge("rouge2"), _GENERATION),
    "rougeL": Metric(_rouge("rougeL"), _GENERATION),
    "exact_match": Metric(_exact_match, _GENERATION),
}

DEFAULT_METRICS: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "f1_macro"),
    # A correlation is blind to place and scale, so that it does not choose the checkpoint.
    "regression": ("r2", "pearson", "spearman", "mse"),
    "token-classification": ("seqeval_f1", "seqeval_precision", "seqeval_recall", "token_accuracy"),
    "multiple-choice": ("accuracy",),
    "generation": ("loss", "bleu", "rougeL"),
    "image-classification": ("accuracy", "f1_macro"),
}

_SPAN_TAG = re.compile(r"O|[BIES]-.+", re.DOTALL)


def check_metrics(
    names: Sequence[str], kind: Kind, *, num_classes: int | None = None, tags: Sequence[str] | None = None
) -> None:
    """Refuses metrics that do not exist or do not suit the task.

    Args:
        names: the metrics' names.
        kind: the task's kind.
        num_classes: the number of classes, where it is known.
        tags: the tags of a task that tags words, where they are known.

    Raises:
        RecipeError: a name is unknown, of another kind, for two classes when there are more, or for spans when the
            tags mark none.
    """
    suitable = [name for name, metric in METRICS.items() if kind in metric.kinds]
    no_spans = [tag for tag in tags or () if not _SPAN_TAG.fullmatch(tag)]
    for name in names:
        if name not in METRICS:
            raise RecipeError(f"there is no metric {name!r}", expected=nearest(name, METRICS), change="metrics")
        if kind not in METRICS[name].kinds:
            raise RecipeError(
                f"metric {name!r} is for {' and '.join(METRICS[name].kinds)}, and the task's kind is {kind}",
                expected=nearest(name, suitable),
                change="metrics, or kind",
            )
        if METRICS[name].binary and num_classes is not None and num_classes != 2:
            raise RecipeError(
                f"metric {name!r} is for two classes, and the task has {num_classes}",
                expected=nearest(name, [other for other in suitable if not METRICS[other].binary]),
                change="metrics",
            )
        if METRICS[name].spans and no_spans:
            raise RecipeError(
                f"metric {name!r} is for tags that mark spans (O, B-PER, I-PER), and the task has "
                + ", ".join(map(repr, no_spans[:5])),
                expected=nearest(name, [other for other in suitable if not METRICS[other].spans]),
                change="metrics, or the tags",
            )


def compute(
    names: Sequence[str],
    kind: Kind,
    predictions: "numpy.ndarray | Sequence[str] | Sequence[Sequence[str]]",
    labels: "numpy.ndarray | Sequence[Sequence[str]]",
) -> dict[str, float]:
    """The named metrics of one model's predictions.

    Args:
        names: keys of `METRICS`.
        kind: the task's kind, on which the other two depend:

            | kind | predictions | labels |
            |---|---|---|
            | `classification`, `image-classification` | logits (N, C) | class ids (N,) |
            | `multiple-choice` | logits (N, C), -inf where a row has fewer than C choices | ids of choices (N,) |
            | `regression` | numbers (N,) or (N, 1) | numbers (N,) |
            | `token-classification` | N lists of tags, one for each word | N lists of tags |
            | `generation` | N texts | N lists of one or more references |

    Returns:
        One value for each name, in the order given, less `loss`: predictions do not tell it. Where a correlation is
        undefined, because the predictions or the labels are constant (but for rounding), and where there is no span, it
        is 0.0.

    Raises:
        RecipeError: a name is unknown or does not suit the kind.
        DivergedError: the predictions are not finite.
        ValueError: the shapes do not fit, or there are no rows.
    """
    said, there = _PREPARE[kind](names, kind, predictions, labels)
    functions = {name: METRICS[name].function for name in names}
    return {name: function(said, there) for name, function in functions.items() if function is not None}


def _prepare_numbers(names: Sequence[str], kind: Kind, predictions: Any, labels: Any) -> tuple[Any, Any]:
    import numpy as np

    # Half precision would overflow in the squares and tie in the ranks.
    predictions = np.asarray(predictions, dtype=np.float64)
    labels = np.asarray(labels)
    if kind == "regression" and predictions.ndim == 2 and predictions.shape[1] == 1:
        predictions = predictions[:, 0]
    ranks = 1 if kind == "regression" else 2
    if predictions.ndim != ranks or labels.shape != predictions.shape[:1] or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} do not fit {kind}")
    check_metrics(names, kind, num_classes=predictions.shape[1] if kind in _CLASSES else None)
    usable = np.isfinite(predictions).reshape(len(labels), -1)
    if kind == "multiple-choice":
        # The right choice is never an absent one.
        usable = (usable | np.isneginf(predictions)) & usable[np.arange(len(labels)), labels][:, None]
    wrong = int((~usable).any(axis=1).sum())
    if wrong:
        raise DivergedError(
            f"the predictions of {wrong} of {len(labels)} rows are not finite",
            expected="finite numbers",
            change="the learning rate (lower), or the precision",
        )
    if kind == "regression":
        return predictions, labels.astype(np.float64)
    return predictions.argmax(axis=1), labels


def _prepare_tags(names: Sequence[str], kind: Kind, predictions: Any, labels: Any) -> tuple[Any, Any]:
    said, there = [list(row) for row in predictions], [list(row) for row in labels]
    lengths = [len(row) for row in said], [len(row) for row in there]
    if lengths[0] != lengths[1] or not sum(lengths[1]):
        raise ValueError(
            f"{len(said)} lists of {sum(lengths[0])} predicted tags and {len(there)} lists of {sum(lengths[1])} tags "
            f"do not fit {kind}: one tag for each word is needed in both"
        )
    check_metrics(names, kind, tags=sorted({tag for row in (*said, *there) for tag in row}))
    return said, there


def _prepare_texts(names: Sequence[str], kind: Kind, predictions: Any, labels: Any) -> tuple[Any, Any]:
    if isinstance(predictions, str) or any(isinstance(row, str) or not len(row) for row in labels):
        raise ValueError(
            f"predictions and labels do not fit {kind}: texts, and a list of references for each, are needed"
        )
    if len(predictions) != len(labels) or not len(labels):
        raise ValueError(f"{len(predictions)} texts and references of {len(labels)} do not fit {kind}")
    check_metrics(names, kind)
    return list(predictions), [list(row) for row in labels]


_PREPARE: dict[Kind, Callable[[Sequence[str], Kind, Any, Any], tuple[Any, Any]]] = {
    "classification": _prepare_numbers,
    "regression": _prepare_numbers,
    "token-classification": _prepare_tags,
    "multiple-choice": _prepare_numbers,
    "generation": _prepare_texts,
    "image-classification": _prepare_numbers,
}
