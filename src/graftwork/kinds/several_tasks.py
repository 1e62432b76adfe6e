"""Several tasks of texts at once: an adapter that has the heads of all of them, over the same states.

It is how adapters are consolidated: the student learns the outputs that each task's head is to have, and is split
into one adapter a task afterwards. It is no kind of task that users declare.

Notation: B rows, C outputs of all heads together, one head's after the other's.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from graftwork.backbones import Backbone, Pooling
from graftwork.data.columns import TEXT, Columns, Content
from graftwork.data.table import Table
from graftwork.errors import AdapterError
from graftwork.heads import Head, States
from graftwork.heads.distilling import centred
from graftwork.heads.head import Reading
from graftwork.heads.losses import LABELS, Counts
from graftwork.kinds.heads import AnyHead
from graftwork.kinds.kind import Kind, TaskLike
from graftwork.kinds.metrics import Metric
from graftwork.methods.parameters import Parameter

if TYPE_CHECKING:
    from graftwork.encoding.identity import TaskIdentity
    from graftwork.kinds.prediction import Prediction

NAME: Literal["several-tasks"] = "several-tasks"


class SeveralHeads(Head):
    """The heads of several tasks over the same states. Its logits are theirs, one after the other.

    Attributes:
        parts: the heads, each over one vector a text.
    """

    reads: ClassVar[Reading] = "text"

    kind: Literal["several-tasks"] = NAME
    parts: tuple[AnyHead, ...] = Field(min_length=1)

    @property
    def pooled_by(self) -> Pooling | None:
        return self.parts[0].pooled_by

    def check(self, backbone: Backbone) -> None:
        for part in self.parts:
            part.check(backbone)

    def unused_sites(self, backbone: Backbone) -> tuple[str, ...]:
        first, *others = (part.unused_sites(backbone) for part in self.parts)
        return tuple(site for site in first if all(site in other for other in others))

    def declare(self, backbone: Backbone) -> dict[str, Parameter]:
        found: dict[str, Parameter] = {}
        for i, part in enumerate(self.parts):
            found |= {name_of_part(i, name): parameter for name, parameter in part.declare(backbone).items()}
        return found

    def logits(self, states: States, parameters: Mapping[str, Tensor], *, training: bool) -> Tensor:
        each = [
            part.logits(states, parameters_of_part(i, parameters), training=training)
            for i, part in enumerate(self.parts)
        ]
        return torch.cat(each, dim=-1)

    def sums(
        self, logits: Tensor, labels: Tensor, states: States, parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Squared differences from the outputs that are to be; of numbers, standardised."""
        apart = [
            own / getattr(getattr(part, "scale", None), "deviation", 1.0)
            for part, own in zip(self.parts, self.split(logits - labels.to(logits)), strict=True)
        ]
        return {LABELS: torch.cat(apart, dim=-1).square().sum()}

    def counts(self, labels: Tensor, targets: Tensor | None = None) -> Counts:
        return {LABELS: torch.tensor(labels.numel(), device=labels.device)}

    def split(self, logits: Tensor) -> tuple[Tensor, ...]:
        """The logits of each head: (B, C) of its own outputs."""
        return torch.split(logits, [_outputs(part) for part in self.parts], dim=-1)

    def targets(self, logits: Tensor) -> Tensor:
        """What a student of these logits is to give: those of classes centred, each head's by themselves (Ermis et al.
        2022, "Memory Efficient Continual Learning with Transformers")."""
        each = zip(self.parts, self.split(logits), strict=True)
        return torch.cat([centred(own) if part.output_type == "classes" else own for part, own in each], dim=-1)


def _outputs(head: Head) -> int:
    return int(getattr(head, "num_outputs"))  # noqa: B009 (no head of one vector a text lacks it)


def name_of_part(i: int, name: str) -> str:
    """The name of a parameter of a head when it is one of several: `head.W` of the second is `head.1.W`."""
    return f"head.{i}.{name.removeprefix('head.')}"


def parameters_of_part(i: int, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of one head among those of all, by its own names."""
    prefix = f"head.{i}."
    return {f"head.{name.removeprefix(prefix)}": t for name, t in parameters.items() if name.startswith(prefix)}


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(number, int | float) for number in value)


class SeveralTasks(Kind):
    """The outputs of several heads for a text.

    Columns of its datasets: `text`, `text_pair` (only of tasks on pairs), `label` (list of float).
    """

    name = NAME
    inputs: ClassVar[Mapping[str, Content]] = {"text": TEXT, "text_pair": TEXT}
    label = Content("list of numbers", _is_numbers)
    metrics: ClassVar[Mapping[str, Metric]] = {"loss": Metric(None, greater_is_better=False)}
    usual_metrics = 1
    pooled = True
    from_start = True
    says = "the outputs of several heads"

    def columns(self, task: TaskLike, table: Table, *, grouped: bool) -> Columns:
        from datasets import List, Value

        texts: Columns = {field: (Value("string"), table.columns[own[0]]) for field, own in task.inputs.items()}
        return {**texts, "label": (List(Value("float32")), table.columns[task.label])}

    def head(self, backbone: Backbone, *, num_labels: int, pooling: Pooling, **fields: Any) -> Head:
        raise AdapterError("the heads of several tasks are those of the adapter that a run begins with")

    def read(self, task: "TaskIdentity", head: Head, logits: Tensor, inputs: Sequence[Any]) -> "list[Prediction]":
        raise AdapterError(
            "an adapter with the heads of several tasks predicts nothing by itself",
            expected="the adapter of one of its tasks, as Pool.adapter gives it",
        )

    def prepare(self, predictions: Any, labels: Any) -> tuple[Any, Any]:
        return predictions, labels
