"""Families: tables from canonical site names to module paths of Hugging Face models. All such paths stand here.

A family is a layout, not a class: a model belongs to the first family whose required paths all exist in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

import torch.nn as nn

from graftwork.backbones.sites import Site, SiteKind, Sites
from graftwork.errors import BackboneError


@dataclass(frozen=True)
class Entry:
    """Where a site is found: its kind, the module's path (`{i}` is the layer), and whether every member has it."""

    kind: SiteKind
    path: str
    required: bool = True


@dataclass(frozen=True)
class Family:
    """A group of model types with one layout.

    Attributes:
        name: how messages call the family.
        layers: path of the list of layers.
        before, layer, after: canonical names to entries, before the layers, in each layer (names are relative to
            `layers.{i}.`), and after them, in the order of a forward pass.
        pooler: canonical name of the site of the pooling layer, when the layout has one.
    """

    name: str
    layers: str
    before: Mapping[str, Entry]
    layer: Mapping[str, Entry]
    after: Mapping[str, Entry]
    pooler: str = "pooler"

    def missing(self, model: nn.Module) -> list[str]:
        """The required paths that the model lacks; empty when the layout fits."""
        if not _has(model, f"{self.layers}.0"):
            return [f"{self.layers}.0"]
        entries = [*self.before.values(), *self.layer.values(), *self.after.values()]
        paths = [entry.path.format(i=0) for entry in entries if entry.required]
        return [path for path in paths if not _has(model, path)]

    def sites(self, model: nn.Module, hidden_size: int) -> Sites:
        """The model's sites, each checked against the module that stands there.

        Raises:
            BackboneError: parameters of the model belong to no site, so that "all parameters" would not be all.
        """
        sites = [_site(model, name, entry, None, hidden_size) for name, entry in self.before.items()]
        for i in count():
            if not _has(model, f"{self.layers}.{i}"):
                break
            sites += [_site(model, f"layers.{i}.{n}", p, i, hidden_size) for n, p in self.layer.items()]
        sites += [_site(model, name, entry, None, hidden_size) for name, entry in self.after.items()]
        found = Sites(site for site in sites if site is not None)
        owned = {f"{site.path}.{name}" for site in found.values() for name in site.parameters}
        stray = sorted(name for name, _ in model.named_parameters() if name not in owned)
        if stray:
            raise BackboneError(
                f"parameters of {type(model).__name__} have no site in the {self.name} layout: {', '.join(stray[:5])}",
                expected="every parameter of the model at a site",
                change="the family's table in graftwork/backbones/families.py",
            )
        return found


BERT = Family(
    name="bert-like",
    layers="encoder.layer",
    before={
        "embeddings.word": Entry("embedding", "embeddings.word_embeddings"),
        "embeddings.position": Entry("embedding", "embeddings.position_embeddings", required=False),
        "embeddings.token_type": Entry("embedding", "embeddings.token_type_embeddings", required=False),
        "embeddings.norm": Entry("norm", "embeddings.LayerNorm"),
        "embeddings.projection": Entry("linear", "embeddings_project", required=False),
    },
    layer={
        "attention.query": Entry("linear", "encoder.layer.{i}.attention.self.query"),
        "attention.key": Entry("linear", "encoder.layer.{i}.attention.self.key"),
        "attention.value": Entry("linear", "encoder.layer.{i}.attention.self.value"),
        "attention.kv": Entry("attention", "encoder.layer.{i}.attention.self"),
        "attention.output": Entry("linear", "encoder.layer.{i}.attention.output.dense"),
        "attention.result": Entry("result", "encoder.layer.{i}.attention.output.dropout"),
        "attention.norm": Entry("norm", "encoder.layer.{i}.attention.output.LayerNorm"),
        "ffn.up": Entry("linear", "encoder.layer.{i}.intermediate.dense"),
        "ffn.down": Entry("linear", "encoder.layer.{i}.output.dense"),
        "ffn.result": Entry("result", "encoder.layer.{i}.output.dropout"),
        "ffn.norm": Entry("norm", "encoder.layer.{i}.output.LayerNorm"),
    },
    after={"pooler": Entry("linear", "pooler.dense", required=False)},
)

DISTILBERT = Family(
    name="bert-like (DistilBERT's names)",
    layers="transformer.layer",
    before={
        "embeddings.word": Entry("embedding", "embeddings.word_embeddings"),
        "embeddings.position": Entry("embedding", "embeddings.position_embeddings"),
        "embeddings.norm": Entry("norm", "embeddings.LayerNorm"),
    },
    layer={
        "attention.query": Entry("linear", "transformer.layer.{i}.attention.q_lin"),
        "attention.key": Entry("linear", "transformer.layer.{i}.attention.k_lin"),
        "attention.value": Entry("linear", "transformer.layer.{i}.attention.v_lin"),
        "attention.kv": Entry("attention", "transformer.layer.{i}.attention"),
        "attention.output": Entry("linear", "transformer.layer.{i}.attention.out_lin"),
        # No dropout follows the output projection here: the result is that module's own output.
        "attention.result": Entry("result", "transformer.layer.{i}.attention.out_lin"),
        "attention.norm": Entry("norm", "transformer.layer.{i}.sa_layer_norm"),
        "ffn.up": Entry("linear", "transformer.layer.{i}.ffn.lin1"),
        "ffn.down": Entry("linear", "transformer.layer.{i}.ffn.lin2"),
        "ffn.result": Entry("result", "transformer.layer.{i}.ffn.dropout"),
        "ffn.norm": Entry("norm", "transformer.layer.{i}.output_layer_norm"),
    },
    after={},
)

FAMILIES = (BERT, DISTILBERT)


def family_of(model: nn.Module, model_type: str) -> Family:
    """The family whose layout the model has.

    Raises:
        BackboneError: no layout fits; says what the nearest one lacks and how to add a table.
    """
    lacks = {family.name: family.missing(model) for family in FAMILIES}
    for family in FAMILIES:
        if not lacks[family.name]:
            return family
    name, paths = min(lacks.items(), key=lambda item: len(item[1]))
    raise BackboneError(
        f"model type {model_type!r} has the layout of no known family (nearest: {name}, which needs {paths[0]!r})",
        expected="a model of the families " + ", ".join(lacks),
        change="add a Family table for it to graftwork/backbones/families.py",
    )


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _site(model: nn.Module, name: str, entry: Entry, layer: int | None, hidden_size: int) -> Site | None:
    path = entry.path.format(i=layer)
    if not _has(model, path):
        if entry.required:
            raise BackboneError(f"site {name!r} should stand at {path!r}, where {type(model).__name__} has no module")
        return None
    module = model.get_submodule(path)
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False)}
    in_features = out_features = hidden_size
    if entry.kind == "linear":
        out_features, in_features = shapes["weight"]
    elif entry.kind == "embedding":
        in_features, out_features = shapes["weight"]
    elif entry.kind == "norm":
        in_features = out_features = shapes["weight"][0]
    elif entry.kind in ("result", "attention"):
        shapes = {}
    return Site(
        name=name,
        kind=entry.kind,
        path=path,
        layer=layer,
        in_features=in_features,
        out_features=out_features,
        parameters=shapes,
    )
