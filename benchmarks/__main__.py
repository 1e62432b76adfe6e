"""Every benchmark, one after the other, and their results as a page.

Run as `python -m benchmarks [--quick] [--device …] [NAME …]`. Writes `benchmarks/RESULTS.md`. The exit status is 1
when a bar is missed or a benchmark fails.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring import describe_machine

HERE = Path(__file__).parent
NO_BENCHMARKS = {"__init__", "__main__", "measuring", "peers"}


def run(name: str, options: list[str]) -> tuple[str, dict[str, Any] | None]:
    """Run one benchmark: what it printed before its last line, and that line; None when it failed."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    try:
        result: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        return "".join(lines), None
    return "".join(lines[:-1]), result


def page(results: Mapping[str, tuple[str, dict[str, Any] | None]], options: list[str]) -> str:
    """Return the results as Markdown: all bars in one table, then what each benchmark printed, and its JSON."""
    machine = describe_machine()
    about = f"{machine['cpu']}, {machine['cores']} cores" + (f", {machine['gpu']}" if "gpu" in machine else "")
    command = " ".join(["python -m benchmarks", *options])
    lines = [
        "# Results of the benchmarks",
        "",
        f"On {about}; torch {machine['torch']}, Python {machine['python']}. Made by "
        f"`{command}`. Each figure is the median of ratios of two things timed in turn "
        "in one process; times in seconds mean little from one machine to another.",
        "",
        "| benchmark | bar | measured | wanted | met |",
        "|---|---|---|---|---|",
    ]
    for name, (_, result) in results.items():
        for what, bar in (result or {"bars": {}})["bars"].items():
            sign = "at least" if bar["atleast"] else "at most"
            met = "yes" if bar["met"] else "**no**"
            lines.append(f"| {name} | {what} | {bar['value']} | {sign} {bar['bar']} | {met} |")
        if result is None:
            lines.append(f"| {name} | - | it failed | - | **no** |")
    for name, (printed, result) in results.items():
        lines += ["", f"## {name}", "", "```", printed.strip(), "```"]
        if result is not None:
            lines += ["", "```json", json.dumps(result), "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run them, write the page, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="All benchmarks.")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--device", default="auto")
    parser.add_argument("names", nargs="*", help="which ones; all when left out")
    chosen = parser.parse_args()
    known = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NO_BENCHMARKS)
    unknown = sorted({*chosen.names} - {*known})
    if unknown:
        parser.error(f"unknown benchmarks {', '.join(unknown)}; known are {', '.join(known)}")
    options = [
        *(["--quick"] if chosen.quick else []),
        *([] if chosen.device == "auto" else ["--device", chosen.device]),
    ]
    results = {}
    for name in chosen.names or known:
        print(f"\n== {name}", flush=True)
        results[name] = run(name, options)
    target = HERE / "RESULTS.md"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(page(results, options), encoding="utf-8")
    os.replace(temporary, target)
    print(f"\nwritten: {target}")
    ended_well = all(
        result is not None and all(b["met"] for b in result["bars"].values()) for _, result in results.values()
    )
    return 0 if ended_well else 1


if __name__ == "__main__":
    sys.exit(main())
