"""`graftwork glue-submission`: the zip file that GLUE's leaderboard takes, out of a study or a folder of adapters."""

from pathlib import Path

from cyclopts.types import PositiveInt

from graftwork.cli.flags import PLAIN, Written
from graftwork.cli.starting import say_start


def glue_submission(
    source: Path,
    /,
    *,
    data: Path,
    output: Path,
    method: str | None = None,
    backbone: str | None = None,
    dtype: str = "auto",
    batch_size: PositiveInt = 64,
    written: Written = PLAIN,
) -> None:
    """Predict GLUE's test sets by the best adapters of a study or folder, and write the leaderboard's zip file.

    Of several adapters of one task, the one with the best validation score answers; MNLI's answers AX as well. Test
    sets without an adapter get the most frequent class, which is said.

    Parameters
    ----------
    source
        The folder of a study, or one with adapters' folders in it.
    data
        The folder that holds GLUE's folders (CoLA, SST-2, …), with the test set of each task that has an adapter.
    output
        Folder for submission.zip and the tables that are in it. It must not exist.
    method
        Consider adapters of this method only: by its name in the study, or else in the library. Default: all.
    backbone
        Folder or hub id of the backbone of all adapters, if it has moved.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16, float64.
    batch_size
        Rows in one forward pass.
    """
    say_start(quiet=written.quiet)
    from json import dumps

    from graftwork.backbones import Backbone
    from graftwork.cli.table import print_table
    from graftwork.studies.submission import ZIP, refuse
    from graftwork.studies.submitting import glue_submission as predict

    refuse(output, overwrite=written.overwrite)
    made = predict(
        source,
        data=data,
        method=method,
        backbone=None if backbone is None else Backbone.load(backbone, dtype=dtype),
        dtype=dtype,
        batch_size=batch_size,
        progress=not written.quiet,
    )
    made.save(output, overwrite=written.overwrite)
    if written.json:
        print(dumps({"file": str(output / ZIP), "missing": made.missing, "tables": made.record()}))
        return
    print_table(
        [
            {
                "file": f"{own.test_set.table}.tsv",
                "rows": f"{len(own.predictions):,}",
                "by": f"{own.test_set.usual} in every row" if own.adapter is None else str(own.adapter),
                "validation": "" if own.score is None else f"{own.score:.4f}",
            }
            for own in made.tables
        ]
    )
    if made.missing:
        print(f"no adapter: {', '.join(made.missing)} have the most frequent class in every row")
    print(f"saved in {output / ZIP}")
