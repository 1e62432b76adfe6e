"""`fisher_adapters`: adapters, or fully fine-tuned models, merged by their Fisher information."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from graftwork.adapters import Adapter
from graftwork.arithmetic.adapters.bodies import Align
from graftwork.arithmetic.adapters.heads import HeadsMode, head_groups
from graftwork.arithmetic.adapters.mergeable import changing_bodies_of
from graftwork.arithmetic.adapters.merging import MergedAdapters, named_adapters, with_heads
from graftwork.arithmetic.data.fisher import fisher_means
from graftwork.arithmetic.data.information import fishers_of
from graftwork.arithmetic.data.reading import rows_of
from graftwork.arithmetic.data.settings import FisherSettings
from graftwork.backbones import Backbone
from graftwork.errors import MethodError
from graftwork.training.display import shown_on_stderr


def fisher_adapters(
    adapters: Mapping[str, Adapter] | Sequence[Adapter],
    backbone: Backbone,
    *,
    lambdas: Sequence[float] | None = None,
    fisher: FisherSettings | None = None,
    normalise: bool = True,
    rank: int | None = None,
    heads: HeadsMode = "auto",
    align: Align = "auto",
    data: Mapping[str, str] | None = None,
    working: str | Path | None = None,
    progress: bool = False,
) -> MergedAdapters:
    """Merge adapters, or fully fine-tuned models, by their Fisher information (Matena & Raffel 2022).

    Adapters that are merged as differences to weights have the information of those weights; IA3, BitFit, norms and
    bottlenecks that of their own parameters.

    Args:
        adapters: by name, or a list, whose names are then those of their tasks. The first is the target, whose values
            stand where no model's answers depend on a parameter.
        backbone: of all of them. It is in use meanwhile, by no other model.
        lambdas: λ_i; None: all alike.
        fisher: how the information is computed.
        normalise: divide each λ_i by the norm of its model's information.
        rank: of the LoRA that the result is to be; None: the result says the merge exactly.
        heads, align: see `merge_adapters`.
        data: other data than those that an adapter was tuned on, by its name.
        working: a folder in which it is kept how far it is: a call with the same arguments goes on there. None: it is
            not kept.
        progress: report progress on standard error.

    Raises:
        MethodError: methods that cannot be merged, a kind of information that a head has not, or other numbers of
            lambdas.
        DataError: the data of an adapter are not known, or cannot be read.
    """
    settings = fisher or FisherSettings()
    named = named_adapters(adapters)
    mix = [1.0 / len(named)] * len(named) if lambdas is None else [float(own) for own in lambdas]
    if len(mix) != len(named):
        raise MethodError(
            f"{len(mix)} lambdas are given for {len(named)} adapters",
            expected=f"{len(named)} numbers",
            change="--weights",
        )
    bodies = changing_bodies_of(named, backbone, align=align)
    groups = head_groups(named, heads, mix)
    rows = {
        name: rows_of(
            adapter, backbone, "train", data=(data or {}).get(name), examples=settings.examples, seed=settings.seed
        )
        for name, adapter in named.items()
    }
    with shown_on_stderr(shown=progress) as display:
        folder = None if working is None else Path(working)
        fishers = fishers_of(bodies, rows, settings, working=folder, display=display)
    body = bodies.written(fisher_means(bodies.vectors, fishers, mix, normalise=normalise), rank)
    said = {"fisher": {**settings.model_dump(), "normalise": normalise}, "lambdas": mix}
    return with_heads(body, groups, named, backbone, said)
