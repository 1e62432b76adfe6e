"""Every method on every family: which pairs there are, which are refused, and what is given to them."""

from typing import Any

import torch
from tiny import CONFIGS, SAMPLES, inputs_for, make_adapter, make_backbone
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.heads import Head, LanguageHead
from graftwork.methods import METHODS, HeadOnly, Method
from graftwork.methods.bottleneck import BottleneckMethod
from graftwork.methods.composition import Composition
from graftwork.methods.generated import GeneratedBottleneck

REPRESENTATIVES = ("bert", "gpt2", "llama", "t5", "bart", "vit", "resnet")
"""One model type of each family; ALBERT, DeBERTa and the others are variations of them."""

CLASSIC = {"full-fine-tuning", "ulmfit", "head-only", "layer-norm-tuning"}
"""All that can act on a network without transformer layers."""

PROMPTS = {"prompt-tuning", "p-tuning"}
WITH_BIASES = {"bitfit"}
WITHOUT_ROWS = {"prefix-tuning", "union"}

REFUSALS: dict[str, set[str]] = {
    **dict.fromkeys(("vit", "deit", "dinov2"), PROMPTS),
    **dict.fromkeys(("deberta-v2", "mpnet"), WITHOUT_ROWS),
    **dict.fromkeys(
        ("llama", "mistral", "qwen3", "smollm3", "gemma2", "gemma3_text", "phi3", "t5", "mt5"), WITH_BIASES
    ),
}
"""By model type, the methods that cannot act there, beside those that need transformer layers."""

CHANGED_AT_START = {name for name, method in SAMPLES.items() if method.name in (*PROMPTS, *WITHOUT_ROWS)}
"""Samples whose new adapter says something else than the backbone alone, by design."""


def refuses(name: str, kind: str) -> bool:
    """Whether a sample's method cannot act on a model type."""
    method = SAMPLES[name].name
    return method in REFUSALS.get(kind, ()) or (kind == "resnet" and method not in CLASSIC)


VARIANTS = ("bert", "llama")
"""Where a method's variants are tried, too."""

ALIKE = {"gate", "average", "stack", "hyperformer", "bihnet"}
"""Methods that differ from another one in nothing that depends on the family: `fuse`, `houlsby`, `union`."""

PAIRS = [
    (name, kind)
    for name in SAMPLES
    for kind in REPRESENTATIVES
    if kind in VARIANTS or (name in METHODS and (name not in ALIKE or kind in ("t5", "resnet")))
]
MATRIX = [row for row in PAIRS if not refuses(*row)]
"""Every sample on one model type of each family."""

OPS = ("houlsby", "pfeiffer", "parallel", "dora", "ia3", "bitfit", "prompt-tuning", "prefix-tuning", "full-fine-tuning")
"""Methods that among them lower to every op."""

OF_OPS = [(name, kind) for name, kind in MATRIX if name in OPS or kind in VARIANTS]
"""Every sample on two families, and a method for every op on the others: for what methods alike in ops have alike."""

REST = [(name, kind) for name in OPS for kind in CONFIGS if kind not in REPRESENTATIVES]
ELSEWHERE = [row for row in REST if not refuses(*row)]
"""A method for every op on all other model types."""

REFUSED = [row for row in [*PAIRS, *REST] if refuses(*row)]


def backbone_of(kind: str, **options: Any) -> Backbone:
    """A tiny backbone; an encoder-decoder with its language-model head."""
    return make_backbone(kind, head=kind in ("t5", "mt5", "bart", "mbart", "pegasus"), **options)


def adapter_of(backbone: Backbone, method: Method, **options: Any) -> Adapter:
    """A new adapter for classification; on an encoder-decoder, whose decoder would have only one token to attend to,
    for generation unless the method decides on the head.
    """
    if backbone.is_encoder_decoder and not method.head_fields and not isinstance(method, HeadOnly):
        options = {name: value for name, value in options.items() if name != "pooling"}
        return make_adapter(backbone, method, head=LanguageHead(shifted=False), **options)
    return make_adapter(backbone, method, **options)


def inputs_of(backbone: Backbone, head: Head, *lengths: int) -> dict[str, Tensor]:
    """Random rows of the given lengths; for a decoder only where the head reads it."""
    inputs = inputs_for(backbone.model, *lengths)
    if head.reads in ("tokens", "layers"):
        inputs.pop("decoder_input_ids", None)
    return inputs


def example_for(backbone: Backbone, head: Head) -> dict[str, Tensor]:
    """Three rows of different lengths, with labels."""
    inputs = inputs_of(backbone, head, 7, 4, 5)
    if head.kind == "generation":
        return {**inputs, "labels": inputs["decoder_input_ids"].roll(-1, dims=1)}
    if head.reads == "text":
        inputs.pop("decoder_input_ids", None)
    return {**inputs, "labels": torch.tensor([0, 2, 1])}


def near_nothing(method: Method) -> tuple[Method, float]:
    """The method with so small an initialisation that it changes nothing up to the bound; 0 where it starts exactly at
    nothing.
    """
    if isinstance(method, Composition):
        near = {part.name: near_nothing(part.method) for part in method.parts}
        parts = tuple(part.model_copy(update={"method": near[part.name][0]}) for part in method.parts)
        return method.model_copy(update={"parts": parts}), max(bound for _, bound in near.values())
    if isinstance(method, GeneratedBottleneck):
        # What is added is a generated bias, of the order of the generators' weights.
        return method.model_copy(update={"init_std": 1e-7}), 2e-5
    if isinstance(method, BottleneckMethod) and method.placement != "parallel":
        # Up and down are of order 1e-6 and their sums run over 32 and 6 terms: 1e-12 · 192 · |h|, and the norms'
        # float32 copies of float64 gains and biases are off by 2^-25 of their size.
        return method.model_copy(update={"init_std": 1e-6}), 2e-5
    return method, 0.0
