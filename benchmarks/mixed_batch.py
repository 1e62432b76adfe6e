"""A batch whose rows use up to 256 adapters, against the backbone's own forward pass and peft's `adapter_names`.

Run as `python -m benchmarks.mixed_batch [--quick | --tiny] [--device …] [--dtype …]`. 32 rows of 32 tokens on MiniLM,
or 256 of them for 256 adapters, in the precision that graftwork chooses for the machine or in another, peft in the
same. Every contestant runs in turn in each round; outputs are checked first: each row says what its adapter says alone,
and peft with the same weights says the same.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measuring import at_least, at_most, check, in_turns, options_of, ratio, report, where_time_goes
from benchmarks.models import load
from benchmarks.peers import RANK, trained, with_peft
from graftwork import AdaptedModel
from graftwork.methods import METHODS

TOKENS = 32
METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": RANK},
    "houlsby": {"bottleneck": 64},
    "pfeiffer": {},
    "compacter": {},
    "ia3": {},
    "bitfit": {},
    "layer-norm-tuning": {},
    "prefix-tuning": {},
    "prompt-tuning": {"init": "uniform"},
}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds, warmups: with up to `rows` adapters; with more of them, 3 rounds suffice.
        methods: which ones, the first of them against peft.
        counts: how many adapters share a batch.
        rows: of a batch, or as many as there are adapters; peft is given an adapter a row.
    """

    rounds: int
    warmups: int
    methods: tuple[str, ...]
    counts: tuple[int, ...] = (1, 8, 32, 256)
    rows: int = 32


SIZES = {
    "full": Size(15, 2, tuple(METHOD_SETTINGS)),
    "quick": Size(3, 2, ("lora", "houlsby")),
    "tiny": Size(1, 0, tuple(METHOD_SETTINGS), counts=(1, 4, 8), rows=4),
}


def batch_of(rows: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return so many rows of random words."""
    ids = torch.randint(1_000, 20_000, (rows, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def measure(model: AdaptedModel, plain: Any, size: Size, count: int) -> float:
    """Return the time of a batch over so many adapters of one method, relative to the backbone's own pass."""
    rows = max(size.rows, count)
    batch, names = batch_of(rows, model.device), [f"{i % count}" for i in range(rows)]
    mixed, some = model(**batch, adapters=names), (0, rows // 2, rows - 1)
    alone = torch.stack([model(**batch, adapters=names[row]).logits[row] for row in some])
    check(torch.stack([mixed.rows[row] for row in some]), alone, f"{count} adapters", dtype=model.backbone.dtype)
    given: Any = "0" if count == 1 else names
    contestants: dict[str, Callable[[], Any]] = {
        "backbone": lambda: plain(**batch),
        "mixed": lambda: model(**batch, adapters=given),
    }
    rounds = size.rounds if count <= size.rows else min(3, size.rounds)
    times = in_turns(contestants, rounds=rounds, warmups=size.warmups)
    return ratio(times["mixed"], times["backbone"])


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = options_of(
        "mixed_batch", "Adapters mixed in a batch.", argv, quick="3 rounds in place of 15, and LoRA and Houlsby only"
    )
    size = SIZES[options.size]
    rows, resident = size.rows, size.counts[-1]
    backbone = load(options)
    plain = copy.deepcopy(backbone.model)
    batch = batch_of(rows, backbone.device)
    ratios: dict[str, float] = {}
    bars: dict[str, dict[str, Any]] = {}
    print(
        f"{rows} rows of {TOKENS} tokens, or {resident} for as many adapters, {backbone.dtype}, times relative to the "
        "backbone's own pass"
    )
    for name in size.methods:
        adapters = [trained(backbone, METHODS[name](**METHOD_SETTINGS[name]), seed) for seed in range(resident)]
        model = AdaptedModel(backbone, {f"{i}": adapter for i, adapter in enumerate(adapters)})
        for count in size.counts:
            value = measure(model, plain, size, count)
            ratios[f"{name} {count}"] = value
            bars[f"{name}, {count} adapters, x backbone"] = at_most(value, 1.1 if count == 1 else 1.3)
            print(f"{name:<20}{count:>4} adapters {value:>8.2f}", flush=True)
        if name == "lora":
            peer = with_peft(backbone, plain, adapters[:rows])
            names = [f"{i}" for i in range(rows)]
            alone = peer(**batch, adapter_names=names).last_hidden_state
            check(model(**batch, adapters=names).last_hidden_state, alone, "peft", dtype=backbone.dtype)
            contestants: dict[str, Callable[[], Any]] = {
                "ours": lambda model=model, names=names: model(**batch, adapters=names),
                "peft": lambda peer=peer, names=names: peer(**batch, adapter_names=names),
            }
            times = in_turns(contestants, rounds=size.rounds, warmups=size.warmups)
            value = ratio(times["peft"], times["ours"])
            ratios[f"peft / ours, lora {rows}"] = value
            bars[f"lora, {rows} adapters, peft / ours"] = at_least(value, 2.5)
            print(f"{'peft adapter_names':<20}{rows:>4} adapters {value:>8.2f} x ours", flush=True)
            print(f"\nof graftwork's pass over {rows} of them:\n{where_time_goes(contestants['ours'])}\n")
        model.detach()
    return report("mixed_batch", ratios, bars)


if __name__ == "__main__":
    sys.exit(main())
