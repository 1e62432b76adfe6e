"""The report of a study: its tables and figures as files, and one page of HTML that has them all."""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from graftwork import __version__
from graftwork.combine.reports import refuse_other_contents
from graftwork.errors import DataError, OutputError
from graftwork.folders import replacing_folder
from graftwork.studies.curves import confusions, learning_curves
from graftwork.studies.drawing import Figure, Numbers, Row, Table
from graftwork.studies.figures import COSTS, pareto, score_against_parameters, sweeps
from graftwork.studies.outputs import read_results
from graftwork.studies.results import Result
from graftwork.studies.study import FILE
from graftwork.studies.tables import glue_scores, other_scores, sizes
from graftwork.training.display import SILENT, Display, shown_on_stderr

PAGE = "report.html"

REPORT = "report"
"""The folder of the report in that of its study."""

ENVIRONMENT = "environment.json"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #bbb }
figure { margin: 1.5rem 0 } img { max-width: 100% } figcaption, .note { color: #444; font-size: 0.9em }
table { border-collapse: collapse; font-size: 0.85em; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: 0.2rem 0.7rem; text-align: left; white-space: nowrap }
th { border-bottom: 1px solid #777 } pre { background: #f4f4f4; padding: 0.8rem; overflow-x: auto }
"""


def report(
    study: str | Path, *, output: str | Path | None = None, overwrite: bool = False, progress: bool = False
) -> Path:
    """Write the tables and figures of a study, each with its numbers as CSV, and one page of HTML with all of them.

    Args:
        study: the folder that `compare` has written.
        output: folder for the files; it must not exist. None: `report` in the study's folder, which is replaced.
        overwrite: replace an existing report.
        progress: report progress on standard error.

    Returns:
        The page.

    Raises:
        DataError: the folder is no study's, none of its runs has ended, or a run is damaged.
        OutputError: the output exists and `overwrite` is off, it holds something else, or it cannot be written.
    """
    study = Path(study)
    results = read_results(study)
    if not results:
        raise DataError(
            f"no run of the study in {str(study)!r} is to be compared yet",
            expected="a study of which some runs have ended well",
            change="run `graftwork compare` first",
        )
    folder = Path(study / REPORT if output is None else output)
    overwrite = overwrite or output is None
    refuse(folder, overwrite=overwrite)
    with shown_on_stderr(shown=progress) as display, replacing_folder(folder, overwrite=overwrite) as temporary:
        page = write_report(results, temporary, title=study.resolve().name, settings=_settings(study), display=display)
    return folder / page.name


def refuse(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder to which a report cannot be written, before anything is drawn.

    Raises:
        OutputError: it exists, and `overwrite` is off or it is no report's.
    """
    if folder.is_dir() and not (folder / PAGE).is_file():
        raise OutputError(
            f"{str(folder)!r} is no report's folder, so it is not overwritten",
            expected=f"a new folder, or one with {PAGE}",
            change="--output",
        )
    there = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    refuse_other_contents(folder, there, overwrite=overwrite)


def write_report(
    results: Sequence[Result],
    folder: Path,
    *,
    title: str,
    settings: str = "",
    display: Display = SILENT,
) -> Path:
    """Write the tables and figures of runs to a folder that is there, and the page.

    Args:
        results: the runs; at least one.
        folder: where.
        title: of the page.
        settings: the study's file.
        display: where a bar shows how far it is.

    Returns:
        The page.
    """
    made: list[Numbers] = [*tables(results), *figures(results)]
    parts = []
    with display.bar("report", len(made), "tables and figures") as bar:
        for own in made:
            own.write(folder)
            parts.append(_part(own, folder))
            bar.advance(1)
    page = folder / PAGE
    page.write_text(_page(title, results, parts, settings), encoding="utf-8")
    return page


def tables(results: Sequence[Result]) -> list[Table]:
    """The tables of runs, those that there are."""
    return [own for own in (glue_scores(results), other_scores(results), sizes(results)) if own is not None]


def figures(results: Sequence[Result]) -> list[Figure]:
    """The figures of runs, those that there are."""
    single: list[Callable[[], Figure | None]] = [
        partial(score_against_parameters, results),
        *(partial(pareto, results, cost) for cost in COSTS),
    ]
    found = [own for make in single if (own := make()) is not None]
    return [*found, *sweeps(results), *learning_curves(results), *confusions(results)]


def _settings(study: Path) -> str:
    file = study / FILE
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _part(own: Numbers, folder: Path) -> str:
    """A table or figure in the page, which is written already."""
    note = f'<p class="note">{escape(own.note)}</p>' if own.note else ""
    numbers = f"<details><summary>numbers ({escape(own.name)}.csv)</summary>{_table(own.rows)}</details>"
    if isinstance(own, Table):
        return f'<h2 id="{escape(own.name)}">{escape(own.title)}</h2>{_table(own.shown or own.rows)}{note}{numbers}'
    image = base64.b64encode((folder / f"{own.name}.svg").read_bytes()).decode("ascii")
    drawn = f'<img alt="{escape(own.title)}" src="data:image/svg+xml;base64,{image}">'
    caption = f"<figcaption>{escape(own.note)}</figcaption>" if own.note else ""
    return f'<h2 id="{escape(own.name)}">{escape(own.title)}</h2><figure>{drawn}{caption}</figure>{numbers}'


def _table(rows: Iterable[Row]) -> str:
    """Rows as a table of HTML."""
    rows = list(rows)
    head = "".join(f"<th>{escape(str(name).replace('_', ' '))}</th>" for name in rows[0])
    lines = ("".join(f"<td>{escape(_text(value))}</td>" for value in row.values()) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: Any) -> str:
    """A value as people read it."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() or abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _page(title: str, results: Sequence[Result], parts: Sequence[str], settings: str) -> str:
    """The page: everything in one file, without scripts and without anything from elsewhere."""
    runs = [
        {
            "task": own.task,
            "method": own.label,
            "seed": str(own.seed),
            "learning rate": f"{own.learning_rate:g}",
            "metric": own.main_metric,
            "validation": own.validation_score,
            "test": own.test.get(own.main_metric),
            "run": own.folder.name,
        }
        for own in results
    ]
    tasks = len({own.task for own in results})
    methods = len({own.label for own in results})
    summary = f"{len(results)} runs: {tasks} tasks, {methods} methods with their settings."
    made = "".join(f"<pre>{escape(text)}</pre>" for text in (settings, _environment(results)) if text)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{escape(title)}</h1><p>{summary} Made with graftwork {__version__}.</p>{''.join(parts)}"
        f'<h2 id="settings">Settings</h2>{made}<h2 id="runs">Runs</h2>{_table(runs)}</body></html>\n'
    )


def _environment(results: Sequence[Result]) -> str:
    """The versions and machine of the first run that notes them."""
    for own in results:
        file = own.folder / ENVIRONMENT
        if file.is_file():
            known = json.loads(file.read_text(encoding="utf-8"))
            shown = {name: known[name] for name in ("versions", "backbone", "machine") if name in known}
            return json.dumps(shown, indent=1)
    return ""
