"""Families: a table from canonical site names to module paths, and the reader that finds a model's sites with it.

Everything that is specific to a Hugging Face class is in such a table, one file per family.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch.nn as nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from graftwork.backbones.families.symmetries import Symmetries
from graftwork.backbones.sites import Site, SiteKind, Sites
from graftwork.errors import BackboneError

Part = Literal["query", "key", "value", "first", "second"]
"""The columns of a fused linear layer that belong to one linear map: queries, keys, values, or one half."""

SOURCES = {
    "attention.result": "attention.query",
    "cross_attention.result": "cross_attention.query",
    "ffn.result": "ffn.up",
}
"""For each sub-layer's result, the linear map that reads the input of the sub-layer."""


@dataclass(frozen=True)
class Entry:
    """Where the module of a site is, and what it is.

    Attributes:
        kind: the kind of site.
        path: path of the module, relative to the layer in a layer's table, and else to the model without its task head.
            If several paths are given, the first that exists in the model is used.
        required: whether every model of the family has the site.
        part: for a linear map in a fused linear layer, the columns that belong to it.
        follows_residual: for a norm, whether it normalises the sum of a sub-layer's output and the residual.
        reads: names of parameters of submodules that the module uses without calling the submodules. If there are any,
            the site has these parameters and no others.
        rowwise: whether the module's input has one row per row of the batch.
        source: for a result, the linear map whose input is the input of the sub-layer. None: the usual one.
    """

    kind: SiteKind
    path: str | tuple[str, ...]
    required: bool = True
    part: Part | None = None
    follows_residual: bool = False
    reads: tuple[str, ...] = ()
    rowwise: bool = True
    source: str | None = None

    def paths(self, start: str = "") -> list[str]:
        """All paths where the module may be.

        Args:
            start: a prefix for each path.
        """
        return [start + path for path in ([self.path] if isinstance(self.path, str) else self.path)]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Consecutive layers that have the same layout.

    Attributes:
        name: `encoder` or `decoder` if the model has both, else empty. Site names begin with it.
        path: path of the module of the whole stack; empty for the model itself.
        layers: path of a layer, with `*` for its number. If layers come in groups, one `*` for the group and one for
            the layer; layers are then numbered from 0 over all groups.
        before: canonical names and entries of the sites before the layers, in the order of a forward pass.
        layer: the same for each layer. Names are relative to `layers.{i}.`.
        after: the same for the sites after the layers.
        prompts: whether prompts can be put before the input embeddings.
    """

    name: str = ""
    path: str = ""
    layers: str
    before: Mapping[str, Entry] = field(default_factory=dict)
    layer: Mapping[str, Entry]
    after: Mapping[str, Entry] = field(default_factory=dict)
    prompts: bool = True

    def entries(self) -> Iterator[tuple[str, Entry, bool]]:
        """Each name with its entry, and whether it is in every layer."""
        for table, layered in ((self.before, False), (self.layer, True), (self.after, False)):
            for name, entry in table.items():
                yield name, entry, layered

    def layer_paths(self, model: nn.Module, start: str = "") -> list[str]:
        """The paths of the layers of a model, in order.

        Args:
            start: path of the model without its task head, followed by a dot; or empty.
        """
        paths = [start.rstrip(".")]
        for part in self.layers.split("."):
            if part == "*":
                paths = [f"{path}.{i}" for path in paths for i in _numbers(model, path)]
            else:
                paths = [f"{path}.{part}".lstrip(".") for path in paths]
        return paths


@dataclass(frozen=True, kw_only=True)
class Family:
    """Model types that share a layout.

    Attributes:
        name: the family's name in messages.
        model_types: the `model_type` values that the table was written and tested for.
        stacks: the stacks, in the order of a forward pass.
        before: canonical names and entries of sites outside the stacks, such as shared embeddings.
        causal: whether each token attends only to itself and earlier tokens, so that the last one has seen the whole
            text.
        refusals: kinds of site that these models do not have, each with the reason, which is shown to users of a method
            that needs them.
        symmetries: which units can be put in another order without a change of what the model computes. None: it is not
            known.
        note: what is special about these models, for users.
    """

    name: str
    model_types: frozenset[str]
    stacks: tuple[Stack, ...]
    before: Mapping[str, Entry] = field(default_factory=dict)
    causal: bool = False
    refusals: Mapping[SiteKind, str] = field(default_factory=dict)
    symmetries: Symmetries | None = None
    note: str = ""

    def missing(self, model: PreTrainedModel) -> list[str]:
        """The required paths that do not exist in the model; empty if the layout fits."""
        prefix = base_path(model)
        wanted = [(entry, prefix) for entry in self.before.values()]
        for stack in self.stacks:
            layers = stack.layer_paths(model, prefix)
            first = layers[0] if layers else prefix + stack.layers.replace("*", "0")
            wanted += [(entry, f"{first}." if layered else prefix) for _, entry, layered in stack.entries()]
        places = [entry.paths(start) for entry, start in wanted if entry.required]
        return [paths[0] for paths in places if not any(has_module(model, path) for path in paths)]

    @property
    def num_required(self) -> int:
        """Number of required paths; `missing` lists those that do not exist in a model."""
        entries = [*self.before.values(), *(entry for stack in self.stacks for _, entry, _ in stack.entries())]
        return sum(entry.required for entry in entries)

    def sites(self, model: PreTrainedModel) -> Sites:
        """The sites of a model, each checked against its module.

        Raises:
            BackboneError: the module of a required site is missing; or a parameter of the model belongs to no site.
        """
        reader = SiteReader(model, self)
        for name, entry in self.before.items():
            reader.read(name, entry)
        for stack in self.stacks:
            reader.read_stack(stack)
        return reader.finish()


class SiteReader:
    """Finds the sites of one model, entry by entry."""

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        self.model = model
        self.family = family
        self.prefix = base_path(model)
        self.found: list[Site] = []
        self._owners: dict[int, str] = {}

    def read_stack(self, stack: Stack) -> None:
        """Find all sites of a stack."""
        start = f"{stack.name}." if stack.name else ""
        if stack.prompts:
            # Rows enter where the tokens' embeddings do, which may be narrower than the layers.
            word: Any = self.model.get_submodule(self.prefix + stack.before["embeddings.word"].paths()[0])
            width = int(word.weight.shape[1])
            path = (self.prefix + stack.path).rstrip(".")
            self.found.append(
                Site(
                    name=f"{start}input",
                    kind="stack",
                    path=path,
                    stack=stack.name,
                    layer=None,
                    in_features=width,
                    out_features=width,
                )
            )
        for name, entry in stack.before.items():
            self.read(start + name, entry, stack)
        for i, path in enumerate(stack.layer_paths(self.model, self.prefix)):
            for name, entry in stack.layer.items():
                self.read(f"{start}layers.{i}.{name}", entry, stack, i, f"{path}.")
        for name, entry in stack.after.items():
            self.read(start + name, entry, stack)

    def read(
        self, name: str, entry: Entry, stack: Stack | None = None, layer: int | None = None, start: str | None = None
    ) -> None:
        """Find one site, if the model has it.

        Args:
            start: prefix of its path; by default that of the model without its task head.

        Raises:
            BackboneError: the site is required, and its module does not exist.
        """
        paths = entry.paths(self.prefix if start is None else start)
        path = next((path for path in paths if self._stands(path, entry)), None)
        if path is None:
            if entry.required:
                kind = type(self.model).__name__
                raise BackboneError(f"site {name!r} should be at {paths[0]!r}, where {kind} has no module")
            return
        module = self.model.get_submodule(path)
        own = {n: module.get_parameter(n) for n in entry.reads} or dict(module.named_parameters(recurse=False))
        if entry.part or entry.kind in ("result", "attention"):
            own_here: dict[str, nn.Parameter] = {}
        else:
            own_here = own
        if entry.kind in ("linear", "fused", "embedding", "norm", "convolution") and "weight" not in own:
            raise BackboneError(f"the module at {path!r} has no weight, so it cannot be {entry.kind} site {name!r}")
        width = hidden_size(self.model.config)
        site = Site(
            name=name,
            kind=entry.kind,
            path=path,
            stack=stack.name if stack else "",
            layer=layer,
            in_features=width,
            out_features=width,
            parameters={n: tuple(p.shape) for n, p in own_here.items() if not _computed(module)},
            follows_residual=entry.follows_residual,
            rowwise=entry.rowwise,
        )
        if entry.kind in ("linear", "fused"):
            transposed = isinstance(module, Conv1D)
            into, out = own["weight"].shape if transposed else reversed(own["weight"].shape)
            columns = None if entry.part is None else _columns(entry.part, out, self._head_sizes(stack))
            if columns is not None:
                out = columns[1] - columns[0]
            site = replace(
                site,
                in_features=into,
                out_features=out,
                columns=columns,
                transposed=transposed,
                biased=own.get("bias") is not None,
            )
        elif entry.kind == "embedding":
            site = replace(site, in_features=own["weight"].shape[0], out_features=own["weight"].shape[1])
        elif entry.kind == "convolution":
            convolution: Any = module
            site = replace(site, in_features=convolution.in_channels, out_features=convolution.out_channels)
        elif entry.kind == "norm":
            size = own["weight"].shape[0]
            site = replace(site, in_features=size, out_features=size)
        elif entry.kind == "attention":
            heads, key_value_heads, dim = self._head_sizes(stack)
            site = replace(site, heads=key_value_heads, head_dim=dim, in_features=heads * dim, out_features=heads * dim)
        elif entry.kind == "result":
            suffix = next(end for end in SOURCES if name.endswith(end))
            site = replace(site, source=name.removesuffix(suffix) + (entry.source or SOURCES[suffix]))
        for parameter, tensor in own_here.items():
            owner = self._owners.setdefault(id(tensor), name)
            if owner != name and parameter == "weight":
                site = replace(site, owner=owner)
        self.found.append(site)

    def _stands(self, path: str, entry: Entry) -> bool:
        """Whether the module that an entry describes is at a path. `nn.Identity` counts as absent, except for a result,
        which is the output of any module.
        """
        if not has_module(self.model, path):
            return False
        module = self.model.get_submodule(path)
        if entry.reads:
            return all(has_module(module, name.rpartition(".")[0]) for name in entry.reads)
        return entry.kind == "result" or not isinstance(module, nn.Identity)

    def finish(self) -> Sites:
        """The sites in order, with their heights.

        Raises:
            BackboneError: a parameter belongs to no site.
        """
        if has_module(self.model, "lm_head"):
            self.prefix = ""
            self.read("lm_head", Entry("linear", "lm_head"))
        stray = sorted(name for name, tensor in self.model.named_parameters() if id(tensor) not in self._owners)
        if stray:
            raise BackboneError(
                f"parameters of {type(self.model).__name__} have no site in the {self.family.name} layout: "
                + ", ".join(stray[:5]),
                expected="every parameter of the model at a site",
                change="the family's table in graftwork/backbones/families",
            )
        depths: dict[str, int] = {}
        for site in self.found:
            if site.layer is not None:
                depths[site.stack] = site.layer + 1
        total, below = sum(depths.values()), 0
        starts: dict[str, int] = {}
        for stack, depth in depths.items():
            starts[stack], below = below, below + depth
        sites: list[Site] = []
        met: set[str] = set()
        for site in self.found:
            if site.layer is not None:
                met.add(site.stack)
                height = total - 1 - starts[site.stack] - site.layer
            elif site.stack in starts:
                height = total - starts[site.stack] - (depths[site.stack] if site.stack in met else 0)
            else:
                height = 0 if met else total
            sites.append(replace(site, height=height))
        return Sites(sites, self.family.refusals)

    def _head_sizes(self, stack: Stack | None) -> tuple[int, int, int]:
        """Number of query heads, number of key-value heads, and head size in a stack."""
        return head_sizes(self.model.config, stack.name if stack else "")


def head_sizes(config: PretrainedConfig, stack: str = "") -> tuple[int, int, int]:
    """Number of query heads, number of key-value heads, and head size, from a configuration."""
    heads = getattr(config, f"{stack}_attention_heads", None) or config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or getattr(config, "d_kv", None) or config.hidden_size // heads
    return int(heads), int(key_value_heads), int(dim)


def hidden_size(config: PretrainedConfig) -> int:
    """Width of the residual stream. In a convolutional network, where it grows, its last width."""
    return int(config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size)


def base_path(model: PreTrainedModel) -> str:
    """The path of the model without its task head, followed by a dot; empty if that is the model itself."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def has_module(model: nn.Module, path: str) -> bool:
    """Whether a path leads to a module."""
    try:
        return model.get_submodule(path) is not None
    except AttributeError:
        return False


def _numbers(model: nn.Module, path: str) -> range:
    """The indices of the modules in the list at a path; empty if there is no list."""
    return range(len(list(model.get_submodule(path).children()))) if has_module(model, path) else range(0)


def _computed(module: nn.Module) -> bool:
    """Whether an embedding table is computed and never trained, by the name that transformers gives such classes."""
    return "Sinusoidal" in type(module).__name__


def _columns(part: Part, out: int, sizes: tuple[int, int, int]) -> tuple[int, int]:
    heads, key_value_heads, dim = sizes
    query, key = heads * dim, key_value_heads * dim
    return {
        "query": (0, query),
        "key": (query, query + key),
        "value": (query + key, query + 2 * key),
        "first": (0, out // 2),
        "second": (out // 2, out),
    }[part]
