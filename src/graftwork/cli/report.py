"""`graftwork report`: the tables and figures of a study, and one page of HTML with all of them."""

from pathlib import Path
from typing import Annotated

from graftwork.cli.settings import Switch


def report(
    study: Path,
    /,
    *,
    output: Path | None = None,
    overwrite: Annotated[bool, Switch] = False,
    quiet: Annotated[bool, Switch] = False,
) -> None:
    """Write the tables and figures of a study, and one page of HTML with all of them.

    Each table is written as CSV, each figure as PNG and SVG with its numbers as CSV. The page needs no other file.

    Parameters
    ----------
    study
        The study's folder.
    output
        Folder for the files. It must not exist. Default: report in the study's folder, which is replaced.
    overwrite
        Replace an existing report.
    quiet
        Do not print how far it is.
    """
    from graftwork.studies.report import report as write

    print(f"saved in {write(study, output=output, overwrite=overwrite, progress=not quiet)}")
