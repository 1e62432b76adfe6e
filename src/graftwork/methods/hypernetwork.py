"""Hypernetworks: methods that make what acts at their sites from what is known of a task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from graftwork.backbones import Site
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter


class Hypernetwork(Method, ABC):
    """A method with a hypernetwork, which several tasks can train together.

    Attributes:
        trains: `all`; or only what each `task` has of its own, where the hypernetwork is one that is trained already.
    """

    trains: Literal["all", "task"] = "all"

    @property
    def generates(self) -> bool:
        """Whether something is generated; not so of an adapter that was written out."""
        return True

    @abstractmethod
    def written_out(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> tuple[Method, dict[str, Tensor]]:
        """A method without a hypernetwork and its parameters, in which what is generated is there as it is. Heads are
        kept.

        Args:
            parameters: all parameters of the adapter, by canonical name.
            sites: the sites where the method acts.
        """

    def trained(self, declared: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """Parameters, of which those are trained that `trains` says."""
        if self.trains == "all":
            return dict(declared)
        return {name: replace(p, trained=p.trained and p.of_task) for name, p in declared.items()}
