"""The rows of an adapter's task, as data-driven merges read them: encoded as the adapter reads them, in batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from torch import Generator, Tensor

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.encoding import Encoder
from graftwork.kinds import KINDS
from graftwork.tasks import SplitName, Task, load_split
from graftwork.training.evaluation import task_of


@dataclass(frozen=True)
class Rows:
    """Some rows of a task.

    Attributes:
        task: their task.
        encoder: how they are read.
        encoded: the rows, unpadded.
        origin: what tells them apart from other rows.
    """

    task: Task
    encoder: Encoder
    encoded: Sequence[Any]
    origin: str

    def __len__(self) -> int:
        return len(self.encoded)

    def batches(self, size: int, *, start: int = 0) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """All rows from one on, in an order that is always the same, which puts those of like length together; each
        batch with the number of rows that are done after it.

        Args:
            size: rows of a batch.
            start: how many are done already.
        """
        lengths = self.encoder.lengths(self.encoded)
        order = sorted(range(len(self.encoded)), key=lambda i: (-lengths[i], i))
        for begin in range(start, len(order), size):
            places = order[begin : begin + size]
            yield begin + len(places), self.batch(places)

    def batch(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Some rows as one batch, on the backbone's device."""
        made = self.encoder.collate([self.encoded[i] for i in places])
        return {name: tensor.to(self.encoder.backbone.device) for name, tensor in made.items()}


def source_for(*numbers: int) -> Generator:
    """A source of randomness of these numbers' own, such as a seed and a step: what is drawn in a step is the same
    wherever a computation began."""
    digest = blake2b(" ".join(map(str, numbers)).encode(), digest_size=7).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little"))


def rows_of(
    adapter: Adapter,
    backbone: Backbone,
    split: SplitName,
    *,
    data: str | None = None,
    examples: int | None = None,
    seed: int = 0,
    labelled: bool = True,
) -> Rows:
    """Rows of the task that an adapter was tuned on.

    Args:
        adapter: the adapter.
        backbone: its backbone.
        split: of which split.
        data: other data than those that it was tuned on.
        examples: how many, drawn without replacement; None: all.
        seed: of that draw.
        labelled: whether labels are read.

    Raises:
        DataError: the data are not known, cannot be read, or have no such split.
    """
    task = task_of(adapter, data=data)
    rows = load_split(task, split, grouped=False)
    kind = KINDS[task.kind]
    inputs, labels = kind.inputs_of(rows), kind.labels_of(rows)
    count = len(inputs) if examples is None else min(examples, len(inputs))
    chosen = sorted(np.random.RandomState(seed).permutation(len(inputs))[:count].tolist())
    encoder = kind.encoder(backbone, adapter.task, adapter.head, prompt_tokens=adapter.method.num_prompt_tokens)
    encoded = encoder.encode([inputs[i] for i in chosen], [labels[i] for i in chosen] if labelled else None)
    digest = _digest((inputs[i], labels[i]) for i in chosen)
    return Rows(task, encoder, encoded, f"{task.name} {split} {count} {seed} {digest}")


def contents_of(adapter: Adapter, split: SplitName, *, data: str | None = None) -> str:
    """What tells the rows of an adapter's task apart from other rows.

    Args:
        adapter: the adapter.
        split: of which split.
        data: other data than those that it was tuned on.

    Raises:
        DataError: the data are not known, cannot be read, or have no such split.
    """
    task = task_of(adapter, data=data)
    rows, kind = load_split(task, split, grouped=False), KINDS[task.kind]
    return _digest(zip(kind.inputs_of(rows), kind.labels_of(rows), strict=True))


def _digest(rows: Iterable[tuple[Any, Any]]) -> str:
    return blake2b(repr([(str(own), label) for own, label in rows]).encode(), digest_size=16).hexdigest()
