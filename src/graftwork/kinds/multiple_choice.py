"""Multiple choice: one of the choices that a question comes with."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graftwork.data.columns import CHOICE, LABEL, TEXT, Columns, Content, label_text
from graftwork.errors import DataError
from graftwork.kinds.kind import MORE, Kind, TaskLike
from graftwork.kinds.metrics import Metric, accuracy, as_numbers, refuse_not_finite
from graftwork.kinds.plain import OneClass

if TYPE_CHECKING:
    import datasets
    from torch import Tensor

    from graftwork.backbones import Backbone, Pooling
    from graftwork.data.table import Table
    from graftwork.encoding import Encoder
    from graftwork.encoding.identity import TaskIdentity
    from graftwork.heads import Head
    from graftwork.kinds.prediction import Prediction

logger = logging.getLogger(__name__)


class MultipleChoice(OneClass, Kind):
    """One of a row's choices.

    Columns of its datasets: `text` (str), `choices` (list of str), `label` (int, the right choice's place from 0).
    """

    name = "multiple-choice"
    inputs: ClassVar[Mapping[str, Content]] = {"text": TEXT, "choices": CHOICE}
    needed = ("text", "choices")
    label = LABEL
    options = ("labels", "separator")
    metrics: ClassVar[Mapping[str, Metric]] = {"accuracy": Metric(accuracy)}
    usual_metrics = 1
    takes = "questions with choices"
    says = "a choice"
    example = '("a question", ["one choice", "another"])'
    shown = "questions with choices"

    def columns(self, task: TaskLike, table: "Table", *, grouped: bool) -> Columns:
        from datasets import List, Value

        columns = [table.columns[column] for column in task.inputs["choices"]]
        choices = columns[0] if len(columns) == 1 else [list(row) for row in zip(*columns, strict=True)]
        return {
            "text": (Value("string"), table.columns[task.inputs["text"][0]]),
            "choices": (List(Value("string")), choices),
            "label": (Value("int64"), choice_ids(task, table, [len(row) for row in choices])),
        }

    def inputs_of(self, rows: "datasets.Dataset") -> Sequence[Any]:
        return list(zip(rows["text"], rows["choices"], strict=True))

    def prompted(self, backbone: "Backbone") -> bool:
        return backbone.generates

    def head(self, backbone: "Backbone", *, num_labels: int, pooling: "Pooling", **fields: Any) -> "Head":
        from graftwork.heads import ChoiceHead, LikelihoodHead

        if backbone.generates:
            return LikelihoodHead(shifted=not backbone.is_encoder_decoder, **fields)
        return ChoiceHead(pooling=pooling, **fields)

    def feature_head(self, *, num_labels: int, **fields: Any) -> "Head":
        from graftwork.heads import FeatureHead

        return FeatureHead(task="multiple-choice", num_outputs=1, **fields)

    def encoder_class(self, head: "Head") -> "type[Encoder]":
        from graftwork.encoding import ChoiceEncoder, LikelihoodEncoder

        return LikelihoodEncoder if head.reads == "vocabulary" else ChoiceEncoder

    def shown_answer(self, found: "Prediction", given: Any) -> str:
        return "\t".join([*self.cells(found), given[0], str(found.choice)])

    def outputs_for(self, given: Any) -> int | None:
        # Of a question with fewer choices than another, the others are -inf.
        from graftwork.encoding import question_of

        return len(question_of(given, 0)[1])

    def read(self, task: "TaskIdentity", head: "Head", logits: "Tensor", inputs: Sequence[Any]) -> "list[Prediction]":
        # They are -inf where a question has fewer choices than another.
        from graftwork.encoding import question_of
        from graftwork.kinds.prediction import Prediction, check_finite

        names = task.labels or tuple(str(i) for i in range(logits.shape[-1]))
        found = []
        for i, (own, given) in enumerate(zip(logits, inputs, strict=True)):
            choices = question_of(given, i)[1]
            check_finite(own[: len(choices)])
            row = own.softmax(dim=-1).tolist()
            best = max(range(len(choices)), key=row.__getitem__)
            scores = dict(zip(names, row[: len(choices)], strict=False))
            found.append(Prediction(label=names[best], score=row[best], scores=scores, choice=choices[best]))
        return found

    def prepare(self, predictions: Any, labels: Any) -> tuple[Any, Any]:
        import numpy as np

        said, there = as_numbers(predictions, labels, ranks=2, kind=self.name)
        usable = np.isfinite(said)
        # The right choice is never an absent one.
        refuse_not_finite((usable | np.isneginf(said)) & usable[np.arange(len(there)), there][:, None])
        return said.argmax(axis=1), there

    def chance_warning(self, task: TaskLike, predictions: Any, labels: Any) -> tuple[str, str]:
        import numpy as np

        right = float((predictions.argmax(axis=1) == labels).mean())
        chance = float((1 / np.isfinite(predictions).sum(axis=1)).mean())
        if right > chance:
            return "", ""
        return f"{right:.0%} of the choices are right, and {chance:.0%} by chance", MORE


def choice_ids(task: TaskLike, table: "Table", counts: Sequence[int]) -> list[int]:
    """Which of a row's choices is the right one, from 0.

    Args:
        counts: each row's number of choices.

    Raises:
        DataError: a label names none of them.
    """
    texts = [label_text(value) for value in table.columns[task.label]]
    names = task.labels or table.classes.get(task.label) or tuple(map(str, range(max(counts))))
    ids = {name: i for i, name in enumerate(names)}
    wrong = [row for row, count in enumerate(counts) if ids.get(texts[row], count) >= count]
    if wrong:
        values = sorted({texts[row] for row in wrong})
        raise DataError(
            f"{table.origin} has {len(wrong)} rows whose label in column {task.label!r} names none of their choices: "
            f"{', '.join(map(repr, values[:5]))} at {table.places(wrong)}",
            expected="the right choice's place, as " + ", ".join(names[: max(counts)]),
            change="those rows, --label, or the task's labels (1,2,3,4 where the column counts from 1; or A,B,C,D)",
        )
    found = [ids[text] for text in texts]
    if task.labels is None and table.classes.get(task.label) is None and 0 not in found and len(found) > 1:
        logger.warning(
            "%s never has the first choice (0) in column %r; if it counts from 1, give the task labels: 1,2,…",
            table.origin,
            task.label,
        )
    return found
