"""Runs that diverge: a loss, a score or a tensor that is not finite ends them, and nothing is saved as if all
were well. What was best before is left where a user finds it.
"""

from pathlib import Path

from graftwork.errors import DivergedError
from graftwork.training.trainer import best_checkpoint


def with_checkpoint(error: DivergedError, working: Path) -> DivergedError:
    """The error, with where the run's best checkpoint is that had finite scores, if there is one. It is an adapter's
    folder, and stays until the run is started again.
    """
    found = best_checkpoint(working)
    if found is None:
        return error
    best, score = found
    return DivergedError(
        f"{error.problem}. The best checkpoint before that, with a validation score of {score:.4f}, is an adapter's "
        f"folder: {best}",
        expected=error.expected,
        change=f"{error.change}; and --overwrite, to start again",
    )
