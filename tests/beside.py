"""Bottlenecks put into Hugging Face's own modules by hooks, at paths written out here: what adapted models must say."""

from collections.abc import Callable
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.model import AdaptedModel

FEED_FORWARDS = {
    "bert": {"": ("encoder.layer.{i}.intermediate", "encoder.layer.{i}.output.dropout")},
    "distilbert": {"": ("transformer.layer.{i}.ffn", "transformer.layer.{i}.ffn")},
    "bart": {f"{s}.": (f"{s}.layers.{{i}}.fc1", f"{s}.layers.{{i}}.fc2") for s in ("encoder", "decoder")},
    "gpt2": {"": ("h.{i}.mlp", "h.{i}.mlp")},
    "llama": {"": ("layers.{i}.mlp", "layers.{i}.mlp")},
    "t5": {f"{s}.": (f"{s}.block.{{i}}.layer.{n}.DenseReluDense",) * 2 for s, n in (("encoder", 1), ("decoder", 2))},
}
"""By model type and stack: the module that a feed-forward's input enters, and the one that its output leaves."""

NORMS = {
    "bert": "encoder.layer.{i}.output.LayerNorm",
    "distilbert": "transformer.layer.{i}.output_layer_norm",
    "bart": "{stack}layers.{i}.final_layer_norm",
}
"""The norms of the sum of a feed-forward and its residual, where the norm comes last."""

Change = Callable[[Tensor], Tensor]


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def bottleneck(tensors: dict[str, Tensor], owner: str, sigma: Change = relu) -> Change:
    """x -> U σ(D x + b_D) + b_U in float64."""
    down, down_bias, up, up_bias = (tensors[f"{owner}.{n}"].double() for n in ("down", "down_bias", "up", "up_bias"))
    return lambda x: sigma(x @ down.T + down_bias) @ up.T + up_bias


def states(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[Tensor]:
    """The hidden states of all layers."""
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    return list(output.get("hidden_states") or [*output.encoder_hidden_states, *output.decoder_hidden_states])


def adapted_states(backbone: Backbone, adapter: Adapter, batch: dict[str, Tensor]) -> list[Tensor]:
    """The same with an adapter, in float64 where the backbone is: what is lowered too, not only what then runs."""
    model = AdaptedModel(backbone, {"a": adapter}).to(backbone.dtype)
    with model.graft.run(model.residents["a"].ops()):
        found = states(model.graft.base, batch)
    model.detach()
    return found


class Hooked:
    """A model with changes in it for the length of a block."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._stack = ExitStack()

    def __enter__(self) -> "Hooked":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _hook(self, path: str, hook: Callable) -> None:
        self._stack.callback(self.model.get_submodule(path).register_forward_hook(hook).remove)

    def after(self, path: str, change: Change) -> None:
        """y = o + f(o)."""
        self._hook(path, lambda module, args, output: output + change(output))

    def beside(self, start: str, end: str, change: Change) -> None:
        """y = F(x) + f(x), with F from one module to another."""
        held: list[Tensor] = []
        if start == end:
            self._hook(end, lambda module, args, output: output + change(args[0]))
            return
        self._hook(start, lambda module, args, output: held.append(args[0]))
        self._hook(end, lambda module, args, output: output + change(held.pop()))

    def at_norm(self, path: str, change: Change) -> None:
        """y = LN(s + f(LN(s)))."""
        norm = self.model.get_submodule(path)

        def twice(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return F.layer_norm(args[0] + change(output), output.shape[-1:], norm.weight, norm.bias, norm.eps)

        self._hook(path, twice)
