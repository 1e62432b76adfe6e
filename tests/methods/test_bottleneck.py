"""Houlsby, Pfeiffer and parallel adapters: formulas by hand in float64, counts, sharing, dropped layers."""

from dataclasses import replace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from beside import FEED_FORWARDS, NORMS, Hooked, adapted_states, bottleneck, gelu, relu, states
from closeness import PASS, close
from tiny import LAYERS, WIDTH, inputs_for, make_adapter, make_backbone
from transformers import BertConfig, T5Config

from graftwork.adapters import Adapter
from graftwork.adapters.declared import lower
from graftwork.errors import AdapterError, MethodError, SiteError
from graftwork.methods import Houlsby, LoRA, Parallel, Pfeiffer, make_method
from graftwork.ops import Bottleneck, Remember, Route
from graftwork.training.planning import count

ROUNDING = ("llama", "t5")
"""Model types whose own norms round to float32 whatever they are given."""

M = 6


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert-base")
    BertConfig().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5-base")
    sizes = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
    T5Config(**sizes).save_pretrained(folder)
    return str(folder)


def assert_close(kind, found, expected) -> None:
    assert len(found) == len(expected) > LAYERS
    for one, other in zip(found, expected, strict=True):
        close(one, other, PASS, precision=torch.float32 if kind == "llama" else None)


def make(kind, method, **options):
    backbone = make_backbone(kind, dtype=torch.float64)
    return backbone, inputs_for(backbone.model, 7, 4), make_adapter(backbone, method, trained=True, **options)


# -- formulas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FEED_FORWARDS)
def test_pfeiffer_is_the_papers_formula(kind):
    backbone, batch, adapter = make(kind, Pfeiffer(bottleneck=M))
    with Hooked(backbone.model) as hooked:
        for stack, (_, end) in FEED_FORWARDS[kind].items():
            for i in range(LAYERS):
                change = bottleneck(adapter.tensors, f"{stack}layers.{i}.ffn.result")
                if kind in NORMS:
                    hooked.at_norm(NORMS[kind].format(stack=stack, i=i), change)
                else:
                    hooked.after(end.format(i=i), change)
        expected = states(backbone.model, batch)
    assert_close(kind, adapted_states(backbone, adapter, batch), expected)


@pytest.mark.parametrize("scale", [1.0, 4.0, "learned"])
@pytest.mark.parametrize("kind", FEED_FORWARDS)
def test_parallel_is_the_papers_formula(kind, scale):
    backbone, batch, adapter = make(kind, Parallel(bottleneck=M, scale=scale))
    with Hooked(backbone.model) as hooked:
        for stack, (start, end) in FEED_FORWARDS[kind].items():
            for i in range(LAYERS):
                owner = f"{stack}layers.{i}.ffn.result"
                s = adapter.tensors[f"{owner}.scale"].double() if scale == "learned" else scale
                change = bottleneck(adapter.tensors, owner)
                hooked.beside(start.format(i=i), end.format(i=i), lambda x, s=s, change=change: s * change(x))
        expected = states(backbone.model, batch)
    assert_close(kind, adapted_states(backbone, adapter, batch), expected)


def test_parallel_to_attention_reads_what_the_attention_reads():
    backbone, batch, adapter = make("gpt2", Parallel(bottleneck=M, sublayers="attention"))
    with Hooked(backbone.model) as hooked:
        for i in range(LAYERS):
            change, norm = bottleneck(adapter.tensors, f"layers.{i}.attention.result"), backbone.model.h[i].ln_1
            hooked.beside(f"h.{i}.ln_1", f"h.{i}.attn.resid_dropout", lambda x, n=norm, f=change: f(n.forward(x)))
        expected = states(backbone.model, batch)
    assert_close("gpt2", adapted_states(backbone, adapter, batch), expected)


def own_norm(tensors, owner, x):
    gain, bias = tensors[f"{owner}.norm_gain"].double(), tensors[f"{owner}.norm_bias"].double()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias


def deep(tensors, owner, x):
    t = {name.removeprefix(f"{owner}."): tensor.double() for name, tensor in tensors.items()}
    z = gelu(x @ t["down"].T + t["down_bias"])
    for weight, bias in zip(t["hidden"], t["hidden_bias"], strict=True):
        z = gelu(z @ weight.T + bias)
    return z @ t["up"].T + t["up_bias"]


def plain(tensors, owner, x):
    return bottleneck(tensors, owner, gelu)(x)


def learned_scale(tensors, owner):
    return tensors[f"{owner}.scale"].double()


VARIANTS = {
    "norm before": ({"layer_norm": "input"}, lambda t, o, x: plain(t, o, own_norm(t, o, x))),
    "norm behind": ({"layer_norm": "output"}, lambda t, o, x: own_norm(t, o, plain(t, o, x))),
    "norm behind, scaled": (
        {"layer_norm": "output", "scale": "learned"},
        lambda t, o, x: learned_scale(t, o) * own_norm(t, o, plain(t, o, x)),
    ),
    "two layers": ({"depth": 2}, deep),
    "four layers": ({"depth": 4, "scale": 0.5}, lambda t, o, x: 0.5 * deep(t, o, x)),
    "multiplying": ({"interaction": "multiply"}, lambda t, o, x: x * plain(t, o, x)),
    "tanh": ({"activation": "tanh"}, lambda t, o, x: bottleneck(t, o, torch.tanh)(x)),
    "relu": ({"activation": "relu"}, lambda t, o, x: bottleneck(t, o, relu)(x)),
}
"""Of Houlsby et al. 2019, section 3.6, and others'."""


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_by_hand(variant, kind):
    settings, by_hand = VARIANTS[variant]
    backbone, batch, adapter = make(kind, Houlsby(bottleneck=M, norms="none", sublayers="ffn", **settings))
    with Hooked(backbone.model) as hooked:
        for stack, (_, end) in FEED_FORWARDS[kind].items():
            for i in range(LAYERS):
                owner = f"{stack}layers.{i}.ffn.result"
                hooked.after(end.format(i=i), lambda x, owner=owner: by_hand(adapter.tensors, owner, x))
        expected = states(backbone.model, batch)
    assert_close(kind, adapted_states(backbone, adapter, batch), expected)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("interaction", ["add", "multiply"])
def test_parallel_to_an_attention_whose_queries_are_projected_twice(interaction, shared):
    """DeBERTa's linear maps of queries and keys run over the relative positions, too: those are no rows of a batch."""
    backbone = make_backbone("deberta-v2", dtype=torch.float64, share_att_key=shared)
    method = Parallel(bottleneck=M, sublayers="attention,ffn", interaction=interaction)
    adapter, batch = make_adapter(backbone, method, trained=True), inputs_for(backbone.model, 7, 4)
    places = {"attention": ("attention.self", "attention.output.dropout"), "ffn": ("intermediate", "output.dropout")}
    held = []
    with Hooked(backbone.model) as hooked:
        for i in range(LAYERS):
            for sublayer, (start, end) in places.items():
                f = bottleneck(adapter.tensors, f"layers.{i}.{sublayer}.result")
                hooked._hook(f"encoder.layer.{i}.{start}", lambda module, args, output: held.append(args[0]))
                hooked._hook(
                    f"encoder.layer.{i}.{end}",
                    lambda module, args, h, f=f: h + f(held.pop()) * (h if interaction == "multiply" else 1),
                )
        expected = states(backbone.model, batch)
    assert_close("deberta-v2", adapted_states(backbone, adapter, batch), expected)


def test_beside_and_multiplying():
    backbone, batch, adapter = make("llama", Parallel(bottleneck=M, interaction="multiply"))
    changes = [bottleneck(adapter.tensors, f"layers.{i}.ffn.result") for i in range(LAYERS)]
    expected = []
    with Hooked(backbone.model) as hooked:
        for i, change in enumerate(changes):
            hooked._hook(f"layers.{i}.mlp", lambda module, args, h, f=change: h + h * f(args[0]))
        expected = states(backbone.model, batch)
    assert_close("llama", adapted_states(backbone, adapter, batch), expected)


def test_pfeiffer_with_trained_norms_uses_the_trained_norm_twice():
    backbone, batch, adapter = make("bert", Pfeiffer(bottleneck=M, norms="all"))
    tensors = {name: tensor.double() for name, tensor in adapter.tensors.items()}
    found = adapted_states(backbone, adapter, batch)
    model = backbone.model
    norms = {"embeddings.norm": model.embeddings.LayerNorm}
    for i, layer in enumerate(model.encoder.layer):
        norms |= {f"layers.{i}.attention.norm": layer.attention.output.LayerNorm}
        norms |= {f"layers.{i}.ffn.norm": layer.output.LayerNorm}
    assert {name.rpartition(".")[0] for name in tensors if name.split(".")[-2] == "norm"} == set(norms)
    with torch.no_grad():
        for name, norm in norms.items():
            norm.weight.copy_(tensors[f"{name}.weight"])
            norm.bias.copy_(tensors[f"{name}.bias"])
    with Hooked(model) as hooked:
        for i in range(LAYERS):
            hooked.at_norm(NORMS["bert"].format(i=i), bottleneck(tensors, f"layers.{i}.ffn.result"))
        assert_close("bert", found, states(model, batch))


# -- how they start ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FEED_FORWARDS)
@pytest.mark.parametrize(
    "method",
    [
        Parallel(bottleneck=M, scale=4.0),
        Parallel(bottleneck=M, scale="learned", depth=2, layer_norm="input", interaction="multiply"),
        Pfeiffer(bottleneck=M, init_std=None),
        Houlsby(bottleneck=M, init_std=0.5, layer_norm="output", norms="none"),
    ],
    ids=lambda method: f"{method.name}-{method.init_std}",
)
def test_what_starts_at_zero_changes_nothing(method, kind):
    backbone = make_backbone(kind)
    batch = inputs_for(backbone.model, 7, 4)
    expected = states(backbone.model, batch)
    found = adapted_states(backbone, make_adapter(backbone, method), batch)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", FEED_FORWARDS)
def test_what_starts_small_changes_as_the_square_of_it(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    batch = inputs_for(backbone.model, 7, 4)
    expected = states(backbone.model, batch)
    # The same draws, a tenth as large, in both projections. The next terms are std² times the leading one; what is
    # rounded to float32 on the way is blind to changes below 6e-8.
    std, off = (1e-2, 0.05) if kind in ROUNDING else (1e-4, 1e-3)
    distances = []
    for size in (std, std / 10):
        adapter = make_adapter(backbone, Pfeiffer(bottleneck=M, init_std=size), seed=3)
        found = adapted_states(backbone, adapter, batch)
        distances.append(max((one - other).abs().max().item() for one, other in zip(found, expected, strict=True)))
    assert 0 < distances[0] < 1e4 * std**2
    assert distances[1] == pytest.approx(distances[0] / 100, rel=off)


def test_initial_tensors_are_the_papers():
    backbone = make_backbone("bert")
    tensors = make_adapter(backbone, Pfeiffer(bottleneck=24)).tensors
    values = torch.cat([t.flatten() for n, t in tensors.items() if n.endswith((".down", ".up")) and "head" not in n])
    # 3072 draws know their deviation to about 1.3 %; uncut, some lie beyond 2.5 deviations.
    assert values.std().item() == pytest.approx(0.02, rel=0.05)
    assert values.abs().max() > 2.5 * 0.02
    assert not any(t.any() for n, t in tensors.items() if n.endswith("_bias"))
    tensors = make_adapter(backbone, Parallel(bottleneck=24, depth=3, layer_norm="input", scale="learned")).tensors
    owner = "layers.1.ffn.result"
    for name, width in (("down", WIDTH), ("hidden", 24)):
        bound = (6 / ((1 + 5) * width)) ** 0.5
        assert 0.95 * bound < tensors[f"{owner}.{name}"].abs().max() <= bound
    assert not torch.equal(*tensors[f"{owner}.hidden"])
    assert not any(tensors[f"{owner}.{name}"].any() for name in ("up", "up_bias", "down_bias", "hidden_bias"))
    assert tensors[f"{owner}.norm_gain"].eq(1).all()
    assert tensors[f"{owner}.scale"].tolist() == [1]


# -- where they act ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method", "sites"),
    [
        ("bert", Pfeiffer(), ["layers.0.ffn.norm", "layers.1.ffn.norm"]),
        ("gpt2", Pfeiffer(), ["layers.0.ffn.result", "layers.1.ffn.result"]),
        ("bert", Pfeiffer(sublayers="attention", skip_layers=1), ["layers.1.attention.norm"]),
        ("t5", Pfeiffer(skip_layers=1), ["encoder.layers.1.ffn.result", "decoder.layers.1.ffn.result"]),
        ("bart", Pfeiffer(skip_layers=1), ["encoder.layers.1.ffn.norm", "decoder.layers.1.ffn.norm"]),
        (
            "t5",
            Houlsby(norms="none", sublayers="cross_attention"),
            [f"decoder.layers.{i}.cross_attention.result" for i in (0, 1)],
        ),
        ("bert", Parallel(skip_layers=1), ["layers.1.ffn.up", "layers.1.ffn.result"]),
        (
            "llama",
            Parallel(skip_layers=1, sublayers="attention"),
            ["layers.1.attention.query", "layers.1.attention.result"],
        ),
    ],
)
def test_where_they_act(kind, method, sites):
    assert [site.name for site in method.sites(make_backbone(kind).sites)] == sites


def test_houlsby_leaves_cross_attention_alone_unless_asked():
    sites = make_backbone("t5").sites
    for sublayers, expected in (("attention,ffn", 8), ("ffn,cross_attention,attention", 10)):
        method = Houlsby(norms="none", sublayers=sublayers)
        assert len(method.sites(sites)) == expected
    assert Houlsby(sublayers="ffn,attention") == Houlsby(sublayers=["attention", "ffn"]) == Houlsby()


def test_a_sublayer_that_is_not_there_is_refused():
    with pytest.raises(SiteError) as caught:
        Houlsby(sublayers="cross_attention").sites(make_backbone("bert").sites)
    assert "no sub-layer cross_attention" in caught.value.problem
    assert (caught.value.expected, caught.value.change) == ("attention, ffn", "--method.sublayers")
    with pytest.raises(SiteError, match="no sub-layer ffn"):
        Pfeiffer().sites(make_backbone("resnet").sites)


@pytest.mark.parametrize("method", [Pfeiffer, Parallel, Houlsby])
def test_layers_and_positions_that_share(method):
    sites = make_backbone("bert", num_hidden_layers=5).sites
    shared = method(bottleneck=M, sublayers="attention,ffn", norms="none", share_layers=2, share_positions=True)
    names = {name for site in shared.sites(sites) for name in shared.declare(site)}
    owners = [f"layers.{i}.attention.result" for i in (0, 2, 4)]
    assert names == {f"{owner}.{n}" for owner in owners for n in ("down", "down_bias", "up", "up_bias")}


# -- AdapterDrop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "norms"),
    [
        ("bert", ["layers.1.attention.norm", "layers.1.ffn.norm"]),
        (
            "t5",
            [
                *(f"encoder.layers.1.{s}.norm" for s in ("attention", "ffn")),
                "encoder.norm",
                *(f"decoder.layers.1.{s}.norm" for s in ("attention", "cross_attention", "ffn")),
                "decoder.norm",
            ],
        ),
    ],
)
def test_skipped_layers_are_the_backbones_own(kind, norms):
    method = Houlsby(bottleneck=M, skip_layers=1)
    backbone = make_backbone(kind)
    batch = inputs_for(backbone.model, 7, 4)
    expected = states(backbone.model, batch)
    found = adapted_states(backbone, make_adapter(backbone, method, trained=True), batch)
    same = [torch.equal(one, other) for one, other in zip(found, expected, strict=True)]
    assert same[: LAYERS + 1] == [True] * LAYERS + [False]
    assert [site.name for site in method.sites(backbone.sites) if site.kind == "norm"] == norms


def test_skipping_all_layers_is_refused():
    sites = make_backbone("bert").sites
    assert Pfeiffer(skip_layers=LAYERS - 1).sites(sites)
    with pytest.raises(MethodError, match=f"skip_layers={LAYERS} leaves 'pfeiffer' no layer"):
        Pfeiffer(skip_layers=LAYERS).sites(sites)


def test_skipping_all_layers_of_one_stack_is_refused():
    sites = make_backbone("bart", encoder_layers=4, decoder_layers=2).sites
    assert Pfeiffer(skip_layers=1).sites(sites)
    with pytest.raises(MethodError, match="no layer of the decoder to act in"):
        Pfeiffer(skip_layers=2).sites(sites)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_robust_drop_draws_how_many_layers_act_in_each_pass_of_training(kind):
    backbone = make_backbone(kind, **{"num_layers" if kind == "t5" else "num_hidden_layers": 4})
    adapter = make_adapter(backbone, make_method("adapterdrop", {"bottleneck": M}))
    assert adapter.method == Pfeiffer(bottleneck=M, robust_drop=True)

    def first_layers(seed):
        torch.manual_seed(seed)
        found = []
        for _ in range(400):
            ops = lower(backbone, adapter.method, adapter.head, adapter.tensors, training=True)
            acting = [{backbone.sites[n].layer for n in ops if n.startswith(s)} for s in backbone.sites.stacks]
            (layers,) = {frozenset(layers) for layers in acting}
            assert layers == set(range(min(layers), 4))
            found.append(min(layers))
        return found

    drawn = first_layers(1)
    assert first_layers(1) == drawn != first_layers(2)
    # Of 400 draws each of four values is 100 times there, give or take 8.7; five deviations are allowed.
    assert all(57 < drawn.count(n) < 143 for n in range(4))
    resting = lower(backbone, adapter.method, adapter.head, adapter.tensors)
    assert list(resting) == list(adapter.sites)


def test_robust_drop_leaves_layers_in_each_of_two_stacks():
    backbone = make_backbone("bart", encoder_layers=4, decoder_layers=2)
    adapter = make_adapter(backbone, Pfeiffer(bottleneck=M, robust_drop=True), pooling="mean")
    torch.manual_seed(0)
    drawn = []
    for _ in range(400):
        ops = lower(backbone, adapter.method, adapter.head, adapter.tensors, training=True)
        acting = [[backbone.sites[n].layer for n in ops if n.startswith(stack)] for stack in ("encoder", "decoder")]
        drawn.append(tuple(min(layers) for layers in acting))
    # The same share of each stack's layers.
    assert set(drawn) == {(0, 0), (1, 0), (2, 1), (3, 1)}
    assert all(57 < drawn.count(both) < 143 for both in set(drawn))


def test_robust_drop_has_nothing_to_leave_out_of_one_layer():
    with pytest.raises(MethodError, match="robust_drop has no layers to leave out"):
        Pfeiffer(robust_drop=True).sites(make_backbone("albert").sites)


def test_layers_that_an_adapter_cannot_leave_out():
    backbone = make_backbone("bert")
    with pytest.raises(AdapterError, match="'lora' cannot leave out layers"):
        make_adapter(backbone, LoRA()).without_layers(backbone, 1)
    shorter = make_adapter(backbone, Pfeiffer(skip_layers=1))
    assert shorter.without_layers(backbone, 1).tensors.keys() == shorter.tensors.keys()
    with pytest.raises(AdapterError, match="the first 1 layers are left out already"):
        shorter.without_layers(backbone, 0)
    with pytest.raises(MethodError, match="no layer"):
        shorter.without_layers(backbone, LAYERS)


def test_a_robust_adapter_can_leave_out_layers_afterwards():
    backbone, batch, adapter = make("bert", Pfeiffer(bottleneck=M, robust_drop=True))
    dropped = replace(adapter, metrics={"validation": {"accuracy": 1.0}}).without_layers(backbone, 1)
    assert (dropped.sites, dropped.metrics) == (("layers.1.ffn.norm",), {})
    kept = dropped.tensors
    dropped.check(backbone)
    with Hooked(backbone.model) as hooked:
        hooked.at_norm(NORMS["bert"].format(i=1), bottleneck(kept, "layers.1.ffn.result"))
        expected = states(backbone.model, batch)
    assert_close("bert", adapted_states(backbone, dropped, batch), expected)


def test_robust_drop_with_norms_drops_those_of_the_layers_too():
    backbone = make_backbone("bert")
    method = Houlsby(bottleneck=M, robust_drop=True)
    adapter = make_adapter(backbone, method)
    specialised = [site.name for site in Houlsby(bottleneck=M, skip_layers=1).sites(backbone.sites)]
    torch.manual_seed(0)
    found = {tuple(lower(backbone, method, adapter.head, adapter.tensors, training=True)) for _ in range(20)}
    assert found == {adapter.sites, tuple(specialised)}


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "size"),
    [
        (Pfeiffer(), 768 // 16),
        (Pfeiffer(bottleneck=5), 5),
        (Houlsby(), 64),
        (Houlsby(reduction=32), 24),
        (Houlsby(bottleneck=5, reduction=None), 5),
    ],
)
def test_a_size_or_a_reduction(method, size):
    owner = "layers.0.ffn.result"
    (site,) = (s for s in make_backbone("gpt2", n_embd=768, n_layer=1).sites.of_kind("result") if s.name == owner)
    assert method.declare(site)[f"{owner}.down"].shape == (size, 768)
    saved = type(method).model_validate_json(method.model_dump_json())
    assert saved == make_method(method.name, method.model_dump()) == method


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        ("pfeiffer", {"bottleneck": 3, "reduction": 2}, ["reduction=2", "either bottleneck or reduction"]),
        ("houlsby", {"bottleneck": None}, ["either bottleneck or reduction"]),
        ("pfeiffer", {"layer_norm": "batch", "depth": 0}, ["layer_norm='batch'", "depth=0"]),
        ("parallel", {"scale": "learnt"}, ["scale", "'learnt'"]),
        ("parallel", {"sublayers": "ffn,attn"}, ["sublayers", "'attn'"]),
        ("houlsby", {"sublayers": ()}, ["sublayers=()"]),
        ("houlsby", {"skip_layers": -1}, ["skip_layers=-1"]),
        ("scaled-parallel", {"sale": 2}, ["'sale'", "settings of parallel"]),
    ],
)
def test_settings_that_cannot_be(name, settings, parts):
    with pytest.raises(MethodError) as caught:
        make_method(name, settings)
    assert all(part in str(caught.value) for part in parts)


def test_names_that_are_others_with_settings():
    assert make_method("scaled-parallel", {"bottleneck": 512}) == Parallel(bottleneck=512, scale=4.0)
    assert make_method("Scaled_Parallel", {"scale": 2}) == Parallel(scale=2.0)


# -- counts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "adapter", "norms"),
    [
        ("pfeiffer", {}, 894_528, 0),
        ("pfeiffer", {"norms": "all"}, 894_528, 38_400),
        ("pfeiffer", {"skip_layers": 5}, 894_528 * 7 // 12, 0),
        ("houlsby", {"bottleneck": 48}, 1_789_056, 38_400),
        ("houlsby", {"bottleneck": 48, "depth": 3}, 1_789_056 + 24 * 2 * (48 * 48 + 48), 38_400),
        ("houlsby", {"bottleneck": 48, "layer_norm": "input"}, 1_789_056 + 24 * 2 * 768, 38_400),
        ("parallel", {"bottleneck": 512}, 12 * (2 * 768 * 512 + 512 + 768), 0),
        ("parallel", {"bottleneck": 512, "scale": "learned"}, 12 * (2 * 768 * 512 + 512 + 768 + 1), 0),
    ],
)
def test_counts_on_bert_base(bert, name, settings, adapter, norms):
    found = count(bert, name, settings)["trained"]
    assert (found["adapter"], found["norms"]) == (adapter, norms)


def test_adapters_on_t5_base(t5):
    """As Karimi Mahabadi et al. 2021 count them: reduction 32, two positions a layer, 47,616 in layer norms."""
    found = count(t5, "houlsby", {"reduction": 32})["trained"]
    assert (found["norms"], found["without_classifier"]) == (47_616, 1_855_104)


# -- the op's variants in a bank ---------------------------------------------------------------------------------------

B, T, D, SLOTS, DEPTH = 4, 5, 6, 3, 2


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fields(seed: int, *, norm: bool = True) -> dict[str, torch.Tensor]:
    shapes = {"down": (3, D), "down_bias": (3,), "up": (D, 3), "up_bias": (D,)}
    shapes |= {"hidden": (DEPTH, 3, 3), "hidden_bias": (DEPTH, 3), "norm_gain": (D,), "norm_bias": (D,)}
    return {name: random(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


class Where(nn.Module):
    """Where an op runs in these tests."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.memory = nn.Identity(), {}


@pytest.mark.parametrize("norm_at", ["input", "output"])
@pytest.mark.parametrize("at", ["result", "norm"])
@pytest.mark.parametrize("multiply", [False, True])
@pytest.mark.parametrize("tokens", [(), (T,)])
@pytest.mark.parametrize("rows", [(2, 0, 2, 1), (0, 1, 1, 1, 2, 2)])
def test_in_a_slab_each_row_has_its_own(norm_at, at, multiply, tokens, rows):
    x, each = random(len(rows), *tokens, D), [fields(100 * slot) for slot in range(SLOTS)]
    options = {"activation": "gelu", "at": at, "multiply": multiply, "norm_at": norm_at}
    slab = Bottleneck(**{name: torch.stack([f[name] for f in each]) for name in each[0]}, **options)
    found = slab.spread(Route(rows, SLOTS)).around(torch.tanh, Where())(x)
    alone = [Bottleneck(**f, **options).around(torch.tanh, Where()) for f in each]
    expected = torch.cat([alone[slot](x[i : i + 1]) for i, slot in enumerate(rows)])
    close(found, expected)


@pytest.mark.parametrize("activation", ["gelu", "relu", "sigmoid"])
def test_a_deep_bottleneck_padded_with_zeros_is_the_same(activation):
    x, narrow = random(B, T, D), fields(1)
    wide = {
        **narrow,
        "down": F.pad(narrow["down"], (0, 0, 0, 2)),
        "down_bias": F.pad(narrow["down_bias"], (0, 2)),
        "hidden": F.pad(narrow["hidden"], (0, 2, 0, 2)),
        "hidden_bias": F.pad(narrow["hidden_bias"], (0, 2)),
        "up": F.pad(narrow["up"], (0, 2)),
    }
    one, other = (Bottleneck(**f, activation=activation).around(nn.Identity(), Where())(x) for f in (narrow, wide))
    close(one, other)


def test_a_parallel_one_reads_what_was_remembered():
    where, x, h = Where(), random(B, D), random(B, D, seed=5)
    tensors = {name: tensor for name, tensor in fields(1).items() if name in ("down", "down_bias", "up", "up_bias")}
    assert Remember(key="k").around(lambda given: 2 * given, where)(x).equal(2 * x)
    found = Bottleneck(**tensors, activation="relu", source="k").around(lambda: h, where)()
    change = bottleneck({f"o.{name}": tensor for name, tensor in tensors.items()}, "o")
    close(found, h + change(x))


# -- saved -------------------------------------------------------------------------------------------------------------


def test_settings_are_saved_with_an_adapter(tmp_path):
    method = Pfeiffer(
        reduction=8, depth=2, scale="learned", layer_norm="output", sublayers="attention,ffn", norms="all"
    )
    backbone, batch, adapter = make("bert", method)
    adapter.save(tmp_path / "a")
    again = Adapter.load(tmp_path / "a")
    assert again.method == method
    found = adapted_states(backbone, again, batch)
    assert all(torch.equal(*pair) for pair in zip(found, adapted_states(backbone, adapter, batch), strict=True))
