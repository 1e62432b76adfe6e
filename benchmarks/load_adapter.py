"""How long it takes until a saved adapter can be used, for the first, the hundredth and the thousandth on one model.

Run as `python -m benchmarks.load_adapter [--quick] [--device …]`. LoRA of rank 8 on all linear maps of MiniLM, read
from a folder; peft's `load_adapter` reads the same weights from its own kind of folder.
"""

import copy
import cProfile
import pstats
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.measuring import at_least, at_most, check, options_of, report
from benchmarks.peers import RANK, trained, with_peft
from graftwork import AdaptedModel, Backbone, LoRA

PROFILED = 20
"""Calls that are profiled."""


def time_of(load: Any) -> float:
    """Return how many milliseconds a call takes."""
    start = time.perf_counter()
    load()
    return 1_000 * (time.perf_counter() - start)


def where_calls_go(load: Callable[[], None], model: AdaptedModel) -> str:
    """Return the functions of graftwork's own in which most of the time passes, with what they call."""
    profiler = cProfile.Profile()
    for _ in range(PROFILED):
        profiler.runcall(load)
        model.remove("profiled")
    found = pstats.Stats(profiler).get_stats_profile()
    total = found.total_tt or 1
    own = {name: each for name, each in found.func_profiles.items() if "graftwork" in each.file_name}
    largest = sorted(own, key=lambda name: own[name].cumtime, reverse=True)[:12]
    return "\n".join(f"{own[name].cumtime / total:>7.1%}  {name}" for name in largest)


def main() -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = options_of("load_adapter", "Loading adapters.", quick="100 adapters in place of 1,000, and 10 of peft's")
    total, peers = (100, 10) if options.quick else (1_000, 100)
    folder = Path(tempfile.mkdtemp())
    try:
        backbone = Backbone.load("minilm", device=options.device)
        adapter = trained(backbone, LoRA(rank=RANK), 0)
        adapter.save(folder / "ours")
        with_peft(backbone, backbone.model, [adapter]).save_pretrained(folder / "peft", selected_adapters=["0"])
        model = AdaptedModel(backbone)
        ours = [time_of(lambda i=i: model.add(f"{i}", folder / "ours")) for i in range(total)]
        print(f"of {PROFILED} calls:\n{where_calls_go(lambda: model.add('profiled', folder / 'ours'), model)}\n")
        ids = torch.arange(1_000, 1_064).reshape(2, 32)
        batch = {"input_ids": ids.to(backbone.device), "attention_mask": torch.ones_like(ids).to(backbone.device)}
        with torch.inference_mode():
            said = model(**batch, adapters=[f"{total - 1}"] * 2).last_hidden_state
        model.detach()
        from peft import PeftModel

        peer = PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folder / "peft" / "0"), adapter_name="warm")
        with torch.inference_mode():
            check(said, peer.to(backbone.dtype).eval()(**batch).last_hidden_state, "peft")
        theirs = [time_of(lambda i=i: peer.load_adapter(str(folder / "peft" / "0"), f"{i}")) for i in range(peers)]
    finally:
        shutil.rmtree(folder)
    # The first one of all also wraps the backbone's modules.
    first, soon, last = ours[0], median(ours[1:11]), median(ours[-10:])
    print(f"{'':<10}{'first':>10}{'next 10':>10}{f'last 10 of {total}':>20}   milliseconds, medians")
    print(f"{'graftwork':<10}{first:>10.1f}{soon:>10.1f}{last:>20.1f}")
    print(f"{'peft':<10}{theirs[0]:>10.1f}{median(theirs[1:11]):>10.1f}{median(theirs[-10:]):>20.1f}   (of {peers})")
    bars = {
        "the first, ms": at_most(first, 5.0),
        "the last, ms": at_most(last, 5.0),
        "last / next 10": at_most(last / soon, 1.5),
        f"peft's {peers}th / ours": at_least(median(theirs[-10:]) / median(ours[peers - 10 : peers]), 50.0),
    }
    return report("load_adapter", {name: bar["value"] for name, bar in bars.items()}, bars)


if __name__ == "__main__":
    sys.exit(main())
