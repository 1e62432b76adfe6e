"""Every benchmark, or those that are named, one after the other, and the results of all as a page.

Run as `python -m benchmarks [--quick] [--device …] [--dtype …] [--glue FOLDER] [--adapters PYTHON] [--mergekit PYTHON]
[NAME …]`. Writes `benchmarks/results.json`, where the results of others stay as they are, and of it
`benchmarks/RESULTS.md`. Results in a precision that is asked for stand beside those in the one that graftwork chooses.
The exit status is 1 when a bar is missed or one fails.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring import add_places, describe_machine

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
MISSED = HERE / "MISSED.md"
NO_BENCHMARKS = {
    *("__init__", "__main__", "measuring", "models", "peers"),
    *("peft_script", "adapters_script", "mergekit_script"),
}
NEED_GLUE = {"whole_job"}
TAKE_PEERS = {"adapters": {"fuse"}, "mergekit": {"merge"}}
"""Packages that other Pythons have -> the benchmarks that compare with them."""
PLACES = {"--glue": "FOLDER", "--adapters": "PYTHON", "--mergekit": "PYTHON"}
"""Options that say where something lies on one machine, and what is shown instead."""


def known() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NO_BENCHMARKS)


def run(name: str, options: list[str]) -> dict[str, Any]:
    """Run one benchmark: with which command, on what, what it printed before its last line, and that line; None when it
    failed."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    try:
        result = json.loads(lines.pop())
    except (IndexError, json.JSONDecodeError):
        result = None
    # Where things lie on one machine is of no use on another.
    shown = [PLACES.get(before, option) for before, option in zip(["", *options], options, strict=False)]
    said = " ".join(["python -m", f"benchmarks.{name}", *shown])
    return {"command": said, "machine": describe_machine(), "printed": "".join(lines).strip(), "result": result}


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as Markdown: all bars in one table, then what each benchmark printed."""
    lines = [
        "# Results of the benchmarks",
        "",
        "Each figure is the median of ratios of two things timed in turn in one process; those of whole_job are of",
        "processes that ran once each. Times in seconds mean little from one machine to another. Below the table: what",
        "each benchmark printed, on which machine, and where its time goes.",
        "",
        "| benchmark | bar | measured | wanted | met |",
        "|---|---|---|---|---|",
    ]
    for name, own in results.items():
        if own["result"] is None:
            lines.append(f"| {name} | - | it failed | - | **no** |")
            continue
        for what, bar in own["result"]["bars"].items():
            sign, met = "at least" if bar["atleast"] else "at most", "yes" if bar["met"] else "**no**"
            lines.append(f"| {name} | {what} | {bar['value']:.4g} | {sign} {bar['bar']} | {met} |")
    if MISSED.exists():
        lines += ["", "## Bars that are missed, and why", "", MISSED.read_text(encoding="utf-8").strip()]
    for name, own in results.items():
        machine = own["machine"]
        on = ", ".join([machine["cpu"], f"{machine['cores']} cores", *([machine["gpu"]] if "gpu" in machine else [])])
        about = f"`{own['command']}` on {on}; torch {machine['torch']}, Python {machine['python']}."
        lines += ["", f"## {name}", "", about, "", "```", own["printed"], "```"]
    return "\n".join(lines) + "\n"


def write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def main() -> int:
    """Run them, write the results, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Benchmarks, and a page of their results."
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    add_places(parser)
    parser.add_argument("--glue", help=f"the folder with GLUE's data, without which {', '.join(NEED_GLUE)} is left out")
    for package, takers in TAKE_PEERS.items():
        parser.add_argument(f"--{package}", help=f"a Python that has the package {package}, for {', '.join(takers)}")
    parser.add_argument("names", nargs="*", help="which ones; all when left out")
    chosen = parser.parse_args()
    names = known()
    unknown = sorted({*chosen.names} - {*names})
    if unknown:
        parser.error(f"unknown benchmarks {', '.join(unknown)}; known are {', '.join(names)}")
    options = [
        *(["--quick"] if chosen.quick else []),
        *([] if chosen.device == "auto" else ["--device", chosen.device]),
        *([] if chosen.dtype == "auto" else ["--dtype", chosen.dtype]),
    ]
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    made = {}
    for name in chosen.names or names:
        print(f"\n== {name}", flush=True)
        if name in NEED_GLUE and chosen.glue is None:
            print("left out: it needs --glue FOLDER", flush=True)
            continue
        key = name if chosen.dtype == "auto" else f"{name}, {chosen.dtype}"
        own = ["--glue", chosen.glue] if name in NEED_GLUE else []
        for package, takers in TAKE_PEERS.items():
            python = getattr(chosen, package)
            own += [f"--{package}", python] if name in takers and python else []
        made[key] = run(name, [*options, *own])
        results = {one: own for one, own in sorted((kept | made).items()) if one.partition(",")[0] in names}
        write(RESULTS, json.dumps(results, indent=1) + "\n")
        write(HERE / "RESULTS.md", page(results))
    found = [own["result"] for own in made.values()]
    return 0 if all(result and all(bar["met"] for bar in result["bars"].values()) for result in found) else 1


if __name__ == "__main__":
    sys.exit(main())
