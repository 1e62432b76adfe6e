"""Activation matching: the permutations under which the units of two networks are most alike on the same inputs
(Ainsworth et al. 2023, "Git Re-Basin", arXiv:2209.04836), and batch norms of merged networks.

    argmax_P Σ_i S[i, P[i]],  S[i, j] = E[a_i b_j]  or their correlation (Li et al. 2016, "Convergent Learning"),

the mean over inputs and places (tokens, pixels). Units are compared where they are read: at the inputs of the linear
maps and convolutions that have them as columns; where none has, at the outputs of those that have them as rows (queries
and keys).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from graftwork.arithmetic.alignment.assignment import Names, solve
from graftwork.arithmetic.alignment.matching import folded, frozen_groups
from graftwork.arithmetic.alignment.permutations import Permutations, Segment, Specification
from graftwork.errors import WeightsError

Batch = Tensor | Mapping[str, Tensor]
"""Inputs of a network: a tensor, or arguments by name."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def activation_matching(
    specification: Specification,
    a: nn.Module,
    b: nn.Module,
    batches: Iterable[Batch],
    *,
    by: Literal["correlation", "product"] = "correlation",
    fixed: Sequence[str] = (),
) -> Permutations:
    """The permutations of `b` under which its units are most like those of `a`. The networks are run in evaluation mode
    without gradients, and their modes are restored.

    Args:
        specification: what moves together, by keys of the networks' state dicts.
        a: the network that stays as it is.
        b: the network whose units are permuted.
        batches: inputs. Where they have an `attention_mask`, padding does not count (in encoder-decoders it does).
        by: `correlation` (Pearson's), or `product`, E[a b].
        fixed: names of groups that are not moved.

    Raises:
        WeightsError: the networks are not those of the specification; a group's units are read by no linear map and
            no convolution; there are no batches; an activation is not finite; or `fixed` names no group.
    """
    specification.check(a.state_dict(), "the first network")
    specification.check(b.state_dict(), "the second network")
    frozen = frozen_groups(specification, fixed)
    places = {root: _places(specification, a, root) for root in specification.roots if root not in frozen}
    sums = {place: _Sums() for own in places.values() for place in own}
    with _observed(a, sums) as of_a, _observed(b, sums) as of_b, torch.no_grad():
        for batch in _some(batches, "to match activations on"):
            of_a.clear()
            of_b.clear()
            run(a, batch)
            run(b, batch)
            mask = _mask(batch)
            for place, own in sums.items():
                own.add(_units(place, of_a[place], mask), _units(place, of_b[place], mask))
    arrays = dict(specification.identity())
    for root, seen in places.items():
        similarities: dict[Names, Tensor] = {}
        for place in seen:
            names, similarity = folded(place.segment, sums[place].similarity(by, place.module))
            similarities[names] = similarities[names] + similarity if names in similarities else similarity
        arrays |= solve(root, specification.inner(root), similarities)
    return Permutations(specification, arrays)


def recompute_batch_norm(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace the running statistics of a network's batch norms by those on the given inputs, as the mean over batches.
    What is merged of several networks needs it: the activations of a mean vary less than each network's did (Ainsworth
    et al. 2023; Jordan et al. 2023, "REPAIR", arXiv:2211.08403). Dropout is off.

    Raises:
        WeightsError: the network has no batch norms with statistics, or there are no batches. Then, and where the
            network cannot be run, its statistics are as before.
    """
    norms = [m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    if not norms:
        raise WeightsError("the network has no batch norm whose statistics could be recomputed")
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        recompute_statistics(norms, batches, lambda batch: run(network, batch))
    finally:
        for module, training in modes.items():
            module.training = training


def recompute_statistics(norms: Sequence[Any], batches: Iterable[Batch], passed: Callable[[Batch], Any]) -> None:
    """Replace the running statistics of batch norms by those on the given inputs, as the mean over batches.

    Args:
        norms: the batch norms, of a network in evaluation mode.
        batches: the inputs.
        passed: has the network compute a batch.

    Raises:
        WeightsError: there are no batches. Then, and where the network cannot be run, the statistics are as before.
    """
    modes, momenta = {norm: norm.training for norm in norms}, {norm: norm.momentum for norm in norms}
    before = statistics_of(norms)
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
            norm.train()
        with torch.no_grad():
            for batch in _some(batches, "to compute statistics on"):
                passed(batch)
    except BaseException:
        put_statistics(norms, before)
        raise
    finally:
        for norm in norms:
            norm.momentum, norm.training = momenta[norm], modes[norm]


def statistics_of(norms: Sequence[nn.Module]) -> list[dict[str, Tensor]]:
    """A copy of the statistics of batch norms."""
    return [{name: own.clone() for name, own in norm.named_buffers()} for norm in norms]


def put_statistics(norms: Sequence[nn.Module], statistics: Sequence[Mapping[str, Tensor]]) -> None:
    """Have batch norms have these statistics."""
    for norm, own in zip(norms, statistics, strict=True):
        for name, tensor in own.items():
            norm.get_buffer(name).copy_(tensor)


def run(network: nn.Module, batch: Batch) -> Any:
    """What a network gives for a batch."""
    return network(**batch) if isinstance(batch, Mapping) else network(batch)


def _some(batches: Iterable[Batch], purpose: str) -> Iterator[Batch]:
    """The batches.

    Raises:
        WeightsError: there are none.
    """
    none = True
    for batch in batches:
        none = False
        yield batch
    if none:
        raise WeightsError(f"there are no batches {purpose}", expected="one or more", change="batches")


class _Place(NamedTuple):
    """Where units are seen: at the inputs or outputs of a module.

    Attributes:
        channels: the dimension of units.
    """

    module: str
    output: bool
    channels: int
    segment: Segment


class _Sums:
    """Sums over inputs and places of what similarities are made of."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the activations of two networks, (units, N) each."""
        if x.shape != y.shape:
            raise WeightsError(f"the networks have activations of the shapes {tuple(x.shape)} and {tuple(y.shape)}")
        new = [x @ y.T, x.sum(1), y.sum(1), (x * x).sum(1), (y * y).sum(1)]
        self.sums = [own + more for own, more in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += x.shape[1]

    def similarity(self, by: str, where: str) -> Tensor:
        """(units, units). A unit that is always the same correlates with none."""
        products, x, y, xx, yy = (own / self.count for own in self.sums)
        if not bool(products.isfinite().all()):
            raise WeightsError(f"an activation at module {where!r} is not finite")
        if by == "product":
            return products
        spread = (xx - x * x).clamp(min=0).sqrt()[:, None] * (yy - y * y).clamp(min=0).sqrt()
        return torch.where(
            spread > 0, (products - x[:, None] * y) / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0.0
        )


def _places(specification: Specification, network: nn.Module, root: str) -> list[_Place]:
    """Where a group's units are seen, for each axis that it is along.

    Raises:
        WeightsError: nowhere.
    """
    modules = dict(network.named_modules())
    read: dict[Names, list[_Place]] = {}
    written: dict[Names, list[_Place]] = {}
    for name, segment in specification.along(root):
        path, _, parameter = name.rpartition(".")
        module = modules.get(path)
        if parameter != "weight" or not isinstance(module, (nn.Linear, Conv1D, *CONVOLUTIONS)) or segment.dim > 1:
            continue
        output = (segment.dim == 0) != isinstance(module, Conv1D)
        channels = 1 if isinstance(module, CONVOLUTIONS) else -1
        (written if output else read).setdefault(segment.groups, []).append(_Place(path, output, channels, segment))
    found = [place for names, own in written.items() if names not in read for place in own]
    found += [place for own in read.values() for place in own]
    if not found:
        raise WeightsError(
            f"the units of group {root!r} are read and written by no linear map and no convolution",
            expected="weight matching, or the group among `fixed`",
        )
    return found


@contextmanager
def _observed(network: nn.Module, places: Iterable[_Place]) -> Iterator[dict[_Place, Tensor]]:
    """Inside, the network is in evaluation mode, and what is at the places is kept of each pass."""
    seen: dict[_Place, Tensor] = {}
    modes = {module: module.training for module in network.modules()}
    handles = [network.get_submodule(place.module).register_forward_hook(_keep(seen, place)) for place in places]
    try:
        network.eval()
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training


def _keep(seen: dict[_Place, Tensor], place: _Place) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[place] = output if place.output else inputs[0]

    return hook


def _units(place: _Place, states: Tensor, mask: Tensor | None) -> Tensor:
    """(units, N) of a pass, in float64, without padding."""
    channels = place.channels % states.dim()
    start, size = place.segment.start, place.segment.size
    states = states.narrow(channels, start, size)
    if mask is not None and channels == states.dim() - 1 and states.shape[:2] == mask.shape:
        return states[mask].double().T.cpu()
    return states.movedim(channels, 0).reshape(size, -1).double().cpu()


def _mask(batch: Batch) -> Tensor | None:
    if not isinstance(batch, Mapping) or "decoder_input_ids" in batch or "attention_mask" not in batch:
        return None
    return batch["attention_mask"].bool()
