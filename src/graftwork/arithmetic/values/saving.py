"""A model's folder: the weights, and beside them what makes it a model that loads.

The configuration, the tokenizer and all other small files are those of a folder that the model is like. What is
written appears in one rename: a killed process leaves the old folder or the new one.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from graftwork.arithmetic.values.checkpoint import ADAPTERS, Checkpoint
from graftwork.arithmetic.values.dtypes import TYPES
from graftwork.arithmetic.values.sources import Source
from graftwork.arithmetic.values.writing import write_source
from graftwork.errors import OutputError, WeightsError
from graftwork.folders import replacing_folder
from graftwork.training.display import Display

CONFIG, CARD = "config.json", "README.md"

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".ckpt", ".index.json")
"""Ends of the names of files that hold weights, or say where they are."""

OF_A_RUN = ("README.md", "recipe.yaml", "trainer_state.json", "_results.json")
"""Ends of the names of files that say how another model was made, and how good it is."""


def save_model(
    source: Source,
    like: Checkpoint,
    folder: Path,
    floats: torch.dtype | None,
    *,
    overwrite: bool,
    display: Display,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write a model's folder, completely or not at all.

    Args:
        source: the weights.
        like: the checkpoint that it is like, with the same tensors.
        folder: the folder.
        floats: type of the floating-point numbers; None: as there.
        overwrite: replace an existing folder of a model.
        beside: contents of more text files, by name.

    Raises:
        OutputError: the folder exists and `overwrite` is off, or it cannot be written. An existing one is unchanged.
        WeightsError: the tensors are not those of the checkpoint, cannot be read, or do not fit the type.
    """
    refuse_existing(folder, overwrite=overwrite)
    differing = sorted(source.shapes.keys() ^ like.entries.keys())
    if differing:
        raise WeightsError(
            f"the weights are not those of a model as in {str(like.path)!r}: they differ in {', '.join(differing[:3])}",
            expected="all its tensors, and no others",
        )
    stored = {name: own.dtype for name, own in like.entries.items()}
    with replacing_folder(folder, overwrite=overwrite) as new:
        _copy_beside(like.path, new)
        write_source(source, types_of(stored, floats), new, display=display)
        if floats is not None:
            _set_dtype(new / CONFIG, str(floats).removeprefix("torch."))
        for name, text in (beside or {}).items():
            (new / name).write_text(text, encoding="utf-8")


def types_of(stored: Mapping[str, str], floats: torch.dtype | None) -> dict[str, torch.dtype]:
    """The types of tensors in the files that are written.

    Args:
        stored: types in the files that are read, as safetensors calls them.
        floats: of floating-point numbers; None: as they are.
    """
    types = {name: TYPES[own] for name, own in stored.items()}
    return {name: floats if floats is not None and own.is_floating_point else own for name, own in types.items()}


def refuse_existing(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output folder before any work is done: one that exists, unless it is a model's and may be replaced.

    Raises:
        OutputError: it cannot be written to.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or not overwrite:
        change = "--output" + (", or --overwrite to replace it" if folder.is_dir() else "")
        raise OutputError(
            f"output {str(folder)!r} exists already", expected="a folder that does not exist", change=change
        )
    adapter = any((folder / name).is_file() for name in ADAPTERS)
    if any(folder.iterdir()) and (adapter or not (folder / CONFIG).is_file()):
        raise OutputError(
            f"{str(folder)!r} is not a model's folder, so it is not overwritten",
            expected="a model's folder, or a new one",
            change="--output",
        )


def _copy_beside(folder: Path, new: Path) -> None:
    """A model's files but its weights and what says how it was made; and the folders of the modules that stand behind
    it (sentence-transformers' modules.json), whole."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and not (path.name.startswith(".") or path.name.endswith((*WEIGHTS, *OF_A_RUN))):
            shutil.copyfile(path, new / path.name)
    for name in _modules(folder):
        if (folder / name).is_dir():
            shutil.copytree(folder / name, new / name)


def _modules(folder: Path) -> list[str]:
    """The folders that modules.json names."""
    try:
        content = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        names = [str(own.get("path", "")) for own in content]
    except (OSError, ValueError, AttributeError, TypeError):
        return []
    # One folder within this one, and no path to elsewhere.
    return [name for name in names if name and Path(name).name == name]


def _set_dtype(file: Path, dtype: str) -> None:
    """Have a configuration say in which precision the weights are."""
    config = json.loads(file.read_text(encoding="utf-8"))
    old = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    file.write_text(json.dumps({**config, old: dtype}, indent=2) + "\n", encoding="utf-8")
