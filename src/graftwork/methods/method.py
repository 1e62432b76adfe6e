"""The interface of a method: how an op's tensors are parametrised, initialised, and lowered.

A method is a frozen set of settings. It says at which sites it acts, declares the parameters that each site brings,
and lowers them to an op. It knows no model family; ops know no method.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Generator, Tensor

from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import MethodError, describe
from graftwork.methods.parameters import Parameter
from graftwork.ops import Op
from graftwork.settings.checked import Checked


class Method(Checked):
    """A way to tune a frozen backbone.

    Attributes:
        name: how the command line and files call it.
        paper: where it is from.
        when: in a line of at most 56 characters, when to use it, as `graftwork methods` shows.

    What depends on the settings in some methods is a property here; in the others a class attribute takes its place.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    when: ClassVar[str]

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> MethodError:
        return MethodError(
            f"invalid settings of method {cls.name!r}: " + "; ".join(describe(d, cls.model_fields) for d in details),
            expected=f"settings of {cls.name}: {', '.join(cls.model_fields) or 'none'}",
            change=", ".join(sorted({f"--method.{d['loc'][0]}" for d in details if d["loc"]})),
        )

    def refuse_idle(self, name: str, why: str) -> None:
        """Refuse a setting that would do nothing, unless it is as it is by default.

        Raises:
            MethodError: it is another.
        """
        value = getattr(self, name)
        if value != type(self).model_fields[name].default:
            raise MethodError(f"{name}={value!r} would do nothing: {why}", change=f"--method.{name}")

    @property
    def settings_text(self) -> str:
        """Its settings as the command line takes their values: `rank=8, targets=["layers.*"]`."""
        values = self.model_dump(mode="json").items()
        return ", ".join(f"{n}={v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for n, v in values)

    @property
    @abstractmethod
    def lowers_to(self) -> tuple[type[Op], ...]:
        """The ops that it lowers to."""

    @property
    def learning_rate(self) -> float:
        """By default, as the four that follow."""
        return 3e-4

    @property
    def head_learning_rate(self) -> float:
        """Of the head, which starts from nothing, at least, where the method's own is smaller."""
        return 3e-3

    @property
    def num_train_epochs(self) -> int:
        return 10

    @property
    def optim(self) -> str:
        return "adamw_torch_fused"

    @property
    def lr_scheduler_type(self) -> str:
        return "linear"

    @property
    def frozen_backbone(self) -> bool:
        """Whether the backbone's own weights act as they are."""
        return True

    @property
    def passes(self) -> int:
        """Forward passes of a training step, each with draws of its own; what two of them say is drawn together
        (AdaMix)."""
        return 1

    @property
    def unmergeable(self) -> str:
        """Why its adapters cannot be merged into a backbone's weights; empty when they can."""
        return "; ".join(dict.fromkeys(op.unmergeable for op in self.lowers_to if op.unmergeable))

    @property
    def head_fields(self) -> Mapping[str, Any]:
        """The fields of the head that it decides."""
        return {}

    @property
    def num_prompt_tokens(self) -> int:
        """How many positions it takes from the text's, because it puts vectors before the input embeddings."""
        return 0

    @abstractmethod
    def sites(self, sites: Sites) -> list[Site]:
        """Where it acts, in site order.

        Raises:
            SiteError: a site pattern among the settings matches nothing.
        """

    @abstractmethod
    def declare(self, site: Site) -> dict[str, Parameter]:
        """The parameters that one of its sites brings, by canonical name. Sites that share declare the same names."""

    def replaces(self, site: Site) -> bool:
        """Whether at one of its sites it computes the frozen module's part anew. Of a union only one member can."""
        return False

    def initial(
        self,
        tensors: Mapping[str, Tensor],
        sites: Sequence[Site],
        backbone: Backbone,
        labels: Sequence[str] | None,
        generator: Generator,
    ) -> Mapping[str, Tensor]:
        """Of a new adapter, the parameters that start from the backbone's words, by canonical name; the others start as
        they are declared.

        Args:
            tensors: all as declared.
            sites: where the method acts.
            labels: the task's, where it has some.
            generator: the source of randomness.

        Raises:
            BackboneError: the backbone has no tokenizer, and its words are needed.
            MethodError: the task has no labels, and they are needed.
        """
        return {}

    def prepare(
        self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool
    ) -> Mapping[str, Tensor]:
        """What `lower` is given in the place of the parameters, made once a pass: encoders that serve all sites are run
        here, and what is random in training is drawn here, from torch's own source.

        Args:
            parameters: all of the adapter's, by canonical name.
            sites: where the method acts.
            training: whether it is a pass of training.
        """
        return parameters

    def finish(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> "tuple[Method, dict[str, Tensor]]":
        """The method and parameters of the adapter that is kept when training has ended, saying the same (AdaMix
        averages its experts)."""
        return self, dict(parameters)

    @abstractmethod
    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        """The ops that run at one of its sites. Differentiable in the parameters.

        Args:
            parameters: what `prepare` gave: all of the adapter's, by canonical name.
            frozen: the backbone's own at the site, as `Backbone.frozen` gives them.
        """
