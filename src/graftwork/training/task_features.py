"""Features of a task's examples in the frozen backbone, from which some methods make an adapter's tensors."""

from dataclasses import replace

import torch
from datasets import Dataset

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.encoding import TextEncoder
from graftwork.errors import MethodError
from graftwork.kinds import KINDS
from graftwork.methods.bihnet import LAST
from graftwork.training.baseline import embeddings

MOST = 1024
"""Examples that are read at most: the first ones, and the last few."""


def with_features(adapter: Adapter, backbone: Backbone, rows: Dataset) -> Adapter:
    """A new adapter with the tensors that its method makes from examples; the same adapter, where it makes none.

    Args:
        backbone: with no adapter that acts.
        rows: the task's training rows.

    Raises:
        MethodError: the method reads examples, and the task has no texts whose features can be measured.
    """
    if not adapter.method.reads_examples:
        return adapter
    kind = KINDS[adapter.kind]
    if kind.baseline is None:
        measured = ", ".join(name for name, other in KINDS.items() if other.baseline is not None)
        raise MethodError(
            f"method {adapter.method.name!r} reads features of examples, which a task of kind {adapter.kind} has not",
            expected=f"a task of kind {measured}",
            change="--method",
        )
    places = [*range(len(rows))]
    if len(places) > MOST:
        places = [*places[: MOST - LAST], *places[-LAST:]]
    encoder = TextEncoder(backbone, adapter.task.model_copy(update={"added_tokens": ()}))
    features = torch.from_numpy(embeddings(backbone, encoder, kind.inputs_of(rows.select(places))))
    made = adapter.method.from_features(features.float())
    return replace(adapter, tensors={**adapter.tensors, **made})
