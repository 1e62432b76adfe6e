"""The place of one run's result, for as long as the run works there."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graftwork.adapters.folder import CONFIG
from graftwork.errors import DivergedError, OutputError
from graftwork.training.diverging import with_checkpoint
from graftwork.training.outputs import Output


@contextmanager
def held_output(output: str | Path | None, *, resume: bool, overwrite: bool, config: str = CONFIG) -> Iterator[Output]:
    """Inside, no other run can work there. A run that diverges or is interrupted says what is kept.

    Args:
        output: the folder of the result. None: a temporary one, which goes at the end.
        resume: go on with an interrupted run to the same output.
        overwrite: replace an existing output, and discard an interrupted run.
        config: the file that a finished result has.

    Raises:
        OutputError: there is nothing to resume, or the output exists already.
        DivergedError, InterruptedRunError: the run ended so; names what is kept.
    """
    if output is None:
        if resume:
            raise OutputError("a run without an output cannot be resumed", change="--output")
        with tempfile.TemporaryDirectory(prefix="graftwork.") as folder:
            place = Output(Path(folder) / "result", config=config)
            with place.held():
                yield place
        return
    place = Output(output, config=config)
    try:
        with place.held(resume=resume, overwrite=overwrite):
            yield place
    except DivergedError as error:
        raise with_checkpoint(error, place.working) from error
    except KeyboardInterrupt as stop:
        raise place.interruption() from stop
