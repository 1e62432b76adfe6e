"""The interface of a method: how an op's tensors are parametrised, initialised, and lowered.

A method is a frozen set of settings. It says at which sites it acts, declares the parameters that each site brings,
and lowers them to an op. It knows no model family; ops know no method.
"""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Generator, Tensor

from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import MethodError
from graftwork.methods.parameters import Parameter
from graftwork.methods.placement import Placement
from graftwork.ops import Op
from graftwork.settings.checked import Checked
from graftwork.settings.problems import describe, flags


class Method(Checked):
    """A way to tune a frozen backbone: a frozen set of settings, and how its parameters are declared and used.

    The properties below are class attributes in the methods where they do not depend on settings.

    Attributes:
        name: the method's name on the command line and in files.
        paper: the paper that it comes from.
        when: when to use it, in at most 56 characters, as `graftwork methods` shows it.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    when: ClassVar[str]

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> MethodError:
        return MethodError(
            f"invalid settings of method {cls.name!r}: " + describe(details, cls),
            expected=f"settings of {cls.name}: {', '.join(cls.model_fields) or 'none'}",
            change=flags(details, "method"),
        )

    def refuse_idle(self, name: str, why: str) -> None:
        """Refuse a setting without effect, unless it has its default value.

        Raises:
            MethodError: it has another value.
        """
        value = getattr(self, name)
        if value != type(self).model_fields[name].default:
            raise MethodError(f"{name}={value!r} would do nothing: {why}", change=f"--method.{name}")

    @property
    def settings_text(self) -> str:
        """The settings as text, with values as on the command line: `rank=8, targets=["layers.*"]`."""
        values = self.model_dump(mode="json").items()
        return ", ".join(f"{n}={v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for n, v in values)

    @property
    @abstractmethod
    def lowers_to(self) -> tuple[type[Op], ...]:
        """The ops that the method uses."""

    @property
    def learning_rate(self) -> float:
        """Default learning rate."""
        return 3e-4

    @property
    def head_learning_rate(self) -> float:
        """Default learning rate of the head, which applies if it is larger than the run's learning rate."""
        return 3e-3

    @property
    def num_train_epochs(self) -> int:
        """Default number of epochs."""
        return 10

    @property
    def optim(self) -> str:
        """Default optimiser."""
        return "adamw_torch_fused"

    @property
    def lr_scheduler_type(self) -> str:
        """Default learning rate schedule."""
        return "linear"

    @property
    def placement(self) -> Placement | None:
        """Where the method's bottlenecks are placed; None if it has none."""
        return None

    @property
    def frozen_backbone(self) -> bool:
        """Whether the backbone's own weights stay unchanged."""
        return True

    @property
    def passes(self) -> int:
        """Number of forward passes per training step, each with its own random draws. With two, the loss also penalises
        the divergence of their outputs (AdaMix)."""
        return 1

    @property
    def unmergeable(self) -> str:
        """The reason why adapters cannot be merged into the backbone's weights; empty if they can."""
        return "; ".join(dict.fromkeys(op.unmergeable for op in self.lowers_to if op.unmergeable))

    @property
    def head_fields(self) -> Mapping[str, Any]:
        """Fields of the head that the method sets."""
        return {}

    @property
    def reads_examples(self) -> bool:
        """Whether some of its tensors are made from features of the task's examples; see `from_features`."""
        return False

    @property
    def num_prompt_tokens(self) -> int:
        """Number of vectors that the method puts before the input embeddings, which reduce the maximum text length."""
        return 0

    @abstractmethod
    def sites(self, sites: Sites) -> list[Site]:
        """The sites where the method acts, in order.

        Raises:
            SiteError: a site pattern in the settings matches no site.
        """

    @abstractmethod
    def declare(self, site: Site) -> dict[str, Parameter]:
        """The parameters for one of the method's sites, by canonical name. Sites that share a parameter declare it
        under the same name."""

    def acts_at(self, site: Site) -> bool:
        """Whether the method adds something at one of its sites; at others it replaces, or remembers what it needs."""
        return True

    def replaces(self, site: Site) -> bool:
        """Whether the method replaces the frozen module's computation at a site. In a union only one member can."""
        return False

    def initial(
        self,
        tensors: Mapping[str, Tensor],
        sites: Sequence[Site],
        backbone: Backbone,
        labels: Sequence[str] | None,
        generator: Generator,
    ) -> Mapping[str, Tensor]:
        """The initial values of parameters that depend on the backbone's vocabulary or its activations, by canonical
        name. The others are initialised as declared.

        Args:
            tensors: all parameters, initialised as declared.
            sites: the sites where the method acts.
            backbone: the frozen model.
            labels: the labels of the task, if it has any.
            generator: the source of randomness.

        Raises:
            BackboneError: words are needed, and the backbone has no tokenizer.
            MethodError: labels are needed, and the task has none.
        """
        return {}

    def from_features(self, features: Float[Tensor, "N d"]) -> Mapping[str, Tensor]:
        """The tensors that are made from a task's examples, by canonical name.

        Args:
            features: of N examples in their order, the means over the frozen backbone's last states.
        """
        return {}

    def prepare(
        self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool
    ) -> Mapping[str, Tensor]:
        """Prepare the parameters for `lower`, once per forward pass: networks that serve all sites are run, and random
        choices of training are drawn from torch's default generator.

        Args:
            parameters: all parameters of the adapter, by canonical name.
            sites: the sites where the method acts.
            training: whether this is a training pass.
        """
        return parameters

    def every_part(self) -> Iterator[Any]:
        """The parts of a composition (`graftwork.methods.parts.Part`), and theirs, at any depth."""
        yield from ()

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """What is added to the loss of a training step, a scalar; None for nothing.

        Args:
            parameters: all parameters of the adapter, by canonical name.
        """
        return None

    def finish(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> "tuple[Method, dict[str, Tensor]]":
        """The method and parameters of the adapter that is saved after training (AdaMix averages its experts)."""
        return self, dict(parameters)

    @abstractmethod
    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        """The ops that run at one of the method's sites. Differentiable in the parameters.

        Args:
            site: the site.
            parameters: all parameters of the adapter, as `prepare` returned them, by canonical name.
            frozen: the backbone's parameters at the site, as `Backbone.frozen` returns them.
        """
