"""The interface of a method: how an op's tensors are parametrised, initialised, and lowered.

A method is a frozen set of settings. It says at which sites it acts, declares the parameters that each site brings,
and lowers them to an op. It knows no model family; ops know no method.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.errors import MethodError
from graftwork.methods.parameters import Parameter
from graftwork.ops import Op


class Method(BaseModel, ABC):
    """A way to tune a frozen backbone.

    Class attributes:
        name: how the command line and files call it.
        paper: where it is from.
        learning_rate, num_train_epochs: training defaults.
        frozen_backbone: whether the backbone's own weights act as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    paper: ClassVar[str]
    learning_rate: ClassVar[float] = 3e-4
    num_train_epochs: ClassVar[int] = 10
    frozen_backbone: ClassVar[bool] = True

    def __init__(self, **settings: Any) -> None:
        """Settings by name.

        Raises:
            MethodError: an unknown setting, or a value of the wrong type; all of them are named.
        """
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise MethodError(
                f"method {self.name!r} cannot take "
                + "; ".join(f"{'.'.join(map(str, e['loc']))}={e['input']!r} ({e['msg']})" for e in error.errors()),
                expected=f"settings of {self.name}: {', '.join(type(self).model_fields) or 'none'}",
                change=", ".join(sorted({f"--method.{e['loc'][0]}" for e in error.errors() if e["loc"]})),
            ) from None

    @property
    def extra_classifier_layer(self) -> bool:
        """Whether the head has one more dense layer with tanh before its classifier."""
        return False

    @abstractmethod
    def sites(self, sites: Sites) -> list[Site]:
        """Where it acts, in site order.

        Raises:
            SiteError: a site pattern among the settings matches nothing.
        """

    @abstractmethod
    def declare(self, site: Site) -> dict[str, Parameter]:
        """The parameters that one of its sites brings, by canonical name. Sites that share declare the same names."""

    @abstractmethod
    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        """The ops that run at one of its sites. Differentiable in the parameters.

        Args:
            parameters: all of the adapter's, by canonical name.
            frozen: the backbone's own at the site, by their name in its module.
        """
