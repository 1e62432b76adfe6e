"""Dense op: a difference added to a module's own weights (full, partial and head-only fine-tuning lower to it)."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from graftwork.backbones import SiteKind
from graftwork.errors import SiteError
from graftwork.ops.op import Forward, Op, Place


@dataclass(frozen=True, kw_only=True)
class Dense(Op):
    """The module run with W + ΔW and b + Δb; the frozen W and b stay as they are.

    Shapes: weight and bias as the module's own parameters; None where the module has none or it is not trained. The
    sum is made in the difference's precision and then rounded to the backbone's, as mixed-precision training rounds
    its weights.
    """

    weight: Float[Tensor, "..."] | None = None
    bias: Float[Tensor, "..."] | None = None

    kinds: ClassVar[frozenset[SiteKind]] = frozenset({"linear", "norm", "embedding"})
    replaces: ClassVar[bool] = True

    def around(self, forward: Forward, place: Place) -> Forward:
        deltas = {n: t for n, t in (("weight", self.weight), ("bias", self.bias)) if t is not None}
        frozen = dict(place.inner.named_parameters(recurse=False))
        for name, delta in deltas.items():
            if delta.shape != frozen[name].shape:
                raise SiteError(
                    f"a difference of shape {tuple(delta.shape)} meets a {name} of shape {tuple(frozen[name].shape)}",
                    expected="one adapter for the whole batch: dense differences are not routed by row",
                )

        def dense(*args: Tensor) -> Tensor:
            sums = {
                name: (frozen[name].to(delta.dtype) + delta).to(frozen[name].dtype) for name, delta in deltas.items()
            }
            return functional_call(place.inner, sums, args)  # type: ignore[no-any-return]

        return dense

    def to(self, dtype: object) -> "Dense":
        """Itself: a difference is far smaller than its weight, so it must not be rounded before the two are added."""
        return self
