"""An adapter's folder on disk: `adapter.json`, `adapter.safetensors`, `README.md`; strict to read, atomic to write.

A write goes to a temporary folder beside the target, which is then renamed: a killed process leaves the old folder or
the new one, never half of one. What is read is what was written: checksums are kept and checked. Nothing here is ever
unpickled.
"""

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor

from graftwork.adapters.card import model_card
from graftwork.adapters.contents import checksum_of_json, checksum_of_tensors, first_few, misfits, not_finite
from graftwork.adapters.identity import BackboneIdentity
from graftwork.adapters.record import Record
from graftwork.adapters.tensorfile import read_tensors, write_tensors
from graftwork.encoding.identity import TaskIdentity
from graftwork.errors import AdapterError, GraftworkError, OutputError, RecipeError
from graftwork.folders import replacing_folder
from graftwork.kinds.heads import AnyHead
from graftwork.methods import make_method
from graftwork.settings.problems import describe
from graftwork.settings.yamlfile import RECIPE, dump_yaml, read_yaml

SCHEMA_VERSION: Literal[3] = 3
"""The newest one that is read. 3 has tensors in a file outside, which several adapters share; 2, which all others are
written in, has checksums; 1 has none."""

CONFIG = "adapter.json"
TENSORS = "adapter.safetensors"
SHARED = "shared.safetensors"
CARD = "README.md"

logger = logging.getLogger(__name__)


class AdapterFile(BaseModel):
    """The contents of `adapter.json`.

    Attributes:
        tensors: the shapes of all tensors, by name.
        shared: a file, beside the folder, of the tensors that are not in the folder; absent: all are.
        checksums: of this file's other contents, of the tensors, the shared ones apart, and, where there is one, of the
            recipe, by the files' names; see `contents`. The first folders of version 2 have none of the recipe.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    schema_version: Literal[1, 2, 3] = 2
    method: dict[str, Any]
    sites: list[str]
    tensors: dict[str, list[int]]
    shared: Literal["../shared.safetensors"] | None = None
    fixed: list[str] = []
    head: AnyHead
    task: TaskIdentity
    backbone: BackboneIdentity
    metrics: dict[str, dict[str, float]]
    baseline: dict[str, dict[str, float]] = {}
    rows: dict[str, int] = {}
    seed: int
    versions: dict[str, str]
    checksums: dict[str, str] | None = None

    @model_validator(mode="after")
    def _checksums_since_2(self) -> "AdapterFile":
        known = (self.checksums or {}).keys() - {RECIPE}
        needed = {CONFIG, TENSORS, *([SHARED] if self.shared else [])}
        if self.schema_version >= 2 and known != needed:
            raise ValueError(f"checksums of {' and '.join(sorted(needed))} are missing")
        return self

    def as_text(self) -> str:
        return self.model_dump_json(indent=2, exclude=None if self.shared else {"shared"}) + "\n"


def write_adapter(
    adapter: Record, folder: Path, *, overwrite: bool = False, beside: Mapping[str, str] | None = None
) -> None:
    """Write an adapter to a folder, completely or not at all.

    Args:
        adapter: the adapter.
        folder: the folder.
        overwrite: replace an existing adapter.
        beside: contents of more text files for the folder, by name.

    Raises:
        OutputError: the folder exists and `overwrite` is off, or it cannot be written. An existing folder is unchanged.
        AdapterError: a tensor contains NaN or infinity.
    """
    refuse_existing(folder, overwrite=overwrite)
    with replacing_folder(folder, overwrite=overwrite) as temporary:
        fill_folder(adapter, temporary, beside=beside)


def fill_folder(
    adapter: Record, folder: Path, *, beside: Mapping[str, str] | None = None, shared: Collection[str] = ()
) -> None:
    """Write a finished adapter into a folder that exists. See `write_adapter` and `write_files`."""
    write_files(adapter, folder, shared=shared)
    for name, text in (beside or {}).items():
        (folder / name).write_text(text, encoding="utf-8")


def write_files(adapter: Record, folder: Path, *, shared: Collection[str] = ()) -> None:
    """An adapter's files, into a folder that exists. The same adapter gives the same bytes.

    Args:
        shared: names of tensors that are left out, as `write_shared` writes them for several adapters.

    Raises:
        AdapterError: a tensor holds NaN or infinity. Nothing is written.
    """
    _refuse_broken("the adapter is not saved: it", adapter.tensors)
    config = AdapterFile(
        schema_version=3 if shared else 2,
        method={"name": adapter.method.name, **adapter.method.model_dump(mode="json")},
        sites=list(adapter.sites),
        tensors={name: list(tensor.shape) for name, tensor in sorted(adapter.tensors.items())},
        shared="../shared.safetensors" if shared else None,
        fixed=sorted(adapter.fixed),
        head=adapter.head,
        task=adapter.task,
        backbone=adapter.backbone,
        metrics={split: dict(scores) for split, scores in adapter.metrics.items()},
        baseline={split: dict(scores) for split, scores in adapter.baseline.items()},
        rows=dict(adapter.rows),
        seed=adapter.seed,
        versions=dict(adapter.versions),
        checksums={CONFIG: "", TENSORS: "", **({SHARED: ""} if shared else {})},
    )
    own = {name: tensor for name, tensor in adapter.tensors.items() if name not in shared}
    recipe = _write_recipe(folder / RECIPE, adapter.recipe)
    common = {name: adapter.tensors[name] for name in shared}
    sums = _checksums(json.loads(config.as_text()), own, recipe, common)
    write_tensors(folder / TENSORS, own)
    (folder / CONFIG).write_text(config.model_copy(update={"checksums": sums}).as_text(), encoding="utf-8")
    (folder / CARD).write_text(model_card(adapter), encoding="utf-8")


def write_shared(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """The tensors that several adapters share, into the folder in which theirs are."""
    write_tensors(folder / SHARED, tensors)


def read_record(folder: Path) -> dict[str, Any]:
    """The fields of the `Record` in a folder that `write_adapter` wrote.

    Raises:
        AdapterError: it is missing, damaged, or not an adapter of graftwork; says which file and what is wrong.
    """
    content, config = _read_config(folder)
    settings = dict(config.method)
    name = settings.pop("name", "")
    try:
        method = make_method(str(name), settings)
    except GraftworkError as error:
        raise AdapterError(
            f"{folder / CONFIG} names a method that this version does not have: {error.problem}",
            expected=error.expected,
        ) from error
    own = read_tensors(folder / TENSORS, f"{folder} has no {TENSORS}", f"{CONFIG} and {TENSORS}")
    shared = _read_shared(folder, config)
    tensors = {**shared, **own}
    problems = misfits(config.tensors, {name: tensor.shape for name, tensor in tensors.items()})
    if problems:
        files = " or ".join(str(folder / name) for name in (TENSORS, config.shared) if name)
        raise AdapterError(
            f"{files} does not belong to {CONFIG}: it {first_few(problems)}",
            expected="both files as graftwork wrote them",
        )
    recipe = _read_recipe(folder / RECIPE)
    _check_contents(folder, content, config, own, recipe, shared)
    return {
        "method": method,
        "head": config.head,
        "task": config.task,
        "backbone": config.backbone,
        "sites": tuple(config.sites),
        "tensors": tensors,
        "fixed": tuple(config.fixed),
        "metrics": config.metrics,
        "baseline": config.baseline,
        "rows": config.rows,
        "seed": config.seed,
        "recipe": recipe,
        "versions": config.versions,
    }


def read_outline(folder: Path) -> dict[str, Any]:
    """The fields of the `Record` in a folder but for the numbers: tensors have shapes alone (torch's device `meta`).

    Raises:
        AdapterError: as `read_record`, of the files but that of the tensors.
    """
    _, config = _read_config(folder)
    settings = dict(config.method)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in config.tensors.items()}
    return {
        **{name: getattr(config, name) for name in ("head", "task", "backbone", "metrics", "seed", "versions")},
        "method": make_method(str(settings.pop("name", "")), settings),
        "sites": tuple(config.sites),
        "tensors": tensors,
        "fixed": tuple(config.fixed),
        "recipe": _read_recipe(folder / RECIPE),
    }


def adapters_in(folder: Path) -> list[str]:
    """The names of the adapters' folders in a folder; none where it is an adapter's itself, or does not exist. Hidden
    ones are runs that go on.

    Raises:
        OSError: it cannot be read.
    """
    if (folder / CONFIG).is_file():
        return []
    return sorted(own.parent.name for own in folder.glob(f"*/{CONFIG}") if not own.parent.name.startswith("."))


def refuse_several(folder: Path) -> None:
    """Refuse a folder that holds those of several adapters, where one is to be read.

    Raises:
        AdapterError: names them.
    """
    names = adapters_in(folder)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise AdapterError(
            f"{str(folder)!r} is not an adapter's folder: it holds those of {', '.join(names[:5])}{more}",
            expected=f"one of them, such as {folder / names[0]}",
        )


def refuse_existing(folder: Path, *, overwrite: bool = False, config: str = CONFIG) -> None:
    """Refuse an output folder that exists already, before any work is done.

    Args:
        config: the file that a folder has which may be overwritten.

    Raises:
        OutputError: it exists and `overwrite` is off, or it is a file.
    """
    if folder.exists() and not (overwrite and folder.is_dir()):
        raise OutputError(
            f"output {str(folder)!r} exists already",
            expected="a folder that does not exist",
            change="--output" + ("" if folder.is_file() else ", or --overwrite to replace it"),
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / config).is_file():
        what = "an adapter's folder" if config == CONFIG else f"a folder with {config}"
        raise OutputError(
            f"{str(folder)!r} is not {what}, so it is not overwritten",
            expected=f"{what}, or a new one",
            change="--output",
        )


def _checksums(
    content: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    recipe: Mapping[str, Any] | None = None,
    shared: Mapping[str, Tensor] | None = None,
) -> dict[str, str]:
    """Of what an adapter's files hold, by their names; of the recipe where there is one."""
    own = {key: value for key, value in content.items() if key != "checksums"}
    found = {CONFIG: checksum_of_json(own), TENSORS: checksum_of_tensors(tensors)}
    if shared:
        found[SHARED] = checksum_of_tensors(shared)
    return {**found, RECIPE: checksum_of_json(recipe)} if recipe else found


def _check_contents(
    folder: Path,
    content: Mapping[str, Any],
    config: AdapterFile,
    tensors: Mapping[str, Tensor],
    recipe: Mapping[str, Any],
    shared: Mapping[str, Tensor],
) -> None:
    """Refuse contents that are not those that were written."""
    if config.checksums is None:
        _tell_of_no_checksums(folder)
    else:
        again = "the folder: restore it from an intact copy, or tune it again"
        written = config.checksums
        if RECIPE in written and not recipe:
            raise AdapterError(
                f"{folder} was written with a {RECIPE}, and now has none or an empty one",
                expected=f"{CONFIG}, {TENSORS} and {RECIPE}",
                change=again,
            )
        found = _checksums(content, tensors, recipe if RECIPE in written else None, shared)
        files = {CONFIG: CONFIG, TENSORS: TENSORS, SHARED: config.shared or SHARED, RECIPE: RECIPE}
        changed = [file for name, file in files.items() if found.get(name) != written.get(name)]
        if changed:
            raise AdapterError(
                f"{' and '.join(str(folder / name) for name in changed)} changed after graftwork wrote it: the "
                "checksum differs",
                expected="the files as graftwork wrote them",
                change=again,
            )
    _refuse_broken(str(folder / TENSORS), {**tensors, **shared})


def _tell_of_no_checksums(folder: Path) -> None:
    """Once a process: who has one old folder may have hundreds."""
    if not _TOLD:
        _TOLD.append(folder)
        logger.warning(
            "%s was saved by an older graftwork, without checksums: whether it is as it was written cannot be checked "
            "(Adapter.load and save add them)",
            folder,
        )


_TOLD: list[Path] = []
"""The first folder without checksums."""


def _refuse_broken(what: str, tensors: Mapping[str, Tensor]) -> None:
    broken = not_finite(tensors)
    if broken:
        raise AdapterError(f"{what} holds NaN or infinity in {first_few(broken)}", expected="finite tensors")


def _read_config(folder: Path) -> tuple[dict[str, Any], AdapterFile]:
    """What `adapter.json` says, plain and checked."""
    file = folder / CONFIG
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        refuse_several(folder)
        what = f"{str(folder)!r} is not an adapter folder: it has no {CONFIG}"
        raise AdapterError(
            what if folder.is_dir() else f"adapter folder {str(folder)!r} does not exist",
            expected="a folder that graftwork wrote",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{file} cannot be read: {error}") from error
    try:
        content = json.loads(text)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise AdapterError(
                f"{file} has schema version {version}",
                expected=f"schema version {SCHEMA_VERSION} or an older one; a newer graftwork reads newer ones",
            )
        return content, AdapterFile.model_validate(content)
    except json.JSONDecodeError as error:
        raise AdapterError(f"{file} is not JSON: {error}") from error
    except ValidationError as error:
        problems = describe(error.errors(), AdapterFile)
        raise AdapterError(f"{file} is not an adapter's configuration: {problems}") from error


def _read_shared(folder: Path, config: AdapterFile) -> dict[str, Tensor]:
    """The tensors that an adapter has in common with others, from beside its folder; none where it stands alone."""
    if config.shared is None:
        return {}
    return read_tensors(
        folder / config.shared,
        f"{folder} is one of the folders of several tasks, and {folder / config.shared}, in which are the tensors that "
        "they share, is missing",
        "the folder with all tasks; to have an adapter elsewhere, Adapter.load(...).save(...) from there",
    )


def _write_recipe(file: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Write it, where there is one; gives what is read of the file."""
    if recipe:
        file.write_text(dump_yaml(recipe), encoding="utf-8")
    return _read_recipe(file)


def _read_recipe(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = read_yaml(file)
        checksum_of_json(found)
    except RecipeError as error:
        raise AdapterError(error.problem, expected="the recipe as graftwork wrote it") from error
    except (TypeError, ValueError, RecursionError):  # YAML has types and cycles that JSON has not
        raise AdapterError(
            f"{file} holds a value that is not a text, number, list or mapping",
            expected="the recipe as graftwork wrote it",
        ) from None
    return found
