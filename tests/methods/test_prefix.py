"""Prefix tuning and P-tuning v2: the tables, what makes them, how they start, and what attention does with them."""

from dataclasses import replace

import pytest
import torch
from closeness import PASS, close
from tiny import LAYERS, WIDTH, batch_for, inputs_for, make_adapter, make_backbone, make_head, make_tokenizer
from torch import Tensor

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.errors import BackboneError, MethodError, SiteError
from graftwork.methods import PrefixTuning, make_method
from graftwork.model import AdaptedModel

L = 3
DIRECT = PrefixTuning(num_virtual_tokens=L, reparametrise=False)
SMALL = PrefixTuning(num_virtual_tokens=L, encoder_hidden_size=8)
KINDS = ("bert", "roberta", "electra", "distilbert", "albert", "modernbert", "gpt2", "llama", "t5", "bart", "vit")


def tables_of(method, backbone, tensors) -> dict[str, Tensor]:
    return dict(method.prepare(tensors, method.sites(backbone.sites), training=False))


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_by_hand(kind):
    """[P_K; P_V] = W_out tanh(W_in E + b_in) + b_out, one network a kind of attention."""
    backbone = make_backbone(kind)
    tensors = make_adapter(
        backbone, SMALL, trained=True, pooling="mean" if kind in ("t5", "bart") else backbone.pooling
    ).tensors
    made = tables_of(SMALL, backbone, tensors)
    sites = backbone.sites.of_kind("attention")
    tables = {site.name.replace(f"layers.{site.layer}.", "") for site in sites}
    assert len(tables) == (3 if backbone.is_encoder_decoder else 1)
    assert {n.removesuffix(".embedding") for n in tensors if n.endswith(".embedding")} == tables
    for site in sites:
        table = site.name.replace(f"layers.{site.layer}.", "")
        hidden = torch.tanh(
            tensors[f"{table}.embedding"] @ tensors[f"{table}.inner"].T + tensors[f"{table}.inner_bias"]
        )
        flat = hidden @ tensors[f"{site.name}.outer"].T + tensors[f"{site.name}.outer_bias"]
        width = site.heads * site.head_dim
        for part, columns in (("keys", flat[:, :width]), ("values", flat[:, width:])):
            rows = made[f"{site.name}.{part}"]
            assert rows.shape == (site.heads, L, site.head_dim)
            for h in range(site.heads):
                head = columns[:, h * site.head_dim : (h + 1) * site.head_dim]
                close(rows[h], head, scale=float(columns.abs().max()))


def test_a_grouped_query_table_is_narrower():
    tensors = make_adapter(make_backbone("llama"), DIRECT).tensors
    assert tensors["layers.0.attention.kv.keys"].shape == (2, L, 8)
    assert make_adapter(make_backbone("bert"), DIRECT).tensors["layers.0.attention.kv.keys"].shape == (4, L, 8)


def attention_by_hand(backbone, tensors, x) -> Tensor:
    """BERT's first attention before its output projection: (1 − g) att(x) + g softmax(q P_Kᵀ) P_V, g its mass on P."""
    inner = backbone.modules[backbone.sites["layers.0.attention.kv"].path]

    def heads(name):
        return getattr(inner, name)(x).unflatten(-1, (4, 8)).transpose(1, 2)

    q, k, v = heads("query"), heads("key"), heads("value")
    P_K, P_V = (tensors[f"layers.0.attention.kv.{part}"].double() for part in ("keys", "values"))
    on_text, on_rows = ((q @ t.transpose(-1, -2) / 8**0.5).exp() for t in (k, P_K))
    mass = on_rows.sum(-1, keepdim=True)
    g = mass / (mass + on_text.sum(-1, keepdim=True))
    text = on_text / on_text.sum(-1, keepdim=True) @ v
    rows = on_rows / mass @ P_V
    assert 0.01 < g.min() < g.max() < 0.99
    return ((1 - g) * text + g * rows).transpose(1, 2).flatten(2)


def test_a_prefix_is_a_gate():
    backbone = make_backbone("bert", dtype=torch.float64)
    ids = batch_for(backbone, 6, 6)["input_ids"]
    adapter = make_adapter(backbone, DIRECT, trained=True)
    with torch.no_grad():
        x = backbone.model(ids, output_hidden_states=True).hidden_states[0]
        expected = attention_by_hand(backbone, adapter.tensors, x)
        seen = []
        output = backbone.modules[backbone.sites["layers.0.attention.output"].path]
        hook = output.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        AdaptedModel(backbone, {"a": adapter})(ids)
        hook.remove()
    close(seen[0], expected)


def test_each_attention_of_t5_has_its_own_prefix():
    """Each alone changes the output, and a text's length changes nothing of what a row does."""
    backbone = make_backbone("t5", dtype=torch.float64)
    batch = inputs_for(backbone.model, 7, 4)
    outputs = {}
    for targets in ("encoder.*.kv", "decoder.*.attention.kv", "decoder.*.cross_attention.kv", "kv"):
        method = DIRECT.model_copy(update={"targets": (targets,)})
        model = AdaptedModel(backbone, {"a": make_adapter(backbone, method, trained=True, pooling="mean")})
        with torch.no_grad():
            outputs[targets] = model(**batch).logits
            alone = model(**{name: value[1:, :4] for name, value in batch.items()}).logits
        close(outputs[targets][1:], alone, PASS)
        model.detach()
    logits = list(outputs.values())
    for i, one in enumerate(logits):
        assert all((one - other).abs().max() > 1e-4 for other in logits[:i])


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_alone_says_the_same(kind, tmp_path):
    backbone = make_backbone(kind)
    inputs = inputs_for(backbone.model, 7, 4)
    method = SMALL.model_copy(update={"keep": "table"})
    pooling = "mean" if backbone.is_encoder_decoder else backbone.pooling
    adapter = make_adapter(backbone, method, trained=True, pooling=pooling)
    ended, tensors = method.finish(adapter.tensors, method.sites(backbone.sites))
    assert not ended.reparametrise
    table = replace(adapter, method=ended, tensors=tensors)
    assert table.num_parameters - 3 * (WIDTH + 1) == sum(
        2 * L * s.heads * s.head_dim for s in backbone.sites.of_kind("attention")
    )
    table.save(tmp_path / "a")
    logits = []
    for one in (adapter, Adapter.load(tmp_path / "a")):
        model = AdaptedModel(backbone, {"a": one})
        with torch.no_grad():
            logits.append(model(**inputs).logits)
        model.detach()
    assert torch.equal(*logits)


def test_dropout_is_of_the_rows_in_training_only():
    backbone = make_backbone("bert")
    method = DIRECT.model_copy(update={"dropout": 0.5})
    tensors, sites = make_adapter(backbone, method).tensors, method.sites(backbone.sites)
    name = "layers.0.attention.kv.keys"
    assert torch.equal(method.prepare(tensors, sites, training=False)[name], tensors[name])
    torch.manual_seed(0)
    dropped = method.prepare(tensors, sites, training=True)[name]
    kept = dropped != 0
    assert 0.2 < kept.float().mean() < 0.8
    assert torch.equal(dropped[kept], 2 * tensors[name][kept])


# -- how a prefix starts -----------------------------------------------------------------------------------------------


def start(kind, method, *, tokenizer=True, **options):
    backbone = make_backbone(kind, tokenizer=tokenizer, **options)
    pooling = "mean" if backbone.is_encoder_decoder else backbone.pooling
    task = TaskIdentity(name="t", labels=("good", "bad"))
    return backbone, Adapter.create(backbone, method, make_head(pooling, num_outputs=2), task).tensors


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "bart", "modernbert"])
def test_activations_are_the_backbones_keys_and_values(kind):
    method = DIRECT.model_copy(update={"init": "activations", "text": "a good film"})
    backbone, tensors = start(kind, method)
    ids = torch.tensor([make_tokenizer()("a good film", add_special_tokens=False)["input_ids"]])
    site = backbone.sites.of_kind("attention")[0]
    seen = {}
    for part in ("key", "value"):
        linear = backbone.sites[site.name.removesuffix("kv") + part]
        hook = backbone.modules[linear.path].register_forward_hook(
            lambda module, inputs, output, part=part, linear=linear: seen.__setitem__(
                part, output[..., slice(*linear.columns)] if linear.columns else output
            )
        )
        with torch.no_grad():
            backbone.base(ids, **({"decoder_input_ids": ids} if backbone.is_encoder_decoder else {}))
        hook.remove()
    for part in ("key", "value"):
        rows = tensors[f"{site.name}.{part}s"]
        assert torch.equal(rows.transpose(0, 1).flatten(1), seen[part][0])


def test_activations_before_their_own_text_change_no_attention():
    """Each key stands twice, so that each value weighs what it weighed: BERT's first attention is unchanged."""
    method = DIRECT.model_copy(update={"init": "activations", "text": "a good film"})
    backbone, tensors = start("bert", method, dtype=torch.float64)
    ids = torch.tensor([make_tokenizer()("a good film", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        expected = backbone.model(ids, output_hidden_states=True).hidden_states
        model = AdaptedModel(backbone)
        model.add("a", make_adapter(backbone, DIRECT), trainable=True)
        rows = {n: t for n, t in tensors.items() if "kv" in n}
        model.in_training("a").assign({**model.adapter("a").tensors, **rows})
        found = model(ids, output_hidden_states=True).hidden_states
    for one, other in zip(found, expected, strict=True):
        # The rows are kept in float32.
        close(one, other, PASS, precision=torch.float32)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
@pytest.mark.parametrize("text", ["", "a good film"])
def test_a_network_is_solved_for_the_same_activations(kind, text):
    update = {"init": "activations", "text": text}
    _, direct = start(kind, DIRECT.model_copy(update=update))
    method = SMALL.model_copy(update=update)
    backbone, tensors = start(kind, method)
    if not text:
        # The words are drawn after the parameters, of which there are others.
        assert all(torch.isfinite(t).all() for t in tensors.values())
        return
    made = tables_of(method, backbone, tensors)
    for site in backbone.sites.of_kind("attention"):
        for part in ("keys", "values"):
            # Least squares in float32, whose rounding grows with the condition of what is solved.
            close(made[f"{site.name}.{part}"], direct[f"{site.name}.{part}"], 4 * PASS)


def test_what_a_start_needs_and_is_not_there():
    with pytest.raises(BackboneError, match="has no tokenizer"):
        start("bert", DIRECT.model_copy(update={"init": "activations", "text": "good"}), tokenizer=False)
    with pytest.raises(MethodError, match="49 words are more than backbone 'tiny-bert' has positions for"):
        start("bert", PrefixTuning(num_virtual_tokens=49, init="activations", reparametrise=False))
    with pytest.raises(MethodError, match="text needs init='activations'"):
        PrefixTuning(text="good")


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["deberta-v2", "mpnet", "resnet"])
def test_attentions_that_take_no_rows_are_refused_with_the_reason(kind):
    backbone = make_backbone(kind)
    with pytest.raises(SiteError) as caught:
        DIRECT.sites(backbone.sites)
    assert "prefix-tuning" in caught.value.problem
    assert backbone.sites.refusals["attention"] in caught.value.problem


def test_p_tuning_v2_is_the_table_without_a_network():
    method = make_method("P-Tuning-v2", {"num_virtual_tokens": 64})
    assert method == PrefixTuning(num_virtual_tokens=64, reparametrise=False)
    assert make_method("p-tuning-v2").num_virtual_tokens == 40
    assert method.learning_rate == 3e-2
    assert PrefixTuning().learning_rate < method.learning_rate


def test_counts():
    backbone = make_backbone("bert")
    head = 3 * (WIDTH + 1)
    assert make_adapter(backbone, DIRECT).num_parameters - head == 2 * L * LAYERS * WIDTH
    network = L * WIDTH + (WIDTH + 1) * 8 + (8 + 1) * 2 * LAYERS * WIDTH
    assert make_adapter(backbone, SMALL).num_parameters - head == network
