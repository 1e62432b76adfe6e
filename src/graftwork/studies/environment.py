"""Where a run was made: versions, the state of the code, the machine, and how much memory it took."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from graftwork.adapters.identity import library_versions
from graftwork.backbones import Backbone


def environment(backbone: Backbone) -> dict[str, Any]:
    """What a run's results may depend on beyond its recipe."""
    import psutil

    device = next(backbone.model.parameters()).device
    return {
        "versions": {"python": platform.python_version(), **library_versions()},
        "git": {"graftwork": git_state(Path(__file__).parent), "folder": git_state(Path.cwd())},
        "backbone": {"name": backbone.name, "fingerprint": backbone.fingerprint, "dtype": str(backbone.dtype)},
        "machine": {
            "host": platform.node(),
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory": psutil.virtual_memory().total,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        },
        "command": sys.argv,
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that a folder is at, and whether its files differ from it; None outside of a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


class PeakMemory:
    """The largest memory from when it is made on: of the GPU, or of this process where the system tells (Linux)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._known = True
            return
        try:
            # 5 sets the high-water mark of the resident memory back (Linux: proc_pid_clear_refs(5)).
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._known = True
        except OSError:
            self._known = False

    def measure(self) -> int | None:
        """In bytes; None where it cannot be measured."""
        if not self._known:
            return None
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        peak = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
        return None if peak is None else 1024 * int(peak)
