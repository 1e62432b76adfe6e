"""Devices: where a backbone's weights are, and in which precision."""

import os
import platform
from contextlib import AbstractContextManager, nullcontext

import torch

from graftwork.errors import BackboneError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
"""Variables of the environment that tell libraries which instructions to use."""


def device_of(name: str) -> torch.device:
    """The device of that name, if there is one.

    Raises:
        BackboneError: there is none.
    """
    try:
        device = torch.device(best_device() if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(
            f"device {name!r} is not available: {first_line(error)}", expected="auto, cpu, cuda"
        ) from None
    return device


def arithmetic_of(device: torch.device) -> dict[str, object]:
    """What on this machine decides the last bits of a product or a sum, beside the numbers and their precision.

    A kernel is chosen by the processor's instructions (AMX and AVX-512-BF16 round otherwise than AVX2 does), and may be
    told to use fewer of them; sums are split over threads; and products in float32 may be done in TF32 or bfloat16.
    """
    found: dict[str, object] = {"device": device.type, "float32 products": torch.get_float32_matmul_precision()}
    if device.type == "cuda":
        backends = torch.backends.cuda.matmul
        return {
            **found,
            "processor": torch.cuda.get_device_name(device),
            "tf32": [backends.allow_tf32, torch.backends.cudnn.allow_tf32],
            "reduced": [
                bool(backends.allow_fp16_reduced_precision_reduction),
                bool(backends.allow_bf16_reduced_precision_reduction),
            ],
        }
    # Newer versions of torch know more of the processor.
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    instructions = ("avx2", "avx512", "avx512_bf16", "vnni", "amx_tile", "amx_fp16")
    supported = {name: getattr(torch.cpu, f"_is_{name}_supported", None) for name in instructions}
    return {
        **found,
        "processor": known.get("cpu_name") or platform.machine(),
        "instructions": [
            torch.backends.cpu.get_cpu_capability(),
            *(name for name, asked in supported.items() if asked and asked()),
        ],
        "told": {name: os.environ[name] for name in LIMITS if name in os.environ},
        "threads": torch.get_num_threads(),
    }


def on(device: torch.device) -> AbstractContextManager[object]:
    """Inside, a GPU is torch's current one: random states are saved of that one, and kernels are launched there.
    Afterwards it is the one that it was, also where something inside has chosen another.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def best_device() -> str:
    """A GPU when there is one; of several processes that were started together, each has its own."""
    if not torch.cuda.is_available():
        return "cpu"
    local = os.environ.get("LOCAL_RANK", "") if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    return f"cuda:{int(local) % torch.cuda.device_count()}" if local.isdecimal() else "cuda"


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where matrix products in it are much faster than in float32: AMX or AVX-512-BF16, and GPUs from Ampere
    on.
    """
    if device.type == "cuda":
        good = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        good = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        good = False
    return torch.bfloat16 if good else torch.float32
