"""Regression: one number of a text, or of a pair of texts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graftwork.data.columns import LABEL, TEXT, Columns, Content
from graftwork.data.numbers import read_numbers
from graftwork.kinds.kind import MORE, Kind, ProblemType, TaskLike
from graftwork.kinds.metrics import Metric, as_numbers, mae, mse, pearson, r2, refuse_not_finite, spearman

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

    from graftwork.backbones import Backbone, Pooling
    from graftwork.data.table import Table
    from graftwork.encoding.identity import TaskIdentity
    from graftwork.heads import Head
    from graftwork.kinds.prediction import Prediction

ALPHA = (10_000.0, 1_000.0, 100.0, 10.0)
"""Strengths of ridge regression's penalty."""


class Regression(Kind):
    """One number.

    Columns of its datasets: those of classification, with `label` a float.
    """

    name = "regression"
    inputs: ClassVar[Mapping[str, Content]] = {"text": TEXT, "text_pair": TEXT}
    label = LABEL
    metrics: ClassVar[Mapping[str, Metric]] = {
        # A correlation is blind to place and scale, so that it does not choose the checkpoint.
        "r2": Metric(r2),
        "pearson": Metric(pearson),
        "spearman": Metric(spearman),
        "mse": Metric(mse, greater_is_better=False),
        "mae": Metric(mae, greater_is_better=False),
    }
    usual_metrics = 4
    options = ("header",)
    layouts = ("glue", "lines")
    pooled = True
    baseline = "ridge regression"
    problem_type: ClassVar[ProblemType | None] = "regression"
    says = "a number"

    def columns(self, task: TaskLike, table: "Table", *, grouped: bool) -> Columns:
        from datasets import Value

        texts: Columns = {field: (Value("string"), table.columns[own[0]]) for field, own in task.inputs.items()}
        return {**texts, "label": (Value("float64"), read_numbers(table, task.label))}

    def head(self, backbone: "Backbone", *, num_labels: int, pooling: "Pooling", **fields: Any) -> "Head":
        from graftwork.heads import PooledHead

        return PooledHead(kind="regression", num_outputs=1, pooling=pooling, **fields)

    def feature_head(self, *, num_labels: int, **fields: Any) -> "Head":
        from graftwork.heads import FeatureHead

        return FeatureHead(task="regression", num_outputs=1, **fields)

    def plain(
        self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
    ) -> tuple[list[Any], list[Any]]:
        return [float(own) for row in predictions for own in row], [float(own) for own in labels]

    def from_plain(
        self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
    ) -> tuple[Any, Any]:
        import numpy as np

        return np.asarray(predictions), np.asarray(labels)

    def read(self, task: "TaskIdentity", head: "Head", logits: "Tensor", inputs: Sequence[Any]) -> "list[Prediction]":
        from graftwork.kinds.prediction import Prediction, check_finite

        check_finite(logits)
        return [Prediction(label=row[0]) for row in logits.tolist()]

    def cells(self, found: "Prediction") -> list[str]:
        return [f"{found.label:.4f}"]

    def prepare(self, predictions: Any, labels: Any) -> tuple[Any, Any]:
        import numpy as np

        said, there = as_numbers(predictions, labels, ranks=1, kind=self.name)
        refuse_not_finite(np.isfinite(said))
        return said, there.astype(np.float64)

    def chance_warning(self, task: TaskLike, predictions: Any, labels: Any) -> tuple[str, str]:
        import numpy as np

        if np.ptp(labels) == 0:
            return "", ""
        found = r2(*self.prepare(predictions, labels))
        return (f"the numbers are no better than the labels' mean (R² {found:.2f})", MORE) if found <= 0 else ("", "")

    def linear_models(self) -> list[Any]:
        from sklearn.linear_model import Ridge

        return [Ridge(alpha=alpha) for alpha in ALPHA]

    def linear_predictions(self, model: Any, vectors: "numpy.ndarray", labels: Sequence[str]) -> "numpy.ndarray":
        import numpy as np

        return np.asarray(model.predict(vectors))
