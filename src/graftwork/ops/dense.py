"""Dense op: differences added to a module's own parameters (full, partial and head-only fine-tuning lower to it)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from graftwork.backbones import SiteKind
from graftwork.errors import SiteError
from graftwork.ops.op import Forward, Op, Place
from graftwork.ops.substitution import run_with


@dataclass(frozen=True, kw_only=True)
class Dense(Op):
    """The module run with p + Δp in the place of each of its parameters p that is trained; the frozen ones stay as they
    are.

    Shapes: each difference as the module's own parameter of that name. The sum is made in the difference's precision
    and then rounded to the backbone's, as mixed-precision training rounds its weights.
    """

    differences: Mapping[str, Float[Tensor, "..."]]

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "fused", "norm", "embedding", "convolution", "module"})
    replaces: ClassVar[bool] = True
    routed: ClassVar[bool] = False

    def around(self, forward: Forward, place: Place) -> Forward:
        frozen: dict[str, Tensor] = {name: place.module.get_parameter(name) for name in self.differences}
        for name, difference in self.differences.items():
            if difference.shape != frozen[name].shape:
                raise SiteError(
                    f"a difference of shape {tuple(difference.shape)} does not fit a {name} of shape "
                    f"{tuple(frozen[name].shape)}"
                )

        def dense(*args: Any, **kwargs: Any) -> Any:
            return run_with(place.module, self.into(frozen), *args, **kwargs)

        return dense

    def into(self, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums. Here `frozen` has the parameters as the module holds them."""
        return {n: (frozen[n].to(d.dtype) + d).to(frozen[n].dtype) for n, d in self.differences.items()}

    def numbers(self) -> list[Tensor]:
        return list(self.differences.values())

    def to(self, dtype: object) -> "Dense":
        """Itself: a difference is far smaller than its weight, so it must not be rounded before the two are added."""
        return self
