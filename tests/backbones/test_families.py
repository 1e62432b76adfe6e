"""Families and sites: every model type has the same names, and every parameter stands at exactly one of them."""

from collections import Counter

import pytest
import torch
from tiny import INNER, LAYERS, MODELS, WIDTH, make_backbone, make_model
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from graftwork.backbones import Backbone, Site, Sites
from graftwork.errors import BackboneError, SiteError

IN_A_LAYER = {
    "attention.query": "linear",
    "attention.key": "linear",
    "attention.value": "linear",
    "attention.kv": "attention",
    "attention.output": "linear",
    "attention.result": "result",
    "attention.norm": "norm",
    "ffn.up": "linear",
    "ffn.down": "linear",
    "ffn.result": "result",
    "ffn.norm": "norm",
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_layer_has_the_same_sites_in_every_family(kind):
    sites = make_backbone(kind).sites
    assert sites.num_layers == LAYERS
    for i in range(LAYERS):
        in_layer = {s.name: s.kind for s in sites.values() if s.layer == i}
        assert in_layer == {f"layers.{i}.{name}": kind for name, kind in IN_A_LAYER.items()}
        assert all(sites[name].sublayer == name.split(".")[2] for name in in_layer)
    assert [s.layer for s in sites.values() if s.layer is not None] == sorted(
        i for i in range(LAYERS) for _ in range(11)
    )
    assert sites["embeddings.norm"].sublayer == "embeddings"


@pytest.mark.parametrize("kind", MODELS)
def test_every_parameter_belongs_to_exactly_one_site(kind):
    backbone = make_backbone(kind)
    owned = Counter(f"{s.path}.{name}" for s in backbone.sites.values() for name in s.parameters)
    assert owned == Counter(name for name, _ in backbone.model.named_parameters())
    for site in backbone.sites.values():
        frozen = backbone.frozen(site)
        assert {name: tuple(t.shape) for name, t in frozen.items()} == dict(site.parameters)
        assert all(t is backbone.model.get_parameter(f"{site.path}.{name}") for name, t in frozen.items())
    assert backbone.num_parameters == sum(
        torch.Size(shape).numel() for site in backbone.sites.values() for shape in site.parameters.values()
    )


@pytest.mark.parametrize("kind", MODELS)
def test_sites_have_the_widths_of_their_modules(kind):
    sites = make_backbone(kind).sites
    narrow = 16 if kind == "electra" else WIDTH
    widths = {
        "embeddings.word": (100, narrow),
        "embeddings.norm": (narrow, narrow),
        "layers.1.ffn.up": (WIDTH, INNER),
        "layers.1.ffn.down": (INNER, WIDTH),
        "layers.1.ffn.result": (WIDTH, WIDTH),
        "layers.1.attention.result": (WIDTH, WIDTH),
    }
    assert {name: (sites[name].in_features, sites[name].out_features) for name in widths} == widths


def test_optional_sites_are_there_where_the_model_has_them():
    optional = {"embeddings.token_type", "embeddings.projection", "pooler"}
    found = {kind: optional & set(make_backbone(kind).sites) for kind in MODELS}
    assert found == {
        "bert": {"embeddings.token_type", "pooler"},
        "roberta": {"embeddings.token_type", "pooler"},
        "xlm-roberta": {"embeddings.token_type", "pooler"},
        "electra": {"embeddings.token_type", "embeddings.projection"},
        "distilbert": set(),
    }
    assert "embeddings.projection" not in make_backbone("electra", embedding_size=WIDTH).sites


def test_distilberts_output_and_result_share_a_module():
    sites = make_backbone("distilbert").sites
    output, result = sites["layers.0.attention.output"], sites["layers.0.attention.result"]
    assert output.path == result.path
    assert set(output.parameters) == {"weight", "bias"}
    assert not result.parameters


def test_an_unknown_layout_is_refused_and_told_how_to_be_added():
    with pytest.raises(BackboneError) as caught:
        Backbone(GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=16)))
    assert "model type 'gpt2' has the layout of no known family" in caught.value.problem
    assert caught.value.expected == "a model of the families bert-like, bert-like (DistilBERT's names)"
    assert caught.value.change == "add a Family table for it to graftwork/backbones/families.py"


def test_parameters_without_a_site_are_refused():
    model = BertModel(
        BertConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=50,
            is_decoder=True,
            add_cross_attention=True,
        )
    )
    with pytest.raises(
        BackboneError, match=r"parameters of BertModel have no site .*crossattention\.output\.LayerNorm"
    ):
        Backbone(model)


def test_a_backbone_is_frozen_and_in_evaluation_mode():
    model = make_model("bert").train()
    assert model.training
    backbone = Backbone(model.requires_grad_(True))
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())
    assert backbone.config._attn_implementation == "graftwork"
    assert (backbone.hidden_size, backbone.dtype, backbone.device) == (WIDTH, torch.float32, torch.device("cpu"))
    assert f"{LAYERS} layers x {WIDTH}" in repr(backbone)


@pytest.fixture(scope="module")
def sites():
    return make_backbone("bert").sites


@pytest.mark.parametrize(
    ("patterns", "kind", "names"),
    [
        (["layers.0.attention.query"], "linear", ["layers.0.attention.query"]),
        (["query"], "linear", ["layers.0.attention.query", "layers.1.attention.query"]),
        (["attention.query"], "linear", ["layers.0.attention.query", "layers.1.attention.query"]),
        (["layers.1.ffn.*"], "linear", ["layers.1.ffn.up", "layers.1.ffn.down"]),
        (["layers.[1-9].ffn.up"], "linear", ["layers.1.ffn.up"]),
        (["layers.1.*"], "result", ["layers.1.attention.result", "layers.1.ffn.result"]),
        (["pooler", "layers.0.ffn.up"], "linear", ["layers.0.ffn.up", "pooler"]),
        (["ffn.up", "layers.0.*.up"], "linear", ["layers.0.ffn.up", "layers.1.ffn.up"]),
        (["*"], "attention", ["layers.0.attention.kv", "layers.1.attention.kv"]),
    ],
)
def test_patterns_choose_sites_of_one_kind_in_site_order(sites, patterns, kind, names):
    assert [site.name for site in sites.match(patterns, kind)] == names


def test_a_pattern_is_no_substring(sites):
    with pytest.raises(SiteError, match="matches no linear site: no site has that name"):
        sites.match(["uery"], "linear")


def test_a_pattern_without_a_site_names_the_nearest(sites):
    with pytest.raises(SiteError) as caught:
        sites.match(["query", "layers.0.attention.qeury"], "linear")
    assert caught.value.problem.startswith("site pattern 'layers.0.attention.qeury' matches no linear site")
    assert caught.value.expected.startswith("for example layers.0.attention.query,")
    with pytest.raises(SiteError, match="it names sites of kind norm"):
        sites.match(["layers.0.ffn.norm"], "linear")


def test_lookup_by_name(sites):
    assert sites["pooler"].path == "pooler.dense"
    assert "pooler" in sites
    assert "poler" not in sites
    with pytest.raises(SiteError, match=r"no site is named 'poler'\n  expected: for example pooler"):
        sites["poler"]
    assert "pooler" not in sites.without(["pooler"])
    assert len(sites.without(["pooler"])) == len(sites) - 1
    assert {s.kind for s in sites.of_kind("norm", "result")} == {"norm", "result"}


def test_no_sites_have_no_layers():
    lone = Site(name="pooler", kind="linear", path="pooler", layer=None, in_features=1, out_features=1)
    assert (Sites([]).num_layers, Sites([lone]).num_layers) == (0, 0)
