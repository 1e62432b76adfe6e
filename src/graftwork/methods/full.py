"""Fine-tuning of the backbone's own weights: all of them (Devlin et al. 2019, section 4), those of the top layers, or a
random subset; at one rate, or at rates that decrease from layer to layer; all at once, or one more layer each epoch.

The difference to the frozen weights is trained and saved, in float32, with ΔW = 0 at first. The backbone itself never
changes, so that a fully fine-tuned task is an adapter like any other, but larger.

Shapes: ΔW as W in the module; for a random subset, k values for a W of n entries, with k = share · n, rounded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import ClassVar
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.errors import MethodError
from graftwork.methods.bitfit import BitFit
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, zeros
from graftwork.ops import Dense, Op


class FullFineTuning(Method):
    """Full fine-tuning: the backbone's own weights are trained, all or some of them. The adapter stores the difference
    to the pretrained weights, so weight decay pulls each weight towards its pretrained value.

    For rates and unfreezing, embeddings count as a layer below the lowest. A weight at two sites (tied embeddings)
    belongs to the lower one.

    Attributes:
        top_layers: train only this many layers from the top, and everything above them (Houlsby et al. 2019, section
            3.3: variable fine-tuning).
        random_subset: train only this share of the entries of each tensor, drawn uniformly (Ben Zaken et al. 2022,
            "BitFit", section 4).
        subset_seed: seed of that draw. It is stored, instead of the positions of the entries.
        layer_decay: the learning rate of each layer is that of the layer above divided by this number (Howard & Ruder
            2018, section 3.2: discriminative fine-tuning, 2.6). The head and everything above the layers have the rate
            of the top layer.
        gradual_unfreezing: train the top layer in the first epoch and one more layer in each epoch that follows; the
            embeddings last (Howard & Ruder 2018, section 3.3).
    """

    name: ClassVar[str] = "full-fine-tuning"
    paper: ClassVar[str] = "Devlin et al. 2019, arXiv:1810.04805"
    when: ClassVar[str] = "the upper baseline: a full model a task"
    frozen_backbone: ClassVar[bool] = False
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Dense,)

    top_layers: PositiveInt | None = None
    random_subset: float | None = Field(default=None, gt=0.0, lt=1.0)
    subset_seed: int = Field(default=0, ge=0, lt=2**32)
    layer_decay: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)
    gradual_unfreezing: bool = False

    @model_validator(mode="after")
    def _nothing_idle(self) -> "FullFineTuning":
        if self.random_subset is None:
            self.refuse_idle("subset_seed", "random_subset is not set")
        return self

    @property
    def learning_rate(self) -> float:
        """A random subset is a control for BitFit, and is trained as BitFit is."""
        return 5e-5 if self.random_subset is None else BitFit.learning_rate

    @property
    def head_learning_rate(self) -> float:
        """As in the papers, the one rate of all."""
        return 0.0

    @property
    def num_train_epochs(self) -> int:
        """Of gradual unfreezing so many that 12 layers and the embeddings are all trained for three of them."""
        return 15 if self.gradual_unfreezing else 3 if self.random_subset is None else super().num_train_epochs

    def sites(self, sites: Sites) -> list[Site]:
        """Where it acts; the heights are those among the layers that are there.

        Raises:
            MethodError: there are fewer layers than are to be trained; or the subset holds nothing.
        """
        if self.top_layers is not None and self.top_layers > sites.num_layers:
            raise MethodError(
                f"top_layers is {self.top_layers}, and the backbone has {sites.num_layers} layers",
                expected=f"1 to {sites.num_layers}; without the setting, the embeddings are trained too",
                change="--method.top_layers",
            )
        lowest = min((site.height for site in sites.values() if site.layer is not None), default=0)
        heights = {site.name: max(0, site.height - lowest) for site in sites.values()}
        found = []
        for site in sites.values():
            placed = replace(site, height=heights.get(site.owner, heights[site.name]))
            if self.declare(placed) and (self.top_layers is None or placed.height < self.top_layers):
                found.append(placed)
        if not found:
            raise MethodError(
                f"a random subset of {self.random_subset:g} selects no entry of any tensor"
                if self.random_subset is not None
                else "the backbone has no weights to train",
                change="--method.random_subset" if self.random_subset is not None else "--backbone",
            )
        return found

    def declare(self, site: Site) -> dict[str, Parameter]:
        shapes = {name: self._shape(shape) for name, shape in site.parameters.items()}
        return {
            f"{site.owner}.{name}": Parameter(
                shape=shape,
                init=zeros,
                group="norms" if site.kind == "norm" else "adapter",
                decay=name == "weight" and site.kind != "norm",
                rate=self.layer_decay**-site.height,
                unfreezes=site.height if self.gradual_unfreezing else 0,
            )
            for name, shape in shapes.items()
            if prod(shape)
        }

    def replaces(self, site: Site) -> bool:
        return True

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        own = {name: f"{site.owner}.{name}" for name in site.parameters if f"{site.owner}.{name}" in parameters}
        if self.random_subset is None:
            return [Dense(differences={name: parameters[key] for name, key in own.items()})]
        spread = {name: self._spread(key, parameters[key], site.parameters[name]) for name, key in own.items()}
        return [Dense(differences=spread)]

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of what is trained of a tensor."""
        return shape if self.random_subset is None else (round(self.random_subset * prod(shape)),)

    def _spread(self, name: str, values: Float[Tensor, " k"], shape: tuple[int, ...]) -> Float[Tensor, "..."]:
        """A tensor that has the values at the drawn entries, and 0 elsewhere."""
        where = drawn_entries(self.subset_seed, name, prod(shape), len(values), values.device)
        return values.new_zeros(prod(shape)).scatter(0, where, values).view(shape)


@lru_cache(maxsize=1024)
def drawn_entries(seed: int, name: str, size: int, count: int, device: torch.device) -> Int[Tensor, " k"]:
    """Which of a tensor's entries are in the subset, in order: the same on every machine and in every version, as
    numpy promises for its legacy generator.
    """
    source = np.random.RandomState([seed, crc32(name.encode())])
    # Not in inference mode, whose tensors could not take part in a later pass with gradients.
    with torch.inference_mode(False):
        return torch.from_numpy(np.sort(source.permutation(size)[:count])).to(device)
