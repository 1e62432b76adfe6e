"""`Pool`: tasks that arrive one after another, in at most K adapters.

While there is room, a task gets an adapter of its own. Then the adapter is chosen that suits it best, and the two
become one by distillation on the new task's texts. No data of earlier tasks are read again. Each task keeps its head,
so that any of them can be had as an ordinary adapter.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from graftwork.adapters import Adapter
from graftwork.adapters.identity import BackboneIdentity
from graftwork.backbones import Backbone
from graftwork.combine.adding import WORKING, Adding, added_by
from graftwork.combine.given import AnyAdapter, as_adapter, tuned_already
from graftwork.combine.heads import one_of
from graftwork.combine.poolfile import PoolFile, PoolSettings, PoolTask, Step, read_member, remove_unnamed
from graftwork.combine.refusals import refuse_idle_training, refuse_method, refuse_tasks
from graftwork.combine.reports import naming
from graftwork.data.table import SplitName
from graftwork.errors import AdapterError, InterruptedRunError, nearest
from graftwork.folders import HeldFolder
from graftwork.kinds.prediction import Prediction
from graftwork.methods import Method, as_method
from graftwork.model import AdaptedModel
from graftwork.tasks import Task
from graftwork.training.evaluation import evaluate_on
from graftwork.training.outputs import refuse_differences
from graftwork.training.recipe import Recipe, recipe_of

T = TypeVar("T")

REREADS = 5
"""How often a pool is read again, when other processes add tasks while its members are read."""


class Pool:
    """Tasks that arrive one after another, in at most K adapters (Ermis et al. 2022, "Memory Efficient Continual
    Learning with Transformers").

    Bytes on disk, and bytes and time of a prediction, do not grow with the number of tasks, but for a head each. A task
    that is added while a process is killed is in the pool or is not: the pool on disk is that of before or that of
    after.

    Args:
        folder: of the pool; made when the first task is added.
        backbone: the frozen model of all adapters. None: the one that the pool names is loaded; for a new pool, minilm.
        capacity: K, the largest number of adapters. None: one for each task.
        method: the method of all adapters, or its name.
        settings: more fields of `graftwork.combine.PoolSettings`: selection, consolidation, examples, …

    Attributes:
        folder: of the pool.
        backbone: the frozen model.
        settings: how tasks are taken in.

    Raises:
        AdapterError: the folder is no pool, is damaged, or is for another backbone.
        RecipeError: a setting is invalid, or differs from that of the pool on disk.
        MethodError: the method is unknown, or its adapters cannot take in tasks.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backbone: Backbone | None = None,
        capacity: int | None = None,
        method: Method | str | None = None,
        **settings: Any,
    ) -> None:
        self.folder = Path(folder).resolve()
        given = {name: value for name, value in {"capacity": capacity, **settings}.items() if value is not None}
        if method is not None:
            own = as_method(method)
            given["method"] = {"name": own.name, **own.model_dump(mode="json")}
        found = PoolFile.read(self.folder)
        self.settings = PoolSettings(**given) if found is None else found.settings.agreeing(given)
        if found is None:
            own = as_method(self.settings.method)
            refuse_method(own)
            self.settings.refuse_idle()
            self.settings = self.settings.model_copy(
                update={"method": {"name": own.name, **own.model_dump(mode="json")}}
            )
        self.backbone = (
            Backbone.load("minilm" if found is None else found.backbone.name) if backbone is None else backbone
        )
        self._file = found or PoolFile(backbone=BackboneIdentity.of(self.backbone), settings=self.settings)
        self._file.backbone.check(self.backbone)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its tasks, in the order in which they came."""
        return tuple(self._file.tasks)

    @property
    def members(self) -> list[tuple[str, ...]]:
        """The tasks of each adapter."""
        return [member.tasks for member in self._file.members]

    @property
    def has_room(self) -> bool:
        """Whether the next task gets an adapter of its own."""
        return self.settings.capacity is None or len(self._file.members) < self.settings.capacity

    @property
    def history(self) -> list[Step]:
        """What happened when each task was added."""
        return list(self._file.history)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of all adapters, heads included."""
        return self._reading(
            lambda pool: sum(read_member(self.folder, member.adapter).num_bytes for member in pool.members)
        )

    def adapter(self, task: str) -> Adapter:
        """The adapter of a task: an ordinary one, which can be saved, evaluated and used.

        Raises:
            AdapterError: the pool has no such task, or is damaged.
        """
        return self._reading(lambda pool: self._adapter(self._task(task, pool), task, pool))

    def _adapter(self, own: PoolTask, task: str, pool: PoolFile) -> Adapter:
        member = pool.members[own.member]
        others = tuple(name for name in member.tasks if name != task)
        return one_of(read_member(self.folder, member.adapter), member.tasks.index(task), own, others)

    def task(self, task: str) -> Task:
        """A task as it was added, with its data and its adapter's labels.

        Raises:
            AdapterError: the pool has no such task.
        """
        return self._task(task, self._file).task

    def _task(self, task: str, pool: PoolFile) -> PoolTask:
        if task not in pool.tasks:
            raise AdapterError(f"the pool has no task {task!r}", expected=nearest(task, pool.tasks), change="--task")
        return pool.tasks[task]

    def evaluate(self, task: str, *, split: SplitName = "validation") -> dict[str, float]:
        """The scores of a task's adapter on a split of the data with which the task was added.

        Raises:
            AdapterError: the pool has no such task.
            DataError: the data have no such split.
        """
        return evaluate_on(self.task(task), self.adapter(task), backbone=self.backbone, split=split)

    def model(self, *, budget: int | None = None) -> AdaptedModel:
        """A model with the adapter of each task under its name, for batches of several tasks. It holds the backbone
        until its `detach()`.

        Each task has a copy of its member's tensors there, so that its memory grows with the number of tasks, which
        that of `predict` does not.

        Args:
            budget: bytes for adapters on the device, as of `AdaptedModel`: those that were not used for longest are on
                disk. None: all are on the device.
        """
        return AdaptedModel(self.backbone, {name: self.adapter(name) for name in self.tasks}, budget=budget)

    def predict(self, inputs: Sequence[Any], task: str, *, batch_size: int = 32) -> list[Prediction]:
        """Predict for inputs of a task, as `AdaptedModel.predict`.

        Raises:
            AdapterError: the pool has no such task.
        """
        model = AdaptedModel(self.backbone, {task: self.adapter(task)})
        try:
            return model.predict(inputs, task, batch_size=batch_size)
        finally:
            model.detach()

    def add(
        self,
        task: str | Task,
        *,
        data: str | None = None,
        pooling: str = "auto",
        adapter: AnyAdapter | None = None,
        progress: bool = False,
        **training: Any,
    ) -> Step:
        """Add a task: tune an adapter for it, which becomes a member of the pool or is consolidated with one.

        If the process is killed, the same call goes on from the last checkpoint.

        Args:
            task: as for `tune`: one of texts with classes, labels or numbers.
            data: file, folder or hub id of the data, instead of the one that the task names.
            pooling: how a text becomes one vector for the head.
            adapter: the task's adapter, or its folder, where it was tuned already, on these data or others of the same
                form. `training` is then that of its student.
            progress: report progress on standard error.
            training: fields of `TrainingSettings`.

        Returns:
            What happened.

        Raises:
            AdapterError: the pool has the task already; or the adapter is of another task, method or backbone, has
                other labels, or reads texts in another way.
            MethodError: the pool takes no tasks of this kind.
            RecipeError: the pool is full, and chooses members by classes, which the task or a member has not; or there
                are settings of training, and nothing is trained.
            InProgressError: another process adds a task.
            GraftworkError: as `tune`.
        """
        recipe = self._recipe(task, data, pooling, training)
        self._refuse([recipe])
        tuned = None
        if adapter is not None:
            tuned = tuned_already(adapter, recipe, self.settings, self.backbone)
            refuse_idle_training(self._file, [recipe], [recipe.find_task().name], training)
        with naming(f"the pool {str(self.folder)!r}"):
            return self._add_held(recipe, training, tuned, progress=progress)

    def _add_held(self, recipe: Recipe, training: dict[str, Any], tuned: Adapter | None, *, progress: bool) -> Step:
        """Add a task while no other process adds one."""
        held = HeldFolder.take(self.folder / WORKING, f"adding a task to the pool {str(self.folder)!r}")
        try:
            self._file = PoolFile.read(self.folder) or self._file  # another process may have added one
            self._refuse([recipe])
            remove_unnamed(self.folder, PoolFile.read(self.folder))
            adding = Adding(self.folder, self._file, self.backbone, recipe, training, tuned, progress)
            adding.go_on(held)
            written = adding.run()
            written.write(self.folder)
            self._file = written
        except InterruptedRunError as stop:
            held.release()
            raise InterruptedRunError(
                f"{stop.problem}; the pool is as it was, and adding the task again goes on from there", resumable=False
            ) from stop
        except BaseException:
            held.release()
            raise
        held.remove()
        remove_unnamed(self.folder, self._file)
        return written.history[-1]

    def has(
        self,
        task: str | Task,
        *,
        data: str | None = None,
        pooling: str = "auto",
        adapter: AnyAdapter | None = None,
        **training: Any,
    ) -> bool:
        """Whether the pool has the task that such a call of `add` would add.

        Settings of training count where the call that added it trained something: not for an adapter that was given
        and found room.

        Args:
            task, data, pooling, adapter, training: as for `add`.

        Raises:
            RecipeError: it has one of that name, which was added by another recipe, or with another adapter; says where
                they differ.
        """
        recipe = self._recipe(task, data, pooling, training)
        name = recipe.find_task().name
        if name not in self._file.tasks:
            return False
        own = self._file.tasks[name]
        trained = own.given is None or self._file.was_consolidated(name)
        now = added_by(recipe, self._file, self.backbone, trained=trained)
        digest = None if adapter is None else as_adapter(adapter).digest
        refuse_differences(
            {**own.added, "adapter": own.given},
            {**now, "adapter": digest},
            f"the pool has the task {name!r} already, and it was added by another recipe",
            expected="the settings and the adapter by which it was added, or a task that the pool has not",
            change="--task, or the named settings" + ("" if own.given == digest else ", or --adapter"),
        )
        return True

    def missing(
        self, tasks: Sequence[str | Task], *, adapters: Mapping[str, AnyAdapter] | None = None, **training: Any
    ) -> list[Task]:
        """Of tasks that are to be added one after another, those that the pool has not by the same calls. What is wrong
        with one is said before any is tuned.

        Args:
            tasks, training: as for `add`.
            adapters: those that are tuned already, by the task's name.

        Raises:
            GraftworkError: as `add` and `has`.
        """
        given = adapters or {}
        recipes = [self._recipe(task, None, "auto", training) for task in tasks]
        chosen = [recipe.find_task() for recipe in recipes]
        there = {task.name for task in chosen if self.has(task, adapter=given.get(task.name), **training)}
        new = [recipe for recipe, task in zip(recipes, chosen, strict=True) if task.name not in there]
        self._refuse(new)
        for recipe in new:
            name = recipe.find_task().name
            if name in given:
                tuned_already(given[name], recipe, self.settings, self.backbone)
        if new:
            refuse_idle_training(self._file, recipes, given.keys(), training)
        return [recipe.find_task() for recipe in new]

    def _refuse(self, recipes: Sequence[Recipe]) -> None:
        refuse_method(as_method(self.settings.method))
        self._reading(lambda pool: refuse_tasks(pool, self.folder, recipes, self.backbone))

    def _reading(self, read: Callable[[PoolFile], T]) -> T:
        """What is read of the pool's members; where another process has replaced one by adding a task, of the pool as
        it is now.

        Raises:
            AdapterError: a member of the pool as it is now is missing or damaged; or what `read` raises.
        """
        for _ in range(REREADS):
            try:
                return read(self._file)
            except AdapterError:
                now = PoolFile.read(self.folder)
                if now is None or now.members == self._file.members:
                    raise
                self._file = now
        return read(self._file)

    def _recipe(self, task: str | Task, data: str | None, pooling: str, training: dict[str, Any]) -> Recipe:
        """Of a task's own run."""
        return recipe_of(
            self.backbone,
            task=task,
            method=as_method(self.settings.method),
            data=data,
            pooling=pooling,
            add_tokens=None,
            training=training,
            origin="the arguments of add",
        )
