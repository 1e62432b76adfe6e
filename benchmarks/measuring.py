"""What benchmarks share: timing in turns, the machine, the table and the JSON line."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def options_of(name: str, what: str, *, quick: str) -> argparse.Namespace:
    """Return a benchmark's options: `quick` and `device`.

    Args:
        what: it measures.
        quick: what --quick changes.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=what)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


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


def check(found: torch.Tensor, expected: torch.Tensor, what: str, *, exact: bool | None = None) -> None:
    """Refuse to time outputs that differ by more than rounding: in float32 where `exact`, else in bfloat16."""
    exact = found.dtype != torch.bfloat16 if exact is None else exact
    bound = 1e-3 if exact else 0.05
    difference = float((found.detach().float() - expected.detach().float()).abs().max())
    if difference > bound * max(1.0, float(expected.detach().abs().max())):
        sys.exit(f"{what}: outputs differ by {difference}")


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
    print(f"\n{'bar':<{width}}{'value':>10}{'bar':>10}  met")
    for name, bar in bars.items():
        print(f"{name:<{width}}{bar['value']:>10.3f}{bar['bar']:>10.3f}  {'yes' if bar['met'] else 'NO'}")
    rounded = {name: round(value, 4) for name, value in ratios.items()}
    print(json.dumps({"benchmark": benchmark, "machine": describe_machine(), "ratios": rounded, "bars": bars}))
    return 0 if all(bar["met"] for bar in bars.values()) else 1
