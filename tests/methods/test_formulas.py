"""Methods against their papers' formulas, written out by hand in float64, and against peft."""

import pytest
import torch
import torch.nn.functional as F
from closeness import PASS, close
from peft import LoraConfig, get_peft_model
from tiny import ENCODERS, batch_for, make_adapter, make_backbone, make_model

from graftwork.errors import MethodError, SiteError
from graftwork.methods import METHODS, FullFineTuning, HeadOnly, Houlsby, LoRA, make_method
from graftwork.model import AdaptedModel


def encoder_by_hand(model, ids, tensors, owner, norms) -> list[torch.Tensor]:
    """BERT's hidden states, with A(h) = h + U·gelu(D·h) after each sub-layer and before its skip connection."""
    weights = {name: p.double() for name, p in model.named_parameters()}
    eps, heads = model.config.layer_norm_eps, model.config.num_attention_heads

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name, site):
        trained = norms == "all" or (norms == "layers" and site.startswith("layers."))
        gain = tensors[f"{site}.weight"].double() if trained else weights[f"{name}.weight"]
        bias = tensors[f"{site}.bias"].double() if trained else weights[f"{name}.bias"]
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * gain + bias

    def adapted(h, site):
        name = owner(site)
        down, up = tensors[f"{name}.down"].double(), tensors[f"{name}.up"].double()
        z = h @ down.T + tensors[f"{name}.down_bias"].double()
        gelu = z * 0.5 * (1 + torch.erf(z / 2**0.5))
        return h + gelu @ up.T + tensors[f"{name}.up_bias"].double()

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    states = [norm(x, "embeddings.LayerNorm", "embeddings.norm")]
    for i in range(model.config.num_hidden_layers):
        x, layer = states[-1], f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{name}").unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        attended = (scores.exp() / scores.exp().sum(-1, keepdim=True)) @ v
        h = linear(attended.transpose(1, 2).flatten(2), f"{layer}.attention.output.dense")
        h = adapted(h, f"layers.{i}.attention.result")
        x = norm(h + x, f"{layer}.attention.output.LayerNorm", f"layers.{i}.attention.norm")
        z = linear(x, f"{layer}.intermediate.dense")
        h = linear(z * 0.5 * (1 + torch.erf(z / 2**0.5)), f"{layer}.output.dense")
        h = adapted(h, f"layers.{i}.ffn.result")
        states.append(norm(h + x, f"{layer}.output.LayerNorm", f"layers.{i}.ffn.norm"))
    return states


@pytest.mark.parametrize(
    ("settings", "owner"),
    [
        ({}, lambda site: site),
        ({"norms": "layers"}, lambda site: site),
        ({"norms": "none", "share_positions": True}, lambda site: site.replace("ffn", "attention")),
        ({"share_layers": 2}, lambda site: site.replace("layers.1", "layers.0")),
        ({"share_layers": 3, "share_positions": True}, lambda site: "layers.0.attention.result"),
    ],
)
def test_houlsby_is_the_papers_formula(settings, owner):
    backbone = make_backbone("bert", dtype=torch.float64)
    ids = batch_for(backbone, 6, 6)["input_ids"]
    method = Houlsby(bottleneck=5, **settings)
    adapter = make_adapter(backbone, method, trained=True)
    with torch.no_grad():
        expected = encoder_by_hand(backbone.model, ids, adapter.tensors, owner, method.norms)
        model = AdaptedModel(backbone, {"a": adapter})
        found = model(ids, output_hidden_states=True).hidden_states
    for one, other in zip(found, expected, strict=True):
        close(one, other, PASS)


def test_sharing_over_layers_starts_anew_after_each_group():
    sites = make_backbone("bert", num_hidden_layers=5).sites
    method = Houlsby(bottleneck=2, share_layers=2, norms="none")
    owners = {next(iter(method.declare(site))).removesuffix(".down") for site in method.sites(sites)}
    assert owners == {f"layers.{i}.{s}.result" for i in (0, 2, 4) for s in ("attention", "ffn")}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("targets", ["layers.*", "query,value"])
def test_lora_is_the_merged_weight(kind, targets):
    """W + (α/r)·B·A in the place of W."""
    backbone = make_backbone(kind, dtype=torch.float64)
    batch = batch_for(backbone, 7, 4)
    adapter = make_adapter(backbone, LoRA(rank=3, alpha=6, targets=targets), trained=True)
    model = AdaptedModel(backbone, {"a": adapter})
    with torch.no_grad():
        found = model(**batch, output_hidden_states=True).hidden_states
    model.detach()
    pairs = {name.removesuffix(".A") for name in adapter.tensors if name.endswith(".A")}
    assert len(pairs) == (12 if targets == "layers.*" else 4)
    with torch.no_grad():
        for name in pairs:
            A, B = adapter.tensors[f"{name}.A"].double(), adapter.tensors[f"{name}.B"].double()
            backbone.modules[backbone.sites[name].path].weight.add_(6 / 3 * B @ A)
        expected = backbone.model(**batch, output_hidden_states=True).hidden_states
    for one, other in zip(found, expected, strict=True):
        close(one, other, PASS)


@pytest.mark.parametrize("kind", ENCODERS)
def test_full_fine_tuning_is_other_weights(kind):
    backbone = make_backbone(kind)
    batch = batch_for(backbone, 7, 4)
    # Where there is a pooler, a head that reads it trains it as well.
    pooling = None if getattr(backbone.base, "pooler", None) is None else "pooler"
    adapter = make_adapter(backbone, FullFineTuning(), trained=True, pooling=pooling)
    model = AdaptedModel(backbone, {"a": adapter})
    with torch.no_grad():
        found = model(**batch, output_hidden_states=True).hidden_states
        model.detach()
        for site in backbone.sites.values():
            for name, parameter in backbone.frozen(site).items():
                parameter.add_(adapter.tensors[f"{site.name}.{name}"])
        expected = backbone.model(**batch, output_hidden_states=True).hidden_states
    # The very same float32 sums and kernels.
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_head_only_is_a_linear_map_of_the_pooled_output():
    backbone = make_backbone("bert")
    batch = batch_for(backbone, 7, 4)
    adapter = make_adapter(backbone, HeadOnly(), trained=True, pooling="pooler")
    assert set(adapter.tensors) == {"head.classifier.weight", "head.classifier.bias"}
    with torch.no_grad():
        pooled = backbone.model(**batch).pooler_output
        expected = F.linear(pooled, adapter.tensors["head.classifier.weight"], adapter.tensors["head.classifier.bias"])
        assert torch.equal(AdaptedModel(backbone, {"a": adapter})(**batch).logits, expected)


def test_lora_is_pefts():
    backbone = make_backbone("bert")
    batch = batch_for(backbone, 7, 4)
    adapter = make_adapter(backbone, LoRA(rank=3, alpha=12, targets="query,value"), trained=True)
    peft = get_peft_model(make_model("bert"), LoraConfig(r=3, lora_alpha=12, target_modules=["query", "value"]))
    copied = 0
    with torch.no_grad():
        for site in LoRA(targets="query,value").sites(backbone.sites):
            layer = peft.get_submodule(f"base_model.model.{site.path}")
            for matrix in ("A", "B"):
                weight = getattr(layer, f"lora_{matrix}")["default"].weight
                assert weight.shape == adapter.tensors[f"{site.name}.{matrix}"].shape
                weight.copy_(adapter.tensors[f"{site.name}.{matrix}"])
                copied += 1
        assert copied == 8
        expected = peft.eval()(**batch, output_hidden_states=True).hidden_states
        plain = backbone.model(**batch, output_hidden_states=True).hidden_states
        found = AdaptedModel(backbone, {"a": adapter})(**batch, output_hidden_states=True).hidden_states
    real = batch["attention_mask"].bool()
    assert (plain[-1] - expected[-1])[real].abs().max() > 0.1
    for one, other in zip(found, expected, strict=True):
        # The scale is applied to B here and to the product there.
        close(one[real], other[real], PASS)


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["full-fine-tuning", "FullFineTuning", "full_fine_tuning", "FULL-FINETUNING"])
def test_methods_are_found_under_any_spelling(spelling):
    assert make_method(spelling) == FullFineTuning()


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(MethodError) as caught:
        make_method("lorra")
    assert "unknown method 'lorra'" in caught.value.problem
    assert caught.value.expected.startswith("for example lora, ")
    assert caught.value.change == "--method"


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        (
            "houlsby",
            {"bottelneck": 3},
            ["unknown key 'bottelneck'", "settings of houlsby: bottleneck", "--method.bottelneck"],
        ),
        ("houlsby", {"bottleneck": 0, "norms": "some"}, ["bottleneck=0", "norms='some'"]),
        ("houlsby", {"activation": "gleu"}, ["activation='gleu'", "unknown activation", "gelu"]),
        ("lora", {"dropout": 1.0}, ["dropout=1.0", "a number below 1"]),
        ("lora", {"rank": "x"}, ["rank='x'", "--method.rank"]),
        ("lora", {"targets": ()}, ["targets=()"]),
        ("head-only", {"rank": 1}, ["unknown key 'rank'", "settings of head-only: none"]),
    ],
)
def test_wrong_settings_are_all_named(name, settings, parts):
    with pytest.raises(MethodError) as caught:
        make_method(name, settings)
    assert all(part in str(caught.value) for part in parts)


def test_lora_targets_are_a_list_or_separated_by_commas():
    assert LoRA(targets="query,ffn.up") == LoRA(targets=["query", "ffn.up"]) == LoRA(targets=("query", "ffn.up"))
    with pytest.raises(SiteError, match="'qurey' matches no linear site"):
        LoRA(targets="query,qurey").sites(make_backbone("bert").sites)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_survives_json(name):
    method = METHODS[name]()
    assert make_method(name, type(method).model_validate_json(method.model_dump_json()).model_dump()) == method


# -- how parameters start ------------------------------------------------------------------------------------------


def test_houlsby_starts_as_the_paper_says():
    backbone = make_backbone("bert")
    tensors = make_adapter(backbone, Houlsby(bottleneck=24, init_std=0.03)).tensors
    for i in range(2):
        for sublayer in ("attention", "ffn"):
            site = f"layers.{i}.{sublayer}.result"
            for name in ("down", "up"):
                values = tensors[f"{site}.{name}"]
                assert 0.05 < values.abs().max() <= 0.06
                # A normal cut at two sigma has 0.88 of its deviation; 768 draws know it to about 2 %.
                assert 0.8 * 0.03 < values.std() < 0.96 * 0.03
            assert not tensors[f"{site}.down_bias"].any()
            assert not tensors[f"{site}.up_bias"].any()
    norm = backbone.modules["encoder.layer.1.output.LayerNorm"]
    assert torch.equal(tensors["layers.1.ffn.norm.weight"], norm.weight)
    assert torch.equal(tensors["layers.1.ffn.norm.bias"], norm.bias)
    assert not torch.equal(tensors["layers.0.ffn.result.up"], tensors["layers.1.ffn.result.up"])


def test_lora_starts_as_the_paper_says():
    tensors = make_adapter(make_backbone("bert"), LoRA(rank=24)).tensors
    A, B = tensors["layers.0.ffn.down.A"], tensors["layers.0.ffn.down.B"]
    bound = (6 / ((1 + 5) * 64)) ** 0.5
    assert 0.95 * bound < A.abs().max() <= bound
    assert not B.any()


def test_weight_decay_spares_biases_and_norms():
    backbone = make_backbone("bert")
    for method in (Houlsby(), FullFineTuning(), LoRA()):
        for site in method.sites(backbone.sites):
            for name, parameter in method.declare(site).items():
                matrix = len(parameter.shape) == 2
                assert parameter.decay == matrix, name
                assert parameter.group == ("norms" if site.kind == "norm" else "adapter")
