"""HyperGrid: the second map of each feed-forward layer, multiplied block by block by a gate that is made for the task.

Tay et al. 2021, "HyperGrid Transformers: Towards A Single Model for Multiple Tasks", ICLR, arXiv:2007.05891:
    y = (W ⊙ ψ(σ((L x) Gᵀ))) h,
with ψ repeating each entry of a grid (r, c) over a block of W. There x comes of the input, and W is trained as well.
Here it is the task's embedding z, W is frozen, and the gate is 2σ(·), so that a grid of zeros leaves W as it is:
    y = (W ⊙ (1 + ψ(tanh(½ (L z) Gᵀ)))) h.

Shapes: z (t), the one parameter that each task has of its own; at each layer L (r, t) and G (c). Count: t, and rt + c
a layer. A grid that is free, as one that was written out, is the matrix (r, c) in the place of tanh(½ (L z) Gᵀ).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.errors import MethodError, SiteError
from graftwork.methods.hyperformer import TASK
from graftwork.methods.hypernetwork import Hypernetwork
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, normal, zeros
from graftwork.methods.targets import Targets
from graftwork.ops import Grid, Op


class HyperGrid(Hypernetwork):
    """HyperGrid: gates on blocks of the feed-forward layers' second map. Use it for many tasks that share one model: of
    several tasks (`tune_tasks`), each has of its own only an embedding and its head. Once merged, it adds no cost.

    Attributes:
        grid_rows: number r of blocks along the outputs; it must divide their number.
        grid_columns: number c of blocks along the inputs; it must divide their number.
        code_size: number t of entries of the task's embedding.
        targets: site patterns of the linear maps. By default the second map of the feed-forward layer.
        grids: `generated` from the task's embedding; or `free`, parameters of each layer's own, as `generate_adapter`
            writes them out.
    """

    name: ClassVar[str] = "hypergrid"
    paper: ClassVar[str] = "Tay et al. 2021, arXiv:2007.05891"
    when: ClassVar[str] = "many tasks in some bytes each, and merging"
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Grid,)

    grid_rows: PositiveInt = 32
    grid_columns: PositiveInt = 8
    code_size: PositiveInt = 64
    targets: Targets = Field(default=("ffn.down",), min_length=1)
    grids: Literal["generated", "free"] = "generated"

    def model_post_init(self, context: Any, /) -> None:
        if not self.generates:
            for name in ("trains", "code_size"):
                self.refuse_idle(name, "free grids are not made from the task's embedding")

    @property
    def learning_rate(self) -> float:
        """An embedding alone takes larger steps."""
        return 3e-3 if self.trains == "all" else 1e-2

    @property
    def generates(self) -> bool:
        return self.grids == "generated"

    def sites(self, sites: Sites) -> list[Site]:
        chosen = sites.match(self.targets, "linear")
        for site in chosen:
            if site.columns is not None:
                raise SiteError(
                    f"the weight of site {site.name!r} cannot be gated alone: it stands in one with others",
                    expected="in `targets`, linear layers that are separate modules",
                    change="--method.targets",
                )
        return chosen

    def declare(self, site: Site) -> dict[str, Parameter]:
        for setting, size, whole in (
            ("grid_rows", self.grid_rows, site.out_features),
            ("grid_columns", self.grid_columns, site.in_features),
        ):
            if whole % size:
                raise MethodError(
                    f"{setting}={size} does not divide the {whole} of site {site.name!r}",
                    expected=f"a divisor of {whole}",
                    change=f"--method.{setting}",
                )
        if not self.generates:
            return {_grid(site): Parameter(shape=(self.grid_rows, self.grid_columns), init=zeros)}
        t = self.code_size
        return self.trained(
            {
                TASK: Parameter(shape=(t,), init=normal(1.0), decay=False, of_task=True),
                f"{site.name}.rows": Parameter(shape=(self.grid_rows, t), init=normal(t**-0.5)),
                f"{site.name}.columns": Parameter(shape=(self.grid_columns,), init=zeros, decay=False),
            }
        )

    def replaces(self, site: Site) -> bool:
        return True

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        change = self._change(site, parameters)
        return [Grid(change=change, size=(self.grid_rows, self.grid_columns), transposed=site.transposed)]

    def written_out(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> tuple[Method, dict[str, Tensor]]:
        own = {name for site in sites for name in self.declare(site)}
        kept = {name: tensor for name, tensor in parameters.items() if name not in own}
        with torch.no_grad():
            grids = {_grid(site): self._change(site, parameters) for site in sites}
        settings = self.model_dump(exclude={"code_size", "trains", "grids"})
        return HyperGrid(**settings, grids="free"), kept | grids

    def _change(self, site: Site, parameters: Mapping[str, Tensor]) -> Tensor:
        """The grid (r, c) at a site."""
        if not self.generates:
            return parameters[_grid(site)]
        rows, columns = parameters[f"{site.name}.rows"] @ parameters[TASK], parameters[f"{site.name}.columns"]
        return torch.tanh(torch.outer(rows, columns) / 2)


def _grid(site: Site) -> str:
    """The name of a free grid."""
    return f"{site.name}.grid"
