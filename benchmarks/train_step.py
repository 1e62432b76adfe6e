"""One training step, against peft's, against full fine-tuning's, and against two passes of the frozen backbone.

Run as `python -m benchmarks.train_step [--quick] [--device …]`. 32 texts of 128 tokens on MiniLM, LoRA of rank 8 on all
linear maps and Houlsby adapters of 64 units. graftwork trains in the precision that it chooses for the machine, without
the backbone's dropout; peft and full fine-tuning with it, in float32 and, as a skilled user would, under bfloat16
autocast. Logits and gradients with the same weights and no dropout are compared first.
"""

import copy
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import at_least, at_most, check, in_turns, options_of, ratio, report, where_time_goes
from benchmarks.peers import RANK, scale_of, trained, with_peft
from graftwork import AdaptedModel, Backbone
from graftwork.methods import METHODS

ROWS, TOKENS, CLASSES = 32, 128, 2


class Classifier(nn.Module):
    """A model and the head that graftwork's adapter has, as one would write it with transformers and peft."""

    def __init__(self, model: Any, head: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.classifier = nn.Linear(model.config.hidden_size, CLASSES)
        self.classifier.load_state_dict(head)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = self.classifier(self.model(**batch).pooler_output.float())
        return output


def step(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Run one step without the optimizer's part, which is the same for all."""
    loss().backward()
    for parameter in model.parameters():
        parameter.grad = None


def main() -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = options_of("train_step", "One training step.", quick="3 rounds in place of 15")
    rounds = 3 if options.quick else 15
    backbone = Backbone.load("minilm", device=options.device)
    device = backbone.device
    plain = copy.deepcopy(backbone.model)
    full = copy.deepcopy(Backbone.load("minilm", device=options.device, dtype="float32").model).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1_000, 20_000, (ROWS, TOKENS), generator=generator).to(device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = torch.randint(CLASSES, (ROWS,), generator=generator).to(device)
    lora, houlsby = (
        trained(backbone, METHODS[name](**settings), 0)
        for name, settings in (("lora", {"rank": RANK}), ("houlsby", {"bottleneck": 64}))
    )
    model = AdaptedModel(backbone)
    for name, adapter in (("lora", lora), ("houlsby", houlsby)):
        model.add(name, adapter, trainable=True)
    head = {part: lora.tensors[f"head.classifier.{part}"].clone() for part in ("weight", "bias")}
    float32 = Backbone.load("minilm", device=options.device, dtype="float32")
    peer = Classifier(with_peft(float32, copy.deepcopy(float32.model), [lora]), head).to(device)
    fine = Classifier(full, head).to(device)
    compare(model, peer, batch, labels, backbone)

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
    times = in_turns(contestants, rounds=rounds)
    print(f"{ROWS} x {TOKENS} tokens, {backbone.dtype}, {torch.get_num_threads()} threads")
    for name, own in times.items():
        print(f"{name:<28}{1_000 * sorted(own)[len(own) // 2]:>10.1f} ms")
    print(f"\nof graftwork's LoRA step:\n{where_time_goes(contestants['graftwork, LoRA'])}")
    ratios = {name: ratio(own, times["graftwork, LoRA"]) for name, own in times.items() if "LoRA" in name}
    bars = {
        "peft in float32 / ours, LoRA": at_least(ratios["peft, LoRA, float32"], 4.5),
        "peft under autocast / ours, LoRA": at_least(ratios["peft, LoRA, autocast"], 3.0),
        "ours, LoRA / two passes": at_most(ratio(times["graftwork, LoRA"], times["two passes"]), 2.0),
        "full under autocast / ours, Houlsby": at_least(
            ratio(times["full fine-tuning, autocast"], times["graftwork, Houlsby"]), 2.5
        ),
    }
    ratios["full in float32 / ours, Houlsby"] = ratio(times["full fine-tuning, float32"], times["graftwork, Houlsby"])
    return report("train_step", ratios, bars)


def compare(
    model: AdaptedModel, peer: Classifier, batch: dict[str, Tensor], labels: Tensor, backbone: Backbone
) -> None:
    """Refuse to time what is not the same: logits, and the gradient of every A and B."""
    output = model(**batch, labels=labels, adapters="lora")
    logits = peer.eval()(batch)
    check(output.logits, logits, "logits", exact=backbone.dtype == torch.float32)
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
                check(own, expected, f"the gradient of {path}.{part}", exact=backbone.dtype == torch.float32)
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
