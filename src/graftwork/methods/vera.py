"""VeRA: one pair of random, untrained matrices that all linear maps share, and two trained vectors per linear map.

Kopiczko et al. 2023, "VeRA: Vector-based Random Matrix Adaptation", section 3.1, eq. 2:
    y = W x + b0 + Λ_b B Λ_d A x,
with Λ_d and Λ_b the diagonal matrices of the vectors d and b. A and B are Kaiming-uniform and never trained. d
starts at 0.1 and b at zero, so that the outputs are unchanged at first.

Shapes: A (r, in) for each input width in use, B (out, r) for each output width. They are drawn from a separate seed, so
that adapters with the same `projection_seed` and rank have the same ones, and are stored with the adapter but not
counted. d (r) and b (out) for each linear map: r + out parameters.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Generator, Tensor

from graftwork.backbones import Site, Sites
from graftwork.methods.method import Method
from graftwork.methods.parameters import Init, Parameter, constant, kaiming_uniform, zeros
from graftwork.methods.targets import Targets
from graftwork.ops import Op, Shared, SharedLowRank


class VeRA(Method):
    """VeRA: a low-rank update with shared random matrices and trained scaling vectors. Use it to train even fewer
    parameters than LoRA. The rank can be large, since it costs only r parameters per linear map. A forward pass costs
    as much as with LoRA of the same rank. A and B are in memory once for all finished
    adapters that have the same ones.

    Attributes:
        rank: rank r of the update.
        projection_seed: seed from which A and B are drawn, independent of the seed of the run.
        d_init: initial value of d.
        dropout: dropout of the input of A, in training.
        targets: site patterns of the linear maps to adapt, as for `LoRA`. By default all linear maps in the layers.
    """

    name: ClassVar[str] = "vera"
    paper: ClassVar[str] = "Kopiczko et al. 2023, arXiv:2310.11454"
    when: ClassVar[str] = "fewer trained parameters than LoRA, also at large ranks"
    learning_rate: ClassVar[float] = 2e-2
    lowers_to: ClassVar[tuple[type[Op], ...]] = (SharedLowRank,)

    rank: PositiveInt = 256
    d_init: float = 0.1
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    projection_seed: int = Field(default=0, ge=0, lt=2**32)
    targets: Targets = Field(default=("layers.*",), min_length=1)

    def sites(self, sites: Sites) -> list[Site]:
        return sites.match(self.targets, "linear")

    def declare(self, site: Site) -> dict[str, Parameter]:
        a, b = _shared(site)
        return {
            a: Parameter(shape=(self.rank, site.in_features), init=self._drawn(2 * site.in_features), trained=False),
            b: Parameter(
                shape=(site.out_features, self.rank), init=self._drawn(2 * site.out_features + 1), trained=False
            ),
            f"{site.name}.d": Parameter(shape=(self.rank,), init=constant(self.d_init), decay=False),
            f"{site.name}.b": Parameter(shape=(site.out_features,), init=zeros, decay=False),
        }

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        a, b = _shared(site)
        A, B = Shared(parameters[a]), Shared(parameters[b])
        d, vector = parameters[f"{site.name}.d"], parameters[f"{site.name}.b"]
        return [SharedLowRank(A=A, B=B, d=d, b=vector, dropout=self.dropout)]

    def _drawn(self, which: int) -> Init:
        """Kaiming-uniform, from a source of this matrix's own."""

        def fill(tensor: Tensor, frozen: Mapping[str, Tensor], generator: Generator) -> None:
            own = Generator().manual_seed(self.projection_seed * 2**20 + which)
            kaiming_uniform(0.0)(tensor, frozen, own)

        return fill


def _shared(site: Site) -> tuple[str, str]:
    """The names of A and B: one A for each input width, one B for each output width."""
    return f"shared.A.{site.in_features}", f"shared.B.{site.out_features}"
