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
"""The kinds of site: a `stack` of layers, where prompts are put before the input embeddings; an `embedding` table; a
`linear` map; a `fused` linear layer that computes several linear maps; a `norm`; the `result` of a sub-layer, before
the residual is added; an `attention`, where prefixes are put before keys and values; a `convolution`; or another
`module` with parameters."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """One named place in a backbone.

    Attributes:
        name: canonical name, such as `layers.3.attention.query`.
        kind: kind of site.
        path: dotted path of the module in the Hugging Face model; empty for the model itself.
        stack: `encoder` or `decoder` if the model has both; empty otherwise.
        layer: number of the layer, counted from 0 at the input; None outside the layers.
        height: number of layers above this site's layer, where a decoder is above its encoder. Before the layers, the
            number of all layers; after them, 0.
        in_features: size of the input (for an embedding, of the vocabulary).
        out_features: size of the output.
        parameters: shapes of the site's parameters, by name in the module and in its layout: the module's own, or those
            of a submodule that it uses without calling it. Linear maps in a fused layer have none; nor have tables of
            constants.
        owner: the site under whose name the parameters are trained: another site if both have the same tensors (tied
            embeddings), otherwise this one.
        columns: first and last-plus-one output column of the module that belong to this linear map; None: all.
        transposed: whether the module stores its weight as (in, out).
        biased: whether a linear map has a bias.
        source: for a result, the linear site whose input is the input of the sub-layer.
        follows_residual: for a norm, whether it normalises the sum of a sub-layer's output and the residual.
        heads: for an attention, the number of key-value heads.
        head_dim: for an attention, the size of a head.
        rowwise: whether the input has one row per row of the batch, with the features last. If not (relative positions,
            which all rows share; maps of a convolution), all rows of a pass must use the same adapter there.
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
        """For a site in a layer, `attention`, `cross_attention` or `ffn`; otherwise the first part of its name."""
        parts = self.name.split(".")
        return parts[0] if self.layer is None else parts[parts.index(str(self.layer)) + 1]

    def matches(self, patterns: Iterable[str]) -> bool:
        """Whether any of the patterns matches the site's name; see `Sites.match`."""
        return any(fnmatchcase(self.name, own) for pattern in patterns for own in (pattern, f"*.{pattern}"))


class Sites(Mapping[str, Site]):
    """The sites of a backbone by name, in the order of a forward pass.

    Args:
        sites: the sites.
        refusals: kinds of site that the backbone does not have, each with the reason.
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
        """The names of the stacks with layers, in order: `("encoder", "decoder")`, or `("",)` if there is only one."""
        return tuple(dict.fromkeys(site.stack for site in self.values() if site.layer is not None))

    @property
    def num_layers(self) -> int:
        """Number of layers L, of encoder and decoder together."""
        return len({(site.stack, site.layer) for site in self.values() if site.layer is not None})

    def of_kind(self, *kinds: SiteKind) -> list[Site]:
        """All sites of the given kinds."""
        return [site for site in self.values() if site.kind in kinds]

    def require(self, *kinds: SiteKind) -> list[Site]:
        """All sites of the given kinds.

        Raises:
            SiteError: there is no site of one of the kinds; gives the reason.
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
        """The sites except those with the given names."""
        return Sites((site for site in self.values() if site.name not in names), self.refusals)

    def match(self, patterns: Iterable[str], kind: SiteKind, setting: str = "targets") -> list[Site]:
        """The sites of one kind that match any of the patterns, in order.

        A pattern is the name of a site or its end after a dot (`attention.query`, `query`), and may contain the
        wildcards of file names (`layers.*.attention.*`, `layers.[0-3].ffn.up`).

        Args:
            patterns: the patterns.
            kind: the kind of site.
            setting: the method's setting that holds the patterns, for error messages.

        Raises:
            SiteError: there is no site of this kind; or a pattern matches none: names it and the nearest sites.
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
