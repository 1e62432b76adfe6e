"""`graftwork tasks`: every built-in task and where its data can be had; and what the data of one are like."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from graftwork.cli.flags import NO_COLUMN_AT_ALL, EveryColumn, with_settings
from graftwork.cli.settings import Settings, Switch

if TYPE_CHECKING:
    from graftwork.tasks.known import KnownTask
    from graftwork.tasks.summary import SplitSummary, TaskSummary


def tasks(
    name: str | None = None,
    /,
    *,
    data: str | None = None,
    columns: EveryColumn = NO_COLUMN_AT_ALL,
    backbone: str | None = None,
    settings: Settings = [],  # noqa: B006 (cyclopts makes a new list for each call)
    json: Annotated[bool, Switch] = False,
) -> None:
    """List the built-in tasks; or read the data of one, and show rows, labels, lengths, examples, and what is left out.

    Parameters
    ----------
    name
        A built-in task, or a task file (YAML): show what its data are like.
    data
        The task's data: a file, a folder, or a hub id. Default: the task's own.
    backbone
        minilm, a folder, or a hub id: lengths are counted in tokens of its tokenizer. No weights are loaded. Default:
        minilm, where its package is installed.
    json
        Print JSON.
    """
    from json import dumps

    from graftwork.errors import RecipeError

    given = {key: value for key, value in {**columns.settings(), "task.data": data}.items() if value is not None}
    dotted = with_settings(given, settings)
    if name is None:
        if dotted or backbone is not None:
            raise RecipeError("no task is given", expected="the name of a task, or its file", change="NAME")
        from graftwork.tasks.known import known_tasks

        rows = known_tasks()
        if json:
            print(dumps([row.as_dict() for row in rows]))
        else:
            _print_all(rows)
        return
    found = _summary(name, dotted, backbone)
    if json:
        print(dumps(found.as_dict()))
    else:
        _print_one(name, found)


def _summary(name: str, dotted: dict[str, Any], backbone: str | None) -> "TaskSummary":
    from graftwork.backbones.checkpoints import EMBEDDED
    from graftwork.errors import RecipeError
    from graftwork.tasks.builtin import find_task
    from graftwork.tasks.summary import summarize

    foreign = [key for key in dotted if not key.startswith("task.")]
    if foreign:
        raise RecipeError(f"{', '.join(foreign)} would do nothing", expected="settings of the task", change=foreign[0])
    task, changes = find_task(name), {key.removeprefix("task."): value for key, value in dotted.items()}
    if backbone is None and find_spec(EMBEDDED["minilm"][0]):
        backbone = "minilm"
    return summarize(task.override(**changes) if changes else task, backbone=backbone)


def _print_all(rows: "list[KnownTask]") -> None:
    from graftwork.cli.table import print_table

    print_table(
        [
            {
                "task": row.name,
                "kind": row.kind,
                "labels": "" if row.labels is None else str(row.labels),
                "metric": row.metric,
                "rows": f"{sum(row.rows.values()):,}",
                "reads": row.data or "--data",
                "source": row.source,
            }
            for row in rows
        ]
    )
    print(
        "\nrows: those with labels in the data as published. reads: what is read unless --data says otherwise.\n"
        "graftwork tasks NAME [--data PATH]: rows, labels and lengths of each split, five examples, what is left out."
    )


def _print_one(name: str, found: "TaskSummary") -> None:
    from graftwork.cli.table import print_pairs, print_table
    from graftwork.tasks.known import ALL, ROWS

    task = found.task
    known: dict[str, object] = {
        "task": task.name,
        "kind": task.kind,
        "metrics": ", ".join(task.metrics),
        "columns": ", ".join(task.columns),
        "data": task.data or "its package",
    }
    if task.homepage:
        known["source"] = task.homepage
    if name in ROWS:
        rows = {split: f"{count:,}" for split, count in ROWS[name].items()}
        known["rows as published"] = rows.get(ALL) or ", ".join(f"{split} {count}" for split, count in rows.items())
    print_pairs(known)
    print()
    print_table([{"split": split, **_cells(own)} for split, own in found.splits.items()])
    _print_labels(found)
    if found.tokenizer is None:
        print("\nlengths: --backbone NAME counts them in its tokens")
    for split, reasons in found.dropped.items():
        for reason, numbers in reasons.items():
            places = ", ".join(map(str, numbers[:5])) + (f" and {len(numbers) - 5:,} more" if len(numbers) > 5 else "")
            what = f"{len(numbers):,} row{'s' if len(numbers) > 1 else ''}"
            print(f"\nleft out of {split}: {what} with {reason} ({places})")
    print("\nexamples of train:")
    for given, label in found.examples:
        print(f"  {_one_line(label, 60)}\t{_one_line(given, 120)}")


def _cells(own: "SplitSummary") -> dict[str, str]:
    """One split as a row of a table."""
    cells = {"rows": f"{own.rows:,}"}
    for what, lengths in (("tokens", own.lengths), ("target tokens", own.targets)):
        if lengths is not None:
            cells[f"{what}: median"] = f"{lengths.median:g}"
            cells[f"{what}: 95 %"] = f"{lengths.percentile_95:,}"
            cells[f"{what}: longest"] = f"{lengths.longest:,}"
    if own.numbers is not None:
        cells |= dict(zip(("least", "mean", "greatest"), map("{:g}".format, own.numbers), strict=True))
    return cells


def _print_labels(found: "TaskSummary") -> None:
    from graftwork.cli.table import print_table

    names = list(dict.fromkeys(label for own in found.splits.values() for label in own.labels))
    if names:
        print()
        print_table(
            [
                {"label": name, **{split: f"{own.labels.get(name, 0):,}" for split, own in found.splits.items()}}
                for name in names
            ]
        )


def _one_line(value: Any, most: int) -> str:
    parts = [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]
    text = " ".join((" | " if isinstance(value, tuple) else " ").join(parts).split())
    return text if len(text) <= most else text[: most - 1] + "…"
