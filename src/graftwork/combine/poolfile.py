"""A pool on disk: `pool.json`, and an adapter's folder for each member, called after its contents.

`pool.json` is written last, in one rename: whatever a killed process has written before, the pool is as it was. Members
that `pool.json` does not name belong to nothing, and are removed when the next task is added.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from graftwork.adapters import Adapter
from graftwork.adapters.identity import BackboneIdentity
from graftwork.combine.transferability import Scaling, Weighting
from graftwork.encoding.identity import TaskIdentity
from graftwork.errors import AdapterError, RecipeError
from graftwork.folders import make_folder, write_whole, writing
from graftwork.settings.checked import Checked
from graftwork.settings.problems import describe, flags
from graftwork.tasks import Task

POOL, MEMBERS = "pool.json", "adapters"

SCHEMA_VERSION: Literal[2] = 2
"""Of `pool.json`. Version 1 did not say by which call a task was added."""

Selection = Literal["transrate", "leep", "random"]
Consolidation = Literal["distillation", "sequential"]


class PoolSettings(Checked):
    """How a pool takes tasks in. They are decided when the pool is made.

    Attributes:
        capacity: K, the largest number of adapters. None: one for each task, without end.
        method: name and settings of the method of all adapters.
        selection: how the member that takes in a task is chosen when the pool is full: by the highest transferability
            to it, `transrate` or `leep`, or at `random`.
        consolidation: how a member takes a task in: by double `distillation` (Ermis et al. 2022), or by being tuned on
            (`sequential`, a baseline that forgets).
        examples: the largest number of the new task's training inputs that are used, without labels in distillation,
            and with them to choose a member.
        weighting, scaling: of TransRate; see `graftwork.combine.transferability.transrate`.
        student_epochs: epochs of the distillation. None: those of the new task's adapter.
        seed: of what is drawn: the examples, and the member at random.
    """

    capacity: PositiveInt | None = None
    method: dict[str, Any] = Field(default_factory=lambda: {"name": "houlsby"})
    selection: Selection = "transrate"
    consolidation: Consolidation = "distillation"
    examples: PositiveInt = 1000
    weighting: Weighting = "listing"
    scaling: Scaling = "none"
    student_epochs: PositiveFloat | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> RecipeError:
        names = flags(details, "pool").replace("--pool.", "--").replace("_", "-")
        return RecipeError(f"invalid settings of the pool: {describe(details, cls)}", change=names)

    def refuse_idle(self) -> None:
        """Refuse settings without effect, of a pool that is to be made.

        Raises:
            RecipeError: there is one.
        """
        alone = "without a capacity each task has an adapter of its own" if self.capacity is None else ""
        chosen = f"selection is {self.selection}" if self.selection != "transrate" else ""
        tuned = f"consolidation is {self.consolidation}" if self.consolidation != "distillation" else ""
        idle = {
            **dict.fromkeys(("selection", "consolidation", "examples"), alone),
            "student_epochs": alone or tuned,
            **dict.fromkeys(("weighting", "scaling"), alone or chosen),
        }
        for name, why in idle.items():
            value = getattr(self, name)
            if why and value != type(self).model_fields[name].default:
                raise RecipeError(f"{name}={value!r} would do nothing: {why}", change="--" + name.replace("_", "-"))

    def student(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """The training settings of a student: those of the new task's adapter, and its own number of epochs."""
        if self.student_epochs is None:
            return dict(training)
        return {**training, "num_train_epochs": self.student_epochs, "max_steps": -1}

    def agreeing(self, given: Mapping[str, Any]) -> "PoolSettings":
        """These, which a pool was made with.

        Args:
            given: some, by name.

        Raises:
            RecipeError: they are others.
        """
        own, wanted = self.model_dump(mode="json"), PoolSettings(**given).model_dump(mode="json")
        differing = [name for name in given if own[name] != wanted[name]]
        if differing:
            parts = "; ".join(f"{name} is {own[name]!r}, and {wanted[name]!r} is given" for name in differing)
            raise RecipeError(
                f"the pool was made with other settings: {parts}",
                expected="the pool's own, or none",
                change=", ".join("--" + name.replace("_", "-") for name in differing) + ", or another folder",
            )
        return self


class PoolTask(BaseModel):
    """A task of a pool: what its adapter is made of beside the tensors of a member.

    Attributes:
        member: the place of that member.
        identity: name, kind and labels, and how inputs are read.
        metrics: its scores; those of before its member was last consolidated do not count.
        rows: of each split that was scored.
        recipe: of the run in which its own adapter was tuned; empty where an adapter that was given has none.
        added: what the call that added it decided: backbone, task, and, where anything was trained, how.
        given: the digest of the adapter that was given for it; None: it was tuned.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    member: int
    identity: TaskIdentity
    metrics: dict[str, dict[str, float]] = {}
    rows: dict[str, int] = {}
    recipe: dict[str, Any] = {}
    added: dict[str, Any] = {}
    given: str | None = None

    @property
    def task(self) -> Task:
        """The task as it was added, with the labels of its adapter."""
        return Task.parse(self.added["task"], origin="the pool's task").override(labels=self.identity.labels)


class Step(BaseModel):
    """What happened when a task was added.

    Attributes:
        task: its name.
        member: where it went.
        consolidated: whether that member had other tasks.
        transferability: the score of each member, by its place, where members were scored.
        before: validation scores of the task by the adapter that was tuned for it alone.
        after: the same by the adapter in the pool.
        agreement: of each task that the member had, the share of the examples for which its adapter decides as before.
        examples: the number of inputs of the distillation.
        nbytes: bytes of all adapters of the pool after it, heads included.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    task: str
    member: int
    consolidated: bool = False
    transferability: dict[int, float] = {}
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    agreement: dict[str, float] = {}
    examples: int = 0
    nbytes: int = 0


class Member(BaseModel):
    """One adapter of a pool.

    Attributes:
        adapter: the digest of its contents, after which its folder is called.
        tasks: the names of those whose heads it has, in their order.
    """

    model_config = ConfigDict(extra="forbid")

    adapter: str
    tasks: tuple[str, ...]


class PoolFile(BaseModel):
    """The contents of `pool.json`."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    schema_version: Literal[2] = SCHEMA_VERSION
    backbone: BackboneIdentity
    settings: PoolSettings
    members: list[Member] = []
    tasks: dict[str, PoolTask] = {}
    history: list[Step] = []

    def was_consolidated(self, name: str) -> bool:
        """Whether a task was taken in by an adapter of others when it was added; no for one that is not there."""
        return any(step.consolidated for step in self.history if step.task == name)

    @classmethod
    def read(cls, folder: Path) -> "PoolFile | None":
        """That of a folder; None where there is no pool.

        Raises:
            AdapterError: it is damaged, or of another version; or there is something else.
        """
        file = folder / POOL
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            _refuse_version(file, content)
            return cls.model_validate(content)
        except FileNotFoundError:
            there = {own.name for own in folder.iterdir() if not own.name.startswith(".")} if folder.is_dir() else set()
            if there - {MEMBERS}:  # members alone are what a process left that was killed with the first task
                raise _no_pool(folder) from None
            return None
        except NotADirectoryError:
            raise _no_pool(folder) from None
        except (OSError, ValueError, RecipeError) as error:
            problem = describe(error.errors(), cls) if isinstance(error, ValidationError) else str(error)
            raise AdapterError(
                f"{file} is damaged: {problem}", expected="the file as graftwork wrote it", change="restore the pool"
            ) from None

    def write(self, folder: Path) -> None:
        """Make this the pool of a folder, in one rename. Its members are there already."""
        make_folder(folder)
        with writing(folder / POOL):
            write_whole(folder / POOL, self.model_dump_json(indent=2) + "\n")


def _refuse_version(file: Path, content: Any) -> None:
    """Refuse what another graftwork wrote.

    Raises:
        AdapterError: says which version it is.
    """
    version = content.get("schema_version", SCHEMA_VERSION) if isinstance(content, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise AdapterError(
            f"{file} has schema version {version!r}, which this version of graftwork does not read",
            expected=f"a pool of schema version {SCHEMA_VERSION}",
            change="the folder, to make the pool anew; or the version of graftwork",
        )


def _no_pool(folder: Path) -> AdapterError:
    return AdapterError(
        f"{str(folder)!r} is not a pool", expected=f"a folder with {POOL}, or a new one", change="the folder"
    )


def member_folder(folder: Path, digest: str) -> Path:
    return folder / MEMBERS / digest


def write_member(folder: Path, adapter: Adapter) -> str:
    """Put an adapter beside the members of a pool, which does not name it yet; gives its digest."""
    target = member_folder(folder, adapter.digest)
    if not target.exists():
        adapter.save(target)
    return adapter.digest


def read_member(folder: Path, digest: str) -> Adapter:
    """The adapter of a member.

    Raises:
        AdapterError: it is missing, damaged, or another one.
    """
    adapter = Adapter.load(member_folder(folder, digest))
    if adapter.digest != digest:
        raise AdapterError(
            f"{member_folder(folder, digest)} holds another adapter, {adapter.digest}",
            expected="the member as graftwork wrote it",
            change="restore the pool",
        )
    return adapter


def remove_unnamed(folder: Path, pool: PoolFile | None) -> None:
    """Remove the members that a pool does not name: replaced ones, and those that a killed process left."""
    if not (folder / MEMBERS).is_dir():
        return
    named = set() if pool is None else {member.adapter for member in pool.members}
    for path in (folder / MEMBERS).iterdir():
        if path.name not in named:
            shutil.rmtree(path, ignore_errors=True)
