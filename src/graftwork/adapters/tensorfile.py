"""A file of an adapter's tensors, in the format of safetensors. Nothing here is ever unpickled."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from graftwork.errors import AdapterError

SMALL = 16 * 2**20
"""Bytes up to which a file of tensors is read at once."""


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name. The same tensors give the same bytes."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    file.write_bytes(save(held, metadata={"format": "pt"}))


def read_tensors(file: Path, missing: str, expected: str) -> dict[str, Tensor]:
    """The tensors of a file, by name.

    Args:
        file: the file.
        missing, expected: what is said where there is none.

    Raises:
        AdapterError: it is missing, damaged, or not a file of tensors.
    """
    # A small file is read at once: mapped into memory, each of its pages would be fetched by itself. What was mapped is
    # copied: it would change with the file.
    try:
        if file.stat().st_size <= SMALL:
            with suppress(KeyError):  # a type of numbers that safetensors reads from files only
                return load(file.read_bytes())
        return {name: tensor.clone() for name, tensor in load_file(file).items()}
    except FileNotFoundError:
        raise AdapterError(missing, expected=expected) from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{file} is damaged or is not a safetensors file: {error}", expected="the file as graftwork wrote it"
        ) from error
