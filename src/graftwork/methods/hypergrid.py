"""HyperGrid: the second map of each feed-forward layer, multiplied block by block by a gate that is made for the task.

Tay et al. 2021, "HyperGrid Transformers: Towards A Single Model for Multiple Tasks", ICLR, arXiv:2007.05891:
    y = (W ⊙ ψ(σ((L x) Gᵀ))) h,
with ψ repeating each entry of a grid (r, c) over a block of W. There x comes of the input, and W is trained as well.
Here it is the task's embedding z, W is frozen, and the gate is 2σ(·), so that a grid of zeros leaves W as it is:
    y = (W ⊙ (1 + ψ(tanh(½ (L z) Gᵀ)))) h.

Shapes: z (t), the one parameter that each task has of its own; at each layer L (r, t) and G (c). Count: t, and rt + c
a layer.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.errors import MethodError, SiteError
from graftwork.methods.hyperformer import TASK
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, normal, zeros
from graftwork.methods.targets import Targets
from graftwork.ops import Grid, Op


class HyperGrid(Method):
    """HyperGrid: gates on blocks of the feed-forward layers' second map. Use it for many tasks that share one model: of
    several tasks (`tune_tasks`), each has of its own only an embedding and its head. Once merged, it adds no cost.

    Attributes:
        grid_rows: number r of blocks along the outputs; it must divide their number.
        grid_columns: number c of blocks along the inputs; it must divide their number.
        code_size: number t of entries of the task's embedding.
        targets: site patterns of the linear maps. By default the second map of the feed-forward layer.
    """

    name: ClassVar[str] = "hypergrid"
    paper: ClassVar[str] = "Tay et al. 2021, arXiv:2007.05891"
    when: ClassVar[str] = "many tasks in some bytes each, and merging"
    learning_rate: ClassVar[float] = 3e-3
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Grid,)

    grid_rows: PositiveInt = 32
    grid_columns: PositiveInt = 8
    code_size: PositiveInt = 64
    targets: Targets = Field(default=("ffn.down",), min_length=1)

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
        t = self.code_size
        return {
            TASK: Parameter(shape=(t,), init=normal(1.0), decay=False, of_task=True),
            f"{site.name}.rows": Parameter(shape=(self.grid_rows, t), init=normal(t**-0.5)),
            f"{site.name}.columns": Parameter(shape=(self.grid_columns,), init=zeros, decay=False),
        }

    def replaces(self, site: Site) -> bool:
        return True

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        rows, columns = parameters[f"{site.name}.rows"] @ parameters[TASK], parameters[f"{site.name}.columns"]
        change = torch.tanh(torch.outer(rows, columns) / 2)
        return [Grid(change=change, size=(self.grid_rows, self.grid_columns), transposed=site.transposed)]
