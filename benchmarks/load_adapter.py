"""How long it takes until a saved adapter can be used, for the first, the hundredth and the thousandth on one model.

Run as `python -m benchmarks.load_adapter [--quick | --tiny] [--device …] [--dtype …]`. LoRA of rank 8 on all linear
maps of MiniLM, read from a folder; peft's `load_adapter` reads the same weights from its own kind of folder. One
adapter and one pass come before the first: with them the backbone's modules are wrapped, once. The n-th is the median
of up to five around it. For comparison: how long it takes to read the tensors' file alone.
"""

import copy
import cProfile
import pstats
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.measuring import at_least, at_most, check, options_of, report
from benchmarks.models import load
from benchmarks.peers import RANK, trained, with_peft
from graftwork import AdaptedModel, LoRA
from graftwork.adapters.folder import TENSORS


@dataclass(frozen=True)
class Size:
    """How much is measured: which adapters, up to the last; how many of peft's, the tenth among them; and how many
    calls are profiled.
    """

    marks: tuple[int, ...]
    peers: int
    profiled: int = 20


SIZES = {"full": Size((1, 100, 1_000), 100), "quick": Size((1, 100), 12), "tiny": Size((1, 15), 12, profiled=2)}


def nth(times: list[float], n: int) -> float:
    """Return the median of up to five times around the n-th, counted from 1."""
    return median(times[max(0, n - 3) : n + 2])


def time_of(call: Callable[[], Any]) -> float:
    """Return how many milliseconds a call takes."""
    start = time.perf_counter()
    call()
    return 1_000 * (time.perf_counter() - start)


def where_calls_go(add: Callable[[], None], model: AdaptedModel, calls: int) -> str:
    """Return the functions of graftwork's own in which most of the time passes, with what they call."""
    profiler = cProfile.Profile()
    for _ in range(calls):
        profiler.runcall(add)
        model.remove("profiled")
    found = pstats.Stats(profiler).get_stats_profile()
    total = found.total_tt or 1
    own = {name: each for name, each in found.func_profiles.items() if "graftwork" in each.file_name}
    largest = sorted(own, key=lambda name: own[name].cumtime, reverse=True)[:12]
    return "\n".join(f"{own[name].cumtime / total:>7.1%}  {name}" for name in largest)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = options_of(
        "load_adapter", "Loading adapters.", argv, quick="100 adapters in place of 1,000, and 12 of peft's"
    )
    size = SIZES[options.size]
    total = size.marks[-1]
    folder = Path(tempfile.mkdtemp())
    try:
        backbone = load(options)
        adapter = trained(backbone, LoRA(rank=RANK), 0)
        adapter.save(folder / "ours")
        with_peft(backbone, backbone.model, [adapter]).save_pretrained(folder / "peft", selected_adapters=["0"])
        ids = torch.arange(1_000, 1_064).reshape(2, 32)
        batch = {"input_ids": ids.to(backbone.device), "attention_mask": torch.ones_like(ids).to(backbone.device)}
        model = AdaptedModel(backbone)

        def begin() -> None:
            model.add("before", folder / "ours")
            with torch.inference_mode():
                model(**batch, adapters=["before"] * 2)

        beginning = time_of(begin)
        ours = [time_of(lambda i=i: model.add(f"{i}", folder / "ours")) for i in range(total)]
        spent = where_calls_go(lambda: model.add("profiled", folder / "ours"), model, size.profiled)
        print(f"of {size.profiled} calls:\n{spent}\n")
        with torch.inference_mode():
            said = model(**batch, adapters=[f"{total - 1}"] * 2).last_hidden_state
        model.detach()
        from peft import PeftModel

        peer = PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folder / "peft" / "0"), adapter_name="warm")
        with torch.inference_mode():
            expected = peer.to(backbone.dtype).eval()(**batch).last_hidden_state
        check(said, expected, "peft", dtype=backbone.dtype)
        theirs = [time_of(lambda i=i: peer.load_adapter(str(folder / "peft" / "0"), f"{i}")) for i in range(size.peers)]
        reading = median(time_of(lambda: load_file(folder / "ours" / TENSORS)) for _ in range(11))
    finally:
        shutil.rmtree(folder)
    print(f"the first of all, and a pass with it: {beginning:.1f} ms; the file alone: {reading:.1f} ms")
    print(f"{'milliseconds':<14}{'graftwork':>10}{'peft':>10}")
    for mark in sorted({*size.marks, 10, size.peers}):
        own = f"{nth(ours, mark):.1f}" if mark <= total else "-"
        other = f"{nth(theirs, mark):.1f}" if mark <= size.peers else "-"
        print(f"{f'number {mark:,}':<14}{own:>10}{other:>10}")
    marks = {f"number {mark:,}": nth(ours, mark) for mark in size.marks}
    bars = {
        **{f"{name}, ms": at_most(value, 5.0) for name, value in marks.items()},
        "slowest / fastest of these": at_most(max(marks.values()) / min(marks.values()), 1.5),
        "peft's 10th / ours": at_least(nth(theirs, 10) / nth(ours, 10), 10.0),
    }
    ratios = {
        **{f"{name} / reading the file": value / reading for name, value in marks.items()},
        "peft's 10th / ours": nth(theirs, 10) / nth(ours, 10),
        f"peft's {size.peers}th / ours": nth(theirs, size.peers) / nth(ours, size.peers),
    }
    return report("load_adapter", ratios, bars)


if __name__ == "__main__":
    sys.exit(main())
