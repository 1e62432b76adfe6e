"""What a kind of task has to say: which columns its data have, how a model reads and answers it, and how it is scored.

A kind knows nothing of where data lie and of how a model is run. It imports what is heavy when it is asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from graftwork.data.columns import LABEL, Columns, Content
from graftwork.kinds.metrics import Metric

if TYPE_CHECKING:
    import datasets
    import numpy
    from torch import Tensor

    from graftwork.backbones import Backbone, Pooling
    from graftwork.data.table import Table
    from graftwork.encoding import Encoder
    from graftwork.encoding.identity import TaskIdentity
    from graftwork.heads import Head
    from graftwork.kinds.prediction import Prediction

MORE = "more epochs (--train.num_train_epochs) or a higher rate (--train.learning_rate)"
"""What to try where predictions are no better than chance."""


ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]


class TaskLike(Protocol):
    """What a kind reads of a task's declaration; see `graftwork.tasks.Task`."""

    @property
    def label(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...] | None: ...
    @property
    def label_ids(self) -> bool: ...
    @property
    def layout(self) -> str: ...
    @property
    def inputs(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def metrics(self) -> tuple[str, ...]: ...
    @property
    def main_metric(self) -> str: ...


class Predictor(Protocol):
    """What a kind asks of adapters on a model; see `graftwork.inference.predicting.Inference`."""

    def logits(self, inputs: Sequence[Any], adapter: str, *, batch_size: int) -> "Tensor": ...
    def tags(self, inputs: Sequence[Any], adapter: str, *, batch_size: int) -> list[list[str]]: ...
    def texts(
        self,
        inputs: Sequence[Any],
        adapter: str,
        *,
        batch_size: int,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
    ) -> list[str]: ...
    def decide(self, logits: "Tensor", mask: "Tensor | None", adapter: str) -> "Tensor": ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an adapter is asked to predict.

    Attributes:
        predictor: the model's, which runs the passes.
        adapter: its name.
        task, head: its task and head.
        inputs: what to predict from.
        batch_size: inputs in one pass.
        options: of generation, in the place of what it was tuned with.
    """

    predictor: Predictor
    adapter: str
    task: "TaskIdentity"
    head: "Head"
    inputs: Sequence[Any]
    batch_size: int
    options: Mapping[str, int | None]


class Kind(ABC):
    """A kind of task.

    Attributes:
        name: name of the kind.
        inputs: fields of a task that name columns of the inputs, in order, and the type of each.
        needed: the fields among them that are required.
        label: type of the label column.
        options: other fields of a task that only some kinds have.
        layouts: formats of data that the kind has in addition to tables: layouts of `graftwork.tasks.Task`.
        class_folders: whether the data may also be a folder with a folder of files per class.
        metrics: the metrics that suit the kind, the default ones first.
        usual_metrics: number of default metrics.
        named: whether all rows have labels from one list.
        pooled: whether the head reads one vector per input.
        one_class: whether each row has one class.
        generates: whether predictions are generated texts.
        by_token: whether each token of an input has its own logits.
        stratified: whether classes keep their proportions when rows are held out.
        from_start: whether the head is that of the adapter that a run begins with.
        unit: what is held out and counted, such as a row.
        baseline: name of the linear model on the frozen embeddings; None if there is none.
        problem_type: `problem_type` of `transformers.PretrainedConfig`, if it has one for the kind.
        takes: description of the inputs.
        says: description of the predictions; empty if they are labels.
        example: an input, as Python code.
        shown: description of an input in error messages, in the plural.
    """

    name: ClassVar[str]
    inputs: ClassVar[Mapping[str, Content]]
    needed: ClassVar[tuple[str, ...]] = ("text",)
    label: ClassVar[Content] = LABEL
    options: ClassVar[tuple[str, ...]] = ()
    layouts: ClassVar[tuple[str, ...]] = ()
    class_folders: ClassVar[bool] = False
    metrics: ClassVar[Mapping[str, Metric]]
    usual_metrics: ClassVar[int]
    named: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    one_class: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    by_token: ClassVar[bool] = False
    stratified: ClassVar[bool] = True
    from_start: ClassVar[bool] = False
    unit: ClassVar[str] = "row"
    baseline: ClassVar[str | None] = None
    problem_type: ClassVar[ProblemType | None] = None
    takes: ClassVar[str] = "texts"
    says: ClassVar[str] = ""
    example: ClassVar[str] = '"some text"'
    shown: ClassVar[str] = "single texts"

    # -- a task's data ------------------------------------------------------------------------------------------------

    def label_columns(self, label: str) -> tuple[str, ...]:
        """The columns that a task's `label` names."""
        return (label,)

    def gathered(self, label: str, table: "Table") -> "Table":
        """A table with one column of labels, where a task's `label` names several."""
        return table

    def label_names(self, values: Sequence[Any]) -> list[list[str]]:
        """The names of the labels of each row, which held-out rows must share with training. Without classes, none."""
        return [[] for _ in values]

    def sorted_names(self, names: set[str]) -> tuple[str, ...]:
        """The labels that rows have, in the order of their ids."""
        raise NotImplementedError(self.name)

    def misfits(self, task: TaskLike, table: "Table") -> list[tuple[str, str, str]]:
        """What is wrong with rows whose single values are right: the problem, what was expected, what to change."""
        return []

    def input_keys(self, columns: Sequence[Sequence[Any]]) -> list[Any]:
        """What tells the rows' inputs apart."""
        return [tuple(map(_hashable, values)) for values in zip(*columns, strict=True)]

    @abstractmethod
    def columns(self, task: TaskLike, table: "Table", *, grouped: bool) -> Columns:
        """The dataset's columns, of a table that is checked.

        Args:
            grouped: whether rows with one input may become one row.

        Raises:
            DataError: a label is not the task's.
        """

    def inputs_of(self, rows: "datasets.Dataset") -> Sequence[Any]:
        """A split's inputs, as `AdaptedModel.predict` takes them."""
        if "text_pair" in rows.column_names:
            return list(zip(rows["text"], rows["text_pair"], strict=True))
        return list(rows["text"])

    def labels_of(self, rows: "datasets.Dataset") -> list[Any]:
        """A split's labels, one for each input."""
        return list(rows["label"])

    def named_labels(self, label: Any, names: Sequence[str]) -> list[str]:
        """The names in one of a split's labels. Without classes, none.

        Args:
            label: as `labels_of` gives it.
            names: the task's labels.
        """
        return []

    def scored(self, rows: "datasets.Dataset") -> tuple[Sequence[Any], list[Any]]:
        """The inputs and labels over which the loss of a split is measured."""
        return self.inputs_of(rows), self.labels_of(rows)

    # -- a model's head and encoder -----------------------------------------------------------------------------------

    def prompted(self, backbone: "Backbone") -> bool:
        """Whether a source and a target are read by a backbone that generates."""
        return False

    @abstractmethod
    def head(self, backbone: "Backbone", *, num_labels: int, pooling: "Pooling", **fields: Any) -> "Head":
        """The head.

        Args:
            num_labels: classes or tags.
            pooling: how one vector is made of an input, where the head needs one.
            fields: more of its fields, which a method decides.
        """

    def feature_head(self, *, num_labels: int, **fields: Any) -> "Head":
        """The head of feature extraction, which mixes layers.

        Raises:
            MethodError: there is none for this kind.
        """
        from graftwork.heads import FeatureHead

        return FeatureHead(task="classification", num_outputs=num_labels, **fields)

    def encoder(self, backbone: "Backbone", task: "TaskIdentity", head: "Head", *, prompt_tokens: int) -> "Encoder":
        """How inputs are read."""
        return self.encoder_class(head)(backbone, task, prompt_tokens=prompt_tokens)

    def encoder_class(self, head: "Head") -> "type[Encoder]":
        """What reads inputs for a head."""
        from graftwork.encoding import TextEncoder

        return TextEncoder

    # -- its answers --------------------------------------------------------------------------------------------------

    def answers(self, request: Request) -> "list[Prediction]":
        """The predictions for some inputs."""
        logits = request.predictor.logits(request.inputs, request.adapter, batch_size=request.batch_size)
        return self.read(request.task, request.head, logits, request.inputs)

    @abstractmethod
    def read(self, task: "TaskIdentity", head: "Head", logits: "Tensor", inputs: Sequence[Any]) -> "list[Prediction]":
        """What the logits of a head mean.

        Args:
            logits: (N, C).
            inputs: N.

        Raises:
            AdapterError: they are not finite.
        """

    def plain(
        self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
    ) -> tuple[list[Any], list[Any]]:
        """Predictions and labels as files have them, row by row: classes and tags by name, numbers, texts.

        Args:
            predictions, labels: as metrics take them.
            names: the task's labels.
        """
        return [list(own) if isinstance(own, tuple) else own for own in predictions], list(labels)

    def from_plain(
        self, predictions: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None
    ) -> tuple[Any, Any]:
        """What `plain` gave, as metrics take it, so far as it says that: a class has one logit above the others."""
        return predictions, labels

    def shown_answer(self, found: "Prediction", given: Any) -> str:
        """An answer and its input as a line, or several, for people."""
        return "\t".join([*self.cells(found), *([given] if isinstance(given, str) else given)])

    def cells(self, found: "Prediction") -> list[str]:
        """What stands before the input in that line."""
        return [f"{found.label}", f"{found.score:.4f}"]

    def outputs_for(self, given: Any) -> int | None:
        """How many logits an input has; None: all that there are."""
        return None

    def outputs(
        self, predictor: Predictor, adapter: str, labels: Sequence[str], logits: "Tensor", rows: Sequence[Any]
    ) -> Sequence[Any]:
        """What of a pass over encoded rows is needed to score each of them."""
        return logits.cpu().unbind()

    def outcome(
        self, task: TaskLike, head: "Head", outputs: Mapping[int, Any], rows: "datasets.Dataset"
    ) -> tuple[Any, Any]:
        """Predictions and labels, as `compute` takes them, of the outputs of all rows."""
        import numpy as np

        from graftwork.kinds.prediction import widen

        return widen(outputs).numpy(), np.asarray(self.labels_of(rows))

    # -- how good they are --------------------------------------------------------------------------------------------

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """The metrics of a task that names none; the first chooses the best checkpoint."""
        return tuple(self.metrics)[: self.usual_metrics]

    def check_metrics(self, names: Sequence[str], labels: Sequence[str] | None) -> None:
        """Refuse metrics of the kind that are for other labels.

        Args:
            labels: the task's, where they are known.

        Raises:
            RecipeError: one is.
        """
        assert self.metrics.keys() >= set(names)

    def labels_in(self, predictions: Any, labels: Any) -> tuple[str, ...] | None:
        """The labels that predictions are about, where they tell them."""
        return None

    @abstractmethod
    def prepare(self, predictions: Any, labels: Any) -> tuple[Any, Any]:
        """Predictions and labels, as the functions of metrics take them.

        Raises:
            DivergedError: the predictions are not finite.
            ValueError: the shapes do not fit, or there are no rows.
        """

    def chance_warning(self, task: TaskLike, predictions: Any, labels: Any) -> tuple[str, str]:
        """Why predictions are no better than chance, and what to try; empty where they are."""
        return "", ""

    def linear_models(self) -> list[Any]:
        """Of scikit-learn, the baseline's models, the strongest penalty first."""
        raise NotImplementedError(self.name)

    def linear_outcomes(
        self,
        model: Any,
        vectors: "Mapping[str, numpy.ndarray]",
        labels: "Mapping[str, numpy.ndarray]",
        names: Sequence[str],
    ) -> "dict[str, numpy.ndarray]":
        """The predictions of a fitted one for each split, with what is chosen on the validation split.

        Args:
            vectors, labels: by split.
            names: the task's labels.
        """
        return {split: self.linear_predictions(model, own, names) for split, own in vectors.items()}

    def linear_predictions(self, model: Any, vectors: "numpy.ndarray", labels: Sequence[str]) -> "numpy.ndarray":
        """What a fitted one says, as `compute` takes it."""
        raise NotImplementedError(self.name)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
