"""The folder of several tasks that trained one adapter: an adapter of each, and `tasks.json`, their list.

Where tasks have more of their own than their heads (an embedding, for a hypernetwork), what they have in common lies
there once, in `shared.safetensors`; else each adapter is whole.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.adapters.folder import fill_folder, write_shared
from graftwork.errors import AdapterError
from graftwork.settings.problems import describe
from graftwork.settings.yamlfile import RECIPE, dump_yaml, read_yaml

TASKS_FILE = "tasks.json"
"""The file by which such a folder is known."""

LOG_FILE = "log.jsonl"


class TaskEntry(BaseModel):
    """What `tasks.json` says of a task.

    Attributes:
        rows: of its training split.
        share: of the rows of an epoch that are its own.
        weight: the factor of its loss.
        metric: its main metric.
        metrics: its scores by split, then by metric.
        parameters: how many of its own it has: its head, and what its method has of each task.
        digest: of its adapter; see `Adapter.digest`.
    """

    model_config = ConfigDict(extra="forbid")

    rows: int
    share: float
    weight: float
    metric: str
    metrics: dict[str, dict[str, float]]
    parameters: int
    digest: str


class TasksFile(BaseModel):
    """The contents of `tasks.json`.

    Attributes:
        schema_version: of the file.
        method: the method's name.
        sampling_temperature: T; see `Mixing`.
        score: the mean of the tasks' main metrics on their validation splits, by which the checkpoint was chosen.
        shared_parameters: how many trained parameters all tasks have in common.
        tasks: by name.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    method: str
    sampling_temperature: float
    score: float
    shared_parameters: int
    tasks: dict[str, TaskEntry]


def fill_tasks_folder(
    folder: Path, adapters: Mapping[str, Adapter], about: TasksFile, recipe: Mapping[str, Any], log: str
) -> None:
    """Write into a folder that exists: each adapter in a folder of its task's name, and the files beside them."""
    shared = _shared(list(adapters.values()))
    if shared:
        write_shared(shared, folder)
    for name, adapter in adapters.items():
        (folder / name).mkdir()
        fill_folder(adapter, folder / name, shared=shared.keys())
    (folder / RECIPE).write_text(dump_yaml(recipe), encoding="utf-8")
    (folder / LOG_FILE).write_text(log, encoding="utf-8")
    (folder / TASKS_FILE).write_text(about.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _shared(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """The tensors of a method that are the same for all tasks; none where that is all that the method has."""
    [first, *others] = adapters
    method = {name: tensor for name, tensor in first.tensors.items() if not name.startswith("head.")}
    same = {name: t for name, t in method.items() if all(torch.equal(t, other.tensors[name]) for other in others)}
    return same if len(same) < len(method) else {}


def read_tasks_file(folder: Path) -> TasksFile:
    """What the file of a folder of several tasks says.

    Raises:
        AdapterError: it is missing, or it is none.
    """
    file = folder / TASKS_FILE
    try:
        return TasksFile.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise AdapterError(
            f"{file} is not the list of tasks of a folder: {describe(error.errors(), TasksFile)}",
            expected="the file as graftwork wrote it",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(
            f"{file} cannot be read: {error}", expected="a folder of several tasks, as `tune --task A --task B` makes"
        ) from error


def read_tasks_folder(folder: Path) -> dict[str, Adapter]:
    """The adapters of a folder of several tasks, by task.

    Raises:
        AdapterError: it is damaged: a file is missing, or an adapter is another one than its list says.
    """
    found = {}
    for name, entry in read_tasks_file(folder).tasks.items():
        found[name] = Adapter.load(folder / name)
        if found[name].digest != entry.digest:
            raise AdapterError(
                f"{folder / name} is another adapter than {folder / TASKS_FILE} says",
                expected="the folder as graftwork wrote it",
            )
    return found


def read_tasks_recipe(folder: Path) -> dict[str, Any]:
    """The recipe of a folder of several tasks.

    Raises:
        RecipeError: it cannot be read.
    """
    return read_yaml(folder / RECIPE)
