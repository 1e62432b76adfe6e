"""What a loss is a mean over.

A loss has one term or several. Each is a sum over things that can be counted before the pass (the rows, or the tokens
that have a label), divided by their count. Where a step goes over several micro-batches, the sums are divided by the
counts of all of them together, so that its gradient is that of the joined batch.
"""

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from graftwork.errors import AdapterError

IGNORED = -100
"""The label of positions without a label: padding, sources, and all word pieces of a word but the first."""

LABELS = "labels"
"""The name of the count of what has a label, which is what `transformers.Trainer` counts too."""

Counts = Mapping[str, Tensor]
"""The number of items that each term of a loss is averaged over, by name of the term."""

Items = int | Tensor | Counts
"""The counts of a step, or the number of its labels, as `transformers.Trainer` passes it."""

StepItems = Items | Mapping[str, Items]
"""The same of one adapter; or of several by their names."""


def together(each: Iterable[Counts]) -> Counts:
    """The counts of several batches as of one."""
    found: dict[str, Tensor] = {}
    for counts in each:
        for name, count in counts.items():
            found[name] = found[name] + count if name in found else count
    return found


def mean(sums: Mapping[str, Tensor], counts: Counts) -> Tensor:
    """Each term's sum over its count, added up. A term over nothing is 0."""
    return torch.stack([own / counts[name].clamp(min=1) for name, own in sums.items()]).sum()


def counted(items: Items | None, own: Counts, labels: Tensor) -> Counts:
    """What a batch's loss is a mean over.

    Args:
        items: the step's; None: the step is this batch.
        own: the batch's.
        labels: the batch's.

    Raises:
        AdapterError: `items` does not say what each term is a mean over.
    """
    if items is None:
        return own
    if isinstance(items, Mapping):
        if not own.keys() <= items.keys():
            raise AdapterError(
                f"num_items_in_batch has no count of {', '.join(sorted(own.keys() - items.keys()))}",
                expected="adapter.head.step_counts(batches)",
            )
        return items
    if own.keys() == {LABELS}:
        return {LABELS: torch.as_tensor(items)}
    if int(items) != labels_in(labels):
        raise AdapterError(
            f"num_items_in_batch is the number of labels of several batches, and the head's loss is a mean over "
            f"{' and '.join(name.replace('_', ' ') for name in own)}",
            expected="no gradient accumulation, or a Trainer whose get_batch_samples gives "
            "adapter.head.step_counts(batches)",
            change="gradient_accumulation_steps",
        )
    return own


def of_one(items: StepItems | None, name: str | None) -> dict[str | None, Items]:
    """The counts by name, where one adapter serves all rows."""
    return {} if items is None else {name: cast(Items, items)}


def of_several(items: StepItems | None, labels: object) -> dict[str | None, Items]:
    """The counts of each of several adapters that share a pass, by its name; none of those whose step is this batch.

    Args:
        labels: the batch's.

    Raises:
        AdapterError: one number for all of them.
    """
    if items is None:
        return {}
    if isinstance(items, Mapping):
        return dict(cast(Mapping[str | None, Items], items))
    if not isinstance(labels, Tensor) or int(items) != labels_in(labels):
        raise AdapterError(
            "num_items_in_batch is one number, and the rows have several adapters, each with its own loss",
            expected="a mapping from each adapter's name to its counts, or no gradient accumulation",
        )
    return {}


def labels_in(labels: Tensor) -> int:
    """As `transformers.Trainer` counts them."""
    return int((labels != IGNORED).sum())
