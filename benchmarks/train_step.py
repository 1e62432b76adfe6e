"""One training step, against peft's, against full fine-tuning's, and against two passes of the frozen backbone.

Run as `python -m benchmarks.train_step [--quick | --tiny] [--device …] [--dtype …]`. 32 texts of 128 tokens on MiniLM,
LoRA of rank 8 on all linear maps and Houlsby adapters of 64 units. graftwork trains in the precision that it chooses
for the machine, or in another, without the backbone's dropout; peft and full fine-tuning with it, in float32 and, as a
skilled user would, under bfloat16 autocast. Logits and gradients with the same weights and no dropout are compared
first.

Two passes of the backbone in the same precision are as much arithmetic as a step that trains no weight of its own: the
bars. What peers take is reported, and has a bar where bfloat16 is fast and used.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import (
    BACKWARD,
    at_least,
    at_most,
    check,
    in_turns,
    options_of,
    ratio,
    report,
    where_time_goes,
)
from benchmarks.models import load
from benchmarks.peers import RANK, scale_of, trained, with_peft
from graftwork import AdaptedModel
from graftwork.backbones.devices import best_dtype
from graftwork.methods import METHODS

CLASSES = 2


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds, rounds before these, and texts of how many tokens."""

    rounds: int
    warmups: int = 2
    rows: int = 32
    tokens: int = 128


SIZES = {"full": Size(15), "quick": Size(3), "tiny": Size(1, warmups=0, rows=4, tokens=16)}
PEERS = {
    "LoRA": ("peft, LoRA, float32", "peft, LoRA, autocast", "full fine-tuning, float32", "full fine-tuning, autocast"),
    "Houlsby": ("full fine-tuning, float32", "full fine-tuning, autocast"),
}
"""What a step of ours is compared with."""
FAST = {"peft, LoRA, float32": 3.5, "peft, LoRA, autocast": 1.8}
"""How many times as long a peer's step takes at least, where bfloat16 is fast and the backbone in it."""


class Classifier(nn.Module):
    """A model and the head that graftwork's adapter has, as one would write it with transformers and peft."""

    def __init__(self, model: Any, head: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.classifier = nn.Linear(model.config.hidden_size, CLASSES)
        self.classifier.load_state_dict(head)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.classifier(self.model(**batch).last_hidden_state.float().mean(1))
        return output


def step(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Run one step without the optimizer's part, which is the same for all."""
    loss().backward()
    for parameter in model.parameters():
        parameter.grad = None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = options_of("train_step", "One training step.", argv, quick="3 rounds in place of 15")
    size = SIZES[options.size]
    backbone, float32 = load(options), load(options, dtype="float32")
    device = backbone.device
    plain = copy.deepcopy(backbone.model)
    full = copy.deepcopy(float32.model).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1_000, 20_000, (size.rows, size.tokens), generator=generator).to(device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.randint(CLASSES, (size.rows,), generator=generator).to(device)
    lora, houlsby = (
        trained(backbone, METHODS[name](**settings), 0)
        for name, settings in (("lora", {"rank": RANK}), ("houlsby", {"bottleneck": 64}))
    )
    model = AdaptedModel(backbone)
    for name, adapter in (("lora", lora), ("houlsby", houlsby)):
        model.add(name, adapter, trainable=True)
    head = {part: lora.tensors[f"head.classifier.{part}"].clone() for part in ("weight", "bias")}
    peer = Classifier(with_peft(float32, copy.deepcopy(float32.model), [lora]), head).to(device)
    fine = Classifier(full, head).to(device)
    compare(model, peer, batch, labels)

    def autocast(on: bool) -> Any:
        return torch.autocast(device.type, dtype=torch.bfloat16) if on else nullcontext()

    def theirs(other: Classifier, half: bool) -> Callable[[], None]:
        def loss() -> Tensor:
            with autocast(half):
                logits = other(batch)
            return F.cross_entropy(logits.float(), labels)

        return lambda: step(other, loss)

    def ours(name: str) -> Callable[[], None]:
        return lambda: step(model, lambda: model(**batch, labels=labels, adapters=name).loss)

    @torch.no_grad()
    def two_passes() -> None:
        plain(**batch)
        plain(**batch)

    model.train()
    peer.train()
    fine.train()
    contestants = {
        "graftwork, LoRA": ours("lora"),
        "graftwork, Houlsby": ours("houlsby"),
        "two passes": two_passes,
        "peft, LoRA, float32": theirs(peer, half=False),
        "peft, LoRA, autocast": theirs(peer, half=True),
        "full fine-tuning, autocast": theirs(fine, half=True),
        "full fine-tuning, float32": theirs(fine, half=False),
    }
    if device.type == "cuda":
        contestants = {name: synchronised(run) for name, run in contestants.items()}
    times = in_turns(contestants, rounds=size.rounds, warmups=size.warmups)
    print(f"{size.rows} x {size.tokens} tokens, {backbone.dtype}, {torch.get_num_threads()} threads")
    for name, own in times.items():
        print(f"{name:<28}{1_000 * median(own):>10.1f} ms")
    print(f"\nof graftwork's LoRA step:\n{where_time_goes(contestants['graftwork, LoRA'])}")
    ratios = {
        f"{peer} / ours, {method}": ratio(times[peer], times[f"graftwork, {method}"])
        for method, peers in PEERS.items()
        for peer in peers
    }
    bars = {
        f"ours, {method} / two passes": at_most(ratio(times[f"graftwork, {method}"], times["two passes"]), 1.3)
        for method in PEERS
    }
    if backbone.dtype == best_dtype(device) == torch.bfloat16:
        bars |= {f"{peer} / ours, LoRA": at_least(ratios[f"{peer} / ours, LoRA"], bar) for peer, bar in FAST.items()}
    return report("train_step", ratios, bars)


def compare(model: AdaptedModel, peer: Classifier, batch: dict[str, Tensor], labels: Tensor) -> None:
    """Refuse to time what is not the same: logits, and the gradient of every A and B."""
    backbone = model.backbone
    output = model(**batch, labels=labels, adapters="lora")
    logits = peer.eval()(batch)
    check(output.logits, logits, "logits", dtype=backbone.dtype)
    output.loss.backward()
    F.cross_entropy(logits, labels).backward()
    mine = model.residents["lora"].tensors()
    names = {site.path: site.name for site in backbone.sites.of_kind("linear") if site.layer is not None}
    for path, module in peer.model.base_model.model.named_modules():
        if path in names:
            theirs = {"A": module.lora_A["0"].weight.grad, "B": module.lora_B["0"].weight.grad}
            scale = scale_of(model.residents["lora"].adapter)
            for part, gradient in theirs.items():
                own = mine[f"{names[path]}.{part}"].grad
                assert own is not None
                expected = gradient if part == "A" else gradient * scale
                check(own, expected, f"the gradient of {path}.{part}", dtype=backbone.dtype, times=BACKWARD)
    for parameter in (*model.parameters(), *peer.parameters()):
        parameter.grad = None


def synchronised(run: Callable[[], None]) -> Callable[[], None]:
    """Return a call that ends when the GPU has done its work."""

    def wait() -> None:
        run()
        torch.cuda.synchronize()

    return wait


if __name__ == "__main__":
    sys.exit(main())
