"""What is in a teacher's folder, told apart by its files."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from graftwork.adapters.folder import CONFIG as ADAPTER
from graftwork.adapters.folder import TENSORS, refuse_several
from graftwork.errors import RecipeError

CONFIG = "config.json"

HEADS = ("ForSequenceClassification", "ForTokenClassification")
"""How the classes of models end that can teach."""

DECIDING = (ADAPTER, TENSORS, "*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "merges*")
"""The files that decide what a teacher says: configuration, weights and tokenizer."""

FolderKind = Literal["adapter", "model"]


def kind_of_teacher(folder: Path) -> FolderKind:
    """What a folder holds.

    Raises:
        RecipeError: neither an adapter nor a model with a task head.
        AdapterError: it holds several adapters.
    """
    if (folder / ADAPTER).is_file():
        return "adapter"
    if not (folder / CONFIG).is_file():
        refuse_several(folder)
        what = f"has neither {ADAPTER} nor {CONFIG}" if folder.is_dir() else "is not a folder"
        raise _refusal(folder, what)
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        [architecture] = content["architectures"]
    except (OSError, ValueError, KeyError, TypeError):
        raise _refusal(folder, f"has a {CONFIG} that names no architecture") from None
    if not str(architecture).endswith(HEADS):
        raise _refusal(folder, f"holds a {architecture}, which has no head for classes, numbers or tags")
    return "model"


def _refusal(folder: Path, what: str) -> RecipeError:
    return RecipeError(
        f"teacher {str(folder)!r} {what}",
        expected=f"an adapter's folder, or that of a Hugging Face model {' or '.join(HEADS)}",
        change="--teacher",
    )


def digest_of_teacher(folder: Path) -> str:
    """Of the names and bytes of the files that decide what it says, as 32 hexadecimal digits.

    Raises:
        RecipeError: it is no teacher, or cannot be read.
    """
    kind_of_teacher(folder)
    digest = blake2b(digest_size=16)
    try:
        for file in sorted({file for pattern in DECIDING for file in folder.glob(pattern)}):
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            with file.open("rb") as opened:
                while piece := opened.read(1 << 24):
                    digest.update(piece)
    except OSError as error:
        raise _refusal(folder, f"cannot be read: {error.strerror}") from None
    return digest.hexdigest()
