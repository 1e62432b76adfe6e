"""A batch whose rows use up to 256 adapters, against the backbone's own forward pass and peft's `adapter_names`.

Run as `python -m benchmarks.mixed_batch [--quick] [--device …]`. 32 rows of 32 tokens on MiniLM, or 256 of them for 256
adapters, in the precision that graftwork chooses for the machine. Every contestant runs in turn in each round; outputs
are checked first: each row says what its adapter says alone, and peft with the same weights says the same.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measuring import at_least, at_most, check, in_turns, options_of, ratio, report, where_time_goes
from benchmarks.peers import RANK, trained, with_peft
from graftwork import AdaptedModel, Backbone
from graftwork.methods import METHODS

ROWS, TOKENS = 32, 32
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
RESIDENT = 256


def batch_of(rows: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Return so many rows of random words."""
    ids = torch.randint(1_000, 20_000, (rows, TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}


def measure(model: AdaptedModel, plain: Any, rounds: int, count: int) -> float:
    """Return the time of a batch over so many adapters of one method, relative to the backbone's own pass."""
    rows = max(ROWS, count)
    batch, names = batch_of(rows, model.device), [f"{i % count}" for i in range(rows)]
    mixed = model(**batch, adapters=names)
    for row in (0, rows // 2, rows - 1):
        check(mixed.rows[row], model(**batch, adapters=names[row]).logits[row], names[row])
    given: Any = "0" if count == 1 else names
    contestants: dict[str, Callable[[], Any]] = {
        "backbone": lambda: plain(**batch),
        "mixed": lambda: model(**batch, adapters=given),
    }
    times = in_turns(contestants, rounds=rounds)
    return ratio(times["mixed"], times["backbone"])


@torch.inference_mode()
def main() -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = options_of(
        "mixed_batch", "Adapters mixed in a batch.", quick="3 rounds in place of 15, and LoRA and Houlsby only"
    )
    rounds, methods = (3, ["lora", "houlsby"]) if options.quick else (15, list(METHOD_SETTINGS))
    backbone = Backbone.load("minilm", device=options.device)
    plain = copy.deepcopy(backbone.model)
    batch = batch_of(ROWS, backbone.device)
    ratios: dict[str, float] = {}
    bars: dict[str, dict[str, Any]] = {}
    print(
        f"{ROWS} rows of {TOKENS} tokens, or {RESIDENT} for as many adapters, {backbone.dtype}, times relative to the "
        "backbone's own pass"
    )
    for name in methods:
        adapters = [trained(backbone, METHODS[name](**METHOD_SETTINGS[name]), seed) for seed in range(RESIDENT)]
        model = AdaptedModel(backbone, {f"{i}": adapter for i, adapter in enumerate(adapters)})
        for count in (1, 8, 32, RESIDENT):
            value = measure(model, plain, rounds if count < RESIDENT else 3, count)
            ratios[f"{name} {count}"] = value
            bar = {1: 1.2, 32: 1.35}.get(count)
            if bar is not None:
                bars[f"{name}, {count} adapters, x backbone"] = at_most(value, bar)
            print(f"{name:<20}{count:>4} adapters {value:>8.2f}", flush=True)
        if name == "lora":
            peer = with_peft(backbone, plain, adapters[:ROWS])
            names = [f"{i}" for i in range(ROWS)]
            alone = peer(**batch, adapter_names=names).last_hidden_state
            check(model(**batch, adapters=names).last_hidden_state, alone, "peft")
            contestants: dict[str, Callable[[], Any]] = {
                "ours": lambda model=model, names=names: model(**batch, adapters=names),
                "peft": lambda peer=peer, names=names: peer(**batch, adapter_names=names),
            }
            times = in_turns(contestants, rounds=rounds)
            ratios["peft / ours, lora 32"] = ratio(times["peft"], times["ours"])
            bars["lora, 32 adapters, peft / ours"] = at_least(ratios["peft / ours, lora 32"], 4.0)
            print(
                f"{'peft adapter_names':<20}{32:>4} adapters {ratios['peft / ours, lora 32']:>8.2f} x ours", flush=True
            )
            print(f"\nof graftwork's pass over 32 of them:\n{where_time_goes(contestants['ours'])}\n")
        model.detach()
    return report("mixed_batch", ratios, bars)


if __name__ == "__main__":
    sys.exit(main())
