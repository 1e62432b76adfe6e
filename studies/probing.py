"""Poolings judged by a linear model: of each task one pass of the frozen backbone, and on its states, pooled in each
way, the baseline that graftwork prints beside an adapter's score.

Used by `studies.pooling`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.labelled import TASKS


def probed(name: str, backbone: str, poolings: Sequence[str], *, data: Path, share: float = 1.0) -> Mapping[str, Any]:
    """The test score of the linear model on each pooling's vectors.

    Args:
        share: of the task's rows, the first so many.

    Returns:
        scores: by pooling; seconds: of the processor.
    """
    import time
    from tempfile import TemporaryDirectory

    import torch

    import graftwork as gw
    from graftwork.adapters import TaskIdentity
    from graftwork.encoding import TextEncoder
    from graftwork.heads import States
    from graftwork.heads.pooled import pool
    from graftwork.kinds import KINDS
    from graftwork.tasks import load
    from graftwork.training.baseline import BATCH, probe

    torch.set_num_threads(1)
    begun = time.process_time()
    loaded = gw.Backbone.load(backbone)
    with TemporaryDirectory() as folder:
        TASKS[name].write(data, Path(folder), share=share)
        rows = load(TASKS[name].task(name, folder))
    task, splits = rows.task, {"train": rows.train, "validation": rows.validation, "test": rows.test}
    encoder = TextEncoder(loaded, TaskIdentity(name=name, kind=task.kind, pairs=task.text_pair is not None))
    vectors: dict[str, dict[str, Any]] = {pooling: {} for pooling in poolings}
    for split, own in splits.items():
        encoded = encoder.encode(KINDS[task.kind].inputs_of(own))
        for pooling in poolings:
            vectors[pooling][split] = torch.empty(len(encoded), loaded.hidden_size)
        for places, batch in encoder.batches(encoded, BATCH):
            with torch.no_grad():
                output = loaded.base(**batch)
            last, pooled = output.last_hidden_state, output.get("pooler_output")
            states = States(last=last, pooled=pooled, mask=batch["attention_mask"])
            for pooling in poolings:
                vectors[pooling][split][places] = pool(states, pooling)
    labels = {split: KINDS[task.kind].labels_of(own) for split, own in splits.items()}
    scores = {}
    for pooling, own in vectors.items():
        found = probe(task, {split: tensor.numpy() for split, tensor in own.items()}, labels)
        scores[pooling] = [round(found["test"][task.metrics[0]], 4)]
    return {"scores": scores, "seconds": round(time.process_time() - begun)}
