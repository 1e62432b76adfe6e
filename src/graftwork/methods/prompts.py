"""Prompt tuning: trained vectors before the embedded text.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 2: the frozen model reads
[P; E(x)] instead of E(x). The initialisation of P is in section 3.2.

Shapes: P (l, d) for l prompt tokens and embeddings of width d. Nothing else is trained: l·d parameters. In an
encoder-decoder P is before the encoder's text, and the decoder also attends to it.

When to use: for the smallest adapters, on large models. On small models prefix tuning and bottlenecks work better.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Generator, Tensor

from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import MethodError, SiteError
from graftwork.methods.method import Method
from graftwork.methods.parameters import Parameter, uniform
from graftwork.methods.vocabulary import draw_words, embeddings, label_embeddings, tokens_of
from graftwork.ops import Op, Prompt, PromptedEncoder

BOUND = 0.5
"""Of the uniform start (Lester et al. 2021, section 3.2)."""


class PromptTuning(Method):
    """Prompt tuning: trained vectors before the input embeddings. Use it for large language models.

    The paper trains T5 with Adafactor at a constant learning rate of 0.3, which suits the large embeddings of T5 (of
    order ten). The default here, for AdamW and a decreasing rate, suits embeddings of the size of BERT's and GPT-2's.

    Attributes:
        num_virtual_tokens: number l of vectors. They reduce the maximum length of the text.
        init: how the prompt is initialised. `vocabulary`: with embeddings of words drawn from the 5000 most frequent
            ones, taken to be those with the lowest ids. `labels`: with the words of the labels (the mean of its tokens
            if a label has several), and the rest as for `vocabulary`. `text`: with the tokens of `text`, repeated or
            truncated to l. `uniform`: with numbers between -0.5 and 0.5.
        text: the initial text, for `init` `text`.
    """

    name: ClassVar[str] = "prompt-tuning"
    paper: ClassVar[str] = "Lester et al. 2021, arXiv:2104.08691"
    when: ClassVar[str] = "large language models (billions of parameters)"
    lowers_to: ClassVar[tuple[type[Op], ...]] = (Prompt, PromptedEncoder)
    learning_rate: ClassVar[float] = 3e-2

    num_virtual_tokens: PositiveInt = 100
    init: Literal["vocabulary", "labels", "text", "uniform"] = "vocabulary"
    text: str = ""

    @model_validator(mode="after")
    def _text_with_its_init(self) -> "PromptTuning":
        if (self.init == "text") != bool(self.text):
            raise ValueError("init='text' needs text, and text needs init='text'")
        return self

    @property
    def num_prompt_tokens(self) -> int:
        return self.num_virtual_tokens

    def sites(self, sites: Sites) -> list[Site]:
        return prompted_sites(sites, self.name)

    def declare(self, site: Site) -> dict[str, Parameter]:
        if site.stack == "decoder":
            return {}
        shape = (self.num_virtual_tokens, site.in_features)
        return {f"{site.name}.prompt": Parameter(shape=shape, init=uniform(BOUND), decay=False)}

    def initial(
        self,
        tensors: Mapping[str, Tensor],
        sites: Sequence[Site],
        backbone: Backbone,
        labels: Sequence[str] | None,
        generator: Generator,
    ) -> Mapping[str, Tensor]:
        if self.init == "uniform":
            return {}
        count = self.num_virtual_tokens
        if self.init == "text":
            vectors = embeddings(backbone, tokens_of(backbone, self.text, count))
        else:
            vectors = embeddings(backbone, draw_words(backbone, count, generator))
        if self.init == "labels":
            if not labels:
                raise MethodError(
                    f"{self.name} is initialised from the labels' words, and the task has no labels",
                    expected="init vocabulary, text or uniform",
                    change="--method.init",
                )
            vectors = torch.cat([label_embeddings(backbone, labels), vectors])[:count]
        return {f"{sites[0].name}.prompt": vectors}

    def lower(self, site: Site, parameters: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> Sequence[Op]:
        return lower_prompt(site, parameters, self.num_virtual_tokens)


def prompted_sites(sites: Sites, method: str) -> list[Site]:
    """Where a prompt acts: before the text, and at the decoder that attends to it.

    Raises:
        SiteError: the backbone reads no sequence of embedded tokens.
    """
    found = sites.of_kind("stack")
    if not found:
        raise SiteError(
            f"{method} adds vectors before the input embeddings, which this backbone does not support: "
            + sites.refusals.get("stack", "none of its stacks reads token embeddings"),
            expected="a method that acts elsewhere, or another backbone",
            change="--method, or --backbone",
        )
    return found


def lower_prompt(site: Site, parameters: Mapping[str, Tensor], length: int) -> Sequence[Op]:
    """The op of a prompt, which stands under `{site}.prompt`, at one of its sites."""
    if site.stack == "decoder":
        return [PromptedEncoder(length=length)]
    return [Prompt(vectors=parameters[f"{site.name}.prompt"], keeps=site.stack == "encoder")]
