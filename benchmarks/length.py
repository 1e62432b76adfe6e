"""An epoch over texts as long as GLUE's, in batches of tokens and in shuffled batches padded to the longest text.

Run as `python -m benchmarks.length [--quick | --tiny] [--device …] [--dtype …]`. LoRA of rank 8 on MiniLM, trained on
the same rows: 32 at a time in random order, or 2,048 tokens at a time, those of like length together. Each text's
logits are compared first.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.measuring import at_least, check, in_turns, options_of, ratio, report
from benchmarks.models import load
from benchmarks.peers import RANK, trained
from graftwork import AdaptedModel, LoRA
from graftwork.training.sampling import LengthGrouped, TokenBudget

MEDIAN, SPREAD, LONGEST = 32, 0.55, 128
"""Of the texts' lengths in tokens, whose logarithms are normally distributed as those of MRPC, RTE and STS-B nearly
are."""
ROWS, TOKENS = 32, 2_048


@dataclass(frozen=True)
class Size:
    """How much is measured: texts, rounds, and rounds before these."""

    texts: int
    rounds: int
    warmups: int = 1


SIZES = {"full": Size(1_024, 7), "quick": Size(256, 3), "tiny": Size(48, 1, warmups=0)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = options_of("length", "Batches by length.", argv, quick="256 texts and 3 rounds in place of 1,024 and 7")
    size = SIZES[options.size]
    count = size.texts
    backbone = load(options)
    generator = torch.Generator().manual_seed(0)
    drawn = (MEDIAN * (SPREAD * torch.randn(count, generator=generator)).exp()).long().clamp(4, LONGEST)
    lengths: list[int] = drawn.tolist()
    texts = [torch.randint(1_000, 20_000, (length,), generator=generator) for length in lengths]
    labels = torch.randint(2, (count,), generator=generator)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    ways: dict[str, list[list[int]]] = {
        "shuffled": [order[start : start + ROWS] for start in range(0, count, ROWS)],
        "like lengths": list(LengthGrouped(lengths, ROWS, seed=0)),
        "tokens": list(TokenBudget(lengths, TOKENS, seed=0)),
    }
    model = AdaptedModel(backbone)
    model.add("a", trained(backbone, LoRA(rank=RANK), 0), trainable=True)

    def batch(rows: Sequence[int]) -> dict[str, Tensor]:
        padded = torch.nn.utils.rnn.pad_sequence([texts[row] for row in rows], batch_first=True)
        mask = torch.arange(padded.shape[1]) < torch.tensor([lengths[row] for row in rows])[:, None]
        return {"input_ids": padded.to(backbone.device), "attention_mask": mask.long().to(backbone.device)}

    def epoch(batches: Iterable[Sequence[int]]) -> None:
        for rows in batches:
            model(**batch(rows), labels=labels[list(rows)].to(backbone.device)).loss.backward()
            for parameter in model.parameters():
                parameter.grad = None

    with torch.inference_mode():
        said = {
            way: {
                row: own for rows in batches for row, own in zip(rows, model(**batch(rows)).logits.cpu(), strict=True)
            }
            for way, batches in ways.items()
        }
    for way in ways:
        found, expected = (torch.stack([said[name][row] for row in range(count)]) for name in (way, "shuffled"))
        check(found, expected, way, dtype=backbone.dtype)
    model.train()
    epochs = {way: lambda batches=batches: epoch(batches) for way, batches in ways.items()}
    times = in_turns(epochs, rounds=size.rounds, warmups=size.warmups)
    print(f"{count} texts of {sum(lengths) / count:.0f} tokens in the mean, {backbone.dtype}")
    print(f"{'':<14}{'batches':>8}{'padding':>10}{'seconds':>10}")
    for way, batches in ways.items():
        room = sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)
        print(f"{way:<14}{len(batches):>8}{1 - sum(lengths) / room:>10.1%}{median(times[way]):>10.2f}")
    ratios = {way: ratio(times["shuffled"], own) for way, own in times.items()}
    return report("length", ratios, {"shuffled / batches of tokens": at_least(ratios["tokens"], 1.8)})


if __name__ == "__main__":
    sys.exit(main())
