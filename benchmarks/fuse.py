"""A pass and a training step through a fusion of eight adapters, against the backbone's own pass and `adapters`; and a
pass through an adapter that a hypernetwork made, against an ordinary one.

Run as `python -m benchmarks.fuse [--quick | --tiny] [--device …] [--dtype …] [--adapters PYTHON]`. 32 rows of 128
tokens on MiniLM. Outputs are checked first: the fusion says what one in the paper's own form says, in which every
part's output is there and is multiplied by K and V. `--adapters` names a Python that has the package `adapters`, which
runs in a process of its own on the same backbone.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measuring import TINY, add_places, at_least, at_most, check, in_turns, ratio, report, where_time_goes
from benchmarks.models import load
from benchmarks.peers import trained
from graftwork import AdaptedModel, Backbone
from graftwork.methods import Fuse, Houlsby, HyperFormer, Method, Pfeiffer
from graftwork.ops.bottleneck import ACTIVATIONS

PARTS = 8
PART_METHODS: dict[str, Method] = {
    "pfeiffer": Pfeiffer(reduction=16),
    "houlsby": Houlsby(bottleneck=64, norms="none"),
}
BARS = {"pfeiffer": 1.3, "houlsby": 1.85}
"""Of a pass, relative to the backbone's own. The products alone are 1.67 of it with Houlsby's parts."""
STEP, PEER = 2.0, 2.0
GENERATED, LIKE = HyperFormer(bottleneck=64, generators="stack", norms="none"), 1.1
"""What makes an adapter like the ordinary one of Houlsby but for a norm behind it; and what a pass may take of that."""
FUSIONS = 16
"""How many different ones share a batch."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    warmups: int
    rows: int = 32
    tokens: int = 128


SIZES = {"full": Size(15, 2), "quick": Size(3, 1), "tiny": Size(1, 0, rows=4, tokens=16)}


def fusion_of(backbone: Backbone, method: Method, seed: int = 0) -> Any:
    """Return a fusion of trained adapters of one method, of which nothing is as initialised."""
    parts = [trained(backbone, method, seed * PARTS + i) for i in range(PARTS)]
    return trained(backbone, Fuse(parts={f"part-{i}": part for i, part in enumerate(parts)}), seed)


def naive(backbone: Backbone, plain: Any, adapter: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the last hidden state of a fusion in the paper's own form, by hooks on the backbone's modules."""
    tensors = {name: tensor.to(backbone.device, backbone.dtype) for name, tensor in adapter.tensors.items()}
    model = copy.deepcopy(plain)

    def fused(site: str, owner: str, x: torch.Tensor) -> torch.Tensor:
        u = []
        for part in adapter.method.parts:
            D, b_D, U, b_U = (
                tensors[f"parts.{part.name}.{owner}.{name}"] for name in ("down", "down_bias", "up", "up_bias")
            )
            u.append(ACTIVATIONS[part.method.activation](x @ D.T + b_D) @ U.T + b_U)
        names = ("query", "query_bias", "key", "key_bias", "value")
        Q, b_q, K, b_k, V = (tensors[f"fusion.{site}.{name}"] for name in names)
        each = torch.stack(u, dim=-2)
        p = ((x @ Q.T + b_q)[..., None, :] * (each @ K.T + b_k)).sum(-1).softmax(-1)
        return (p[..., None] * (each @ V.T)).sum(-2)

    for name, site in backbone.sites.items():
        owner = f"{name.rpartition('.')[0]}.result"
        if f"fusion.{name}.query" not in tensors:
            continue
        module = model.get_submodule(site.path)
        own = module.forward
        if site.kind == "norm":
            module.forward = lambda s, own=own, name=name, owner=owner: own(s + fused(name, owner, own(s)))
        else:
            module.forward = lambda *given, own=own, name=name: (h := own(*given)) + fused(name, name, h)
    with torch.no_grad():
        found: torch.Tensor = model(**batch).last_hidden_state
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = parsed(argv)
    size = SIZES[options.size]
    backbone = load(options)
    plain = copy.deepcopy(backbone.model)
    ids = torch.randint(1_000, 20_000, (size.rows, size.tokens), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids.to(backbone.device), "attention_mask": torch.ones_like(ids).to(backbone.device)}
    labels = torch.zeros(size.rows, dtype=torch.long, device=backbone.device)
    fusions = {name: fusion_of(backbone, method) for name, method in PART_METHODS.items()}
    single = {name: trained(backbone, method, 0) for name, method in PART_METHODS.items()}
    model = AdaptedModel(backbone)
    for name, adapter in fusions.items():
        model.add(name, adapter)
        model.add(f"single-{name}", single[name])
        model.add(f"train-{name}", adapter, trainable=True)
        expected = naive(backbone, plain, adapter, batch)
        with torch.no_grad(), model.graft.run(model.residents[name].ops()):
            check(model.graft.base(**batch).last_hidden_state, expected, name, dtype=backbone.dtype)
    model.add("generated", trained(backbone, GENERATED, 0))
    various = [fusion_of(backbone, PART_METHODS["pfeiffer"], seed=1 + i) for i in range(FUSIONS)]
    for i, adapter in enumerate(various):
        model.add(f"{i}", adapter)
    mixed = [f"{row % FUSIONS}" for row in range(size.rows)]

    def forward(names: Any) -> Callable[[], Any]:
        def run() -> None:
            model.eval()
            with torch.no_grad():
                model(**batch, adapters=names)

        return run

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            model.train()
            model(**batch, labels=labels, adapters=name).loss.backward()
            for parameter in model.parameters():
                parameter.grad = None

        return run

    def backbone_pass() -> None:
        with torch.no_grad():
            plain(**batch)

    contestants: dict[str, Callable[[], Any]] = {"backbone": backbone_pass}
    for name in PART_METHODS:
        contestants |= {
            f"one {name}": forward(f"single-{name}"),
            f"fusion of {PARTS} {name}": forward(name),
            f"step of {PARTS} {name}": step(f"train-{name}"),
        }
    contestants["one generated"] = forward("generated")
    contestants[f"{FUSIONS} fusions in a batch"] = forward(mixed)
    times = in_turns(contestants, rounds=size.rounds, warmups=size.warmups)
    print(f"{size.rows} x {size.tokens} tokens, {backbone.dtype}, {torch.get_num_threads()} threads")
    for name, own in times.items():
        print(f"{name:<28}{1_000 * median(own):>10.1f} ms{ratio(own, times['backbone']):>8.2f} x the backbone")
    print(f"\nof the fusion of Houlsby's parts:\n{where_time_goes(contestants[f'fusion of {PARTS} houlsby'])}")
    ratios = {f"{name} / backbone": ratio(own, times["backbone"]) for name, own in times.items() if name != "backbone"}
    bars: dict[str, Any] = {
        "one generated / one houlsby": at_most(ratio(times["one generated"], times["one houlsby"]), LIKE)
    }
    for name in PART_METHODS:
        own = times[f"fusion of {PARTS} {name}"]
        bars[f"{PARTS} {name} / backbone"] = at_most(ratio(own, times["backbone"]), BARS[name])
        bars[f"step of {PARTS} {name} / its pass"] = at_most(ratio(times[f"step of {PARTS} {name}"], own), STEP)
        if options.adapters is not None:
            found = adapters_times(options, backbone, name, size)
            print(f"adapters, {PARTS} {name}: {1_000 * found['fused']:.1f} ms, {found['ratio']:.2f} x its backbone")
            ratios[f"adapters, {PARTS} {name} / its backbone"] = found["ratio"]
            bars[f"adapters / ours, {PARTS} {name}"] = at_least(found["fused"] / median(own), PEER)
    return report("fuse", ratios, bars)


def adapters_times(options: argparse.Namespace, backbone: Backbone, name: str, size: Size) -> dict[str, float]:
    """Return what the package `adapters` takes, in seconds, in a process of its own."""
    script = Path(__file__).with_name("adapters_script.py")
    with tempfile.TemporaryDirectory() as folder:
        backbone.model.save_pretrained(folder)
        dtype = str(backbone.dtype).removeprefix("torch.")
        numbers = [str(n) for n in (PARTS, size.rows, size.tokens, size.rounds, size.warmups)]
        command = [options.adapters, str(script), folder, name, dtype, *numbers]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuse", description="Fusions of eight adapters.")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="size", action="store_const", const="quick", help="3 rounds in place of 15")
    sizes.add_argument("--tiny", dest="size", action="store_const", const="tiny", help=TINY)
    add_places(parser)
    parser.add_argument("--adapters", help="a Python that has the package adapters")
    parser.set_defaults(size="full")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
