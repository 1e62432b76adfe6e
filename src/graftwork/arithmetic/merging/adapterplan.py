"""What a merge of adapters does with each tensor and head, from headers alone, before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from graftwork.adapters import Adapter
from graftwork.adapters.folder import CONFIG, read_outline
from graftwork.arithmetic.adapters.finetuned import finetuned_outline, is_model_folder
from graftwork.arithmetic.adapters.heads import HeadGroup, head_groups, head_names
from graftwork.arithmetic.adapters.mergeable import kind_of_bodies
from graftwork.arithmetic.adapters.outlines import outlined_body
from graftwork.arithmetic.data.learnedcoefficients import refuse_unlearnable
from graftwork.arithmetic.data.regressionmeans import refuse_weightless
from graftwork.arithmetic.data.settings import AdaMergingMergeSettings
from graftwork.arithmetic.merging.adaptermethods import coefficients_of, described, scale_of
from graftwork.arithmetic.merging.checking import check_formula
from graftwork.arithmetic.merging.folders import base_of, checked, for_task, named, tasks_of
from graftwork.arithmetic.merging.method import ChosenMethod, make_merge_method
from graftwork.arithmetic.merging.plan import PlannedTensor
from graftwork.arithmetic.merging.recipe import MergeRecipe
from graftwork.arithmetic.merging.settings import Knots
from graftwork.arithmetic.values.filters import Number
from graftwork.backbones import Backbone
from graftwork.training.evaluation import task_of

FLOAT32 = 4


@dataclass(frozen=True)
class PlannedHead:
    """A head of the result.

    Attributes:
        name: what it is called, and its folder where there are several.
        of: the adapters whose head it is; the mean of several.
        labels: its labels, where they have names.
    """

    name: str
    of: tuple[str, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterPlan:
    """What a merge of adapters does.

    Attributes:
        adapters: what is merged, by name: method and folder.
        method: the method of the result.
        heads: the result's.
        tensors: the result's, in order; those of heads under the head's name where there are several.
        at_most: whether the numbers decide the rank, which is at most the one of the shapes.
        chosen: whether the adapters are chosen by scores, so that the result is of some; planned is that of all.
        reads: what of the tasks' data is read.
        bytes_read: size of the operands' and the backbone's tensors.
    """

    adapters: dict[str, tuple[str, Path]]
    method: str
    heads: tuple[PlannedHead, ...]
    tensors: tuple[PlannedTensor, ...]
    at_most: bool
    chosen: bool
    reads: tuple[str, ...]
    bytes_read: int

    @property
    def nbytes(self) -> int:
        """Size of the result's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def named(self, action: str) -> list[str]:
        """Names of the tensors with which that is done."""
        return [tensor.name for tensor in self.tensors if tensor.action == action]


def plan_adapters(recipe: MergeRecipe) -> AdapterPlan:
    """Decide what is done with each tensor and head.

    Args:
        recipe: of adapters, or of fully fine-tuned models as such.

    Raises:
        GraftworkError: what `merge` would refuse that headers tell.
    """
    chosen, options = checked(recipe)
    paths = [Path(one.model) for one in recipe.models]
    models = [is_model_folder(path) and not (path / CONFIG).is_file() for path in paths]
    backbone = Backbone.outline(base_of(paths, models, recipe.base))
    loaded = [
        finetuned_outline(path, backbone, task=task) if model else for_task(Adapter(**read_outline(path)), task)
        for path, model, task in zip(paths, models, tasks_of(recipe), strict=True)
    ]
    adapters = named(paths, loaded)
    given = coefficients_of(chosen, recipe.weights, len(adapters))
    refuse = _REFUSALS.get(chosen.name)
    if refuse is not None:
        refuse(adapters, kind_of_bodies(adapters))
    formula, method = _formula_of(chosen), chosen.method
    body = outlined_body(
        adapters,
        backbone,
        coefficients=_scaled(chosen, given, len(adapters)),
        formula="" if formula is None else described(formula),
        basis=chosen.name == "knots" or method.by_singular_values,
        rank=recipe.rank,
        align=options["align"],
    )
    heads = head_names(adapters.values())
    for one in recipe.each_of_sweep(chosen):
        inner = _formula_of(one)
        if inner is not None and (one.name == "knots" or coefficients_of(one, recipe.weights, len(adapters)) is None):
            check_formula(inner, body.vectors, len(adapters), recipe.weights, heads=heads)
    groups = _groups(chosen, adapters, options, chosen.shares(recipe.weights, len(adapters)))
    tensors = [
        _planned(name, "body", own.shape, "merged" if own.of else "unchanged", own.of, len(adapters))
        for name, own in body.tensors.items()
    ]
    for group in groups:
        before = f"{group.name}/" if len(groups) > 1 else ""
        action = "averaged" if len(group.names) > 1 else "kept"
        tensors += [
            _planned(f"{before}{name}", "head", tuple(t.shape), action, group.names, len(adapters))
            for name, t in group.tensors.items()
        ]
    read = sum(prod(t.shape) for adapter in adapters.values() for t in adapter.tensors.values())
    return AdapterPlan(
        adapters={name: (own.method.name, path) for (name, own), path in zip(adapters.items(), paths, strict=True)},
        method=body.method,
        heads=tuple(PlannedHead(g.name, g.names, tuple(g.adapter.task.labels or ())) for g in groups),
        tensors=tuple(tensors),
        at_most=body.at_most or (method.scored and recipe.rank is None and body.method == "lora"),
        chosen=method.scored,
        reads=tuple(f"{_ROWS[method.reads]} of {name}" for name in adapters) if method.reads in _ROWS else (),
        bytes_read=FLOAT32 * (read + backbone.num_parameters),
    )


_ROWS = {"scores": "validation rows", "texts": "texts", "labels": "texts and labels"}
"""What a method reads of an adapter's task."""


def _refuse_unscorable(adapters: Mapping[str, Adapter], kind: Any) -> None:
    """Refuse adapters that do not say on which data they are scored."""
    for adapter in adapters.values():
        task_of(adapter)


_REFUSALS: Mapping[str, Any] = {
    "adamerging": refuse_unlearnable,
    "regmean": refuse_weightless,
    "soup": _refuse_unscorable,
}
"""What methods refuse of adapters, beside what all refuse."""


def _scaled(chosen: ChosenMethod, given: Sequence[float] | None, count: int) -> list[float] | None:
    """The coefficients of what adapters change; those that will be learned are not known."""
    if isinstance(chosen.settings, AdaMergingMergeSettings):
        return [1.0] * count if chosen.settings.keep is None else None
    if chosen.method.scored:
        return [1.0 / count] * count
    return None if given is None else [own * scale_of(chosen) for own in given]


def _formula_of(chosen: ChosenMethod) -> ChosenMethod | None:
    """The formula over vectors; None where the method is none."""
    if isinstance(chosen.settings, Knots):
        chosen = make_merge_method(chosen.settings.formula, chosen.settings.inner())
    return None if chosen.method.over == "adapters" or chosen.method.scored else chosen


def _groups(
    chosen: ChosenMethod, adapters: dict[str, Adapter], options: dict[str, Any], shares: Sequence[Number] | None
) -> list[HeadGroup]:
    """The heads of the result; of a donor merge the target's, and of learned coefficients each task's own."""
    if chosen.name == "donor":
        name = next(iter(adapters))
        return head_groups({name: adapters[name]}, "keep")
    return head_groups(adapters, "keep" if chosen.name == "adamerging" else options["heads"], shares)


def _planned(
    name: str, role: Any, shape: tuple[int, ...], action: Any, of: tuple[str, ...], count: int
) -> PlannedTensor:
    source = ", ".join(of) if 0 < len(of) < count else ""
    return PlannedTensor(name, role, action, source, shape, "F32", FLOAT32 * prod(shape))
