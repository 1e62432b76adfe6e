"""What is asked of a pass, and what it gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from transformers.utils.generic import ModelOutput

from graftwork.bank import Lease
from graftwork.heads import Items
from graftwork.passes.sharing import Supervision


@dataclass
class AdaptedOutput(ModelOutput):
    """What a pass gives.

    Shapes: loss (), logits (B, C), (B, T, C) for tags, (B, T, V) in generation. Where rows have adapters of their own,
    logits only if they are of one shape, last_hidden_state (B, T, d), rows (B times what one row has, None for the
    backbone alone) and losses (a scalar an adapter).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    last_hidden_state: Tensor | None = None
    rows: tuple[Tensor | None, ...] | None = None
    losses: dict[str, Tensor] | None = None

    def require(self, name: Literal["loss", "logits"]) -> Tensor:
        """A tensor that is known to be there."""
        tensor = getattr(self, name)
        assert isinstance(tensor, Tensor)
        return tensor


@dataclass(frozen=True)
class Call:
    """What is asked of passes.

    Attributes:
        lease: what the adapters' names stand for.
        supervision: labels and targets.
        asked: what of the backbone's states is wanted.
        training: whether dropout acts.
    """

    lease: Lease
    supervision: Supervision = field(default_factory=Supervision)
    asked: Mapping[str, bool] = field(default_factory=dict)
    training: bool = False

    @classmethod
    def of(
        cls,
        lease: Lease,
        *,
        labels: Tensor | Mapping[str, Tensor] | None = None,
        targets: Tensor | Mapping[str, Tensor] | None = None,
        items: Mapping[str | None, Items] | None = None,
        teacher: Mapping[str, Tensor] | None = None,
        training: bool = False,
        **asked: bool | None,
    ) -> "Call":
        """A call, less what of the backbone's states is not asked for."""
        known = {name: value for name, value in asked.items() if value is not None}
        return cls(lease, Supervision(labels, targets, items or {}, teacher or {}), known, training)
