"""`graftwork merge` of adapters' folders, and of fully fine-tuned models by methods that read data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.cli.starting import say_start
from graftwork.errors import RecipeError

if TYPE_CHECKING:
    from graftwork.arithmetic.merging.folders import FolderMerge


def are_adapters(method: str, folders: Sequence[Path]) -> bool:
    """Whether a merge is one of adapters: by its folders, or by its method."""
    from graftwork.arithmetic.merging.adaptermethods import DATA_METHODS

    return method in DATA_METHODS or any((folder / "adapter.json").is_file() for folder in folders)


def merge_adapters(
    method: str,
    folders: Sequence[Path],
    output: Path | None,
    base: str | None,
    tasks: Sequence[str],
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Merge folders and print the result. See `merge`."""
    if output is None:
        raise RecipeError("no output is given", expected="a folder", change="--output")
    wrong = [key for key in settings if not key.startswith("method.")]
    if wrong:
        raise RecipeError(f"unknown setting {wrong[0]!r} of merge", expected="method.KEY", change=f"--{wrong[0]}")
    own = {"name": method, **{key.removeprefix("method."): value for key, value in settings.items()}}
    say_start(quiet=quiet)
    from graftwork.arithmetic.merging.folders import merge_folders

    found = merge_folders(
        own,
        folders,
        output,
        base=base,
        tasks=tasks,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
        **options,
    )
    _show(found, own, as_json=as_json)


def _show(found: "FolderMerge", method: Mapping[str, Any], *, as_json: bool) -> None:
    from json import dumps

    from graftwork.cli.table import print_table

    adapters = found.result.merged.adapters
    if as_json:
        content = {
            "output": str(found.output),
            "method": dict(method),
            "heads": {name: {"method": own.method.name, "bytes": own.num_bytes} for name, own in adapters.items()},
            "scores": {name: dict(scores) for name, scores in found.scores.items()},
            **found.result.details,
        }
        print(dumps(content))
        return
    for line in found.result.said:
        print(line)
    if found.scores:
        columns = dict.fromkeys(key for scores in found.scores.values() for key in scores)
        print_table(
            [
                {"adapter": name, **{key: f"{scores[key]:.4f}" if key in scores else "-" for key in columns}}
                for name, scores in found.scores.items()
            ]
        )
    first = next(iter(adapters.values()))
    heads = f"{len(adapters)} heads: {', '.join(adapters)}" if len(adapters) > 1 else "1 head"
    print(f"saved in {found.output} ({first.method.name}, {heads})")
