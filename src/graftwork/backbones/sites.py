"""Sites: named places in a backbone where something can act, under the same names in every family.

A site is a description (name, kind, sizes, the path of the module it stands for); nothing here touches a model.
Wrapping the module at a site's path is the work of `graftwork.grafting`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from graftwork.errors import SiteError, nearest

WORD = "embeddings.word"
"""What the names of the sites of embedding tables end in."""

SiteKind = Literal["stack", "embedding", "linear", "fused", "norm", "result", "attention", "convolution", "module"]
"""What a site is: a whole stack of layers, where rows can enter before the input embeddings; an embedding table; a
linear map; the module behind several linear maps, when one product computes them all; a normalisation; a sub-layer's
output before the residual is added; the attention between its key-value rows and its queries; a convolution; or a
module whose parameters are none of these."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One named place in a backbone.

    Attributes:
        name: canonical name, such as `layers.3.attention.query`.
        kind: what stands there.
        path: dotted path of the module in the Hugging Face model; empty for the model itself.
        stack: `encoder` or `decoder` in a model that has both; empty elsewhere.
        layer: number of the layer it belongs to, counted from 0 at the input; None outside the layers.
        height: how many layers stand above its own, a decoder's above an encoder's; for what comes before the layers,
            all of them; for what comes after, 0.
        in_features, out_features: width of what enters and leaves (the vocabulary size and width for an embedding).
        parameters: shapes of the parameters that are the site's, by their name in the module and as it holds them: the
            module's own, or those that it reads from a module within it without calling that. A linear map that is a
            part of a fused one has none, nor has a table of constants that is never trained.
        owner: the site under whose name those parameters are trained: another one's where both hold the same tensors
            (tied embeddings), else its own.
        columns: which of the module's output columns are this linear map's, from and to; None for all.
        transposed: whether the module holds its weight as (in, out).
        biased: whether a linear map has a bias.
        source: of a result, the linear site whose input is the sub-layer's input.
        follows_residual: of a norm, whether it normalises the sum of a sub-layer's output and its residual.
        heads, head_dim: of an attention, its key-value heads and their width.
        rowwise: whether what enters has a row for each row of the batch, with its features last. Where it has not
            (relative positions, which all rows share; maps of a convolution), all rows of one pass must be treated
            alike.
    """

    name: str
    kind: SiteKind
    path: str
    layer: int | None
    in_features: int
    out_features: int
    stack: str = ""
    height: int = 0
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    owner: str = ""
    columns: tuple[int, int] | None = None
    transposed: bool = False
    biased: bool = False
    source: str | None = None
    follows_residual: bool = False
    heads: int = 0
    head_dim: int = 0
    rowwise: bool = True

    def __post_init__(self) -> None:
        if not self.owner:
            object.__setattr__(self, "owner", self.name)

    @property
    def sublayer(self) -> str:
        """`attention`, `cross_attention` or `ffn` for a site in a layer; the first part of the name elsewhere."""
        parts = self.name.split(".")
        return parts[0] if self.layer is None else parts[parts.index(str(self.layer)) + 1]

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether any of the patterns names the site, as `Sites.match` says."""
        return any(fnmatchcase(self.name, own) for pattern in patterns for own in (pattern, f"*.{pattern}"))


class Sites(Mapping[str, Site]):
    """The sites of one backbone, in the order in which a forward pass meets them.

    Args:
        refusals: kinds of which there are none, and why.
    """

    def __init__(self, sites: Iterable[Site], refusals: Mapping[SiteKind, str] | None = None) -> None:
        self._sites = {site.name: site for site in sites}
        self.refusals: dict[SiteKind, str] = dict(refusals or {})

    def __getitem__(self, name: str) -> Site:
        try:
            return self._sites[name]
        except KeyError:
            raise SiteError(f"no site is named {name!r}", expected=nearest(name, self._sites)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks that have layers, in order: `("encoder", "decoder")`, or `("",)`."""
        return tuple(dict.fromkeys(site.stack for site in self.values() if site.layer is not None))

    @property
    def num_layers(self) -> int:
        """Number of layers L, those of an encoder and a decoder together."""
        return len({(site.stack, site.layer) for site in self.values() if site.layer is not None})

    def of_kind(self, *kinds: SiteKind) -> list[Site]:
        """All sites of the given kinds."""
        return [site for site in self.values() if site.kind in kinds]

    def require(self, *kinds: SiteKind) -> list[Site]:
        """All sites of the given kinds, of which there must be one of each kind.

        Raises:
            SiteError: there is none of some kind; says why.
        """
        for kind in kinds:
            if not self.of_kind(kind):
                raise SiteError(
                    f"this backbone has no {kind} site: {self.refusals.get(kind, 'its layout has none')}",
                    expected=f"a method that acts at sites of kind {' or '.join(sorted(self._kinds()))}",
                    change="--method, or --backbone",
                )
        return self.of_kind(*kinds)

    def without(self, names: Collection[str]) -> "Sites":
        """The same sites less the named ones."""
        return Sites((site for site in self.values() if site.name not in names), self.refusals)

    def match(self, patterns: Iterable[str], kind: SiteKind, setting: str = "targets") -> list[Site]:
        """The sites of one kind that match any of the patterns, in site order.

        A pattern is a site's name, or the end of one from a dot on (`attention.query`, `query`), and may hold the
        wildcards of file names (`layers.*.attention.*`, `layers.[0-3].ffn.up`).

        Args:
            setting: of the method, which the patterns are.

        Raises:
            SiteError: there is no site of this kind, says why; or a pattern matches none, which is named with the
                nearest sites.
        """
        candidates = self.require(kind)
        chosen: set[str] = set()
        for pattern in patterns:
            found = {site.name for site in candidates if site.matches([pattern])}
            if not found:
                other = {site.kind for site in self.values() if site.matches([pattern])}
                why = f"it names sites of kind {', '.join(sorted(other))}" if other else "no site has that name"
                raise SiteError(
                    f"site pattern {pattern!r} matches no {kind} site: {why}",
                    expected=nearest(pattern, [s.name for s in candidates]),
                    change=f"--method.{setting}",
                )
            chosen |= found
        return [site for site in candidates if site.name in chosen]

    def _kinds(self) -> set[SiteKind]:
        return {site.kind for site in self.values()}
