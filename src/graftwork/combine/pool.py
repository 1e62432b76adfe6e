"""`Pool`: tasks that arrive one after another, in at most K adapters.

While there is room, a task gets an adapter of its own. Then the adapter is chosen that suits it best, and the two
become one by distillation on the new task's texts. No data of earlier tasks are read again. Each task keeps its head,
so that any of them can be had as an ordinary adapter.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from graftwork.adapters import Adapter
from graftwork.adapters.identity import BackboneIdentity
from graftwork.backbones import Backbone
from graftwork.combine.consolidating import Tune, agreement, distilled, heads_of
from graftwork.combine.heads import one_of, several
from graftwork.combine.poolfile import (
    Member,
    PoolFile,
    PoolSettings,
    PoolTask,
    Step,
    read_member,
    remove_unnamed,
    write_member,
)
from graftwork.combine.refusals import refuse_method, refuse_tasks, tuned_already
from graftwork.combine.reports import naming
from graftwork.combine.selecting import choose, outputs_of
from graftwork.errors import AdapterError, InterruptedRunError, nearest
from graftwork.folders import HeldFolder, write_whole
from graftwork.kinds import KINDS
from graftwork.kinds.prediction import Prediction
from graftwork.kinds.several_tasks import SeveralHeads
from graftwork.methods import Method, as_method
from graftwork.model import AdaptedModel
from graftwork.tasks import Task, load
from graftwork.training.evaluation import evaluate
from graftwork.training.outputs import Output, refuse_differences
from graftwork.training.recipe import Recipe, recipe_of
from graftwork.training.tuning import tune_recipe

WORKING, KEY = ".adding", "recipe.json"
"""In a pool's folder, the one in which a task is being added; and in that, what tells the task from another one."""


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
    def history(self) -> list[Step]:
        """What happened when each task was added."""
        return list(self._file.history)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of all adapters, heads included."""
        return sum(read_member(self.folder, member.adapter).num_bytes for member in self._file.members)

    def adapter(self, task: str) -> Adapter:
        """The adapter of a task: an ordinary one, which can be saved, evaluated and used.

        Raises:
            AdapterError: the pool has no such task, or is damaged.
        """
        if task not in self._file.tasks:
            raise AdapterError(
                f"the pool has no task {task!r}", expected=nearest(task, self._file.tasks), change="--task"
            )
        own = self._file.tasks[task]
        member = self._file.members[own.member]
        return one_of(read_member(self.folder, member.adapter), member.tasks.index(task), own)

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
        adapter: Adapter | str | Path | None = None,
        progress: bool = False,
        **training: Any,
    ) -> Step:
        """Add a task: tune an adapter for it, which becomes a member of the pool or is consolidated with one.

        If the process is killed, the same call goes on from the last checkpoint.

        Args:
            task: as for `tune`: one of texts with classes, labels or numbers.
            data: file, folder or hub id of the data, instead of the one that the task names.
            pooling: how a text becomes one vector for the head.
            adapter: the task's adapter, or its folder, where it was tuned already. `training` is then that of its
                student.
            progress: report progress on standard error.
            training: fields of `TrainingSettings`.

        Returns:
            What happened.

        Raises:
            AdapterError: the pool has the task already; or the adapter is of another task, method or backbone.
            MethodError: the pool takes no tasks of this kind.
            RecipeError: the pool is full, and chooses members by classes, which the task or a member has not.
            InProgressError: another process adds a task.
            GraftworkError: as `tune`.
        """
        recipe = self._recipe(task, data, pooling, training)
        self._refuse([recipe])
        tuned = None if adapter is None else tuned_already(adapter, recipe.find_task(), self.settings, self.backbone)
        with naming(f"the pool {str(self.folder)!r}"):
            return self._add_held(recipe, training, tuned, progress=progress)

    def _add_held(self, recipe: Recipe, training: dict[str, Any], tuned: Adapter | None, *, progress: bool) -> Step:
        """Add a task while no other process adds one."""
        held = HeldFolder.take(self.folder / WORKING, f"adding a task to the pool {str(self.folder)!r}")
        try:
            self._file = PoolFile.read(self.folder) or self._file  # another process may have added one
            self._refuse([recipe])
            remove_unnamed(self.folder, PoolFile.read(self.folder))
            self._continue(held, recipe, tuned)
            step = self._add(recipe, training, tuned, progress=progress)
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
        return step

    def has(self, task: str | Task, *, data: str | None = None, pooling: str = "auto", **training: Any) -> bool:
        """Whether the pool has the task that such a call of `add` would add.

        Args:
            task, data, pooling, training: as for `add`.

        Raises:
            RecipeError: it has one of that name, which was added by another recipe; says where they differ.
        """
        recipe = self._recipe(task, data, pooling, training)
        own = recipe.find_task()
        if own.name not in self._file.tasks:
            return False
        # The method is the pool's; of a task by which a member was tuned on, the one that it was finished with.
        added = self._file.tasks[own.name].recipe
        apart = {"method", "start"}
        method = as_method(added.get("method", self.settings.method))
        now = recipe.resolved(self.backbone, own, method).model_dump(mode="json", exclude=apart)
        refuse_differences(
            {key: value for key, value in added.items() if key not in apart},
            now,
            f"the pool has the task {own.name!r} already, and it was added by another recipe",
            expected="the settings by which it was added, or a task that the pool has not",
            change="--task, or the named settings",
        )
        return True

    def refuse(self, tasks: Sequence[str | Task], *, pooling: str = "auto", **training: Any) -> None:
        """Refuse tasks that are to be added one after another, of which one could not be, before any is tuned.

        Args:
            tasks, pooling, training: as for `add`.

        Raises:
            GraftworkError: as `add`.
        """
        self._refuse([self._recipe(task, None, pooling, training) for task in tasks])

    def _refuse(self, recipes: Sequence[Recipe]) -> None:
        refuse_method(as_method(self.settings.method))
        refuse_tasks(self._file, self.folder, recipes, self.backbone)

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

    def _continue(self, held: HeldFolder, recipe: Recipe, tuned: Adapter | None) -> None:
        """Go on with what a killed process did for the same task and pool; what is there of another one goes."""
        key = self.folder / WORKING / KEY
        own = None if tuned is None else tuned.digest
        content = json.dumps([recipe.model_dump(mode="json"), self._file.model_dump(mode="json"), own], sort_keys=True)
        if not key.is_file() or key.read_text(encoding="utf-8") != content:
            held.clear()
            write_whole(key, content)

    def _add(self, recipe: Recipe, training: dict[str, Any], tuned: Adapter | None, *, progress: bool) -> Step:
        pool, capacity = self._file, self.settings.capacity
        task = recipe.find_task()

        def tune(own: Recipe, output: Path) -> Adapter:
            going = Output(output).has_traces()
            return tune_recipe(own, output=output, backbone=self.backbone, resume=going, progress=progress)

        alone = tuned or tune(recipe, self._working / "adapter")
        scores = self._scores(alone, task)
        step = Step(task=task.name, member=len(pool.members), before=scores, after=scores)
        if capacity is None or len(pool.members) < capacity:
            whole, new = several(alone, [alone]), alone
        else:
            step, whole, new = self._consolidated(step, recipe, alone, training, tune)
        written = self._with(step, whole, new)
        written.write(self.folder)
        self._file = written
        return written.history[-1]

    def _consolidated(
        self, step: Step, recipe: Recipe, alone: Adapter, training: dict[str, Any], tune: Tune
    ) -> tuple[Step, Adapter, Adapter]:
        """What happened when a task was taken in by a member; that member; and the adapter that gave it the new head.

        Args:
            step: what has happened so far.
            recipe: of the task's own run.
            alone: the adapter that came of it.
            training: its settings of training.
            tune: runs other recipes.
        """
        pool, settings, task = self._file, self.settings, recipe.find_task()
        adapters = [read_member(self.folder, member.adapter) for member in pool.members]
        inputs, labels = _examples(task, load(task, test=False).train, settings)
        place, found = choose(
            adapters, self.backbone, settings, task=alone, inputs=inputs, labels=labels, number=len(pool.tasks)
        )
        old, names, working = adapters[place], pool.members[place].tasks, self._working
        if settings.consolidation == "distillation":
            own = settings.student(training)
            whole, new = (
                distilled(old, alone, self.backbone, inputs=inputs, training=own, working=working, tune=tune),
                alone,
            )
        else:
            one_of(old, 0, pool.tasks[names[0]]).save(working / "start", overwrite=True)
            # The method that its adapter was finished with, which need not be the one that is tuned at first.
            method = {"name": old.method.name, **old.method.model_dump(mode="json")}
            on = Recipe.parse({**recipe.model_dump(mode="json"), "method": method, "start": str(working / "start")})
            new = tune(on, working / "tuned-on")
            whole = several(new, [*heads_of(old), new])
        split = one_of(whole, len(names), PoolTask(member=place, identity=new.task, recipe=dict(new.recipe)))
        assert isinstance(old.head, SeveralHeads)
        before = outputs_of(old, self.backbone, new.task, inputs)
        after = outputs_of(whole, self.backbone, new.task, inputs)[:, : before.shape[1]]
        shares = zip(names, agreement(old.head, before, after), strict=True)
        changes = {
            "member": place,
            "consolidated": True,
            "transferability": found,
            "after": evaluate(split, backbone=self.backbone, split="validation"),
            "agreement": {name: share for name, share in shares if share is not None},
            "examples": len(inputs),
        }
        return step.model_copy(update=changes), whole, new

    def _with(self, step: Step, whole: Adapter, new: Adapter) -> PoolFile:
        """The pool after a step; its member is written, and the pool is not yet.

        Args:
            whole: the member's adapter.
            new: the adapter that gave it the new head.
        """
        pool = self._file
        members, tasks = list(pool.members), dict(pool.tasks)
        earlier: tuple[str, ...] = members.pop(step.member).tasks if step.consolidated else ()
        for name in earlier:
            tasks[name] = tasks[name].model_copy(update={"metrics": {}})  # the scores were another adapter's
        metrics = {split: dict(own) for split, own in new.metrics.items()}
        tasks[step.task] = PoolTask(
            member=step.member,
            identity=new.task,
            metrics={"validation": step.after} if step.consolidated else metrics,
            rows=dict(new.rows),
            recipe=dict(new.recipe),
        )
        digest = write_member(self.folder, whole)
        members.insert(step.member, Member(adapter=digest, tasks=(*earlier, step.task)))
        size = sum(read_member(self.folder, member.adapter).num_bytes for member in members)
        history = [*pool.history, step.model_copy(update={"nbytes": size})]
        return pool.model_copy(update={"members": members, "tasks": tasks, "history": history})

    def _scores(self, adapter: Adapter, task: Task) -> dict[str, float]:
        """A task's metrics on its validation rows; they are measured of an adapter without, as one of a pool is."""
        known = adapter.metrics.get("validation", {})
        if not known.keys() >= set(task.metrics):
            known = evaluate(adapter, backbone=self.backbone, split="validation", data=task.data)
        return {name: known[name] for name in task.metrics}

    @property
    def _working(self) -> Path:
        return self.folder / WORKING


def _examples(task: Task, train: Any, settings: PoolSettings) -> tuple[list[Any], list[Any]]:
    """Some of a task's training inputs, and their labels: drawn by the seed, in the order of the data."""
    inputs, labels = KINDS[task.kind].inputs_of(train), KINDS[task.kind].labels_of(train)
    places = sorted(Random(settings.seed).sample(range(len(inputs)), min(settings.examples, len(inputs))))
    return [inputs[i] for i in places], [labels[i] for i in places]
