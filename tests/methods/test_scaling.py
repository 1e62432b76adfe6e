"""IA3, BitFit and layer-norm tuning: by hand with hooks and other parameters on a model of their own."""

import pytest
import torch
from layouts import BASES, backbone_of, make_layout, run, run_adapted, texts
from tiny import make_adapter, make_backbone
from transformers import BertConfig

from graftwork.backbones import Backbone
from graftwork.errors import MethodError, SiteError
from graftwork.methods import IA3, BitFit, LayerNormTuning, make_method
from graftwork.methods.parameters import Parameter
from graftwork.model import AdaptedModel
from graftwork.training.planning import count

EXACT = 1e-12
"""Of a state's largest number: float64, in which only the order of sums differs."""


def check_equal(backbone, adapter, other, kind):
    batch = texts(kind)
    plain = run(backbone.model, batch)
    found = run_adapted(AdaptedModel(backbone, {"a": adapter}), "a", batch)
    expected = run(other, batch)
    assert (expected[-1] - plain[-1]).abs().max() > 1e-2
    for one, two in zip(found, expected, strict=True):
        close = EXACT * (10 if kind == "t5" else 1) * two.abs().max().item()
        torch.testing.assert_close(one, two, rtol=0, atol=close)


# -- IA3 -----------------------------------------------------------------------------------------------------------

KEYS_VALUES_INNER = {
    "bert": [
        (f"encoder.layer.{{i}}.{path}", f"layers.{{i}}.{name}")
        for path, name in (
            ("attention.self.key", "attention.key"),
            ("attention.self.value", "attention.value"),
            ("output.dense", "ffn.down"),
        )
    ],
    "gpt2": [
        ("h.{i}.attn.c_attn:32:64", "layers.{i}.attention.key"),
        ("h.{i}.attn.c_attn:64:96", "layers.{i}.attention.value"),
        ("h.{i}.mlp.c_proj", "layers.{i}.ffn.down"),
    ],
    "llama": [
        ("layers.{i}.self_attn.k_proj", "layers.{i}.attention.key"),
        ("layers.{i}.self_attn.v_proj", "layers.{i}.attention.value"),
        ("layers.{i}.mlp.down_proj", "layers.{i}.ffn.down"),
    ],
    "t5": [
        ("encoder.block.{i}.layer.0.SelfAttention.k", "encoder.layers.{i}.attention.key"),
        ("encoder.block.{i}.layer.0.SelfAttention.v", "encoder.layers.{i}.attention.value"),
        ("encoder.block.{i}.layer.1.DenseReluDense.wo", "encoder.layers.{i}.ffn.down"),
        ("decoder.block.{i}.layer.0.SelfAttention.k", "decoder.layers.{i}.attention.key"),
        ("decoder.block.{i}.layer.0.SelfAttention.v", "decoder.layers.{i}.attention.value"),
        ("decoder.block.{i}.layer.1.EncDecAttention.k", "decoder.layers.{i}.cross_attention.key"),
        ("decoder.block.{i}.layer.1.EncDecAttention.v", "decoder.layers.{i}.cross_attention.value"),
        ("decoder.block.{i}.layer.2.DenseReluDense.wo", "decoder.layers.{i}.ffn.down"),
    ],
}
"""Module (and its columns) to site. What enters the second map is behind the non-linearity, and of a gated feed-forward
it is the product."""


@pytest.mark.parametrize("kind", BASES)
def test_ia3_scales_keys_values_and_what_enters_the_second_map(kind):
    backbone = backbone_of(kind, torch.float64)
    adapter = make_adapter(backbone, IA3(), trained=True)
    other = make_layout(kind, torch.float64)
    used = set()
    for i in range(2):
        for path, site in KEYS_VALUES_INNER[kind]:
            path, *columns = path.format(i=i).split(":")
            inner = site.endswith("ffn.down")
            key = f"{site.format(i=i)}.{'input' if inner else 'output'}_scale"
            vector = adapter.tensors[key].double()
            used.add(key)
            module = other.get_submodule(path)
            if inner:
                module.register_forward_pre_hook(lambda module, x, vector=vector: (x[0] * vector,))
            elif columns:
                whole = torch.ones(96, dtype=torch.float64)
                whole[int(columns[0]) : int(columns[1])] = vector
                module.register_forward_hook(lambda module, x, y, whole=whole: y * whole)
            else:
                module.register_forward_hook(lambda module, x, y, vector=vector: y * vector)
    assert used == {key for key in adapter.tensors if not key.startswith("head.")}
    check_equal(backbone, adapter, other, kind)


def test_ia3_scales_where_it_is_told():
    backbone = make_backbone("bert")
    tensors = make_adapter(backbone, IA3(outputs="attention.output,value", inputs="attention.output")).tensors
    shapes = {name: tuple(t.shape) for name, t in tensors.items() if name.startswith("layers.0.")}
    assert shapes == {
        "layers.0.attention.value.output_scale": (32,),
        "layers.0.attention.output.input_scale": (32,),
        "layers.0.attention.output.output_scale": (32,),
    }
    assert all((tensors[name] == 1).all() for name in shapes)


def test_ia3_with_nothing_to_scale_is_refused():
    with pytest.raises(MethodError, match="outputs and inputs are both empty"):
        IA3(outputs="", inputs=())
    assert len(IA3(inputs="").sites(make_backbone("bert").sites)) == 4
    with pytest.raises(SiteError, match="'keys' matches no linear site"):
        IA3(outputs="keys").sites(make_backbone("bert").sites)


def test_the_input_of_a_part_of_a_product_is_refused():
    with pytest.raises(SiteError) as caught:
        IA3(inputs="query").sites(backbone_of("gpt2").sites)
    assert "the input of site 'layers.0.attention.query' cannot be scaled alone" in caught.value.problem
    assert caught.value.change == "--method.inputs"


# -- BitFit and layer-norm tuning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_bitfit_is_other_biases(kind):
    backbone = backbone_of(kind, torch.float64)
    pooling = "pooler" if kind == "bert" else None
    adapter = make_adapter(backbone, BitFit(), trained=True, pooling=pooling)
    other = make_layout(kind, torch.float64)
    biases = {name: p for name, p in other.named_parameters() if name.endswith("bias")}
    left = dict(adapter.tensors)
    with torch.no_grad():
        for name, bias in biases.items():
            path = name.removesuffix(".bias")
            sites = [s for s in backbone.sites.values() if s.path == path and s.kind in ("linear", "norm")]
            difference = torch.cat([left.pop(f"{site.name}.bias") for site in sites])
            assert difference.shape == bias.shape
            bias.add_(difference)
    assert all(name.startswith("head.") for name in left)
    check_equal(backbone, adapter, other, kind)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_bitfit_without_biases_is_refused(kind):
    with pytest.raises(SiteError) as caught:
        make_adapter(backbone_of(kind), BitFit())
    assert caught.value.problem == "BitFit trains biases, and the backbone has none"
    assert "layer-norm-tuning" in caught.value.expected


@pytest.mark.parametrize("kind", BASES)
def test_layer_norm_tuning_is_other_norms(kind):
    backbone = backbone_of(kind, torch.float64)
    adapter = make_adapter(backbone, LayerNormTuning(), trained=True)
    other = make_layout(kind, torch.float64)
    left = dict(adapter.tensors)
    with torch.no_grad():
        for site in backbone.sites.of_kind("norm"):
            for name, parameter in other.get_submodule(site.path).named_parameters():
                parameter.add_(left.pop(f"{site.name}.{name}"))
    assert all(name.startswith("head.") for name in left)
    check_equal(backbone, adapter, other, kind)


def test_layer_norm_tuning_where_it_is_told():
    sites = make_backbone("bert").sites
    assert [s.name for s in LayerNormTuning(targets="ffn.norm").sites(sites)] == [
        f"layers.{i}.ffn.norm" for i in (0, 1)
    ]
    assert len(LayerNormTuning().sites(sites)) == 5
    with pytest.raises(SiteError, match="'query' matches no norm site: it names sites of kind linear"):
        LayerNormTuning(targets="query").sites(sites)


# -- how they start, and counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("method", [IA3(), BitFit(), LayerNormTuning()], ids=lambda method: method.name)
def test_nothing_is_changed_at_first_in_any_precision(method, kind, dtype):
    if method == BitFit() and kind in ("llama", "t5"):
        return
    backbone, batch = backbone_of(kind, dtype), texts(kind)
    plain = run(backbone.model, batch)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, method)})
    assert all(torch.equal(one, two) for one, two in zip(run_adapted(model, "a", batch), plain, strict=True))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert-base")
    BertConfig().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("method", "total"),
    [("ia3", 12 * (2 * 768 + 3072)), ("layer-norm-tuning", 38_400), ("bitfit", 102_912)],
)
def test_counts_on_bert_base(bert, method, total):
    # As the papers count: with the pooling layer, which a mean over tokens leaves out.
    assert count(bert, method, pooling="pooler")["trained"]["without_classifier"] == total
    assert 12 * (2 * 768 + 3072) == 55_296


def declared(backbone: Backbone, method) -> dict[str, Parameter]:
    found = {}
    for site in method.sites(backbone.sites):
        found |= method.declare(site)
    return found


def test_counts_on_other_layouts():
    """Keys and values of grouped queries are narrower; cross attention has vectors of its own; GPT-2's fused product
    has one bias, which is counted once."""
    sizes = {kind: sum(p.count for p in declared(backbone_of(kind), IA3()).values()) for kind in BASES}
    assert sizes == {
        "bert": 2 * (2 * 32 + 64),
        "gpt2": 2 * (2 * 32 + 64),
        "llama": 2 * (2 * 16 + 64),
        "t5": 2 * (2 * 32 + 64) + 2 * (4 * 32 + 64),
    }
    gpt2 = backbone_of("gpt2")
    biases = sum(p.numel() for name, p in gpt2.model.named_parameters() if name.endswith("bias"))
    assert sum(p.count for p in declared(gpt2, BitFit()).values()) == biases


@pytest.mark.parametrize("method", [IA3(), BitFit(), LayerNormTuning()], ids=lambda method: method.name)
def test_weight_decay_spares_them(method):
    assert not any(p.decay for p in declared(make_backbone("bert"), method).values())


def test_wrong_settings_are_named():
    with pytest.raises(MethodError, match="settings of bitfit: none"):
        make_method("bitfit", {"targets": "query"})
    with pytest.raises(MethodError, match="settings of ia3: outputs, inputs"):
        make_method("ia3", {"rank": 1})
