"""The contents of an adapter, in memory and on disk, and what follows from them alone."""

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
    """What an adapter's folder holds.

    Attributes:
        method, head: how the tensors are to be read.
        task: labels and how its texts are read.
        backbone: which backbone it was made for.
        sites: names of the sites where it acts, in site order.
        tensors: training parameters and the head's, float32 on the CPU, under canonical names.
        fixed: the names of those tensors that are kept but never trained.
        metrics: scores by split, then by metric.
        baseline: the scores of a linear model on the frozen backbone's states; empty where none was measured.
        rows: how many rows of each split they were measured on; of generation, sources. Empty where it is not known.
        seed: of initialisation and training.
        recipe: everything that the run was started with, as resolved; empty for an adapter made by hand.
        versions: of the libraries that made it.
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
        """32 hexadecimal digits that are the same for two adapters with the same answers: a hash over the tensors, and
        over what decides how they are read and what is said. Scores, seed, recipe, versions and the backbone's name
        do not count. Computed once."""
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
        """The kind of its task."""
        return self.task.kind or self.head.task_kind

    def describe(self) -> tuple[str, str]:
        """Its inputs and its outputs, in words."""
        kind = KINDS[self.kind]
        return "pairs of texts" if self.task.pairs else kind.takes, kind.says or ", ".join(
            self.task.labels or ("classes",)
        )

    @property
    def pooling(self) -> str:
        """How its head pools an input, and who chose that where it is known; empty where it does not pool."""
        pooling = self.head.pooled_by
        return "" if pooling is None else describe_pooling(pooling, self.recipe.get("pooling_source"))

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters, head included."""
        return sum(tensor.numel() for name, tensor in self.tensors.items() if name not in self.fixed)

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors' file, `adapter.safetensors`."""
        return size_of_file({name: tensor.shape for name, tensor in self.tensors.items()})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method!r}, task={self.task.name!r}, {self.num_parameters:,} parameters)"
