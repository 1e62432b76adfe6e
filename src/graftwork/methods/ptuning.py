"""P-tuning: a prompt that is computed by a small trained network.

Liu et al. 2021, "GPT Understands, Too", the prompt encoder: with trained vectors E,
    P = W₂ · relu(W₁ · LSTM(E) + b₁) + b₂
over a bidirectional LSTM of two layers, with h = d/2 units per direction; or, as in NVIDIA's NeMo,
    P = W₃ · relu(W₂ · relu(W₁ · E + b₁) + b₂) + b₃.

Shapes: E and P (l, d). LSTM: W₁ (2h, 2h), W₂ (d, 2h), and for each layer and direction weights (4h, d or 2h) and
(4h, h) and two biases (4h). MLP: W₁ (h, d), W₂ (h, h), W₃ (d, h).

When to use: for prompts on small and medium-sized models, where vectors that are trained directly learn too slowly.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from graftwork.backbones import Site, Sites
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, normal, uniform
from graftwork.methods.prompts import PromptTuning, lower_prompt, prompted_sites
from graftwork.ops import Op, Prompt, PromptedEncoder

LSTM_LAYERS = 2


class PTuning(Method):
    """P-tuning: a prompt that is computed by a trained network. Use it for prompts on smaller models.

    Attributes:
        num_virtual_tokens: number l of vectors. They reduce the maximum length of the text.
        encoder: the network: `lstm`, as in the paper, or `mlp`.
        encoder_hidden_size: hidden size h of the network. None: d/2 for the LSTM, d for the MLP.
        keep: what is saved after training: the `network`, so that training can continue; or the `table` of vectors, as
            an adapter of prompt tuning with the same outputs, which is much smaller.
    """

    name: ClassVar[str] = "p-tuning"
    paper: ClassVar[str] = "Liu et al. 2021, arXiv:2103.10385"
    when: ClassVar[str] = "prompts on smaller models"
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Prompt, PromptedEncoder)
    learning_rate: ClassVar[float] = 1e-3

    num_virtual_tokens: PositiveInt = 20
    encoder: Literal["lstm", "mlp"] = "lstm"
    encoder_hidden_size: PositiveInt | None = None
    keep: Literal["network", "table"] = "network"

    @property
    def num_prompt_tokens(self) -> int:
        return self.num_virtual_tokens

    def sites(self, sites: Sites) -> list[Site]:
        return prompted_sites(sites, self.name)

    def declare(self, site: Site) -> dict[str, Parameter]:
        if site.stack == "decoder":
            return {}
        d = site.in_features
        shapes = self._lstm_shapes(d) if self.encoder == "lstm" else self._mlp_shapes(d)
        declared = {"embedding": Parameter(shape=(self.num_virtual_tokens, d), init=normal(1.0), decay=False)}
        for name, (shape, fan) in shapes.items():
            declared[name] = Parameter(shape=shape, init=uniform(1 / sqrt(fan)), decay=len(shape) == 2)
        return {f"{site.name}.{name}": parameter for name, parameter in declared.items()}

    def prepare(
        self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool
    ) -> Mapping[str, Tensor]:
        start = f"{sites[0].name}."
        own = {name.removeprefix(start): t for name, t in parameters.items() if name.startswith(start)}
        x = own["embedding"]
        if self.encoder == "lstm":
            weights = [own[name] for name in self._lstm_shapes(x.shape[1]) if name.startswith("lstm.")]
            state = x.new_zeros(2 * LSTM_LAYERS, 1, weights[1].shape[1])
            x = torch.lstm(x[None], (state, state), weights, True, LSTM_LAYERS, 0.0, False, True, True)[0][0]
        else:
            x = F.relu(F.linear(x, own["first"], own["first_bias"]))
        x = F.linear(F.relu(F.linear(x, own["inner"], own["inner_bias"])), own["outer"], own["outer_bias"])
        return {**parameters, f"{start}prompt": x}

    def finish(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> tuple[Method, dict[str, Tensor]]:
        if self.keep == "network":
            return self, dict(parameters)
        start = f"{sites[0].name}."
        with torch.no_grad():
            prompt = self.prepare(parameters, sites, training=False)[f"{start}prompt"]
        others = {name: t for name, t in parameters.items() if not name.startswith(start)}
        return PromptTuning(num_virtual_tokens=self.num_virtual_tokens, init="uniform"), {
            f"{start}prompt": prompt,
            **others,
        }

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        return lower_prompt(site, parameters, self.num_virtual_tokens)

    def _lstm_shapes(self, d: int) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shapes of the network's tensors in the order that torch's LSTM takes them, and the size that bounds each."""
        h = self.encoder_hidden_size or d // 2
        shapes: dict[str, tuple[tuple[int, ...], int]] = {}
        for layer in range(LSTM_LAYERS):
            for way in ("forwards", "backwards"):
                start = f"lstm.{layer}.{way}"
                shapes[f"{start}.input"] = ((4 * h, 2 * h if layer else d), h)
                shapes[f"{start}.hidden"] = ((4 * h, h), h)
                shapes[f"{start}.input_bias"] = ((4 * h,), h)
                shapes[f"{start}.hidden_bias"] = ((4 * h,), h)
        return {**shapes, **_head_shapes(2 * h, d)}

    def _mlp_shapes(self, d: int) -> dict[str, tuple[tuple[int, ...], int]]:
        h = self.encoder_hidden_size or d
        return {"first": ((h, d), d), "first_bias": ((h,), d), **_head_shapes(h, d)}


def _head_shapes(h: int, d: int) -> dict[str, tuple[tuple[int, ...], int]]:
    return {"inner": ((h, h), h), "inner_bias": ((h,), h), "outer": ((d, h), h), "outer_bias": ((d,), h)}
