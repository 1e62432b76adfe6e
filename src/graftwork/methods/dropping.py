"""AdapterDrop: the layers in which a bottleneck method does not act, the first ones of each stack.

Rücklé et al. 2021, "AdapterDrop", arXiv:2010.11918, section 3: their number n is fixed (specialised), or drawn in each
pass of training (robust). L is the number of a stack's layers.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from graftwork.backbones import Site
from graftwork.errors import MethodError


def depths(sites: Sequence[Site]) -> dict[str, int]:
    """L, by stack."""
    found: dict[str, int] = {}
    for site in sites:
        if site.layer is not None:
            found[site.stack] = max(found.get(site.stack, 0), 1 + site.layer)
    return found


def from_layer(sites: Sequence[Site], first: Mapping[str, int]) -> Iterator[Site]:
    """The sites less those of each stack's first layers and, unless none is left out, those before its layers."""
    begun: set[str] = set()
    for site in sites:
        start = first.get(site.stack, max(first.values(), default=0))
        if site.layer is not None and site.layer >= start:
            begun.add(site.stack)
        if start == 0 or (site.stack in begun if site.layer is None else site.layer >= start):
            yield site


def drawn(sites: Sequence[Site]) -> Iterator[Site]:
    """The sites of one pass of training: n is drawn from 0..L-1, of each stack the same share of its L."""
    share = float(torch.rand(()))  # below 1
    yield from from_layer(sites, {stack: int(share * layers) for stack, layers in depths(sites).items()})


def check_dropping(method: str, before: Sequence[Site], after: Sequence[Site], *, skipped: int, robust: bool) -> None:
    """Refuse to leave out a whole stack, and to draw where there is nothing to draw.

    Args:
        before, after: where bottlenecks act, and where they do without the skipped layers.
        skipped: n.

    Raises:
        MethodError: none of a stack's layers is left; or the layers to draw from are one.
    """
    layers, left = depths(before), depths(after)
    for stack in sorted(layers.keys() - left.keys()):
        raise MethodError(
            f"skip_layers={skipped} leaves {method!r} no layer{stack and f' of the {stack}'} to act in",
            expected=f"fewer than its {layers[stack]} layers",
            change="--method.skip_layers",
        )
    if robust and max(left.values()) == 1:
        raise MethodError(
            "robust_drop has no layers to leave out: the backbone has only one (ALBERT shares it among all depths)",
            expected="robust_drop false",
            change="--method.robust_drop",
        )
