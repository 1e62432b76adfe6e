"""The output of a run: the adapter's folder, and the hidden one beside it (`.NAME.tuning`) in which the run works.

Only one run works on an output at a time: it holds the working folder. What a killed run left there is told apart by
what the folder has:

| it has | the run |
|---|---|
| no recipe | had not begun; whatever is there belongs to nothing |
| a recipe | was interrupted, and goes on from its last checkpoint |
| a recipe, and the mark of the adapter that stands at the output | had ended, and was killed while it tidied up |

So the recipe is the first file that a run writes, and the last but the mark that goes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from graftwork.adapters import Adapter
from graftwork.adapters.folder import CONFIG, fill_folder, refuse_existing
from graftwork.distillation.outputs import KEPT
from graftwork.errors import InterruptedRunError, OutputError, RecipeError
from graftwork.folders import HeldFolder, replacing_folder, sweep, write_whole, writing
from graftwork.settings.yamlfile import RECIPE, dump_yaml, read_yaml
from graftwork.training.recipe import Recipe
from graftwork.training.trainer import CHECKPOINTS, last_checkpoint, step_of

LOG = "log.jsonl"

MARK = "finished"
"""In a working folder: the hash of the configuration of the adapter that the run ends with, written before that is
at the output."""

LAST = (RECIPE, MARK)
"""What is removed of a working folder when all else has gone."""

logger = logging.getLogger(__name__)


class Output:
    """Where a run's adapter goes, or its folder of adapters.

    Args:
        folder: where.
        config: the file by which the folder is known, and in which checksums of all else are.

    Attributes:
        target: the adapter's folder.
        working: the folder beside it in which the run works.
        finished: whether the run has ended: its adapter is at the target.
    """

    def __init__(self, folder: str | Path, *, config: str = CONFIG) -> None:
        self.config = config
        # Out of links and independent of the current folder: the working folder stands beside the real output.
        self.target = Path(folder).resolve()
        self.working = self.target.parent / f".{self.target.name}.tuning"
        self.finished = False
        self._held: HeldFolder | None = None
        self._accepted = self._own = False

    def refuse_early(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse what can be seen before anything is touched.

        Raises:
            OutputError: the target exists and is not to be overwritten; or it is not an adapter's folder.
        """
        if not resume:
            refuse_existing(self.target, overwrite=overwrite, config=self.config)

    def has_traces(self) -> bool:
        """Whether there is anything of it to be resumed: an adapter, or a folder in which a run has worked."""
        return self.target.exists() or self.working.is_dir()

    @contextmanager
    def held(self, *, resume: bool = False, overwrite: bool = False, several: bool = False) -> Iterator[None]:
        """Inside, no other run can work on the output. Afterwards, the working folder is there if a run can be resumed
        from it.

        Args:
            several: it is one of several runs, which are resumed together: what has not begun begins, and what was to
                be overwritten still is.

        Raises:
            InProgressError: another run works on it.
            OutputError: there is an adapter or an interrupted run that is not to be overwritten; or, to be resumed,
                nothing.
        """
        self.refuse_early(resume=resume, overwrite=overwrite)
        if resume and not several and not self.has_traces():
            raise self._no_run()
        self._held = HeldFolder.take(self.working, f"a run to {str(self.target)!r}")
        try:
            sweep(self.target)
            if self._has_ended():
                self._held.clear(LAST)
            begun = (self.working / RECIPE).is_file()
            self._refuse(begun, resume=resume, overwrite=overwrite, several=several)
            if not resume:
                self._held.clear(LAST)
            self.finished = resume and not begun and self.target.exists()
            yield
        finally:
            self._let_go()

    def begin(self, recipe: Recipe | Mapping[str, Any], *, resume: bool) -> None:
        """Begin a run, or check that the one to be resumed is the one that was begun; nothing where that was done.

        Args:
            recipe: resolved; or as its file has it.

        Raises:
            RecipeError: it was begun by another recipe; says where they differ.
            OutputError: the working folder cannot be written.
        """
        assert self._held is not None
        if self._accepted:
            return
        file = self.working / RECIPE
        content = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
        if resume and file.is_file():
            refuse_differences(
                read_yaml(file),
                content,
                "the run to resume was started with another recipe",
                expected=f"the settings in {file}",
                change="the named settings, or --overwrite without --resume to start again",
            )
        else:
            if any(self.working.glob(CHECKPOINTS)):
                logger.warning("checkpoints in %s belong to no known recipe and are removed", self.working)
            with writing(file):
                self._held.clear(LAST)
                write_whole(file, dump_yaml(content))
            self._own = True
        self._accepted = True

    def finished_adapter(self, recipe: Recipe) -> Adapter:
        """The adapter that is there already.

        Raises:
            RecipeError: it was tuned by another recipe.
        """
        adapter = Adapter.load(self.target)
        refuse_differences(
            adapter.recipe,
            recipe.model_dump(mode="json"),
            f"{str(self.target)!r} is finished, and was tuned by another recipe",
            expected=f"the settings in {self.target / RECIPE}",
            change="the named settings, another --output, or --overwrite without --resume to tune it again",
        )
        logger.info("%s is finished already, and is not trained again", self.target)
        return adapter

    def write(self, adapter: Adapter, log: str, *, overwrite: bool) -> None:
        """Put the finished adapter there in one rename; the working folder goes.

        Raises:
            OutputError: it cannot be written. The run can then be resumed.
        """
        self.put(lambda new: fill_folder(adapter, new, beside={LOG: log}), overwrite=overwrite)

    def put(self, fill: Callable[[Path], None], *, overwrite: bool) -> None:
        """Put there what fills a new folder, in one rename; the working folder goes.

        Raises:
            OutputError: it cannot be written. The run can then be resumed.
        """
        assert self._held is not None
        with replacing_folder(self.target, overwrite=overwrite) as new:
            fill(new)
            write_whole(self.working / MARK, self._hash(new))
        self.finished = True
        self._held.remove(LAST)
        self._held = None

    def interruption(self) -> InterruptedRunError:
        """What is to be said when it was interrupted, after it has been let go."""
        if self.finished:
            return InterruptedRunError(f"interrupted; {self.target} is finished and saved", resumable=False)
        checkpoint = last_checkpoint(self.working)
        if checkpoint is None and self._teachers_said:
            return InterruptedRunError(
                "interrupted before the first checkpoint; what the teachers said so far is kept", resumable=True
            )
        if checkpoint is None:
            return InterruptedRunError("interrupted before the first checkpoint: nothing is kept", resumable=False)
        return InterruptedRunError(f"interrupted; the run is kept up to step {step_of(checkpoint)}", resumable=True)

    def _refuse(self, begun: bool, *, resume: bool, overwrite: bool, several: bool) -> None:
        if not resume or (begun and not several):
            refuse_existing(self.target, overwrite=overwrite, config=self.config)
        if begun and not resume and not overwrite:
            raise OutputError(
                f"an interrupted run to {str(self.target)!r} is in {str(self.working)!r}",
                change="--resume to go on with it, or --overwrite to start again",
            )

    def _no_run(self) -> OutputError:
        return OutputError(
            f"there is no interrupted run to {str(self.target)!r}",
            expected=f"the folder {self.working}",
            change="leave out --resume to begin a run, or --output",
        )

    def _has_ended(self) -> bool:
        """Whether the run that worked here has put its adapter at the target."""
        try:
            return (self.working / MARK).read_text(encoding="ascii") == self._hash(self.target)
        except (OSError, UnicodeDecodeError):
            return False

    @property
    def _teachers_said(self) -> bool:
        """Whether what teachers said is kept."""
        return any(self.working.glob(KEPT))

    def _hash(self, folder: Path) -> str:
        """Of a folder's configuration, in which the checksums of its tensors are."""
        return sha256((folder / self.config).read_bytes()).hexdigest()

    def _let_go(self) -> None:
        if self._held is None:
            return
        held, self._held = self._held, None
        begun = (self.working / RECIPE).is_file()
        if begun and not self._accepted:
            held.restore()
        elif begun and (not self._own or self._teachers_said or last_checkpoint(self.working) is not None):
            held.release()
        else:  # what failed before anything was kept has nothing to be resumed
            held.remove(LAST)


def refuse_differences(
    begun: Mapping[str, Any], now: Mapping[str, Any], problem: str, *, expected: str, change: str
) -> None:
    """Refuse a recipe that differs from the one that a run was started with.

    Raises:
        RecipeError: says where they differ.
    """
    differing = sorted(differences(begun, now))
    if differing:
        raise RecipeError(f"{problem}: {'; '.join(differing)}", expected=expected, change=change)


def differences(begun: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in {*begun, *now}:
        was, is_ = begun.get(key), now.get(key)
        if isinstance(was, dict) and isinstance(is_, dict):
            found += differences(was, is_, f"{prefix}{key}.")
        elif was != is_:
            found.append(f"{prefix}{key} was {was!r}, is {is_!r}")
    return found
