"""Merges of three checkpoints, linear and TIES, against a copy of the same bytes and `mergekit`.

Run as `python -m benchmarks.merge [--quick | --tiny] [--mergekit PYTHON]`. The checkpoints are random numbers in
Llama's layout, 3 x 200 MB and 3 x 1 GB in float32; TIES merges two of them, which come from the third. A copy is of all
three files, and has reached the disk when it ends, as a merge has. Times are of calls in one process, in turns; the
memory is the peak of a process of its own for each merge, over what it had after its imports. Results are checked
first. `--mergekit` names a Python that has that package, which merges the same folders in a process of its own. No
model is run, so that `--device` and `--dtype`, which every benchmark takes, make no difference.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.measuring import TINY, add_places, at_least, at_most, check, in_turns, peak_memory, ratio, report
from graftwork.arithmetic import Weights, average, ties

COUNT = 3
KEEP = 0.2
LINEAR, GLOBAL, TENSOR = "linear", "ties, global", "ties, tensor"
BARS = {LINEAR: 2.0, GLOBAL: 6.0, TENSOR: 6.0}
"""Of a merge, relative to the copy."""
PEER = 5.0
MEMORY = 300
"""Megabytes over start-up."""


@dataclass(frozen=True)
class Size:
    """How much is measured: megabytes of a checkpoint, its width, and rounds."""

    megabytes: tuple[int, ...]
    width: int
    rounds: int


SIZES = {"full": Size((200, 1_000), 1_024, 5), "quick": Size((200,), 1_024, 3), "tiny": Size((1,), 64, 1)}


def shapes_of(megabytes: int, width: int) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Return the shapes of a checkpoint of about that size in Llama's layout, and its configuration."""
    inner, vocabulary = 4 * width, 16 * width
    layer = 4 * width * width + 3 * inner * width + 2 * width
    layers = max(1, (megabytes * 10**6 // 4 - 2 * vocabulary * width) // layer)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (vocabulary, width),
    }
    for i in range(layers):
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"model.layers.{i}.self_attn.{part}.weight"] = (width, width)
        for part, shape in {
            "gate_proj": (inner, width),
            "up_proj": (inner, width),
            "down_proj": (width, inner),
        }.items():
            shapes[f"model.layers.{i}.mlp.{part}.weight"] = shape
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{part}.weight"] = (width,)
    config = {
        **{
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": width,
            "vocab_size": vocabulary,
        },
        **{"intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 8, "dtype": "float32"},
        **{"tie_word_embeddings": False, "max_position_embeddings": 128, "num_key_value_heads": 8},
    }
    return shapes, config


def write(folder: Path, megabytes: int, width: int, seed: int) -> None:
    """Write a random checkpoint."""
    folder.mkdir(parents=True)
    shapes, config = shapes_of(megabytes, width)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def merges(folder: Path) -> dict[str, Weights]:
    """Return the merges of the checkpoints in a folder; nothing is computed yet."""
    base, a, b = (Weights.open(folder / f"{i}") for i in range(COUNT))
    return {
        LINEAR: average([base, a, b]),
        GLOBAL: base + ties([a - base, b - base], keep=KEEP),
        TENSOR: base + ties([a - base, b - base], keep=KEEP, scope="tensor"),
    }


def copy(folder: Path) -> None:
    """Copy the checkpoints, until the copies are on the disk."""
    for i in range(COUNT):
        target = folder / f"copy-{i}"
        shutil.copyfile(folder / f"{i}" / "model.safetensors", target)
        with target.open("rb") as written:
            os.fsync(written.fileno())


def trimmed(vector: Tensor) -> Tensor:
    """Return a vector with the largest of its numbers alone."""
    places = vector.abs().flatten().topk(int(KEEP * vector.numel() + 0.5)).indices
    return torch.zeros(vector.numel()).index_copy(0, places, vector.flatten()[places]).view(vector.shape)


def check_results(folder: Path) -> None:
    """Refuse to time merges that are not the formulas', on one tensor."""
    name = "model.layers.0.self_attn.q_proj.weight"
    base, a, b = (Weights.open(folder / f"{i}")[name] for i in range(COUNT))
    found = merges(folder)
    check(found[LINEAR][name], (base + a + b) / 3, LINEAR, dtype=torch.float32)
    kept = torch.stack([trimmed(a - base), trimmed(b - base)])
    agreeing = kept * (kept * kept.sum(0) > 0)
    expected = base + agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    check(found[TENSOR][name], expected, TENSOR, dtype=torch.float32)


def peak(folder: Path, name: str) -> float:
    """Return the memory of a merge in a process of its own, in megabytes over what it had after its imports."""
    command = [sys.executable, "-m", "benchmarks.merge", "--measure", str(folder), name]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]).stdout
    return float(said.splitlines()[-1])


def measure(folder: Path, name: str) -> None:
    """Print the memory that a merge takes in this process."""
    opened = merges(folder)
    (2 * Weights.of({"x": torch.zeros(4)}))["x"]  # what is imported late
    before = peak_memory()
    opened[name].save(folder / "measured")
    print((peak_memory() - before) / 1e6)
    shutil.rmtree(folder / "measured")


def mergekit_seconds(python: str, folder: Path, name: str) -> float:
    """Return what mergekit takes for a merge, without its imports."""
    script = Path(__file__).with_name("mergekit_script.py")
    said = subprocess.run([python, str(script), str(folder), name], check=True, capture_output=True, text=True).stdout
    return float(said.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the JSON line, and return the exit status."""
    options = parsed(argv)
    if options.measure:
        measure(Path(options.measure[0]), options.measure[1])
        return 0
    size = SIZES[options.size]
    ratios: dict[str, float] = {}
    bars: dict[str, Any] = {}
    for megabytes in size.megabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            folder, what = Path(temporary), f"{COUNT} x {megabytes} MB"
            for i in range(COUNT):
                write(folder / f"{i}", megabytes, size.width, i)
            check_results(folder)

            def run(name: str, folder: Path = folder) -> Callable[[], None]:
                return lambda: merges(folder)[name].save(folder / "out", overwrite=True)

            contestants = {"copy": lambda folder=folder: copy(folder), **{name: run(name) for name in BARS}}
            times = in_turns(contestants, rounds=size.rounds, warmups=1)
            print(f"{what}, {len(os.sched_getaffinity(0))} cores")
            for name, own in times.items():
                print(f"{name:<16}{median(own):>8.2f} s{ratio(own, times['copy']):>8.2f} x the copy")
            for name, bar in BARS.items():
                ratios[f"{name} / copy, {what}"] = ratio(times[name], times["copy"])
                bars[f"{name} / copy, {what}"] = at_most(ratio(times[name], times["copy"]), bar)
                memory = max(peak(folder, name), 0.1)
                print(f"{name:<16}{memory:>8.0f} MB over start-up")
                bars[f"{name}, MB over start-up, {what}"] = at_most(memory, MEMORY)
                if options.mergekit is not None:
                    theirs = mergekit_seconds(options.mergekit, folder, name)
                    print(f"mergekit, {name}: {theirs:.2f} s")
                    ratios[f"mergekit / ours, {name}, {what}"] = theirs / median(times[name])
                    bars[f"mergekit / ours, {name}, {what}"] = at_least(theirs / median(times[name]), PEER)
    return report("merge", ratios, bars)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description="Merges of three checkpoints.")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", dest="size", action="store_const", const="quick", help="3 x 200 MB alone, 3 rounds")
    sizes.add_argument("--tiny", dest="size", action="store_const", const="tiny", help=TINY)
    add_places(parser)
    parser.add_argument("--mergekit", help="a Python that has the package mergekit")
    parser.add_argument("--folder", help="where the checkpoints are put, 10 GB at most; the system's temporary folder")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    parser.set_defaults(size="full")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
