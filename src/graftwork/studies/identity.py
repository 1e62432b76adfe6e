"""What a run is known by: a hash of what determines it, and not of what things are called or where they lie."""

import json
from collections.abc import Mapping
from hashlib import blake2b, sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import graftwork
from graftwork.backbones import Backbone
from graftwork.backbones.fingerprint import DROPOUT
from graftwork.backbones.tokenizers import locked
from graftwork.errors import DataError
from graftwork.tasks import TaskData
from graftwork.training.recipe import Recipe

IDLE = ("report_to", "logging_steps", "prefix_cache_gb", "baseline", "fsdp")
"""Training settings that change nothing of the result."""

NAMES = ("name", "data")
"""Fields of a task that say what it is called and where its data lie. The data count by their content."""

OF_LOADING = (
    *("name_or_path", "_name_or_path", "is_local", "local_files_only", "transformers_version"),
    *("truncation", "padding"),
)
"""Keys of a tokenizer's or an image processor's files that say where it was loaded from, and how long the inputs were
that it was last asked for."""

DIGITS = 16


def fingerprint_of_data(data: TaskData) -> str:
    """A hash of the rows of all splits, as they are trained on and scored. Images count by the bytes of their files,
    wherever these lie.

    Args:
        data: the task's data, as they were loaded.

    Raises:
        DataError: the file of an image cannot be read.
    """
    state = blake2b(digest_size=16)
    for split, rows in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        state.update(f"\n{split} {None if rows is None else len(rows)}".encode())
        if rows is None:
            continue
        # Arrow's own values: images as their bytes, and none decoded.
        table: Any = rows.with_format("arrow")[:]
        for name in sorted(table.column_names):
            state.update(f"\n{name}\n".encode())
            for value in table.column(name).to_pylist():
                state.update(json.dumps(_read(value), sort_keys=True, default=_bytes).encode() + b"\n")
    return state.hexdigest()


def fingerprint_of_backbone(backbone: Backbone) -> str:
    """A hash of all of a backbone that decides what comes of a run on it: besides what adapters check, its dropout, its
    generation settings, and what its tokenizer or image processor makes of inputs."""
    config = backbone.model.config.to_dict()
    state = blake2b(backbone.fingerprint.encode(), digest_size=32)
    state.update(json.dumps({key: config.get(key) for key in DROPOUT}).encode())
    if (generation := getattr(backbone.model, "generation_config", None)) is not None:
        kept = {key: value for key, value in generation.to_dict().items() if key not in OF_LOADING}
        state.update(json.dumps(kept, sort_keys=True, default=str).encode())
    with TemporaryDirectory(prefix="graftwork.") as folder:
        if backbone.tokenizer is not None:
            with locked(backbone.tokenizer) as tokenizer:
                tokenizer.save_pretrained(folder)
        if backbone.image_processor is not None:
            backbone.image_processor.save_pretrained(folder)
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            content = file.read_bytes()
            if file.suffix == ".json":
                values = json.loads(content)
                kept = {key: value for key, value in values.items() if key not in OF_LOADING}
                content = json.dumps(kept, sort_keys=True).encode()
            state.update(f"\n{file.relative_to(folder)} {len(content)}\n".encode() + content)
    return state.hexdigest()


def hash_of(recipe: Recipe, *, data: str, backbone: str) -> str:
    """The name of a run's folder.

    Args:
        recipe: resolved.
        data: the fingerprint of the task's data.
        backbone: that of the backbone, with all that training depends on.
    """
    values = recipe.model_dump(mode="json")
    task: Mapping[str, Any] = values["task"]
    content = {
        "graftwork": graftwork.__version__,
        "backbone": backbone,
        "dtype": values["dtype"],
        "data": data,
        "task": {key: value for key, value in task.items() if key not in NAMES},
        "method": values["method"],
        "pooling": values["pooling"],
        "train": {key: value for key, value in values["train"].items() if key not in IDLE},
    }
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:DIGITS]


def _read(value: object) -> object:
    """A value with the bytes of the files that it names instead of their paths, as `datasets` writes images."""
    if isinstance(value, list):
        return [_read(one) for one in value]
    if not isinstance(value, dict) or value.keys() != {"bytes", "path"} or value["bytes"] is not None:
        return value
    if value["path"] is None:
        return value
    try:
        return {"bytes": Path(value["path"]).read_bytes()}
    except OSError as error:
        raise DataError(
            f"{value['path']}: {error.strerror or error}", expected="a file that can be read", change="the task's data"
        ) from error


def _bytes(value: object) -> str:
    if isinstance(value, bytes):
        return blake2b(value, digest_size=16).hexdigest()
    return repr(value)
