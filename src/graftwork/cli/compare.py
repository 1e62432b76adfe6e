"""`graftwork compare`: run a study, or go on with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from graftwork.cli.settings import Settings, Switch
from graftwork.cli.starting import say_start

if TYPE_CHECKING:
    from graftwork.studies import Comparison


def compare(
    study: Path,
    /,
    *,
    output: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    retry_failed: Annotated[bool, Switch] = False,
    report_to: str | None = None,
    tables_only: Annotated[bool, Switch] = False,
    quiet: Annotated[bool, Switch] = False,
    json: Annotated[bool, Switch] = False,
    settings: Settings = [],  # noqa: B006 (cyclopts makes a new list for each call)
) -> None:
    """Compare methods over tasks and seeds, as a study says; the same command goes on where it stopped.

    Parameters
    ----------
    study
        A study (YAML): backbone, tasks, methods, train, search, seeds and budget; see docs/studies.md.
    output
        Folder for its runs and tables. Default: the folder beside the study of the same name. What is done there is not
        done again.
    workers
        Number of processes, each with an equal share of the cores. Default: 1; with --ray, one for each GPU of the
        cluster, or as many as its CPUs allow.
    ray
        Address of a Ray cluster that does the work (auto, local, HOST:PORT or ray://HOST:PORT). Its machines must share
        the output folder.
    retry_failed
        Run again what failed before. Its errors are kept.
    report_to
        Experiment trackers, by transformers' names.
    tables_only
        Write the tables, and neither figures nor the report.
    quiet
        Print the results only.
    json
        Print the results as JSON.
    """
    from graftwork.cli.flags import with_settings

    overrides = with_settings({"train.report_to": report_to}, settings)
    say_start(quiet=quiet)
    from graftwork.errors import FailedRunsError
    from graftwork.studies import compare

    try:
        found = compare(
            study,
            output=output,
            overrides=overrides,
            workers=workers,
            ray=ray,
            retry_failed=retry_failed,
            tables_only=tables_only,
            progress=not quiet,
        )
    except FailedRunsError as error:
        _report(error.finished, as_json=json)
        raise
    _report(found, as_json=json)


def _report(found: "Comparison", *, as_json: bool) -> None:
    from json import dumps

    from graftwork.cli.table import print_table
    from graftwork.studies.outputs import summary

    rows = summary(found.results)
    if as_json:
        facts = {"open": found.open, "hours": found.hours, "output": str(found.folder)}
        failed = [{"run": own.hash, "error": own.error} for own in found.failed]
        print(dumps({"results": rows, "failed": failed, **facts}))
        return
    if rows:
        print_table(
            [
                {
                    "task": row["task"],
                    "method": row["method"] + (f" ({row['setting']})" if row["setting"] else ""),
                    "rate": f"{row['learning_rate']:g}",
                    "trained": f"{row['trained_parameters']:,}",
                    "seeds": str(row["seeds"]),
                    "metric": row["metric"],
                    "validation": _score(row, "validation"),
                    "test": _score(row, "test"),
                }
                for row in rows
            ]
        )
    print(f"saved in {found.folder}")


def _score(row: dict[str, float], split: str) -> str:
    """Mean and standard error."""
    mean, error = row[split], row[f"{split}_standard_error"]
    if mean is None:
        return ""
    return f"{mean:.4f}" if error != error else f"{mean:.4f} ± {error:.4f}"
