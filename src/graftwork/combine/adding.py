"""How one task is added to a pool: its own adapter, and the member that this becomes or that takes it in."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.combine.consolidating import agreement, distilled, heads_of
from graftwork.combine.heads import one_of, several
from graftwork.combine.poolfile import Member, PoolFile, PoolSettings, PoolTask, Step, read_member, write_member
from graftwork.combine.selecting import choose, outputs_of
from graftwork.folders import HeldFolder, write_whole
from graftwork.kinds import KINDS
from graftwork.kinds.several_tasks import SeveralHeads
from graftwork.methods import as_method
from graftwork.tasks import Task, load
from graftwork.training.evaluation import evaluate_on
from graftwork.training.outputs import Output
from graftwork.training.recipe import Recipe
from graftwork.training.tuning import tune_recipe

WORKING, KEY = ".adding", "recipe.json"
"""In a pool's folder, the one in which a task is being added; and in that, what tells the task from another one."""


@dataclass(frozen=True)
class Adding:
    """A task that is added to a pool.

    Attributes:
        folder: of the pool.
        pool: what is in it.
        backbone: of all adapters, held by no model.
        recipe: of the task's own run.
        training: its settings of training.
        given: the task's adapter, where it was tuned already.
        progress: report progress on standard error.
    """

    folder: Path
    pool: PoolFile
    backbone: Backbone
    recipe: Recipe
    training: Mapping[str, Any]
    given: Adapter | None
    progress: bool

    def go_on(self, held: HeldFolder) -> None:
        """Keep what a killed process did for the same task and pool; what is there of another one goes."""
        key = self._working / KEY
        given = None if self.given is None else self.given.digest
        content = json.dumps(
            [self.recipe.model_dump(mode="json"), self.pool.model_dump(mode="json"), given], sort_keys=True
        )
        if not key.is_file() or key.read_text(encoding="utf-8") != content:
            held.clear()
            write_whole(key, content)

    def run(self) -> PoolFile:
        """The pool with the task; its member is written, and the pool is not yet."""
        pool, capacity, task = self.pool, self.pool.settings.capacity, self.recipe.find_task()
        alone = self.given or self._tune(self.recipe, self._working / "adapter")
        scores = self._scores(alone, task)
        step = Step(task=task.name, member=len(pool.members), before=scores, after=scores)
        if capacity is None or len(pool.members) < capacity:
            return self._with(step, several(alone, [alone]), alone)
        return self._with(*self._consolidated(step, alone, task))

    @property
    def _working(self) -> Path:
        return self.folder / WORKING

    def _tune(self, recipe: Recipe, output: Path) -> Adapter:
        """Run a recipe, or go on with it."""
        going = Output(output).has_traces()
        return tune_recipe(recipe, output=output, backbone=self.backbone, resume=going, progress=self.progress)

    def _scores(self, adapter: Adapter, task: Task) -> dict[str, float]:
        """A task's metrics on its validation rows, of the task's own adapter. An adapter that is given may have been
        tuned on other data, so that its own scores are not these."""
        known = adapter.metrics.get("validation", {})
        if self.given is not None or not known.keys() >= set(task.metrics):
            return evaluate_on(task, adapter, backbone=self.backbone, split="validation")
        return {name: known[name] for name in task.metrics}

    def _consolidated(self, step: Step, alone: Adapter, task: Task) -> tuple[Step, Adapter, Adapter]:
        """What happened when the task was taken in by a member; that member; and the adapter that gave it the new head,
        with the scores that the task has in the pool.

        Args:
            step: what has happened so far.
            alone: the task's own adapter.
            task: the task.
        """
        pool = self.pool
        adapters = [read_member(self.folder, member.adapter) for member in pool.members]
        data = load(task, test=False)
        inputs, labels = examples_of(task, data.train, pool.settings)
        place, found = choose(
            adapters, self.backbone, pool.settings, task=alone, inputs=inputs, labels=labels, number=len(pool.tasks)
        )
        old, names = adapters[place], pool.members[place].tasks
        whole, new = self._joined(old, alone, pool.tasks[names[0]], inputs)
        split = one_of(whole, len(names), PoolTask(member=place, identity=new.task))
        assert isinstance(old.head, SeveralHeads)
        before = outputs_of(old, self.backbone, new.task, inputs)
        after = outputs_of(whole, self.backbone, new.task, inputs)[:, : before.shape[1]]
        shares = zip(names, agreement(old.head, before, after), strict=True)
        scores = evaluate_on(task, split, backbone=self.backbone, split="validation")
        changes = {
            "member": place,
            "consolidated": True,
            "transferability": found,
            "after": scores,
            "agreement": {name: share for name, share in shares if share is not None},
            "examples": len(inputs),
        }
        scored = replace(new, metrics={"validation": scores}, rows={"validation": len(data.validation)})
        return step.model_copy(update=changes), whole, scored

    def _joined(self, old: Adapter, alone: Adapter, first: PoolTask, inputs: list[Any]) -> tuple[Adapter, Adapter]:
        """A member that took the task in, and the adapter that gave it the new head.

        Args:
            old: the member.
            alone: the task's own adapter.
            first: of the member's tasks.
            inputs: of the task, to distil on.
        """
        working = self._working
        if self.pool.settings.consolidation == "distillation":
            training = self.pool.settings.student(self.training)
            student = distilled(
                old, alone, self.backbone, inputs=inputs, training=training, working=working, tune=self._tune
            )
            return student, alone
        one_of(old, 0, first).save(working / "start", overwrite=True)
        # The method that its adapter was finished with, which need not be the one that is tuned at first.
        method = {"name": old.method.name, **old.method.model_dump(mode="json")}
        on = Recipe.parse({**self.recipe.model_dump(mode="json"), "method": method, "start": str(working / "start")})
        new = self._tune(on, working / "tuned-on")
        return several(new, [*heads_of(old), new]), new

    def _with(self, step: Step, whole: Adapter, new: Adapter) -> PoolFile:
        """The pool after a step; its member is written.

        Args:
            whole: the member's adapter.
            new: the adapter that gave it the new head, with the task's scores.
        """
        pool = self.pool
        members, tasks = list(pool.members), dict(pool.tasks)
        earlier: tuple[str, ...] = members.pop(step.member).tasks if step.consolidated else ()
        for name in earlier:
            # The scores were another adapter's.
            tasks[name] = tasks[name].model_copy(update={"metrics": {}, "rows": {}})
        tasks[step.task] = PoolTask(
            member=step.member,
            identity=new.task,
            metrics={split: dict(own) for split, own in new.metrics.items()},
            rows=dict(new.rows),
            recipe=dict(new.recipe),
            added=added_by(self.recipe, pool, self.backbone, trained=self.given is None or step.consolidated),
            given=None if self.given is None else self.given.digest,
        )
        digest = write_member(self.folder, whole)
        members.insert(step.member, Member(adapter=digest, tasks=(*earlier, step.task)))
        size = sum(read_member(self.folder, member.adapter).num_bytes for member in members)
        history = [*pool.history, step.model_copy(update={"nbytes": size})]
        return pool.model_copy(update={"members": members, "tasks": tasks, "history": history})


def added_by(recipe: Recipe, pool: PoolFile, backbone: Backbone, *, trained: bool) -> dict[str, Any]:
    """What a call that adds a task decides: all of its recipe but the method, which is the pool's.

    Args:
        recipe: of the task's own run.
        trained: whether the call trains anything; else only data and backbone count.
    """
    full = recipe.resolved(backbone, recipe.find_task(), as_method(pool.settings.method)).model_dump(mode="json")
    if not trained:
        return {name: full[name] for name in ("backbone", "dtype", "task")}
    return {name: value for name, value in full.items() if name not in ("method", "start")}


def examples_of(task: Task, train: Any, settings: PoolSettings) -> tuple[list[Any], list[Any]]:
    """Some of a task's training inputs, and their labels: drawn by the seed, in the order of the data."""
    inputs, labels = KINDS[task.kind].inputs_of(train), KINDS[task.kind].labels_of(train)
    places = sorted(Random(settings.seed).sample(range(len(inputs)), min(settings.examples, len(inputs))))
    return [inputs[i] for i in places], [labels[i] for i in places]
