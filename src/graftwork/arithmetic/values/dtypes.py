"""Types of numbers: torch's, by the names that safetensors has for them."""

from collections.abc import Iterable, Mapping

import torch

TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}


def name_of(dtype: torch.dtype) -> str:
    """What safetensors calls a type.

    Raises:
        ValueError: it has none of that type, such as complex numbers.
    """
    for name, own in TYPES.items():
        if own == dtype:
            return name
    raise ValueError(f"numbers of type {dtype} cannot be stored")


def computed_in(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The precision of arithmetic over tensors of these types: float32, or float64 where one of them is."""
    return torch.float64 if torch.float64 in dtypes else torch.float32
