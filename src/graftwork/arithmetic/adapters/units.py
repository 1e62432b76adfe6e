"""Units of bottlenecks: which unit of one bottleneck does what which unit of another one does.

σ acts on each unit by itself, so that a bottleneck U σ(D x + b) computes the same when its units stand in another
order: D and b by rows, U by columns (Ainsworth et al. 2023, "Git Re-Basin", arXiv:2209.04836, within a
bottleneck). Two bottlenecks that began differently have their units in different orders, and their mean is that of
units that have nothing to do with each other; with the units of one permuted to match, it is not.

Where a bottleneck has further hidden maps, each of its layers has a permutation of its own, and they are matched in
turn until none changes. Several bottlenecks are matched to the mean of the others in turn.

Shapes: down (m, d), down_bias (m), hidden (n, m, m), hidden_bias (n, m), up (d, m).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ROUNDS = 100
"""After so many rounds a matching is taken as it is."""

BETTER = 1e-12
"""By so much, relative to all products, a matching has to be better than the one before to take its place."""

Bottleneck = dict[str, Tensor]
"""The tensors of one bottleneck by their last name."""

Permutations = list[Tensor]
"""For each layer of units, the unit of a bottleneck that is to stand at each place."""


def matched(bottlenecks: Sequence[Mapping[str, Tensor]]) -> list[Bottleneck]:
    """Several bottlenecks with their units permuted so that they match. Each computes what it did before.

    Args:
        bottlenecks: the tensors of each, by their last name; the same names and shapes.

    Returns:
        The same tensors; those of the first are as they were unless there are more than two.
    """
    found: list[Bottleneck] = [dict(one) for one in bottlenecks]
    order = [*range(1, len(found)), 0] if len(found) > 2 else range(1, len(found))
    for _ in range(ROUNDS):
        changed = False
        for i in order:
            others = [one for j, one in enumerate(found) if j != i]
            target = {name: torch.stack([one[name] for one in others]).double().mean(dim=0) for name in found[i]}
            permutations = _matching(target, found[i])
            if any(not torch.equal(own, torch.arange(len(own))) for own in permutations):
                found[i], changed = permuted(found[i], permutations), True
        if not changed:
            break
    return found


def permuted(bottleneck: Mapping[str, Tensor], permutations: Permutations) -> Bottleneck:
    """A bottleneck that computes the same, with its units in another order.

    Args:
        bottleneck: its tensors by their last name.
        permutations: of each layer of units, (m).
    """
    found = dict(bottleneck)
    first, last = permutations[0], permutations[-1]
    found["down"], found["down_bias"] = found["down"][first], found["down_bias"][first]
    found["up"] = found["up"][:, last]
    if "hidden" in found:
        pairs = list(zip(permutations[1:], permutations[:-1], strict=True))
        found["hidden"] = torch.stack(
            [w[after][:, before] for w, (after, before) in zip(found["hidden"], pairs, strict=True)]
        )
        found["hidden_bias"] = torch.stack(
            [b[after] for b, (after, _) in zip(found["hidden_bias"], pairs, strict=True)]
        )
    return found


def _matching(target: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Permutations:
    """The permutations of one's units under which the sum of products with the target's weights is largest, in a local
    sense where there are several layers of units."""
    from scipy.optimize import linear_sum_assignment

    layers, m = 1 + len(own.get("hidden", ())), len(own["down"])
    found = [torch.arange(m) for _ in range(layers)]
    size = sum(float(tensor.double().square().sum()) for tensor in own.values())
    for _ in range(ROUNDS):
        changed = False
        for layer in range(layers):
            profit = _profit(target, own, found, layer)
            _, columns = linear_sum_assignment(profit.numpy(), maximize=True)
            new = torch.from_numpy(columns)
            places = torch.arange(m)
            gain = float(profit[places, new].sum() - profit[places, found[layer]].sum())
            if gain > BETTER * max(size, torch.finfo(torch.float64).tiny):
                found[layer], changed = new, True
        if not changed:
            break
    return found


def _profit(target: Mapping[str, Tensor], own: Mapping[str, Tensor], permutations: Permutations, layer: int) -> Tensor:
    """(m, m): for each place in the target and each own unit, the sum of the products of their weights."""
    pairs: list[tuple[Tensor, Tensor]] = []
    if layer == 0:
        pairs.append((target["down"], own["down"]))
        pairs.append((target["down_bias"][:, None], own["down_bias"][:, None]))
    else:
        pairs.append((target["hidden"][layer - 1], own["hidden"][layer - 1][:, permutations[layer - 1]]))
        pairs.append((target["hidden_bias"][layer - 1][:, None], own["hidden_bias"][layer - 1][:, None]))
    if layer == len(permutations) - 1:
        pairs.append((target["up"].T, own["up"].T))
    else:
        pairs.append((target["hidden"][layer].T, own["hidden"][layer][permutations[layer + 1]].T))
    return torch.stack([one.double() @ other.double().T for one, other in pairs]).sum(dim=0)
