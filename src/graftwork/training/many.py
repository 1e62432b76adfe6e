"""`tune_many`: several adapters tuned at once, whose batches share passes of the backbone.

Each adapter has a trainer of its own, and with it its own data, loss, rate, clipping, schedule, stopping and
checkpoints. Each trainer runs in a coroutine: it waits where it would run a pass. When all have come there, their
batches are joined, one pass gives each its gradients, and they go on one after the other. A run that has ended leaves,
and its adapter is saved as `tune` saves it.

What is random in a run comes from a source of its own, so that it is as if the run were alone.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import TrainerCallback

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.backbones.quiet import quiet_transformers
from graftwork.bank.randomness import RandomSource
from graftwork.errors import (
    DivergedError,
    GraftworkError,
    InterruptedRunError,
    OutputError,
    TuneManyError,
)
from graftwork.folders import HeldFolder
from graftwork.model import AdaptedModel
from graftwork.tasks import TaskData, load
from graftwork.training.baseline import Scores
from graftwork.training.callbacks import Callback, callbacks_by_name
from graftwork.training.coroutine import ThreadCoroutine
from graftwork.training.display import Display, shown_on_stderr
from graftwork.training.diverging import with_checkpoint
from graftwork.training.joint_passes import Step, take
from graftwork.training.joint_recipe import JointRecipe, plain
from graftwork.training.joint_refusals import refuse_unlike
from graftwork.training.outputs import Output
from graftwork.training.recipe import Recipe
from graftwork.training.run_summary import of_backbone, of_loading
from graftwork.training.trainer import last_checkpoint
from graftwork.training.tuning import Run, adapted_for, refuse_idle

HELD = ".tuning"
"""In the folder of a joint recipe's outputs: the folder that is held while it is tuned. No adapter's name begins with a
point."""

logger = logging.getLogger(__name__)


def tune_many(
    backbone: Backbone,
    adapters: Mapping[str, Recipe | Mapping[str, Any]],
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Mapping[str, Sequence[Callback]] = MappingProxyType({}),
    **training: Any,
) -> dict[str, Adapter]:
    """Tune several adapters at once, with shared forward passes of the backbone.

    Args:
        backbone: the frozen model. It is unchanged when the call returns.
        adapters: by name, a recipe, whose backbone is ignored; or a mapping with `task` (or a `Task`), `method` (or a
            `Method`), `pooling`, `add_tokens` and `train` as in a recipe, and `data` and `seeds` as in a joint recipe.
        output: folder in which each adapter is saved under its name as soon as it is finished. None: none is saved.
        resume: continue interrupted runs. Finished adapters are not trained again.
        overwrite: replace existing outputs, and discard interrupted runs.
        progress: report progress on standard error: with bars on a terminal, otherwise with a line every few seconds.
        callbacks: as for `tune`, by the names of adapters. They are called in threads, one after the other; what one
            raises ends the run of its adapter.
        training: fields of `TrainingSettings`, as defaults for all adapters.

    Returns:
        By name, each adapter of the checkpoint with the best validation score, with its scores.

    Raises:
        GraftworkError: a subclass names what is wrong with the data, settings or outputs. Nothing was trained.
        TuneManyError: some of the runs failed. The others were finished and saved.
    """
    given = {
        name: own.model_dump(mode="json", exclude_unset=True, exclude={"backbone", "dtype"})
        if isinstance(own, Recipe)
        else plain(own)
        for name, own in adapters.items()
    }
    joint = JointRecipe.parse(
        {"backbone": backbone.name, "train": training, "adapters": given}, origin="the arguments of tune_many"
    )
    return tune_joint_recipe(
        joint,
        output=output,
        backbone=backbone,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        callbacks=callbacks,
    )


def tune_joint_recipe(
    joint: JointRecipe,
    *,
    output: str | Path | None = None,
    backbone: Backbone | None = None,
    data: Mapping[str, TaskData] = MappingProxyType({}),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Mapping[str, Sequence[Callback]] = MappingProxyType({}),
) -> dict[str, Adapter]:
    """Tune the adapters of a joint recipe.

    Args:
        joint: the joint recipe.
        output, resume, overwrite, progress, callbacks: as for `tune_many`.
        backbone: the backbone, if it is loaded already. None: the one that the joint recipe names is loaded.
        data: by adapter, its task's data, where they are loaded already. Others are read.
    """
    told = callbacks_by_name(callbacks, list(joint.recipes))
    if output is None:
        if resume:
            raise OutputError("runs without an output cannot be resumed", change="--output")
        with tempfile.TemporaryDirectory(prefix="graftwork.") as folder:
            outputs = {name: Output(Path(folder) / name) for name in joint.recipes}
            with _held(outputs, Path(folder), resume=False, overwrite=False):
                return _tune(joint, outputs, backbone, data, told, resume=False, progress=progress, saved=False)
    if resume and overwrite:
        raise OutputError("--resume keeps what is there, and --overwrite does not", expected="one of the two")
    outputs = {name: Output(Path(output) / name) for name in joint.recipes}
    try:
        with _held(outputs, Path(output).resolve(), resume=resume, overwrite=overwrite):
            return _tune(joint, outputs, backbone, data, told, resume=resume, progress=progress)
    except KeyboardInterrupt as stop:
        raise _interruption(outputs) from stop


def _tune(
    joint: JointRecipe,
    outputs: Mapping[str, Output],
    backbone: Backbone | None,
    given: Mapping[str, TaskData],
    callbacks: Mapping[str, Sequence[TrainerCallback]],
    *,
    resume: bool,
    progress: bool,
    saved: bool = True,
) -> dict[str, Adapter]:
    """The adapters by name, those that were finished before among them.

    Args:
        saved: the outputs stay when all has ended.
    """
    with shown_on_stderr(shown=progress) as display:
        if backbone is None:
            display.say(of_loading(joint.backbone))
            backbone = Backbone.load(joint.backbone, dtype=joint.dtype)
        return _tune_on(backbone, joint, outputs, given, callbacks, display, resume=resume, saved=saved)


def _tune_on(
    backbone: Backbone,
    joint: JointRecipe,
    outputs: Mapping[str, Output],
    given: Mapping[str, TaskData],
    callbacks: Mapping[str, Sequence[TrainerCallback]],
    display: Display,
    *,
    resume: bool,
    saved: bool,
) -> dict[str, Adapter]:
    """The same on a backbone, shown on a display."""
    recipes: dict[str, Recipe] = {}
    for name, recipe in joint.recipes.items():
        with _named(name):
            recipes[name] = recipe.resolved(backbone, recipe.find_task(), recipe.find_method())
            refuse_idle(recipe, backbone)
    refuse_unlike(recipes)
    found: dict[str, Adapter] = {}
    for name, recipe in recipes.items():
        if outputs[name].finished:
            with _named(name):
                found[name] = outputs[name].finished_adapter(recipe)
    model = adapted_for(backbone, next(iter(recipes.values())).train)
    members: list[_Member] = []
    loaded: dict[str, TaskData] = {}
    failures: dict[str, Exception] = {}
    try:
        with quiet_transformers():
            for name, recipe in recipes.items():
                if name in found:
                    continue
                with _named(name):
                    task = recipe.find_task()
                    key = task.model_dump_json()
                    data = loaded[key] = given.get(name) or loaded.get(key) or load(task)
                    own = (outputs[name], callbacks[name])
                    members.append(_Member(model, name, recipe, data, *own, resume=resume, display=display))
            if members:
                display.say(of_backbone(backbone))
            for member in members:
                about, training = member.run.summary(joint.recipes[member.name].train)
                display.say(f"{member.name}: {about}", f"{member.name}: {training}")
            _compare(members)
            for member in _train(model, members):
                if member.failure is not None:
                    failures[member.name] = member.failure
                elif member.adapter is not None:
                    found[member.name] = member.adapter
    finally:
        for member in members:
            member.coroutine.close()
        model.detach()
    finished = {name: found[name] for name in recipes if name in found}
    if failures:
        raise TuneManyError(
            f"{len(failures)} of {len(recipes)} runs failed; the others are finished{' and saved' if saved else ''}\n  "
            + "\n  ".join(f"{name}: {_said(error)}" for name, error in failures.items()),
            change="what each error names; then run again with --resume" if saved else "what each error names",
            finished=finished,
        ) from next(iter(failures.values()))
    return finished


def _compare(members: Iterable["_Member"]) -> None:
    """Measure the baseline of each, once for those of equal tasks that are cut alike."""
    measured: dict[tuple[Any, ...], Scores] = {}
    for member in members:
        recipe = member.run.recipe
        same = (recipe.find_task().model_dump_json(), recipe.train.max_length, recipe.train.baseline)
        if same not in measured:
            measured[same] = member.run.measure_baseline()
        member.run.baseline = measured[same]


class _Member:
    """One of the runs.

    Attributes:
        adapter: once it is finished.
        failure: what it failed of.
    """

    def __init__(
        self,
        model: AdaptedModel,
        name: str,
        recipe: Recipe,
        data: TaskData,
        output: Output,
        callbacks: Sequence[TrainerCallback],
        *,
        resume: bool,
        display: Display,
    ) -> None:
        self.name, self.model, self.output = name, model, output
        self.adapter: Adapter | None = None
        self.failure: Exception | None = None
        self.random_source = RandomSource(model.device)
        self.coroutine = ThreadCoroutine(lambda: self.run.train(), name=f"tuning {name}")
        with self.random_source.own():
            self.run = Run(
                model,
                name,
                recipe,
                data,
                output,
                resume=resume,
                display=display,
                callbacks=callbacks,
                coroutine=self.coroutine,
            )
        model.in_training(name).random_source = self.random_source

    def next_step(self, answer: Any) -> Step | None:
        """What it is to be trained on next; None when it has ended, well or not.

        Args:
            answer: to what it asked before: the loss of its last step, or the error that came of it.
        """
        try:
            while not self.coroutine.ended:
                with self.random_source.own():
                    asked = (
                        self.coroutine.throw(answer) if isinstance(answer, Exception) else self.coroutine.send(answer)
                    )
                if isinstance(asked, Step):
                    return asked
                # What is scored: the passes are run here, where an interrupt of the keyboard reaches them.
                answer = None if asked is None else _tried(asked)
            self._finish()
        except Exception as error:
            self._fail(error)
        return None

    def _finish(self) -> None:
        adapter, log = self.run.finish()
        self.output.write(adapter, log, overwrite=True)
        self._leave()
        self.adapter = adapter

    def _fail(self, error: Exception) -> None:
        self.failure = with_checkpoint(error, self.output.working) if isinstance(error, DivergedError) else error
        if not isinstance(error, GraftworkError):
            logger.error("the run of adapter %r failed", self.name, exc_info=error)
        self._leave()

    def _leave(self) -> None:
        """Take it off the model, wherever it failed."""
        if self.name in self.model.residents:
            self.model.remove(self.name)


def _train(model: AdaptedModel, members: Iterable[_Member]) -> Iterator[_Member]:
    """Train all of them; gives each as soon as it has ended."""
    answers: dict[_Member, Any] = dict.fromkeys(members)
    while answers:
        steps: dict[_Member, Step] = {}
        for member, answer in answers.items():
            step = member.next_step(answer)
            if step is None:
                yield member
            else:
                steps[member] = step
        losses = _tried(take, model, {member.name: step for member, step in steps.items()})
        # Which of them a pass failed of is not known: all that took part in it fail, and go on from checkpoints.
        answers = {m: losses if isinstance(losses, Exception) else losses[m.name] for m in steps}


def _tried(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or the error that it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


@contextmanager
def _held(outputs: Mapping[str, Output], folder: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Inside, no other joint recipe can be tuned in a folder, and no other run can work on one of its outputs.

    Raises:
        OutputError: as of one run; or, to be resumed, there is nothing of any of them.
    """
    for place in outputs.values():
        place.refuse_early(resume=resume, overwrite=overwrite)
    if resume and not any(place.has_traces() for place in outputs.values()):
        raise OutputError(f"there are no interrupted runs in {str(folder)!r}", change="--resume")
    held = HeldFolder.take(folder / HELD, f"tuning of several adapters in {str(folder)!r}")
    try:
        with ExitStack() as stack:
            for place in outputs.values():
                stack.enter_context(place.held(resume=resume, overwrite=overwrite, several=True))
            yield
    finally:
        held.remove()


def _interruption(outputs: Mapping[str, Output]) -> InterruptedRunError:
    """What is to be said of an interrupt."""
    done = {name for name, place in outputs.items() if place.finished}
    going = {name for name in outputs.keys() - done if last_checkpoint(outputs[name].working) is not None}
    facts = [f"{word}: {', '.join(sorted(names))}" for word, names in (("finished", done), ("kept", going)) if names]
    return InterruptedRunError(
        "interrupted; " + ("; ".join(facts) if facts else "nothing is kept, as no checkpoint had been saved"),
        resumable=bool(facts),
    )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors inside name the adapter."""
    try:
        yield
    except GraftworkError as error:
        raise type(error)(f"adapter {name!r}: {error.problem}", expected=error.expected, change=error.change) from error


def _said(error: Exception) -> str:
    return error.problem if isinstance(error, GraftworkError) else f"{type(error).__name__}: {error}"
