"""An adapter's folder on disk: `adapter.json`, `adapter.safetensors`, `README.md`; strict to read, atomic to write.

A write goes to a temporary folder beside the target, which is then renamed: a killed process leaves the old folder or
the new one, never half of one. Nothing here is ever unpickled.
"""

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from graftwork.adapters.adapter import Adapter, first_few, misfits, not_finite
from graftwork.adapters.card import model_card
from graftwork.adapters.identity import BackboneIdentity, TaskIdentity
from graftwork.errors import AdapterError, GraftworkError, OutputError, RecipeError
from graftwork.heads import AnyHead
from graftwork.methods import make_method
from graftwork.yamlfile import read_yaml

SCHEMA_VERSION: Literal[1] = 1
CONFIG = "adapter.json"
TENSORS = "adapter.safetensors"
CARD = "README.md"
RECIPE = "recipe.yaml"

SMALL = 16 * 2**20
"""Bytes up to which a file of tensors is read at once."""


class AdapterFile(BaseModel):
    """The contents of `adapter.json`."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    schema_version: Literal[1] = SCHEMA_VERSION
    method: dict[str, Any]
    sites: list[str]
    tensors: dict[str, list[int]]
    fixed: list[str] = []
    head: AnyHead
    task: TaskIdentity
    backbone: BackboneIdentity
    metrics: dict[str, dict[str, float]]
    baseline: dict[str, dict[str, float]] = {}
    rows: dict[str, int] = {}
    seed: int
    versions: dict[str, str]


def write_adapter(
    adapter: Adapter, folder: Path, *, overwrite: bool = False, beside: Mapping[str, str] | None = None
) -> None:
    """Write the folder, whole or not at all.

    Args:
        beside: more text files for the folder, by name.

    Raises:
        OutputError: the folder exists and `overwrite` is off.
    """
    with replacing_folder(folder, overwrite=overwrite) as temporary:
        write_files(adapter, temporary)
        for name, text in (beside or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")


def write_files(adapter: Adapter, folder: Path) -> None:
    """An adapter's files, into a folder that exists. The same adapter gives the same bytes.

    Raises:
        AdapterError: a tensor holds NaN or infinity. Nothing is written.
    """
    broken = not_finite(adapter.tensors)
    if broken:
        raise AdapterError(
            f"the adapter is not saved: it holds NaN or infinity in {', '.join(broken[:5])}", expected="finite tensors"
        )
    config = AdapterFile(
        method={"name": adapter.method.name, **adapter.method.model_dump(mode="json")},
        sites=list(adapter.sites),
        tensors={name: list(tensor.shape) for name, tensor in sorted(adapter.tensors.items())},
        fixed=sorted(adapter.fixed),
        head=adapter.head,  # type: ignore[arg-type] # every head is one of them
        task=adapter.task,
        backbone=adapter.backbone,
        metrics={split: dict(scores) for split, scores in adapter.metrics.items()},
        baseline={split: dict(scores) for split, scores in adapter.baseline.items()},
        rows=dict(adapter.rows),
        seed=adapter.seed,
        versions=dict(adapter.versions),
    )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.tensors.items()}
    (folder / TENSORS).write_bytes(save(tensors, metadata={"format": "pt"}))
    (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(adapter), encoding="utf-8")
    if adapter.recipe:
        (folder / RECIPE).write_text(yaml.safe_dump(dict(adapter.recipe), sort_keys=False), encoding="utf-8")


def read_adapter(folder: Path) -> Adapter:
    """Read a folder that `write_adapter` wrote.

    Raises:
        AdapterError: it is missing, damaged, or not an adapter of graftwork; says which file and what is wrong.
    """
    config = _read_config(folder)
    settings = dict(config.method)
    name = settings.pop("name", "")
    try:
        method = make_method(str(name), settings)
    except GraftworkError as error:
        raise AdapterError(
            f"{folder / CONFIG} names a method that this version does not have: {error.problem}",
            expected=error.expected,
        ) from error
    try:
        tensors = _read_tensors(folder / TENSORS)
    except FileNotFoundError:
        raise AdapterError(f"{folder} has no {TENSORS}", expected=f"{CONFIG} and {TENSORS}") from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{folder / TENSORS} is damaged or is not a safetensors file: {error}",
            expected="the file as graftwork wrote it",
        ) from error
    problems = misfits(config.tensors, {name: tensor.shape for name, tensor in tensors.items()})
    if problems:
        raise AdapterError(
            f"{folder / TENSORS} does not belong to {CONFIG}: it {first_few(problems)}",
            expected="both files as graftwork wrote them",
        )
    return Adapter(
        method=method,
        head=config.head,
        task=config.task,
        backbone=config.backbone,
        sites=tuple(config.sites),
        tensors=tensors,
        fixed=tuple(config.fixed),
        metrics=config.metrics,
        baseline=config.baseline,
        rows=config.rows,
        seed=config.seed,
        recipe=_read_recipe(folder / RECIPE),
        versions=config.versions,
    )


@contextmanager
def replacing_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and is removed when it does not.

    Raises:
        OutputError: the folder exists and `overwrite` is off, or it cannot be written.
    """
    folder = folder.resolve()
    refuse_existing(folder, overwrite=overwrite)
    make_folder(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if not folder.exists():
            os.replace(temporary, folder)
        elif not _exchange(temporary, folder):
            _move_over(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder that can be written, unless it is there already.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {str(folder)!r} cannot be made: {error.strerror}", change="--output") from None
    if not os.access(folder, os.W_OK):
        raise OutputError(f"folder {str(folder)!r} cannot be written", change="--output")


def refuse_existing(folder: Path, *, overwrite: bool = False) -> None:
    """Refuse an output folder that exists already, before any work is done.

    Raises:
        OutputError: it exists and `overwrite` is off, or it is a file.
    """
    if folder.exists() and not (overwrite and folder.is_dir()):
        raise OutputError(
            f"output {str(folder)!r} exists already",
            expected="a folder that does not exist",
            change="--output" + ("" if folder.is_file() else ", or --overwrite to replace it"),
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise OutputError(
            f"{str(folder)!r} is not an adapter's folder, so it is not overwritten",
            expected="an adapter's folder, or a new one",
            change="--output",
        )


def _read_config(folder: Path) -> AdapterFile:
    file = folder / CONFIG
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        what = f"{str(folder)!r} is not an adapter folder: it has no {CONFIG}"
        raise AdapterError(
            what if folder.is_dir() else f"adapter folder {str(folder)!r} does not exist",
            expected="a folder that graftwork wrote",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{file} cannot be read: {error}") from error
    try:
        content = json.loads(text)
        if isinstance(content, dict) and content.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
            raise AdapterError(
                f"{file} has schema version {content['schema_version']!r}",
                expected=f"schema version {SCHEMA_VERSION}; a newer graftwork reads newer ones",
            )
        return AdapterFile.model_validate(content)
    except json.JSONDecodeError as error:
        raise AdapterError(f"{file} is not JSON: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
        raise AdapterError(f"{file} is not an adapter's configuration: {problems}") from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """A small file is read at once: mapped into memory, each of its pages would be fetched by itself."""
    if file.stat().st_size > SMALL:
        return load_file(file)
    try:
        return load(file.read_bytes())
    except KeyError:  # a type of numbers that safetensors reads from files only
        return load_file(file)


def _read_recipe(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return read_yaml(file)
    except RecipeError as error:
        raise AdapterError(error.problem, expected="the recipe as graftwork wrote it") from error


def _exchange(new: Path, old: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux's renameat2)."""
    here, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(renameat2(here, os.fsencode(new), here, os.fsencode(old), exchange) == 0)


def _move_over(new: Path, old: Path) -> None:
    """Put a folder in the place of another in two steps, going back when the second fails."""
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.old.", dir=old.parent))
    os.replace(old, aside)
    try:
        os.replace(new, old)
    except BaseException:
        os.replace(aside, old)
        raise
    shutil.rmtree(aside)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
