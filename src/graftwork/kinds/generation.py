"""Generation: a text that is made of a text, by a causal or an encoder-decoder backbone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graftwork.data.columns import TEXT, Columns, Content
from graftwork.errors import MethodError
from graftwork.kinds.kind import MORE, Kind, Request, TaskLike
from graftwork.kinds.metrics import Metric, bleu, chrf, exact_match, rouge

if TYPE_CHECKING:
    import datasets
    from torch import Tensor

    from graftwork.backbones import Backbone, Pooling
    from graftwork.data.table import Table
    from graftwork.encoding import Encoder
    from graftwork.encoding.identity import TaskIdentity
    from graftwork.heads import Head
    from graftwork.kinds.prediction import Prediction


class Generation(Kind):
    """A text, made by a causal or an encoder-decoder backbone.

    Columns of its datasets: `text` (str), `target` (str), of validation and test also `references` (list of str).
    Training has a row for each target; validation and test have one for each source, with all its targets as
    `references`, of which the first is also the `target`.
    """

    name = "generation"
    inputs: ClassVar[Mapping[str, Content]] = {"text": TEXT}
    label = TEXT
    options = ("separator",)
    layouts = ("e2e",)
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss": Metric(None, greater_is_better=False),
        "bleu": Metric(bleu, best=100.0),
        "rougeL": Metric(rouge("rougeL")),
        "chrf": Metric(chrf, best=100.0),
        "rouge1": Metric(rouge("rouge1")),
        "rouge2": Metric(rouge("rouge2")),
        "exact_match": Metric(exact_match),
    }
    usual_metrics = 3
    generates = True
    unit = "source"
    says = "a text"

    def columns(self, task: TaskLike, table: "Table", *, grouped: bool) -> Columns:
        # Rows with one source become one row, with all their targets as references.
        from datasets import List, Value

        sources, targets = table.columns[task.inputs["text"][0]], table.columns[task.label]
        if not grouped:
            return {"text": (Value("string"), sources), "target": (Value("string"), targets)}
        references: dict[str, list[str]] = {}
        for source, target in zip(sources, targets, strict=True):
            references.setdefault(source, []).append(target)
        return {
            "text": (Value("string"), list(references)),
            "target": (Value("string"), [known[0] for known in references.values()]),
            "references": (List(Value("string")), list(references.values())),
        }

    def inputs_of(self, rows: "datasets.Dataset") -> Sequence[Any]:
        return list(rows["text"])

    def labels_of(self, rows: "datasets.Dataset") -> list[Any]:
        return list(rows["target"])

    def scored(self, rows: "datasets.Dataset") -> tuple[Sequence[Any], list[Any]]:
        # A place for each reference of a source.
        pairs = zip(rows["text"], references_of(rows), strict=True)
        both = [(text, reference) for text, known in pairs for reference in known]
        return [text for text, _ in both], [reference for _, reference in both]

    def prompted(self, backbone: "Backbone") -> bool:
        return True

    def head(self, backbone: "Backbone", *, num_labels: int, pooling: "Pooling", **fields: Any) -> "Head":
        from graftwork.heads import LanguageHead

        return LanguageHead(shifted=not backbone.is_encoder_decoder, **fields)

    def feature_head(self, *, num_labels: int, **fields: Any) -> "Head":
        raise MethodError(
            "feature extraction cannot generate text: its task models read the backbone's layers and not its "
            "language-model head",
            change="--method",
        )

    def encoder_class(self, head: "Head") -> "type[Encoder]":
        from graftwork.encoding import GenerationEncoder

        return GenerationEncoder

    def answers(self, request: Request) -> "list[Prediction]":
        from graftwork.kinds.prediction import Prediction

        texts = request.predictor.texts(
            request.inputs, request.adapter, batch_size=request.batch_size, **request.options
        )
        return [Prediction(generated=text) for text in texts]

    def read(self, task: "TaskIdentity", head: "Head", logits: "Tensor", inputs: Sequence[Any]) -> "list[Prediction]":
        raise NotImplementedError(self.name)  # there is no one row of logits for an input

    def shown_answer(self, found: "Prediction", given: Any) -> str:
        return str(found.generated)

    def prepare(self, predictions: Any, labels: Any) -> tuple[Any, Any]:
        if isinstance(predictions, str) or any(isinstance(row, str) or not len(row) for row in labels):
            raise ValueError(
                f"predictions and labels do not fit {self.name}: texts, and a list of references for each, are needed"
            )
        if len(predictions) != len(labels) or not len(labels):
            raise ValueError(f"{len(predictions)} texts and references of {len(labels)} do not fit {self.name}")
        return list(predictions), [list(row) for row in labels]

    def chance_warning(self, task: TaskLike, predictions: Any, labels: Any) -> tuple[str, str]:
        if len(set(predictions)) > 1 or len(set(map(tuple, labels))) < 2:
            return "", ""
        return f"the text {predictions[0]!r:.60} is generated of every source", MORE


def references_of(rows: "datasets.Dataset") -> list[list[str]]:
    """What may be said of each source."""
    if "references" in rows.column_names:
        return list(rows["references"])
    return [[target] for target in rows["target"]]
