"""What benchmarks share: options, timing in turns, bounds of outputs, the machine, the table and the JSON line."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

DTYPES = ("auto", "float32", "bfloat16")
TINY = "one round on a tiny random backbone: that it runs to its last line, no more"
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""By the precision in which a backbone computes, how far apart two outputs that ought to be equal may be, as a share of
the largest number among them.

Each of six layers rounds some sums of 384 to 1,536 products, in another order where a batch has another shape. In
float32 (2^-24) outputs of MiniLM then differ by 1e-6 of the largest, in bfloat16 (2^-9) by 0.013. Logits of another
adapter differ by all of it; with the right head but without its ops, or with those of another adapter, by 0.1 to 0.6,
and by 0.025 with IA3, whose fault only float32 shows.
"""
BACKWARD = 4
"""How many times that for gradients, whose way is twice as long: 2e-6 and 0.07 of the largest were seen."""


def options_of(name: str, what: str, argv: Sequence[str] | None, *, quick: str) -> argparse.Namespace:
    """Return a benchmark's options: `size` (full, quick or tiny), `device` and `dtype`.

    Args:
        what: it measures.
        argv: the command line after the benchmark's name; the process's own when None.
        quick: what --quick changes.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=what)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="size", action="store_const", const="quick", help=quick)
    sizes.add_argument("--tiny", dest="size", action="store_const", const="tiny", help=TINY)
    add_places(parser)
    parser.set_defaults(size="full")
    return parser.parse_args(argv)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a backbone is and in which precision."""
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=DTYPES, help="of the backbone; auto as graftwork chooses")


def in_turns(contestants: Mapping[str, Callable[[], Any]], *, rounds: int, warmups: int = 2) -> dict[str, list[float]]:
    """Return each contestant's times in seconds, one a round, run one after the other in each round.

    Ratios of times of one round are what can be trusted on a noisy machine.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warmups + rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn >= warmups:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(of: list[float], to: list[float]) -> float:
    """Return the median of the ratios of times of one round."""
    return median(a / b for a, b in zip(of, to, strict=True))


def check(found: Tensor, expected: Tensor, what: str, *, dtype: torch.dtype, times: int = 1) -> None:
    """Refuse to time outputs that differ by more than rounding.

    Args:
        dtype: the less precise one of those in which the two were computed, which is that of the backbone also where
            its head then says float32.
        times: how many bounds apart they may be.
    """
    difference = float((found.detach().float() - expected.detach().float()).abs().max())
    largest = float(expected.detach().abs().max())
    if not difference <= times * BOUNDS[dtype] * largest:
        sys.exit(f"{what}: outputs differ by {difference:.3g}, where the largest is {largest:.3g}, in {dtype}")


def where_time_goes(run: Callable[[], Any], *, rows: int = 10) -> str:
    """Return the operations that take most of a call's time, with their shares of it."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    run()
    with profile(activities=activities, acc_events=True) as profiler:
        run()
    found = profiler.key_averages()
    spent = {event.key: event.self_device_time_total or event.self_cpu_time_total for event in found}
    total = sum(spent.values()) or 1
    largest = sorted(spent, key=spent.__getitem__, reverse=True)[:rows]
    calls = {event.key: event.count for event in found}
    return "\n".join(f"{spent[key] / total:>7.1%}  {calls[key]:>6} x  {key}" for key in largest)


def peak_memory() -> int:
    """Return the most bytes that this process has had in memory, as Linux counts them.

    What `resource.getrusage` says begins, for a new process, with the peak of the one that started it.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def describe_machine() -> dict[str, Any]:
    """Return the processor's name, the number of cores this process may use, the GPU's name, and the versions."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = {"cpu": cpu, "cores": cores, "python": platform.python_version(), "torch": torch.__version__}
    return machine | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def at_most(value: float, bar: float) -> dict[str, Any]:
    """Return a bar that is met from below."""
    return {"value": round(value, 4), "bar": bar, "atleast": False, "met": value <= bar}


def at_least(value: float, bar: float) -> dict[str, Any]:
    """Return a bar that is met from above."""
    return {"value": round(value, 4), "bar": bar, "atleast": True, "met": value >= bar}


def report(benchmark: str, ratios: Mapping[str, float], bars: Mapping[str, Mapping[str, Any]]) -> int:
    """Print the bars and the JSON line, and return the exit status: 1 when a bar is missed."""
    width = max(map(len, bars))
    print(f"\n{'bar':<{width}}{'value':>10}{'wanted':>20}  met")
    for name, bar in bars.items():
        wanted = f"{'at least' if bar['atleast'] else 'at most'} {bar['bar']}"
        print(f"{name:<{width}}{bar['value']:>10.3f}{wanted:>20}  {'yes' if bar['met'] else 'NO'}")
    rounded = {name: round(value, 4) for name, value in ratios.items()}
    print(json.dumps({"benchmark": benchmark, "machine": describe_machine(), "ratios": rounded, "bars": bars}))
    return 0 if all(bar["met"] for bar in bars.values()) else 1
