"""Every benchmark runs to its last line, in float32 and in bfloat16, on a tiny model: the times mean nothing."""

import json
import os
from importlib import import_module

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks.measuring import BOUNDS, check

MIXED = (
    *("lora", "houlsby", "pfeiffer", "compacter", "ia3", "bitfit", "layer-norm-tuning", "prefix-tuning"),
    "prompt-tuning",
)

RATIOS: dict[str, set[str]] = {
    "length": {"shuffled", "like lengths", "tokens"},
    "load_adapter": {
        *("number 1 / reading the file", "number 15 / reading the file", "peft's 10th / ours", "peft's 12th / ours")
    },
    "many_at_once": {"eight methods"},
    "mixed_batch": {"peft / ours, lora 4", *(f"{method} {count}" for method in MIXED for count in (1, 4, 8))},
    "prefix_cache": {f"{what}, {case}" for what in ("top 2 layers", "head only") for case in ("filling", "found")},
    "fuse": {
        f"{what} / backbone"
        for what in (
            *(f"{part} {name}" for part in ("one", "fusion of 8", "step of 8") for name in ("pfeiffer", "houlsby")),
            "one generated",
            "16 fusions in a batch",
        )
    },
    "merge": {f"{name} / copy, 3 x 1 MB" for name in ("linear", "ties, global", "ties, tensor")},
    "startup": set(),
    "train_step": {
        *(f"peft, LoRA, {precision} / ours, LoRA" for precision in ("float32", "autocast")),
        *(
            f"full fine-tuning, {precision} / ours, {method}"
            for precision in ("float32", "autocast")
            for method in ("LoRA", "Houlsby")
        ),
    },
    "whole_job": {"peft, as documented / graftwork", "peft, skilled / graftwork"},
}
"""What each benchmark compares, on the tiny model."""


def last_line(text: str) -> dict:
    return json.loads(text.rstrip("\n").rpartition("\n")[2])


IN_BFLOAT16 = ("fuse", "mixed_batch", "train_step")
"""Benchmarks of passes, which are run in bfloat16 too; the others ask nothing else of it."""

RUNS = [(name, dtype) for name in benchmarks.known() for dtype in ("float32", "bfloat16")]
RUNS = [(name, dtype) for name, dtype in RUNS if dtype == "float32" or name in IN_BFLOAT16]


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_a_benchmark_runs_to_its_last_line(name, dtype, capsys):
    try:
        status = import_module(f"benchmarks.{name}").main(["--tiny", "--device", "cpu", "--dtype", dtype])
    except RuntimeError as error:
        # torch's attention in bfloat16 asks the processor for AVX-512, and not what it is told to do without.
        if "ATEN_CPU_CAPABILITY" in os.environ and "only supported when avx512" in str(error):
            pytest.skip("torch's attention in bfloat16 cannot be narrowed on this processor")
        raise
    result = last_line(capsys.readouterr().out)
    assert result.keys() == {"benchmark", "machine", "ratios", "bars"}
    assert result["benchmark"] == name
    assert {"cpu", "cores", "python", "torch"} <= result["machine"].keys()
    assert result["ratios"].keys() == RATIOS[name]
    assert all(isinstance(ratio, float) and ratio > 0 for ratio in result["ratios"].values())
    assert result["bars"]
    for bar in result["bars"].values():
        assert bar["value"] > 0
        assert bar["met"] == (bar["value"] >= bar["bar"] if bar["atleast"] else bar["value"] <= bar["bar"])
    assert status == (0 if all(bar["met"] for bar in result["bars"].values()) else 1)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_outputs_are_compared_in_the_backbones_precision(dtype):
    """Also where a head has cast them to float32."""
    exact = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found = exact.to(dtype).float()
    check(found, exact, "rounded", dtype=dtype)
    for wrong in (exact.roll(1, dims=0), exact * 1.1, torch.full_like(exact, torch.nan)):
        with pytest.raises(SystemExit, match=r"rolled: outputs differ by .*, where the largest is"):
            check(wrong, exact, "rolled", dtype=dtype)
    with pytest.raises(SystemExit):
        check(exact.bfloat16().float(), exact, "rounded to bfloat16", dtype=torch.float32)
