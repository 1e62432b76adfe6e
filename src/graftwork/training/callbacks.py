"""transformers' callbacks in a run: which are taken, and what they cannot break."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from graftwork.errors import RecipeError, nearest

Callback = TrainerCallback | type[TrainerCallback]
"""A callback, or its class, of which each run makes one."""


def checked_callbacks(callbacks: Sequence[Callback]) -> list[TrainerCallback]:
    """The callbacks of one run; classes are called.

    Args:
        callbacks: as `tune` is given them.

    Raises:
        RecipeError: one is something else.
    """
    single = isinstance(callbacks, TrainerCallback | str | Mapping | type)
    if single or not isinstance(callbacks, Sequence):
        raise _refusal(f"{callbacks!r} is no list of callbacks")
    for own in callbacks:
        if not isinstance(own, TrainerCallback) and not (isinstance(own, type) and issubclass(own, TrainerCallback)):
            raise _refusal(f"{own!r} is no callback of transformers")
    return [own() if isinstance(own, type) else own for own in callbacks]


def callbacks_by_name(
    callbacks: Mapping[str, Sequence[Callback]], names: Sequence[str]
) -> dict[str, list[TrainerCallback]]:
    """The callbacks of each of several runs.

    Args:
        callbacks: by the adapters' names, as `tune_many` is given them.
        names: of all adapters.

    Raises:
        RecipeError: a name is no adapter's, or something is no callback.
    """
    if not isinstance(callbacks, Mapping):
        raise RecipeError(
            f"{callbacks!r} is no mapping of callbacks",
            expected="lists of callbacks by the names of adapters: each run has its own",
            change="callbacks",
        )
    unknown = [name for name in callbacks if name not in names]
    if unknown:
        raise RecipeError(
            f"callbacks are given for {unknown[0]!r}, and no adapter has that name",
            expected=nearest(unknown[0], names),
            change="callbacks",
        )
    return {name: checked_callbacks(callbacks.get(name, ())) for name in names}


def with_scores_kept(callbacks: Sequence[TrainerCallback]) -> list[TrainerCallback]:
    """Callbacks, and behind them what keeps a run whole; none where there are none."""
    return [*callbacks, ScoresKept()] if callbacks else []


class ScoresKept(TrainerCallback):
    """Saves whatever is scored, and scores what is saved, also where another callback asked for one of both: the best
    score is then always that of a checkpoint. A run that is stopped in the middle is scored where it stops.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # By epochs, the end of the epoch comes next, also of one that is broken off.
        stopped = control.should_training_stop and args.eval_strategy == IntervalStrategy.STEPS
        return self._together(control, stopped=stopped)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        return self._together(control, stopped=False)

    @staticmethod
    def _together(control: TrainerControl, *, stopped: bool) -> TrainerControl:
        both = control.should_evaluate or control.should_save or stopped
        control.should_evaluate = control.should_save = both
        return control


def _refusal(problem: str) -> RecipeError:
    return RecipeError(
        f"callbacks: {problem}",
        expected="a list of transformers.TrainerCallback, instances or classes",
        change="callbacks",
    )
