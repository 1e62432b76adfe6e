"""`graftwork list`: the adapters in a folder, one a line, to compare them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from graftwork.cli.settings import Switch
from graftwork.errors import AdapterError, GraftworkError

if TYPE_CHECKING:
    from graftwork.adapters import Adapter


def list_adapters(folder: Path, /, *, json: Annotated[bool, Switch] = False) -> None:
    """Compare the adapters in a folder: task, method, size, validation score, backbone. No backbone is loaded.

    Parameters
    ----------
    folder
        A folder with one folder per adapter, as tune-many makes it.
    json
        Print JSON, with the scores on every split.
    """
    from json import dumps

    from graftwork.adapters import Adapter
    from graftwork.cli.table import print_table, readable_bytes

    found: list[dict[str, Any]] = []
    damaged: list[str] = []
    for place in _adapter_folders(folder):
        try:
            found.append(_facts(place, Adapter.load(place)))
        except GraftworkError as error:
            damaged.append(f"{place.name}: {error.problem}")
    if json:
        print(dumps(found))
    elif found:
        print_table(
            [
                {
                    **{name: str(row[name]) for name in ("adapter", "task", "method")},
                    "parameters": f"{row['parameters']:,}",
                    "weights": readable_bytes(row["bytes"]),
                    "validation": _score(row),
                    "backbone": row["backbone"],
                }
                for row in found
            ]
        )
    if damaged:
        raise AdapterError(
            f"{len(damaged)} of {len(found) + len(damaged)} adapters in {str(folder)!r} cannot be read: "
            + "; ".join(damaged),
            expected="adapters as graftwork wrote them",
            change="tune them again, or move their folders elsewhere",
        )


def _adapter_folders(folder: Path) -> list[Path]:
    """The adapters' folders in a folder, by name. Hidden ones are runs that go on.

    Raises:
        AdapterError: it does not exist, is a file, is an adapter itself, or has no adapters in it.
    """
    from graftwork.adapters.folder import CONFIG, adapters_in

    expected = "a folder with one folder per adapter in it, as `graftwork tune-many` makes it"
    if not folder.is_dir():
        problem = f"{str(folder)!r} is a file" if folder.exists() else f"folder {str(folder)!r} does not exist"
        raise AdapterError(problem, expected=expected, change="FOLDER")
    if (folder / CONFIG).is_file():
        raise AdapterError(
            f"{str(folder)!r} is itself an adapter",
            expected=expected,
            change=f"FOLDER ({folder.resolve().parent}), or graftwork inspect {folder}",
        )
    try:
        found = [folder / name for name in adapters_in(folder)]
    except OSError as error:
        raise AdapterError(f"{str(folder)!r} cannot be read: {error.strerror}", change="FOLDER") from error
    if not found:
        raise AdapterError(f"{str(folder)!r} has no adapters in it", expected=expected, change="FOLDER")
    return found


def _facts(place: Path, adapter: "Adapter") -> dict[str, Any]:
    return {
        "adapter": place.name,
        "task": adapter.task.name,
        "kind": adapter.kind,
        "method": adapter.method.name,
        "parameters": adapter.num_parameters,
        "bytes": adapter.num_bytes,
        "metric": _main_metric(adapter),
        "metrics": {split: dict(scores) for split, scores in adapter.metrics.items()},
        "rows": dict(adapter.rows),
        "backbone": adapter.backbone.name,
        "fingerprint": adapter.backbone.fingerprint,
    }


def _main_metric(adapter: "Adapter") -> str | None:
    """The metric that chose its checkpoint; None where it was not tuned by a recipe."""
    from graftwork.training.evaluation import task_of

    return task_of(adapter).main_metric if adapter.recipe else None


def _score(row: Mapping[str, Any]) -> str:
    from graftwork.adapters.card import readable_score

    scores, metric = row["metrics"].get("validation", {}), row["metric"]
    return f"{metric} {readable_score(scores[metric], row['rows'].get('validation'))}" if metric in scores else "none"
