"""Which adapters can be calculated with, together, and as what: their methods, settings and sites decide."""

from collections.abc import Mapping

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.bodies import (
    NEUTRAL,
    Align,
    Bodies,
    BottleneckBodies,
    LowRankBodies,
    ParameterBodies,
    WeightBodies,
)
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, MethodError
from graftwork.methods import Method
from graftwork.methods.bottleneck import BottleneckMethod
from graftwork.methods.projections import DenseBottleneck

OF_TRAINING = {"init_std", "init", "dropout", "robust_drop", "b_rate", "layer_decay", "gradual_unfreezing", "d_init"}
"""Settings that decide how an adapter is trained and not what it computes."""


def bodies_of(adapters: Mapping[str, Adapter], backbone: Backbone, *, align: Align = "auto") -> Bodies:
    """The bodies of adapters as vectors.

    Args:
        adapters: by the name that messages have for them.
        backbone: that all of them were made for.
        align: of bottlenecks, whether their units are permuted to match: `auto` where they did not begin alike.

    Raises:
        AdapterError: there is none; one is of another backbone or has added tokens.
        MethodError: methods that cannot be merged; names them.
    """
    if not adapters:
        raise AdapterError("no adapters are given", expected="two or more")
    for adapter in adapters.values():
        adapter.check(backbone)
    kind = kind_of_bodies(adapters, align=align)
    return BottleneckBodies(adapters, backbone, align=align) if kind is BottleneckBodies else kind(adapters, backbone)


def changing_bodies_of(adapters: Mapping[str, Adapter], backbone: Backbone, *, align: Align = "auto") -> Bodies:
    """As `bodies_of`, for merges that read data, which say nothing of adapters that change nothing.

    Raises:
        AdapterError: as `bodies_of`; or no adapter changes anything of the backbone.
        MethodError: as `bodies_of`.
    """
    bodies = bodies_of(adapters, backbone, align=align)
    if not any(bodies.vectors):
        raise AdapterError(
            f"{', '.join(adapters)} change nothing of the backbone",
            expected="adapters of which one changes something",
            change="the adapters",
        )
    return bodies


def kind_of_bodies(adapters: Mapping[str, Adapter], *, align: Align = "auto") -> "type[Bodies]":
    """As what adapters are calculated with, which their methods and sites decide.

    Args:
        adapters: by the name that messages have for them.
        align: of bottlenecks, whether their units are permuted to match.

    Raises:
        AdapterError: one has added tokens.
        MethodError: methods that cannot be merged; names them.
    """
    for name, adapter in adapters.items():
        if adapter.task.added_tokens:
            raise AdapterError(
                f"adapter {name!r} has embeddings of added tokens ({', '.join(adapter.task.added_tokens[:3])}), which "
                "other adapters have not",
                expected="adapters without added tokens",
            )
    methods = {name: adapter.method for name, adapter in adapters.items()}
    first = next(iter(methods.values()))
    alike = all(_computes_as(method, first) for method in methods.values())
    if alike and isinstance(first, tuple(NEUTRAL)):
        _refuse_other_sites(adapters)
        return ParameterBodies
    if alike and isinstance(first, DenseBottleneck):
        _refuse_other_sites(adapters)
        return BottleneckBodies
    if align != "auto":
        raise MethodError(f"align={align!r} would do nothing: the adapters have no bottlenecks", change="--align")
    for name, method in methods.items():
        _refuse_unmergeable(name, method, alike=alike)
    return LowRankBodies if all(is_low_rank_method(method) for method in methods.values()) else WeightBodies


def is_low_rank_method(method: Method) -> bool:
    """Whether a method's adapters are products of two matrices beside weights, and nothing else."""
    from graftwork.ops import LowRank, SharedLowRank

    return bool(method.lowers_to) and set(method.lowers_to) <= {LowRank, SharedLowRank}


def _computes_as(one: Method, other: Method) -> bool:
    """Whether two methods compute the same of the same parameters."""
    if type(one) is not type(other):
        return False
    own, theirs = one.model_dump(), other.model_dump()
    return all(own[name] == theirs[name] for name in own.keys() - OF_TRAINING)


def _refuse_other_sites(adapters: Mapping[str, Adapter]) -> None:
    """Refuse adapters of one method that act at different sites, as those whose heads read other layers do."""
    names = [*adapters]
    for name in names[1:]:
        differing = sorted({*adapters[names[0]].sites} ^ {*adapters[name].sites})
        if differing:
            raise MethodError(
                f"adapters {names[0]!r} and {name!r} act at different sites ({', '.join(differing[:3])}): their heads "
                "read other layers of the backbone",
                expected="adapters whose heads read the same layers",
            )


def _refuse_unmergeable(name: str, method: Method, *, alike: bool) -> None:
    if isinstance(method, BottleneckMethod):
        dense_one = isinstance(method, DenseBottleneck)
        raise MethodError(
            f"adapter {name!r} of method {method.name!r} cannot be merged: "
            + (
                "bottlenecks are merged with bottlenecks of the same settings only"
                if dense_one
                else "the units of its bottlenecks are made by something else, and cannot be permuted to match"
            ),
            expected="adapters of one bottleneck method with the same settings"
            if dense_one
            else "adapters of houlsby, pfeiffer or parallel; graftwork generate writes generated bottlenecks out",
        )
    if method.unmergeable or method.reads_examples or method.num_prompt_tokens or not method.lowers_to:
        why = method.unmergeable or "there is nothing in the weights that it changes"
        raise MethodError(
            f"adapter {name!r} of method {method.name!r} cannot be merged with others: {why}",
            expected="adapters of LoRA, VeRA, DoRA, full fine-tuning, IA3, BitFit, layer norms or bottlenecks; others "
            "can be combined by graftwork fuse, or distilled into one",
        )
