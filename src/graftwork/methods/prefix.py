"""Prefix tuning and P-tuning v2: trained keys and values before those of every attention.

Li & Liang 2021, "Prefix-Tuning", section 4, with the reparametrisation of section 4.3: for each kind of attention
    [P_K; P_V] = W_out · tanh(W_in · E + b_in) + b_out,
and attention is over [P_K; K] and [P_V; V]. This equals (He et al. 2022, eq. 7)
    (1 − g) · att(x) + g · softmax(q P_Kᵀ) P_V,
with g the share of the attention on the prefix. Positions of the text do not shift. P-tuning v2 (Liu et al. 2022)
trains P_K and P_V directly.

Shapes, for l rows, attention of width d, and g key-value heads of width e: E (l, d), W_in (m, d), and at each layer
W_out (2·g·e, m); P_K and P_V (g, l, e). With fewer key-value heads than query heads the rows are narrower.
An encoder-decoder has three kinds of attention (the encoder's, the decoder's self-attention, and cross-attention), each
with its own E and network, as in the paper's code for BART.

When to use: for generation and for little data. It cannot be merged into weights, and each row is one more key in every
attention.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Generator, Tensor

from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import SiteError
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, kaiming_uniform, normal, uniform
from graftwork.methods.targets import Targets
from graftwork.methods.vocabulary import activations, draw_words, tokens_of
from graftwork.ops import KeyValue, Op


class PrefixTuning(Method):
    """Prefix tuning: trained keys and values before those of each attention. Use it for generation and for little data.

    Attributes:
        num_virtual_tokens: number l of key-value rows (in the paper 5 for table-to-text and 200 for summaries; in
            P-tuning v2 40 to 128).
        reparametrise: compute the rows with a trained network, as in the paper, instead of training them directly.
        encoder_hidden_size: hidden size m of the network (512 and 800 in the paper).
        init: `random`; or `activations`, which starts from the keys and values that the backbone computes for real
            words, and is better for little data (section 7.4). The last layer of the network is then solved for, which
            is exact if l <= m.
        text: the words for `init` `activations`, repeated or truncated to l. By default drawn from the most frequent.
        dropout: dropout of the rows, in training.
        targets: patterns of attention sites. By default all attentions.
        keep: what is saved after training: the `network`, so that training can continue; or the `table` of rows, with
            the same outputs, which is much smaller.
    """

    name: ClassVar[str] = "prefix-tuning"
    paper: ClassVar[str] = "Li & Liang 2021, arXiv:2101.00190; Liu et al. 2022, arXiv:2110.07602"
    when: ClassVar[str] = "generation, and little data"
    lowers_to: ClassVar[tuple[type[Op], ...]] = (KeyValue,)

    num_virtual_tokens: PositiveInt = 20
    reparametrise: bool = True
    encoder_hidden_size: PositiveInt = 512
    init: Literal["random", "activations"] = "random"
    text: str = ""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: Targets = Field(default=("kv",), min_length=1)
    keep: Literal["network", "table"] = "network"

    @model_validator(mode="after")
    def _settings_go_together(self) -> "PrefixTuning":
        if self.text and self.init != "activations":
            raise ValueError("text needs init='activations'")
        if not self.reparametrise:
            self.refuse_idle("encoder_hidden_size", "without reparametrise the rows are not made by a network")
        return self

    @property
    def learning_rate(self) -> float:
        """Rows themselves take larger steps (5e-3 in P-tuning v2) than the network that makes them (5e-5 in
        the paper). What is measured is larger: docs/defaults.md."""
        return 3e-4 if self.reparametrise else 3e-2

    def sites(self, sites: Sites) -> list[Site]:
        if not sites.of_kind("attention"):
            raise SiteError(
                f"{self.name} adds rows before keys and values, which this backbone does not support: "
                + sites.refusals.get("attention", "none of its layers has an attention"),
                expected="a method that acts elsewhere, or another backbone",
                change="--method, or --backbone",
            )
        return sites.match(self.targets, "attention")

    def declare(self, site: Site) -> dict[str, Parameter]:
        rows, width = self.num_virtual_tokens, site.heads * site.head_dim
        if not self.reparametrise:
            table = Parameter(shape=(site.heads, rows, site.head_dim), init=normal(1.0), decay=False)
            return {f"{site.name}.keys": table, f"{site.name}.values": table}
        d, m = site.in_features, self.encoder_hidden_size
        matrix = kaiming_uniform(sqrt(5))
        shared, own = _table(site), site.name
        return {
            f"{shared}.embedding": Parameter(shape=(rows, d), init=normal(1.0), decay=False),
            f"{shared}.inner": Parameter(shape=(m, d), init=matrix),
            f"{shared}.inner_bias": Parameter(shape=(m,), init=uniform(1 / sqrt(d)), decay=False),
            f"{own}.outer": Parameter(shape=(2 * width, m), init=matrix),
            f"{own}.outer_bias": Parameter(shape=(2 * width,), init=uniform(1 / sqrt(m)), decay=False),
        }

    def initial(
        self,
        tensors: Mapping[str, Tensor],
        sites: Sequence[Site],
        backbone: Backbone,
        labels: Sequence[str] | None,
        generator: Generator,
    ) -> Mapping[str, Tensor]:
        if self.init == "random":
            return {}
        count = self.num_virtual_tokens
        words = tokens_of(backbone, self.text, count) if self.text else draw_words(backbone, count, generator)
        found: dict[str, Tensor] = {}
        for name, (keys, values) in activations(backbone, words, sites).items():
            if not self.reparametrise:
                found |= {f"{name}.keys": keys, f"{name}.values": values}
                continue
            wanted = torch.cat([t.transpose(0, 1).flatten(1) for t in (keys, values)], dim=1).double()
            hidden = self._hidden(tensors, _table(backbone.sites[name])).double()
            rest = wanted - tensors[f"{name}.outer_bias"].double()
            # Of all solutions the smallest.
            found[f"{name}.outer"] = torch.linalg.lstsq(hidden, rest, driver="gelsd").solution.T.float().contiguous()
        return found

    def prepare(
        self, parameters: Mapping[str, Tensor], sites: Sequence[Site], *, training: bool
    ) -> Mapping[str, Tensor]:
        made: dict[str, Tensor] = {}
        tables = {_table(site) for site in sites} if self.reparametrise else set()
        hidden = {table: self._hidden(parameters, table) for table in tables}
        for site in sites:
            names = f"{site.name}.keys", f"{site.name}.values"
            if self.reparametrise:
                flat = F.linear(
                    hidden[_table(site)], parameters[f"{site.name}.outer"], parameters[f"{site.name}.outer_bias"]
                )
                rows = flat.view(len(flat), 2, site.heads, site.head_dim).permute(1, 2, 0, 3).unbind(0)
            else:
                rows = parameters[names[0]], parameters[names[1]]
            # Not F.dropout, which is of rows: several processes that train one adapter share it out (`WholeDraws`).
            made |= {name: torch.dropout(t, self.dropout, training) for name, t in zip(names, rows, strict=True)}
        return {**parameters, **made}

    def finish(self, parameters: Mapping[str, Tensor], sites: Sequence[Site]) -> tuple[Method, dict[str, Tensor]]:
        if self.keep == "network" or not self.reparametrise:
            return self, dict(parameters)
        with torch.no_grad():
            made = self.prepare(parameters, sites, training=False)
        network = {name for site in sites for name in self.declare(site)}
        # An adapter's tensors are contiguous, as files have them.
        kept = {name: t.contiguous() for name, t in made.items() if name not in network}
        settings = self.model_dump(exclude={"reparametrise", "encoder_hidden_size", "init", "text"})
        return PrefixTuning(reparametrise=False, **settings), kept

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        return [KeyValue(keys=parameters[f"{site.name}.keys"], values=parameters[f"{site.name}.values"])]

    @staticmethod
    def _hidden(parameters: Mapping[str, Tensor], table: str) -> Tensor:
        """tanh(W_in · E + b_in), (l, m)."""
        x = F.linear(parameters[f"{table}.embedding"], parameters[f"{table}.inner"], parameters[f"{table}.inner_bias"])
        return torch.tanh(x)


def _table(site: Site) -> str:
    """The name of a kind of attention: that of its sites without the layer."""
    return site.name.replace(f"layers.{site.layer}.", "")
