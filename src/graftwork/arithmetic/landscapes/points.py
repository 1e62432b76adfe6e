"""Adapters as points of one space, in which units can be permuted.

A point of full fine-tuning is the whole weights, so that filters are as long as the model's, and units can be permuted;
of any other method it is the method's tensors. The head is a part of it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn as nn
from pydantic import BaseModel
from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.adapters.declared import usable_sites
from graftwork.arithmetic.adapters.finetuned import STATISTICS
from graftwork.arithmetic.alignment.activations import BATCH_NORMS
from graftwork.arithmetic.alignment.matching import weight_matching
from graftwork.arithmetic.alignment.permutations import Factor, Segment, Specification
from graftwork.arithmetic.alignment.settings import MatchingSettings
from graftwork.arithmetic.alignment.specifications import specification_of
from graftwork.arithmetic.landscapes.landscape import Weights
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError
from graftwork.methods import FullFineTuning

HEAD_MODULES = frozenset({"head.classifier", "head.dense"})
"""What heads are made of whose units are known: a classifier, and a dense layer before it."""


class Points:
    """Adapters as points of one space.

    Args:
        adapters: of one method, head and backbone.
        backbone: theirs.
        names: of the adapters, for messages.

    Raises:
        AdapterError: an adapter differs from the first in more than its numbers, or does not fit the backbone.
    """

    def __init__(self, adapters: Sequence[Adapter], backbone: Backbone, names: Sequence[str]) -> None:
        self.adapters, self.backbone, self.names = list(adapters), backbone, list(names)
        first = adapters[0]
        for name, own in zip(names, adapters, strict=True):
            own.check(backbone)
            for what, one, other in (
                ("method", _described(first.method.name, first.method), _described(own.method.name, own.method)),
                ("head", _described(first.head.kind, first.head), _described(own.head.kind, own.head)),
                ("labels", first.task.labels, own.task.labels),
            ):
                if one != other:
                    raise AdapterError(
                        f"{name} has {what} {other}, and {names[0]} {one}",
                        expected="results of one method with the same settings, head and labels",
                        change="the adapters",
                    )
        whole = isinstance(first.method, FullFineTuning) and first.method.random_subset is None
        self._keys = {
            name: backbone.weights.where(name).key
            for name in first.tensors
            if whole and name in backbone.weights and name not in first.fixed
        }
        self._base = {
            name: backbone.model.get_parameter(key).detach().float().cpu() for name, key in self._keys.items()
        }

    @property
    def batch_norms(self) -> list[nn.Module]:
        """The batch norms whose statistics depend on a point's weights: of full fine-tuning, all of the backbone's."""
        modules = self.backbone.modules.values() if self._keys else ()
        return [own for own in modules if isinstance(own, BATCH_NORMS) and own.track_running_stats]

    def weights(self, adapter: Adapter) -> dict[str, Tensor]:
        """The tensors of an adapter as a point: of full fine-tuning, the weights themselves by key of the model's state
        dict."""
        return {
            self._keys.get(name, name): self._base[name] + own if name in self._base else own
            for name, own in adapter.tensors.items()
        }

    def adapter(self, weights: Weights) -> Adapter:
        """The adapter at a point."""
        first = self.adapters[0]
        found = {}
        for name in first.tensors:
            own = weights[self._keys.get(name, name)]
            found[name] = (own - self._base[name] if name in self._base else own).contiguous()
        return replace(first, tensors=found)

    @property
    def columns(self) -> frozenset[str]:
        """Tensors whose filters are columns."""
        locations = {key: self.backbone.weights.where(name) for name, key in self._keys.items()}
        return frozenset(key for key, own in locations.items() if own.transposed and len(own.shape) == 2)

    def aligned(self, to: Weights, other: Weights, *, fixed: Sequence[str] = (), seed: int = 0) -> dict[str, Tensor]:
        """A point with its units in the order that is nearest to another one's (weight matching).

        Args:
            to: the point that stays as it is.
            other: the point whose units are permuted.
            fixed: groups that are not moved.
            seed: of the order in which groups are matched.

        Raises:
            AdapterError: the method is not full fine-tuning of all weights; the head cannot be permuted; or the
                permutation would have to move tensors that the adapters have not.
            WeightsError: `fixed` names no group.
        """
        settings = MatchingSettings(fixed=tuple(fixed), seed=seed)
        specification = self.specification()
        return weight_matching(specification, to, other, settings=settings).apply(other)

    def specification(self) -> Specification:
        """What of the points can be permuted.

        Raises:
            AdapterError: as `aligned`.
        """
        first = self.adapters[0]
        if not self._keys:
            raise AdapterError(
                f"adapters of method {first.method.name!r} cannot be aligned: they act on the frozen backbone's units,"
                " whose order is one",
                expected="adapters of full-fine-tuning",
                change="--align",
            )
        body = specification_of(self.backbone)
        point = self.weights(first)
        usable = usable_sites(self.backbone, first.head)
        for name in self.backbone.weights:
            location = self.backbone.weights.where(name)
            used = location.site is None or location.site in usable
            tied = any(self.backbone.weights.where(other).key in point for other in location.tied)
            # Statistics of batch norms are computed anew where they are read.
            anew = location.buffer and name.rpartition(".")[2] in STATISTICS
            if used and body.segments[location.key] and location.key not in point and not tied and not anew:
                raise AdapterError(
                    f"the adapters cannot be aligned: {name!r} would have to be permuted, and they do not have it",
                    expected="adapters of full-fine-tuning with all weights, on a backbone without batch norms",
                    change="--align",
                )
        segments = {key: own for key, own in body.segments.items() if key in point}
        segments |= self._head_segments(first, body, [name for name in point if name not in segments])
        return Specification(segments, {key: tuple(own.shape) for key, own in point.items()}, body.within)

    def _head_segments(
        self, adapter: Adapter, body: Specification, names: Sequence[str]
    ) -> dict[str, tuple[Segment, ...]]:
        """Of what is beside the body: the head's tensors."""
        unknown = [name for name in names if name.rpartition(".")[0] not in HEAD_MODULES]
        if unknown:
            raise AdapterError(
                f"the adapters cannot be aligned: it is not known how {unknown[0]!r} is permuted",
                expected="a head for classification, regression, tags or choices, or the language-model head",
                change="--align",
            )
        read = "pooler" if adapter.head.pooled_by == "pooler" and "pooler" in body.groups else "residual"
        stream = max(name for name in body.groups if name.startswith(read))  # of several, the last
        into = Segment(1, 0, (Factor(stream, body.groups[stream].size),))
        dense = Factor("head", self.backbone.hidden_size)
        # The classifier reads the dense layer, if there is one.
        classifier = Segment(1, 0, (dense,)) if "head.dense.weight" in names else into
        segments = {
            "head.dense.weight": (Segment(0, 0, (dense,)), into),
            "head.dense.bias": (Segment(0, 0, (dense,)),),
            "head.classifier.weight": (classifier,),
        }
        return {name: segments.get(name, ()) for name in names}


def _described(name: str, settings: BaseModel) -> str:
    """A method or head, with the settings that are not as usual."""
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    shown = ", ".join(f"{key} {value}" for key, value in changed.items() if key != "kind")
    return f"{name} ({shown})" if shown else name
