"""Classification: one of C classes of a text, or of a pair of texts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graftwork.data.columns import LABEL, TEXT, Columns, Content, label_ids, label_text, sorted_names
from graftwork.errors import RecipeError, nearest
from graftwork.kinds.kind import MORE, Kind, TaskLike
from graftwork.kinds.metrics import Metric, accuracy, as_numbers, f1, f1_macro, matthews, refuse_not_finite
from graftwork.kinds.plain import OneClass

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

    from graftwork.backbones import Backbone, Pooling
    from graftwork.data.table import Table
    from graftwork.encoding.identity import TaskIdentity
    from graftwork.heads import Head
    from graftwork.kinds.prediction import Prediction

C = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of logistic regression's penalty, strongest first."""


class Classification(OneClass, Kind):
    """One of C classes.

    Columns of its datasets: `text` (str), `text_pair` (str; only of a task on pairs), `label` (int, the class's id).
    """

    name = "classification"
    inputs: ClassVar[Mapping[str, Content]] = {"text": TEXT, "text_pair": TEXT}
    label = LABEL
    options: ClassVar[tuple[str, ...]] = ("labels", "label_ids", "header")
    layouts: ClassVar[tuple[str, ...]] = ("glue", "movie-reviews", "lines", "class-folders")
    metrics: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric(accuracy),
        "f1_macro": Metric(f1_macro),
        "f1": Metric(f1, binary=True),
        "matthews_correlation": Metric(matthews),
    }
    usual_metrics = 2
    named = True
    pooled = True
    baseline: ClassVar[str | None] = "logistic regression"

    def label_names(self, values: Sequence[Any]) -> list[list[str]]:
        return [[label_text(value)] for value in values]

    def sorted_names(self, names: set[str]) -> tuple[str, ...]:
        return sorted_names(names)

    def columns(self, task: TaskLike, table: "Table", *, grouped: bool) -> Columns:
        from datasets import Value

        texts: Columns = {field: (Value("string"), table.columns[own[0]]) for field, own in task.inputs.items()}
        return {**texts, "label": (Value("int64"), self.ids(task, table))}

    def named_labels(self, label: Any, names: Sequence[str]) -> list[str]:
        return [names[label]]

    def ids(self, task: TaskLike, table: "Table") -> list[int]:
        """The id of each row's class."""
        names = self.label_names(table.columns[task.label])
        found = label_ids(table, task.label, names, task.labels or (), as_ids=task.label_ids, layout=task.layout)
        return [own[0] for own in found]

    def head(self, backbone: "Backbone", *, num_labels: int, pooling: "Pooling", **fields: Any) -> "Head":
        from graftwork.heads import PooledHead

        return PooledHead(kind="classification", num_outputs=num_labels, pooling=pooling, **fields)

    def read(self, task: "TaskIdentity", head: "Head", logits: "Tensor", inputs: Sequence[Any]) -> "list[Prediction]":
        from graftwork.kinds.prediction import best, check_finite

        check_finite(logits)
        labels = task.labels or tuple(str(i) for i in range(logits.shape[-1]))
        return [best(labels, row) for row in logits.softmax(dim=-1).tolist()]

    def check_metrics(self, names: Sequence[str], labels: Sequence[str] | None) -> None:
        for name in names:
            if self.metrics[name].binary and labels is not None and len(labels) != 2:
                raise RecipeError(
                    f"metric {name!r} is for two classes, and the task has {len(labels)}",
                    expected=nearest(name, [other for other, own in self.metrics.items() if not own.binary]),
                    change="metrics",
                )

    def labels_in(self, predictions: Any, labels: Any) -> tuple[str, ...] | None:
        return tuple(map(str, range(len(predictions[0]))))

    def prepare(self, predictions: Any, labels: Any) -> tuple[Any, Any]:
        import numpy as np

        said, there = as_numbers(predictions, labels, ranks=2, kind=self.name)
        refuse_not_finite(np.isfinite(said))
        return said.argmax(axis=1), there

    def chance_warning(self, task: TaskLike, predictions: Any, labels: Any) -> tuple[str, str]:
        names = task.labels or tuple(map(str, range(predictions.shape[1])))
        said, there = [names[i] for i in predictions.argmax(axis=1)], [names[i] for i in labels]
        return of_names(task, said, there, "row", blind="accuracy", other="f1_macro")

    def linear_models(self) -> list[Any]:
        from sklearn.linear_model import LogisticRegression

        return [LogisticRegression(C=c, max_iter=200) for c in C]

    def linear_predictions(self, model: Any, vectors: "numpy.ndarray", labels: Sequence[str]) -> "numpy.ndarray":
        import numpy as np

        # A class that was not in what was fitted on has none.
        found = np.zeros((len(vectors), len(labels)))
        found[:, model.classes_] = model.predict_proba(vectors)
        return found


def of_names(
    task: TaskLike, said: Sequence[str], there: Sequence[str], thing: str, *, blind: str, other: str
) -> tuple[str, str]:
    """Of names: one for everything, or names that agree with the labels no better than by chance.

    Args:
        thing: what has a name.
        blind, other: a metric that does not see it, and one that does.
    """
    if len(set(there)) < 2:
        return "", ""
    better = f"; or another first metric, which chooses the checkpoint (--task.metrics {other})"
    change = MORE + (better if task.main_metric == blind else "")
    if len(set(said)) == 1:
        share = Counter(there)[said[0]] / len(there)
        return (
            f"the adapter predicts {said[0]!r} for every {thing}, and {share:.0%} of the {thing}s have that label",
            change,
        )
    from sklearn.metrics import matthews_corrcoef

    ids = {name: i for i, name in enumerate(sorted({*said, *there}))}
    if float(matthews_corrcoef([ids[name] for name in there], [ids[name] for name in said])) <= 0:
        problem = f"the adapter's predictions agree with the labels of {thing}s no better than chance"
        return f"{problem} (Matthews correlation 0 or less)", change
    return "", ""
