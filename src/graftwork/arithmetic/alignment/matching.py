"""Weight matching: the permutations of one network's units that bring its weights nearest to another's (Ainsworth et
al. 2023, "Git Re-Basin", arXiv:2209.04836, PermutationCoordinateDescent); and the merge of many (MergeMany).

    argmax_P Σ_t ⟨A_t, P(B)_t⟩, which is argmin_P ‖A − P(B)‖².

Coordinate descent: of each group in turn, in random order, the best permutation with the others as they are, until
nothing grows. Each is a linear assignment; of attention heads, an assignment of assignments.
"""

import string
from collections.abc import Collection, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from graftwork.arithmetic.alignment.assignment import Names, solve, value_of
from graftwork.arithmetic.alignment.permutations import Permutations, Segment, Specification
from graftwork.arithmetic.alignment.settings import MatchingSettings
from graftwork.arithmetic.values.roles import STATISTICS
from graftwork.errors import WeightsError, nearest

GAIN = 1e-12
"""A permutation is replaced where the similarity grows by more than this, relative to its size."""


def weight_matching(
    specification: Specification,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    settings: MatchingSettings | None = None,
    begin: Permutations | None = None,
) -> Permutations:
    """The permutations of `b` that bring it nearest to `a`. Buffers (the statistics of batch norms) are moved with
    their units and do not count.

    Args:
        specification: what moves together.
        a: the network that stays as it is.
        b: the network whose units are permuted.
        settings: see there.
        begin: permutations to go on from, in the place of `start`.

    Raises:
        WeightsError: the tensors are not those of the specification; one of them is not finite; or `fixed` names no
            group.
    """
    settings = settings or MatchingSettings()
    specification.check(a, "the first network")
    specification.check(b, "the second network")
    matcher = _Matcher(specification, a, b, frozen_groups(specification, settings.fixed))
    now = begin or (matcher.spread() if settings.start == "spread" else specification.identity())
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.rounds):
        before = now
        for place in torch.randperm(len(matcher.roots), generator=generator).tolist():
            now = matcher.improved(now, matcher.roots[place])
        if now is before:
            break
    return now


def merge_many(
    specification: Specification,
    networks: Sequence[Mapping[str, Tensor]],
    *,
    settings: MatchingSettings | None = None,
) -> tuple[dict[str, Tensor], list[Permutations]]:
    """The mean of several networks, each matched to the mean of the others (MergeMany). It has its units
    in the order of the first, which stays as it is.

    Args:
        specification: what moves together.
        networks: two or more.
        settings: of each match; `rounds` is also the maximum number of times that every network is matched.

    Returns:
        The mean of the permuted networks, and the permutations of each.

    Raises:
        WeightsError: as `weight_matching`; or there are fewer than two networks.
    """
    settings = settings or MatchingSettings()
    if len(networks) < 2:
        raise WeightsError(f"{len(networks)} network is given to be merged", expected="two or more")
    found = [specification.identity()] * len(networks)
    now = [dict(network) for network in networks]
    generator = torch.Generator().manual_seed(settings.seed)
    # Of two, it is enough to match the second.
    movable = range(len(networks)) if len(networks) > 2 else [1]
    for done in range(settings.rounds):
        moved = False
        for place in torch.randperm(len(movable), generator=generator).tolist():
            i = movable[place]
            others = mean([own for j, own in enumerate(now) if j != i])
            begin = found[i] if done else None
            matched = weight_matching(specification, others, networks[i], settings=settings, begin=begin)
            moved |= matched != found[i]
            found[i], now[i] = matched, matched.apply(networks[i])
        if not moved:
            break
    back = found[0].inverse()
    return back.apply(mean(now)), [own.then(back) for own in found]


def mean(networks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor, computed in float32 or wider; of integers (counters), the first network's."""
    found = {}
    for name, first in networks[0].items():
        if not first.is_floating_point():
            found[name] = first.clone()
            continue
        wide = torch.promote_types(first.dtype, torch.float32)
        total = sum((own[name].to(wide) for own in networks[1:]), first.to(wide))
        found[name] = (total / len(networks)).to(first.dtype)
    return found


def frozen_groups(specification: Specification, fixed: Collection[str]) -> frozenset[str]:
    """Names of groups that are not to be moved.

    Raises:
        WeightsError: one is not the name of a group that stands by itself.
    """
    for name in fixed:
        if name not in specification.roots:
            raise WeightsError(
                f"{name!r} is no group of units that can be fixed",
                expected=nearest(name, specification.roots),
                change="--method.fixed",
            )
    return frozenset(fixed)


def similarities_of(segment: Segment, a: Tensor, b: Tensor) -> tuple[Names, Tensor]:
    """The similarities of the units along a part of an axis: sums of products over all other axes, and over entries of
    fixed order.

    Args:
        a, b: (size, …), the parts.

    Returns:
        The groups along the axis, and a tensor of their sizes, once for each network.
    """
    first, second, out = _letters(segment)
    x, y = (tensor.double().reshape(*(factor.size for factor in segment.factors), -1) for tensor in (a, b))
    return segment.groups, torch.einsum(f"{first}z,{second}z->{out}", x, y)


def folded(segment: Segment, S: Float[Tensor, "n n"]) -> tuple[Names, Tensor]:
    """The same of similarities of the entries of an axis."""
    first, second, out = _letters(segment)
    shape = [factor.size for factor in segment.factors]
    return segment.groups, torch.einsum(f"{first}{second}->{out}", S.reshape(*shape, *shape))


def _letters(segment: Segment) -> tuple[str, str, str]:
    """The dimensions of one network, of the other, and of their similarities: an entry of fixed order has the same
    letter in both, and is summed over."""
    first = string.ascii_lowercase[: len(segment.factors)]
    pairs = list(zip(first, segment.factors, strict=True))
    second = "".join(letter if factor.group is None else letter.upper() for letter, factor in pairs)
    kept = "".join(letter for letter, factor in pairs if factor.group is not None)
    return first, second, kept + kept.upper()


class _Matcher:
    """The weights of two networks, and which of them tell of which group."""

    def __init__(
        self,
        specification: Specification,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        fixed: frozenset[str],
    ) -> None:
        self.specification, self.fixed = specification, fixed
        owners = owners_of({name: a[name] for name in specification.segments if tells(name, a[name])})
        told = [name for name, owner in owners.items() if name == owner]
        for what, own in (("first", a), ("second", b)):
            for name in told:
                if not bool(own[name].isfinite().all()):
                    raise WeightsError(f"tensor {name!r} of the {what} network has a number that is not finite")
        self.a, self.b = ({name: own[name].detach().cpu() for name in told} for own in (a, b))
        self.roots = [name for name in specification.roots if name not in fixed]
        self.terms = {
            root: [(name, segment) for name, segment in specification.along(root) if name in self.a]
            for root in self.roots
        }

    def spread(self) -> Permutations:
        """Each group matched once, by the tensors whose other axes are in order, from those that are fixed on."""
        now = self.specification.identity()
        left = list(self.roots)
        while left:
            shares = {root: self._known_share(root, left) for root in left}
            root = max(left, key=lambda name: (shares[name], -left.index(name)))
            known = [term for term in self.terms[root] if self._is_known(term, left)]
            if known:
                found = solve(root, self.specification.inner(root), self._similarities(now, known))
                now = self._replaced(now, found)
            left.remove(root)
        return now

    def improved(self, now: Permutations, root: str) -> Permutations:
        """With the best permutation of a group, with the others as they are; the same where that is no better."""
        similarities = self._similarities(now, self.terms[root])
        found = solve(root, self.specification.inner(root), similarities)
        before, after = (value_of(similarities, own) for own in (now, found))
        if after - before <= GAIN * max(1.0, abs(before)):
            return now
        new = self._replaced(now, found)
        return new if self._is_linear(root) or self._total(new, root) > self._total(now, root) else now

    def _similarities(self, now: Permutations, terms: Sequence[tuple[str, Segment]]) -> dict[Names, Tensor]:
        found: dict[Names, Tensor] = {}
        for name, segment in terms:
            moved = now.permute(name, self.b[name], but=segment)
            names, own = similarities_of(segment, segment.part(self.a[name]), segment.part(moved))
            found[names] = found[names] + own if names in found else own
        return found

    def _replaced(self, now: Permutations, found: Mapping[str, Tensor]) -> Permutations:
        return Permutations(self.specification, {**now, **found})

    def _is_linear(self, root: str) -> bool:
        """Whether no tensor has the group along two axes, so that its similarity is linear in the permutation."""
        names = [name for name, _ in self.terms[root]]
        parts = {name: {segment.dim for other, segment in self.terms[root] if other == name} for name in names}
        return all(len(dims) == 1 for dims in parts.values())

    def _total(self, now: Permutations, root: str) -> float:
        """The similarity of all tensors along a group."""
        names = dict.fromkeys(name for name, _ in self.terms[root])
        return sum(float((self.a[name].double() * now.permute(name, self.b[name]).double()).sum()) for name in names)

    def _is_known(self, term: tuple[str, Segment], left: Sequence[str]) -> bool:
        """Whether the other axes of a tensor are in order."""
        name, segment = term
        others = [other for other in self.specification.segments[name] if other.dim != segment.dim]
        return not any(group in left for other in others for group in other.groups)

    def _known_share(self, root: str, left: Sequence[str]) -> float:
        """The share of the entries along a group that are in tensors whose other axes are in order."""
        sizes = [(self.a[term[0]].numel(), self._is_known(term, left)) for term in self.terms[root]]
        return sum(size for size, known in sizes if known) / max(1, sum(size for size, _ in sizes))


def owners_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """By name of each tensor, the first name of those that are tied to it."""
    held: dict[tuple[object, ...], str] = {}
    together = dict(tensors)  # what is read and let go one by one may be in one place of memory
    return {name: held.setdefault((own.data_ptr(), own.shape, own.stride()), name) for name, own in together.items()}


def tells(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is trained, and tells which units are alike: not the running statistics of a batch norm, nor
    counters."""
    return tensor.is_floating_point() and not name.endswith(STATISTICS)
