"""Eight tasks that train in one pass, against eight runs one after the other.

Run as `python -m benchmarks.many_at_once [--quick | --tiny] [--device …] [--dtype …]`. A task's batch has 4 rows of 32
tokens, on MiniLM in the precision that graftwork chooses for the machine or in another. A step is forward, backward,
clipping and AdamW of all eight. Both contestants run in turn in each round. Gradients are checked first: in float64,
each adapter has those that it has alone.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import at_least, in_turns, options_of, ratio, report, where_time_goes
from benchmarks.models import load
from graftwork import AdaptedModel, Adapter, Backbone
from graftwork.adapters import TaskIdentity
from graftwork.kinds.heads import head_for
from graftwork.methods import METHODS
from graftwork.training.joint_passes import Step, take

TASKS, ROWS, TOKENS = 8, 4, 32
STUDIES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "lora": [("lora", {"rank": 8})] * TASKS,
    "houlsby": [("houlsby", {"bottleneck": 64})] * TASKS,
    "pfeiffer": [("pfeiffer", {})] * TASKS,
    "ranks 2 to 16": [("lora", {"rank": 2 * (i + 1)}) for i in range(TASKS)],
    "eight methods": [
        *(("lora", {"rank": 8}), ("houlsby", {"bottleneck": 64}), ("pfeiffer", {}), ("ia3", {}), ("bitfit", {})),
        *(("layer-norm-tuning", {}), ("prefix-tuning", {"reparametrise": False}), ("compacter", {})),
    ],
}


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, rounds before these, and which studies."""

    rounds: int
    warmups: int
    studies: tuple[str, ...]


SIZES = {
    "full": Size(15, 2, tuple(STUDIES)),
    "quick": Size(3, 2, ("lora", "houlsby")),
    "tiny": Size(1, 0, ("eight methods",)),
}
KINDS = (("classification", 2), ("regression", 1), ("token-classification", 5), ("classification", 3))


def prepare(backbone: Backbone, methods: list[tuple[str, dict[str, Any]]]) -> tuple[AdaptedModel, dict[str, Step]]:
    """Return a model with the adapters of all tasks, and a batch of each task."""
    generator = torch.Generator().manual_seed(0)
    model, steps = AdaptedModel(backbone), {}
    for i, (method, settings) in enumerate(methods):
        kind, outputs = KINDS[i % len(KINDS)]
        head = head_for(kind, backbone, num_labels=outputs, pooling=backbone.pooling, dropout=0.0)
        labels = None if kind == "regression" else tuple("abcdef"[:outputs])
        task = TaskIdentity(name=f"{i}", labels=labels)
        adapter = Adapter.create(backbone, METHODS[method](**settings), head, task, seed=i)
        for name, tensor in adapter.tensors.items():
            if name not in adapter.fixed:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
        model.add(f"{i}", adapter, trainable=True)
        ids = torch.randint(1_000, 20_000, (ROWS, TOKENS), generator=generator)
        shape = ids.shape if kind == "token-classification" else (ROWS,)
        said = torch.randint(outputs, shape, generator=generator)
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": said.float() if kind == "regression" else said,
        }
        steps[f"{i}"] = Step({name: t.to(backbone.device) for name, t in batch.items()}, None, (i,))
    return model.train(), steps


def one_after_the_other(model: AdaptedModel, steps: Mapping[str, Step], then: Callable[[str], None]) -> None:
    """Train each adapter on its batch, in a pass of its own."""
    for name, step in steps.items():
        model(**step.batch, adapters=name).require("loss").backward()
        then(name)


def together(model: AdaptedModel, steps: Mapping[str, Step], then: Callable[[str], None]) -> None:
    """Train all adapters on their batches in one pass."""
    take(model, steps)
    for name in steps:
        then(name)


def gradients(model: AdaptedModel) -> dict[str, Tensor]:
    """Return each parameter's gradient, and forget it."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check_gradients(name: str, options: argparse.Namespace) -> None:
    """Refuse to time gradients that differ from those of solo runs, in float64."""
    model, steps = prepare(load(options, dtype="float64"), STUDIES[name])
    one_after_the_other(model, steps, lambda name: None)
    expected = gradients(model)
    together(model, steps, lambda name: None)
    found = gradients(model)
    if found.keys() != expected.keys():
        sys.exit(f"{name}: other parameters have gradients")
    # Heads compute in float32. Some parameters' gradients are rounding only: attention does not see a key's bias.
    largest = max(float(own.abs().max()) for own in expected.values())
    for parameter, own in expected.items():
        difference = float((found[parameter] - own).abs().max())
        if not difference <= 1e-5 * largest:
            sys.exit(f"{name}: the gradients of {parameter} differ by {difference}, where the largest is {largest}")


def measure(backbone: Backbone, name: str, size: Size) -> float:
    """Return how many times as long eight runs take as one."""
    model, steps = prepare(backbone, STUDIES[name])
    own = {task: list(model.residents[task].parameters()) for task in steps}
    optimizers = {task: torch.optim.AdamW(parameters, lr=1e-5, fused=True) for task, parameters in own.items()}

    def step(task: str) -> None:
        torch.nn.utils.clip_grad_norm_(own[task], 1.0)
        optimizers[task].step()
        optimizers[task].zero_grad()
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()

    contestants: dict[str, Callable[[], Any]] = {
        "together": lambda: together(model, steps, step),
        "alone": lambda: one_after_the_other(model, steps, step),
    }
    times = in_turns(contestants, rounds=size.rounds, warmups=size.warmups)
    print(f"\nof a step of all, {name}:\n{where_time_goes(contestants['together'], rows=6)}\n")
    model.detach()
    return ratio(times["alone"], times["together"])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = options_of(
        "many_at_once", "Many adapters in a pass.", argv, quick="3 rounds in place of 15, and LoRA and Houlsby only"
    )
    size = SIZES[options.size]
    backbone = load(options)
    ratios: dict[str, float] = {}
    bars: dict[str, dict[str, Any]] = {}
    print(f"{TASKS} tasks, {ROWS} rows of {TOKENS} tokens each, {backbone.dtype}, times of runs one after the other")
    for name in size.studies:
        check_gradients(name, options)
        ratios[name] = measure(backbone, name, size)
        bars[f"{name}, one after the other / together"] = at_least(ratios[name], 2.0)
        print(f"{name:<16}{ratios[name]:>8.2f} x one pass", flush=True)
    return report("many_at_once", ratios, bars)


if __name__ == "__main__":
    sys.exit(main())
