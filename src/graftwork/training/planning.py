"""What a method would train on a backbone: counts by group, from shapes alone."""

from collections.abc import Mapping
from typing import Any, Literal

from graftwork.adapters.adapter import counts, declare
from graftwork.backbones import Backbone, Pooling
from graftwork.heads import head_for
from graftwork.methods import make_method

BYTES = 4
"""An adapter's parameters are kept in float32."""


def count(
    backbone: str,
    method: str,
    settings: Mapping[str, Any] | None = None,
    *,
    kind: str | None = None,
    num_labels: int = 2,
    pooling: Pooling | Literal["auto"] = "auto",
) -> dict[str, Any]:
    """Number of trained parameters by group, without loading weights.

    Args:
        kind: the task's; None: classification, or regression where there is one label only.

    Returns:
        `trained` (adapter, norms, head, total, and without_classifier: the total less the last classifier), `backbone`
        (its parameters), `percent` (total to backbone), `bytes` (of the adapter's tensors).

    Raises:
        BackboneError, MethodError, SiteError: the backbone or method is unknown, or they do not suit each other.
    """
    outline = Backbone.outline(backbone)
    chosen = make_method(method, settings)
    head = head_for(
        kind or ("classification" if num_labels > 1 else "regression"),
        outline,
        num_labels=num_labels,
        pooling=outline.pooling if pooling == "auto" else pooling,
        **chosen.head_fields,
    )
    declared = declare(outline, chosen, head)
    groups = counts(declared)
    total = sum(groups.values())
    classifier = sum(p.count for name, p in declared.items() if name.startswith("head.classifier."))
    return {
        "trained": {**groups, "total": total, "without_classifier": total - classifier},
        "backbone": outline.num_parameters,
        "percent": 100 * total / outline.num_parameters,
        "bytes": BYTES * total,
    }
