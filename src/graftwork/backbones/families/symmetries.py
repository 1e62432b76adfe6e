"""Symmetries: which units of a family's models can be put in another order without a change of what the model computes.

A group is a set of units that move together, wherever they are an axis of a tensor: the units of a feed-forward layer
are rows of `ffn.up` and columns of `ffn.down`. The tables say for each site to which group each axis of its tensors
belongs (Ainsworth et al. 2023, "Git Re-Basin", arXiv:2209.04836, section 3, for multi-layer perceptrons and
convolutions; here for transformers as well).

Groups of a transformer:
- `residual`, the residual stream: all that is added to it or reads it, with every norm;
- `embeddings`, where the word embeddings are narrower than the layers and are projected;
- `units` of one feed-forward layer, `pooler` of the pooling layer, `head` of a layer within a task head;
- `heads` of one attention: key-value heads, each with the query heads that use it;
- within each of those: `queries`, its query heads; `query_units`, which queries and keys have in common; `value_units`,
  which values and the columns of the output have. An order of queries and keys across heads would change the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import EllipsisType

AxisNames = str | None | EllipsisType | tuple[str | int | None, ...]
"""The group of an axis; None: its order is fixed. Several names: the axis is their product, row by row, and a number
is a factor of fixed order. `...` first: the names are those of the last axes."""

SHARED = frozenset({"residual", "embeddings", "pooler", "head"})
"""Groups that a whole model has once; the others belong to one sub-layer."""

WITHIN = {"queries": "heads", "query_units": "heads", "value_units": "heads"}
"""Groups of which each unit of another one has its own."""


@dataclass(frozen=True, kw_only=True)
class Symmetries:
    """The symmetries of a family.

    Attributes:
        axes: by site (its name within its layer, for a site in a layer; the tensor's own name, for one without a site),
            the groups of its tensors' axes, of which a tensor with fewer axes has the first: a weight is (out, in),
            also where it is stored otherwise.
        heads: the same by path of a module of a task head, beside the model without it.
        otherwise: of a group, the end of the names of the sites without which it is another group, and that one.
        renewed_by: the site in a layer with which a new residual stream begins; `before` is the one before the layer.
        ordered: groups whose order is fixed in this family, such as `query_units` where positions rotate them.
    """

    axes: Mapping[str, tuple[AxisNames, ...]]
    heads: Mapping[str, tuple[AxisNames, ...]] = field(default_factory=dict)
    otherwise: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    renewed_by: str = ""
    ordered: frozenset[str] = frozenset()


def _attention(name: str) -> dict[str, tuple[AxisNames, ...]]:
    return {
        f"{name}.query": (("heads", "queries", "query_units"), "residual"),
        f"{name}.key": (("heads", "query_units"), "residual"),
        f"{name}.value": (("heads", "value_units"), "residual"),
        f"{name}.output": ("residual", ("heads", "queries", "value_units")),
        f"{name}.norm": ("residual",),
        f"{name}.output_norm": ("residual",),
        f"{name}.scale": ("residual",),
        # The norm of each head has one weight for all heads, so that its units have their order.
        f"{name}.query_norm": (None,),
        f"{name}.key_norm": (None,),
    }


def _ordered_attention(name: str) -> dict[str, tuple[AxisNames, ...]]:
    """An attention whose heads cannot be moved: their positions are read off a table that several layers share."""
    return {
        **{f"{name}.{part}": (None, "residual") for part in ("query", "key", "value")},
        f"{name}.output": ("residual", None),
        f"{name}.norm": ("residual",),
    }


EMBEDDINGS: dict[str, tuple[AxisNames, ...]] = {
    "embeddings.word": (None, "embeddings"),
    "embeddings.position": (None, "embeddings"),
    "embeddings.token_type": (None, "embeddings"),
    "embeddings.norm": ("embeddings",),
    "embeddings.projection": ("residual", "embeddings"),
    "embeddings.patch": ("residual",),
    "embeddings.tokens": (..., "residual"),
    "norm": ("residual",),
    "pooler": ("pooler", "residual"),
    "lm_head": (None, "residual"),
    "final_logits_bias": (None, None),
}

FFN: dict[str, tuple[AxisNames, ...]] = {
    "ffn.up": ("units", "residual"),
    "ffn.gate": ("units", "residual"),
    "ffn.down": ("residual", "units"),
    "ffn.norm": ("residual",),
    "ffn.output_norm": ("residual",),
    "ffn.scale": ("residual",),
}

TRANSFORMER_AXES = {**EMBEDDINGS, **_attention("attention"), **_attention("cross_attention"), **FFN}

WITHOUT = {"embeddings": ("embeddings.projection", "residual"), "pooler": ("pooler", "residual")}
"""What an axis of embeddings, and of what reads the pooling layer, is where a model has no projection or no pooler."""

ENCODER_HEADS: dict[str, tuple[AxisNames, ...]] = {
    "classifier": (None, "pooler"),
    "classifier.dense": ("head", "residual"),
    "classifier.out_proj": (None, "head"),
    "qa_outputs": (None, "residual"),
}
"""Of BERT, whose classifiers of texts read the pooling layer, and of tokens the last layer; and of RoBERTa."""

TRANSFORMER = Symmetries(axes=TRANSFORMER_AXES, otherwise=WITHOUT, heads=ENCODER_HEADS)

DISTILLED = Symmetries(
    axes=TRANSFORMER_AXES,
    otherwise={**WITHOUT, "head": ("pre_classifier", "residual")},
    heads={"pre_classifier": ("head", "residual"), "classifier": (None, "head"), "qa_outputs": (None, "residual")},
)

CAUSAL = Symmetries(
    axes=TRANSFORMER_AXES,
    otherwise=WITHOUT,
    heads={"score": (None, "residual"), "qa_outputs": (None, "residual")},
)

ROTARY = Symmetries(axes=CAUSAL.axes, otherwise=WITHOUT, heads=CAUSAL.heads, ordered=frozenset({"query_units"}))
"""Each pair of units of queries and keys is rotated at a frequency of its own: none can take another's place."""

VISION = Symmetries(
    axes=TRANSFORMER_AXES,
    otherwise=WITHOUT,
    heads={
        "classifier": (None, "residual"),
        "cls_classifier": (None, "residual"),
        "distillation_classifier": (None, "residual"),
    },
)

DINO = Symmetries(axes=TRANSFORMER_AXES, otherwise=WITHOUT, heads={"classifier": (None, (2, "residual"))})
"""Its classifier reads the first token's state and the mean of the others', one behind the other."""

RELATIVE = Symmetries(
    axes={
        **EMBEDDINGS,
        **_ordered_attention("attention"),
        **_ordered_attention("cross_attention"),
        **FFN,
        "attention.position": (None, None),
        "embeddings.relative": (None, None),
        "attention.position_key": (None, "residual"),
        "attention.position_query": (None, "residual"),
        "convolution": ("residual", "residual"),
        "convolution_norm": ("residual",),
    },
    otherwise=WITHOUT,
    heads={name: ENCODER_HEADS[name] for name in ("classifier", "classifier.dense", "classifier.out_proj")},
)
"""Of T5 and MPNet, in which each head's position biases come from a table that all layers share."""

DISENTANGLED = Symmetries(
    axes={
        **RELATIVE.axes,
        "embeddings.norm": ("residual",),
        "embeddings.relative": (None, "residual"),
        "embeddings.relative_norm": ("residual",),
    },
    otherwise={**WITHOUT, "head": ("pooler.dense", "residual")},
    heads={"pooler.dense": ("head", "residual"), "classifier": (None, "head"), "qa_outputs": (None, "residual")},
)
"""Of DeBERTa, whose table of relative positions is a second input of queries and keys."""

CONVOLUTIONS = Symmetries(
    axes={
        "embeddings.convolution": ("residual",),
        "embeddings.norm": ("residual",),
        "block.0.convolution": ("first", "before"),
        "block.0.norm": ("first",),
        "block.1.convolution": ("second", "first"),
        "block.1.norm": ("second",),
        "block.2.convolution": ("residual", "second"),
        "block.2.norm": ("residual",),
        "shortcut.convolution": ("residual", "before"),
        "shortcut.norm": ("residual",),
    },
    otherwise={"second": ("block.2.convolution", "residual")},
    renewed_by="shortcut.convolution",
    heads={"classifier.1": (None, "residual")},
)
