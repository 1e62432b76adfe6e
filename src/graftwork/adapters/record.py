"""The contents of an adapter, in memory and on disk, and properties that depend on them alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from graftwork.adapters.contents import digest_of, size_of_file
from graftwork.adapters.identity import BackboneIdentity, library_versions
from graftwork.backbones.pooling import describe_pooling
from graftwork.encoding.identity import TaskIdentity
from graftwork.heads import Head
from graftwork.kinds import KINDS
from graftwork.methods import Method


@dataclass(frozen=True, kw_only=True)
class Record:
    """The contents of an adapter.

    Attributes:
        method: the method and its settings.
        head: the head.
        task: name, kind and labels of the task, and how inputs are read.
        backbone: identity of the backbone that the adapter was made for.
        sites: names of the sites where the method acts, in the order of a forward pass.
        tensors: parameters of the method and the head by canonical name, float32, on the CPU.
        fixed: names of the tensors that are stored but never trained.
        metrics: scores by split, then by metric.
        baseline: scores of a linear model on the frozen backbone's output; empty if none were measured.
        rows: number of rows of each split that was scored (for generation, of sources); empty if unknown.
        seed: seed of the initialisation and the training.
        recipe: the complete recipe of the run; empty for an adapter that was not made by a run.
        versions: versions of the libraries that made it.
    """

    method: Method
    head: Head
    task: TaskIdentity
    backbone: BackboneIdentity
    sites: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    fixed: tuple[str, ...] = ()
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    baseline: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=library_versions)

    @cached_property
    def digest(self) -> str:
        """A hash of everything that determines the predictions, as 32 hexadecimal digits: tensors, method, head, task,
        sites and the backbone's fingerprint, but not scores, seed, recipe, versions or the backbone's name. Computed
        once."""
        content = {
            "method": {"name": self.method.name, **self.method.model_dump(mode="json", exclude_defaults=True)},
            "head": {"kind": self.head.kind, **self.head.model_dump(mode="json", exclude_defaults=True)},
            "task": self.task.model_dump(mode="json", exclude_defaults=True),
            "backbone": self.backbone.fingerprint,
            "sites": list(self.sites),
            "fixed": sorted(self.fixed),
        }
        return digest_of(content, self.tensors)

    @property
    def kind(self) -> str:
        """The kind of task."""
        return self.task.kind or self.head.task_kind

    def describe(self) -> tuple[str, str]:
        """A description of the inputs and one of the outputs."""
        kind = KINDS[self.kind]
        return "pairs of texts" if self.task.pairs else kind.takes, kind.says or ", ".join(
            self.task.labels or ("classes",)
        )

    @property
    def pooling(self) -> str:
        """How the head pools a text, and where that setting came from; empty if the head does not pool."""
        pooling = self.head.pooled_by
        return "" if pooling is None else describe_pooling(pooling, self.recipe.get("pooling_source"))

    @property
    def consolidated_with(self) -> tuple[str, ...]:
        """The names of the other tasks of the pool's adapter that its tensors are of; none of an adapter of its own."""
        return tuple(self.recipe.get("consolidated_with") or ())

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters, head included."""
        return sum(tensor.numel() for name, tensor in self.tensors.items() if name not in self.fixed)

    @property
    def num_bytes(self) -> int:
        """Size in bytes of the file of tensors, `adapter.safetensors`, of a folder that stands alone."""
        return size_of_file({name: tensor.shape for name, tensor in self.tensors.items()})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method!r}, task={self.task.name!r}, {self.num_parameters:,} parameters)"
