"""Devices: where a backbone's weights are, and in which precision they are held there."""

import torch

from graftwork.errors import BackboneError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def device_of(name: str) -> torch.device:
    """The device of that name, if there is one.

    Raises:
        BackboneError: there is none.
    """
    try:
        device = torch.device(best_device() if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(f"there is no device {name!r}: {first_line(error)}", expected="auto, cpu, cuda") from None
    return device


def best_device() -> str:
    """A GPU when there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


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
