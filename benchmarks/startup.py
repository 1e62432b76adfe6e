"""How long a person waits before graftwork does anything: the help text, and the import.

Run as `python -m benchmarks.startup [--quick | --tiny]`; no model is loaded, so that `--device` and `--dtype`, which
every benchmark takes, make no difference. Each time is the median over whole processes after one warm-up; an import is
timed by the process that imports. The last line is one JSON object; the exit status is 1 when a bar is missed.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.measuring import at_most, options_of, report

RUNS = {"full": 11, "quick": 3, "tiny": 1}
BARS = {"help_seconds": 0.3, "import_seconds": 0.15}


def measure(command: Sequence[str], *, runs: int) -> float:
    """Return the median wall time, in seconds, of `runs` runs of `command` after a warm-up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def measure_import(*, runs: int) -> float:
    """Return the median seconds of `import graftwork` in new processes, each of which times it itself."""
    timed = "import time; start = time.perf_counter(); import graftwork; print(time.perf_counter() - start)"
    found = [subprocess.run([sys.executable, "-c", timed], check=True, capture_output=True) for _ in range(runs + 1)]
    return median(float(run.stdout) for run in found[1:])


def find_command() -> str:
    """Return the `graftwork` command that belongs to this interpreter."""
    command = Path(sys.executable).parent / "graftwork"
    if not command.exists():
        sys.exit(f"{command} is not there: install graftwork into this environment (pip install -e .)")
    return str(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    runs = RUNS[options_of("startup", "Start-up times of graftwork.", argv, quick="3 runs in place of 11").size]
    values = {
        "help_seconds": measure([find_command(), "--help"], runs=runs),
        "import_seconds": measure_import(runs=runs),
    }
    bars = {name: at_most(value, BARS[name]) for name, value in values.items()}
    print(f"start-up, median of {runs} runs")
    return report("startup", {}, bars)


if __name__ == "__main__":
    sys.exit(main())
