"""Tensors as a checkpoint has them: under which keys transformers writes what a model holds.

transformers renames some tensors when it writes a checkpoint, joins some (DINOv2's gate and up maps), and writes tied
ones once. What it does is asked of it, with tensors without numbers, so that nothing of it is written down here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from graftwork.errors import BackboneError


def _as_held(held: Tensor) -> Tensor:
    """A tensor that is canonical as the module holds it."""
    return held


@dataclass(frozen=True, kw_only=True)
class CheckpointTensor:
    """Where a tensor is in a checkpoint.

    Attributes:
        key: key in the checkpoint.
        dim: dimension of the stored tensor in which the module's tensor is a part of it.
        start: first entry of that part.
        size: number of entries of that part; None: the whole tensor.
        view: function from the module's tensor to the canonical tensor.
    """

    key: str
    dim: int = 0
    start: int = 0
    size: int | None = None
    view: Callable[[Tensor], Tensor] = _as_held

    def of(self, stored: Tensor) -> Tensor:
        """The canonical tensor, as a view of the stored tensor."""
        return self.view(stored if self.size is None else stored.narrow(self.dim, self.start, self.size))


def checkpoint_tensors(
    model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], identities: Mapping[str, int]
) -> dict[str, CheckpointTensor]:
    """Where each tensor of a model's state dict is stored, by its key there; those that are not stored are left out.

    Args:
        shapes: of the state dict's tensors.
        identities: the same number for those that are one tensor.

    Raises:
        BackboneError: transformers would not write the model; or it makes something else of tensors than to put them
            one behind the other.
    """
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    written = [key for key in shapes if key not in ignored]
    kept = _written_once(model, {key: identities[key] for key in written})
    held = {key: torch.empty(shapes[key], device="meta") for key in kept}
    known = {id(tensor): key for key, tensor in held.items()}
    renamed = {known[id(t)]: key for key, t in revert_weight_conversion(model, dict(held)).items() if id(t) in known}
    found = {key: CheckpointTensor(key=name) for key, name in renamed.items()}
    for group in _joined(model, {key: tensor for key, tensor in held.items() if key not in renamed}):
        found |= _placed(model, {key: shapes[key] for key in group})
    by_identity = {identities[key]: stored for key, stored in found.items()}
    return {key: by_identity[identities[key]] for key in written}


def _written_once(model: PreTrainedModel, identities: Mapping[str, int]) -> list[str]:
    """The keys that stay where each tensor is written once."""
    # Small stand-ins which have in common what the tensors have.
    ones = {number: torch.empty(1) for number in identities.values()}
    try:
        return list(remove_tied_weights_from_state_dict({key: ones[n] for key, n in identities.items()}, model))
    except RuntimeError as error:
        raise BackboneError(
            f"transformers cannot write {type(model).__name__} as a checkpoint: {str(error).splitlines()[0]}",
            expected="tied weights that the model's class declares",
        ) from error


def _joined(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Iterable[list[str]]:
    """The keys of tensors that are converted, those together that are stored in one."""
    groups: dict[frozenset[str], list[str]] = {}
    for key, tensor in tensors.items():
        groups.setdefault(frozenset(revert_weight_conversion(model, {key: tensor})), []).append(key)
    return groups.values()


def _placed(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, CheckpointTensor]:
    """Where tensors lie in the one that is made of them: seen by numbering all their entries.

    Raises:
        BackboneError: it is not they, one behind the other.
    """
    numbered, start = {}, 0
    for key, shape in shapes.items():
        numbered[key] = torch.arange(start, start + prod(shape)).view(shape)
        start += prod(shape)
    stored = revert_weight_conversion(model, dict(numbered))
    found = {}
    for key, own in numbered.items():
        for name, tensor in stored.items():
            place = None if tensor.dim() != own.dim() else _place_in(tensor, own)
            if place is not None:
                found[key] = CheckpointTensor(key=name, dim=place[0], start=place[1], size=own.shape[place[0]])
    lost = sorted(shapes.keys() - found.keys())
    if lost:
        raise BackboneError(
            f"{lost[0]!r} of {type(model).__name__} is stored in another form, under {', '.join(stored)}",
            expected="tensors that are stored as they are, or one behind the other",
        )
    return found


def _place_in(tensor: Tensor, own: Tensor) -> tuple[int, int] | None:
    """The dimension and the entry in it from which on a tensor has another's entries; None where it has not."""
    first = (tensor == own.flatten()[0]).nonzero()
    for dim, start in enumerate(first[0].tolist() if len(first) == 1 else ()):
        size = own.shape[dim]
        if start + size <= tensor.shape[dim] and torch.equal(tensor.narrow(dim, start, size), own):
            return dim, start
    return None
