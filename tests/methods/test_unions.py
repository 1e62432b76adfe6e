"""Unions: the members' ops at once, their parameters under their names, and gates on their effects."""

from dataclasses import replace

import pytest
import torch
from beside import adapted_states, bottleneck
from closeness import PASS, close
from tiny import WIDTH, batch_for, inputs_for, make_adapter, make_backbone, make_head

from graftwork.adapters import Adapter
from graftwork.adapters.declared import declare, lower, usable_sites
from graftwork.errors import MethodError, SiteError
from graftwork.methods import (
    IA3,
    METHODS,
    BiHNet,
    Compacter,
    DoRA,
    FullFineTuning,
    HeadOnly,
    Houlsby,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Stack,
    Union,
    make_method,
)
from graftwork.methods.composition import Composition
from graftwork.methods.method import Method
from graftwork.model import AdaptedModel
from graftwork.ops import Gated, LowRank

PROMPT = PromptTuning(num_virtual_tokens=2, init="uniform")
PREFIX = PrefixTuning(num_virtual_tokens=3, reparametrise=False)
MEMBERS = [LoRA(rank=2), Houlsby(bottleneck=3), PREFIX, PROMPT]


def states(backbone, adapter, batch):
    model = AdaptedModel(backbone, {"a": adapter})
    with torch.no_grad():
        found = model(**batch, output_hidden_states=True).hidden_states
    model.detach()
    return found


@pytest.mark.parametrize("kind", ["bert", "electra", "gpt2", "llama", "t5", "vit"])
@pytest.mark.parametrize("method", [LoRA(rank=2), Houlsby(bottleneck=3), PREFIX, PROMPT, PTuning(num_virtual_tokens=2)])
def test_a_union_of_one_is_that_method(kind, method):
    backbone = make_backbone(kind, dtype=torch.float64)
    if method.num_prompt_tokens and kind == "vit":
        with pytest.raises(SiteError):
            Union(methods=[method]).sites(backbone.sites)
        return
    batch = inputs_for(backbone.model, 7, 4)
    pooling = "mean" if backbone.is_encoder_decoder else backbone.pooling
    alone = make_adapter(backbone, method, trained=True, pooling=pooling)
    union = make_adapter(backbone, Union(methods=[method]), pooling=pooling)
    assert union.num_parameters == alone.num_parameters
    tensors = {n if n.startswith("head.") else f"{method.name}.{n}": t for n, t in alone.tensors.items()}
    assert tensors.keys() == union.tensors.keys()
    model = [replace(union, tensors=tensors), alone]
    logits = []
    for adapter in model:
        adapted = AdaptedModel(backbone, {"a": adapter})
        with torch.no_grad():
            logits.append(adapted(**batch).logits)
        adapted.detach()
    assert torch.equal(*logits)


def test_members_start_as_they_do_alone_and_their_counts_add_up():
    backbone = make_backbone("bert", tokenizer=True)
    members = [LoRA(rank=2), PREFIX.model_copy(update={"init": "activations", "text": "a good film"}), PTuning()]
    union = Union(methods=members)
    found = make_adapter(backbone, union)
    head = 3 * (WIDTH + 1)
    assert found.num_parameters - head == sum(make_adapter(backbone, m).num_parameters - head for m in members)
    alone = make_adapter(backbone, members[1]).tensors
    for name in ("layers.0.attention.kv.keys", "layers.1.attention.kv.values"):
        assert torch.equal(found.tensors[f"prefix-tuning.{name}"], alone[name])
    assert union.num_prompt_tokens == 20
    assert "lora.layers.0.ffn.up.A" in found.tensors


def test_mam_is_a_prefix_and_a_parallel_bottleneck_at_once():
    """l 30, m 512 and s 4 (He et al. 2022, section 4.6), each computed here."""
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = batch_for(backbone, 7, 4)
    mam = make_method("mam")
    assert [method.name for method in mam.methods] == ["prefix-tuning", "parallel"]
    adapter = make_adapter(backbone, mam, trained=True)
    found = adapted_states(backbone, adapter, batch)
    own = {n: t.double() for n, t in adapter.tensors.items()}
    table = "prefix-tuning.attention.kv"
    hidden = torch.tanh(own[f"{table}.embedding"] @ own[f"{table}.inner"].T + own[f"{table}.inner_bias"])
    assert hidden.shape == (30, 512)
    mask = torch.where(batch["attention_mask"][:, None, None].bool(), 0.0, -torch.inf).double()
    x, rows = found[0], len(batch["input_ids"])
    for i, layer in enumerate(backbone.model.encoder.layer):
        start = f"prefix-tuning.layers.{i}.attention.kv"
        flat = (hidden @ own[f"{start}.outer"].T + own[f"{start}.outer_bias"]).view(30, 2, 4, 8)
        prefix = flat.permute(1, 2, 0, 3)[:, None].expand(2, rows, -1, -1, -1)
        attention = layer.attention.self
        q, k, v = (f(x).view(rows, -1, 4, 8).transpose(1, 2) for f in (attention.query, attention.key, attention.value))
        scores = torch.cat([q @ prefix[0].mT, q @ k.mT + mask * 8**0.5], dim=-1) / 8**0.5
        mixed = scores.softmax(dim=-1) @ torch.cat([prefix[1], v], dim=2)
        output = layer.attention.output
        y = output.LayerNorm(output.dense(mixed.transpose(1, 2).flatten(2)) + x)
        change = bottleneck(own, f"parallel.layers.{i}.ffn.result")
        x = layer.output.LayerNorm(layer.output.dense(layer.intermediate(y)) + 4 * change(y) + y)
        close(found[i + 1], x, PASS)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_mams_members_act_at_different_places(kind):
    """So that either order of the two is the same."""
    backbone = make_backbone(kind, dtype=torch.float64)
    batch = inputs_for(backbone.model, 7, 4)
    pooling = "mean" if backbone.is_encoder_decoder else backbone.pooling
    mam = make_method("mam")
    one = make_adapter(backbone, mam, trained=True, pooling=pooling)
    other = replace(one, method=Union(methods=mam.methods[::-1]))
    logits = []
    for adapter in (one, other):
        model = AdaptedModel(backbone, {"a": adapter})
        with torch.no_grad():
            logits.append(model(**batch).logits)
        model.detach()
    assert torch.equal(*logits)


def test_two_members_of_one_name():
    union = Union(methods=[LoRA(rank=2, targets="query"), LoRA(rank=3, targets="query,ffn.up")])
    backbone = make_backbone("bert", dtype=torch.float64)
    adapter = make_adapter(backbone, union, trained=True)
    assert adapter.tensors["lora.layers.0.attention.query.A"].shape == (2, WIDTH)
    assert adapter.tensors["lora-2.layers.0.attention.query.A"].shape == (3, WIDTH)
    assert "lora.layers.0.ffn.up.A" not in adapter.tensors
    # Their differences add up.
    both = {}
    for name in ("layers.0.attention.query", "layers.1.attention.query"):
        for matrix, dim in (("A", 0), ("B", 1)):
            scales = {"lora": 16 / 2, "lora-2": 16 / 3} if matrix == "B" else {"lora": 1, "lora-2": 1}
            parts = [adapter.tensors[f"{member}.{name}.{matrix}"] * scale for member, scale in scales.items()]
            both[f"{name}.{matrix}"] = torch.cat(parts, dim)
    one = LoRA(rank=5, alpha=5, targets="query")
    no_up = {n: t * 0 if "ffn" in n and n.endswith(".B") else t for n, t in adapter.tensors.items()}
    found = states(backbone, replace(adapter, tensors=no_up), batch_for(backbone, 7, 4))
    head = {n: t for n, t in adapter.tensors.items() if n.startswith("head.")}
    expected = states(
        backbone, replace(make_adapter(backbone, one), tensors={**both, **head}), batch_for(backbone, 7, 4)
    )
    for a, b in zip(found, expected, strict=True):
        # B is scaled in float32.
        close(a, b, PASS, precision=torch.float32)


def test_later_members_change_what_earlier_ones_gave():
    """Two bottlenecks at one place: A2(A1(h)), not A1(A2(h))."""
    backbone = make_backbone("bert", dtype=torch.float64)
    a, b = (Houlsby(bottleneck=m, norms="none") for m in (2, 3))
    adapter = make_adapter(backbone, Union(methods=[a, b]), trained=True)
    tensors = {n: t.double() for n, t in adapter.tensors.items()}
    ops = Union(methods=[a, b])
    site = next(s for s in ops.sites(backbone.sites) if s.kind == "result")
    acting = ops.lower(site, tensors, {})
    h = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    forward = lambda x: x  # noqa: E731
    place = type("P", (), {"training": False, "memory": {}, "module": None})()
    for op in acting:
        forward = op.around(forward, place)
    first, second = (
        lambda x, m=m: (
            x
            + torch.nn.functional.gelu(x @ tensors[f"{m}.{site.name}.down"].T + tensors[f"{m}.{site.name}.down_bias"])
            @ tensors[f"{m}.{site.name}.up"].T
            + tensors[f"{m}.{site.name}.up_bias"]
        )
        for m in ("houlsby", "houlsby-2")
    )
    close(forward(h), second(first(h)), PASS)


@pytest.mark.parametrize("gated", [False, True])
def test_saved_and_loaded_it_says_the_same(gated, tmp_path):
    backbone = make_backbone("bert")
    batch = batch_for(backbone, 7, 4)
    members = [LoRA(rank=2), Houlsby(bottleneck=3, norms="none"), PREFIX] if gated else MEMBERS
    adapter = make_adapter(backbone, Union(methods=members, gated=gated), trained=True)
    adapter.save(tmp_path / "a")
    loaded = Adapter.load(tmp_path / "a")
    assert loaded.method == adapter.method
    for one, other in zip(states(backbone, adapter, batch), states(backbone, loaded, batch), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(kind):
    backbone = make_backbone(kind)
    batch = inputs_for(backbone.model, 7, 4)
    pooling = "mean" if backbone.is_encoder_decoder else backbone.pooling
    inside = [backbone.modules[site.path] for site in backbone.sites.values() if site.name.endswith("attention.key")]
    gradients, passes = [], []
    for checkpointing in (False, True):
        model = AdaptedModel(backbone)
        adapter = make_adapter(backbone, Union(methods=MEMBERS), trained=True, pooling=pooling)
        model.add("a", adapter, trainable=True)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        count = []
        hooks = [module.register_forward_hook(lambda *_, count=count: count.append(1)) for module in inside]
        model(**batch, labels=torch.tensor([0, 2])).loss.backward()
        for hook in hooks:
            hook.remove()
        passes.append(len(count))
        gradients.append({n: p.grad for n, p in model.residents["a"].parameters_by_name.named_parameters()})
        model.detach()
    assert all(
        g is not None and g.abs().max() > 0 for n, g in gradients[0].items() if n.startswith(("prefix", "prompt"))
    )
    for name, gradient in gradients[0].items():
        if gradient is not None:
            assert torch.equal(gradient, gradients[1][name]), name
    assert passes == [len(inside), 2 * len(inside)]


# -- gates -------------------------------------------------------------------------------------------------------------


def test_a_gate_is_of_the_hidden_state():
    """y = Wx + b + σ(w x + c) B A x, one gate a token."""
    backbone = make_backbone("bert", dtype=torch.float64)
    union = Union(methods=[LoRA(rank=2, targets="query")], gated=True)
    adapter = make_adapter(backbone, union, trained=True)
    tensors = {n: t.double() for n, t in adapter.tensors.items()}
    site = union.sites(backbone.sites)[0]
    (op,) = union.lower(site, tensors, {})
    assert isinstance(op, Gated)
    assert [type(own) for own in op.ops] == [LowRank]
    linear = backbone.modules[site.path]
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    calls = []

    def forward(x):
        calls.append(x)
        return linear(x)

    model = AdaptedModel(backbone, {"a": adapter})
    place = backbone.model.get_submodule(site.path)
    found = op.around(forward, place)(x)
    model.detach()
    assert len(calls) == 1
    start = f"lora.{site.name}"
    gate = torch.sigmoid(x @ tensors[f"{start}.gate.weight"].T + tensors[f"{start}.gate.bias"])
    difference = x @ tensors[f"{start}.A"].T @ tensors[f"{start}.B"].T * 8
    close(found, linear(x) + gate * difference, PASS)
    assert op.to(torch.bfloat16).ops[0].A.dtype == torch.bfloat16


def by_hand(method, tensors, name, linear, x):
    """What a method of several ops makes of a linear map."""
    weight, bias = linear.weight.detach(), linear.bias.detach()
    if isinstance(method, IA3):
        return tensors[f"{name}.output_scale"] * ((x * tensors[f"{name}.input_scale"]) @ weight.T + bias)
    changed = weight + tensors[f"{name}.B"] @ tensors[f"{name}.A"] * (method.alpha / method.rank)
    return x @ (tensors[f"{name}.magnitude"][:, None] * changed / changed.norm(dim=1, keepdim=True)).T + bias


SEVERAL = [DoRA(rank=2, targets="query"), IA3(outputs="query", inputs="query")]


@pytest.mark.parametrize("method", SEVERAL, ids=lambda method: method.name)
def test_a_gate_is_on_all_that_a_member_does_at_a_site(method):
    """y = f(x) + σ(w x + c) (member(f)(x) − f(x)), for a member of several ops."""
    backbone = make_backbone("bert", dtype=torch.float64)
    union = Union(methods=[method], gated=True)
    adapter = make_adapter(backbone, union, trained=True)
    tensors = {n: t.double() for n, t in adapter.tensors.items()}
    site = union.sites(backbone.sites)[0]
    linear = backbone.modules[site.path]
    (op,) = union.lower(site, tensors, backbone.frozen(site))
    assert len(op.ops) > 1
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    place = type("P", (), {"training": False, "memory": {}, "module": linear})()
    own = {n.removeprefix(f"{method.name}."): t for n, t in tensors.items()}
    gate = torch.sigmoid(x @ own[f"{site.name}.gate.weight"].T + own[f"{site.name}.gate.bias"])
    expected = linear(x) + gate * (by_hand(method, own, site.name, linear, x) - linear(x))
    # DoRA's lengths are float32.
    precision = torch.float32 if isinstance(method, DoRA) else torch.float64
    close(op.around(linear, place)(x), expected, precision=precision)


@pytest.mark.parametrize("method", SEVERAL, ids=lambda method: method.name)
def test_rows_can_each_have_a_gate_on_several_ops(method):
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = batch_for(backbone, 7, 4, 5)
    own = [make_adapter(backbone, Union(methods=[method], gated=True), trained=True, seed=seed) for seed in range(2)]
    model = AdaptedModel(backbone, {"a": own[0], "b": own[1], "c": make_adapter(backbone, LoRA(rank=3), trained=True)})
    with torch.no_grad():
        found = model(**batch, adapters=["c", "b", "a"]).logits
        for row, name in enumerate("cba"):
            close(found[row], model(**batch, adapters=name).logits[row], PASS)
    assert model.residents["a"].routed


def test_an_open_gate_is_no_gate_and_a_closed_one_no_member():
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = batch_for(backbone, 7, 4)
    members = [LoRA(rank=2), Houlsby(bottleneck=3, norms="none")]
    gated = make_adapter(backbone, Union(methods=members, gated=True), trained=True)
    plain = make_adapter(backbone, Union(methods=members))
    plain = replace(plain, tensors={n: gated.tensors[n] for n in plain.tensors})

    def at(bias):
        return replace(
            gated,
            tensors={
                n: torch.full_like(t, bias) if n.endswith("gate.bias") else t * 0 if n.endswith("gate.weight") else t
                for n, t in gated.tensors.items()
            },
        )

    with torch.no_grad():
        bare = backbone.model(**batch, output_hidden_states=True).hidden_states
    for one, other in zip(states(backbone, at(40.0), batch), states(backbone, plain, batch), strict=True):
        close(one, other, PASS)
    for one, other in zip(states(backbone, at(-40.0), batch), bare, strict=True):
        close(one, other, PASS)


def test_a_gate_on_a_prefix_scales_its_rows():
    backbone = make_backbone("bert")
    union = Union(methods=[PREFIX], gated=True)
    tensors = make_adapter(backbone, union, trained=True).tensors
    site = union.sites(backbone.sites)[0]
    (op,) = union.lower(site, union.prepare(tensors, [site], training=False), {})
    start = f"prefix-tuning.{site.name}"
    gate = torch.sigmoid(tensors[f"{start}.gate.bias"])
    assert torch.equal(op.keys, tensors[f"{start}.keys"] * gate)
    assert torch.equal(op.values, tensors[f"{start}.values"] * gate)


def test_a_closed_gate_on_a_prefix_leaves_rows_of_zeros():
    """Which still take their share of the attention."""
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = batch_for(backbone, 7, 4)
    gated = make_adapter(backbone, Union(methods=[PREFIX], gated=True), trained=True)
    closed = {n: torch.full_like(t, -40.0) if n.endswith("gate.bias") else t for n, t in gated.tensors.items()}
    plain = make_adapter(backbone, PREFIX)
    zeros = {n: t if n.startswith("head.") else t * 0 for n, t in plain.tensors.items()}
    found = states(backbone, replace(gated, tensors=closed), batch)
    for one, other in zip(found, states(backbone, replace(plain, tensors=zeros), batch), strict=True):
        close(one, other, PASS)


def test_gates_stand_at_half():
    tensors = make_adapter(make_backbone("bert"), make_method("unipelt")).tensors
    biases = [t for n, t in tensors.items() if n.endswith("gate.bias")]
    weights = torch.cat([t.flatten() for n, t in tensors.items() if n.endswith("gate.weight")])
    # Two layers: query and value, the attention, and a bottleneck.
    assert len(biases) == 2 * (2 + 1 + 1)
    assert not any(t.any() for t in biases)
    assert 0.015 < weights.std() < 0.025


@pytest.mark.parametrize("member", [PROMPT, FullFineTuning()])
def test_what_cannot_be_gated_is_refused(member):
    backbone = make_backbone("bert")
    with pytest.raises(MethodError, match="cannot be gated"):
        make_adapter(backbone, Union(methods=[LoRA(), member], gated=True))


def test_trained_norms_cannot_be_gated():
    backbone = make_backbone("bert")
    with pytest.raises(MethodError, match="cannot be gated"):
        make_adapter(backbone, Union(methods=[Houlsby()], gated=True))


# -- settings ----------------------------------------------------------------------------------------------------------


def test_members_come_as_methods_names_and_mappings():
    expected = Union(methods=[LoRA(rank=2), PrefixTuning()])
    assert Union(methods=[{"name": "lora", "rank": 2}, "prefix_tuning"]) == expected
    assert make_method("union", {"methods": [{"name": "LoRA", "rank": 2}, {"name": "prefix-tuning"}]}) == expected
    assert Union(methods="lora,prefix-tuning") == Union(methods=" lora, prefix-tuning ") == Union()
    assert make_method("union", expected.model_dump()) == expected
    assert Union.model_validate_json(expected.model_dump_json()) == expected
    nested = Union(methods=[expected, PROMPT])
    assert make_method("union", nested.model_dump(mode="json")) == nested


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["lorra"], "unknown method 'lorra'"),
        ([{"rank": 2}], "a method's name is missing in {'rank': 2}"),
        ([{"name": "lora", "rnak": 2}], "unknown key 'rnak'"),
        ([], "at least 1"),
        ([3], "3 is not a method"),
        (["lora", Houlsby(extra_classifier=True), LoRA()], None),
    ],
)
def test_wrong_members_are_named(methods, message):
    if message is None:
        assert Union(methods=methods).head_fields == {"extra_layer": True}
        return
    with pytest.raises(MethodError) as caught:
        Union(methods=methods)
    assert message in str(caught.value)


def test_two_members_that_replace_what_a_site_computes_are_refused():
    backbone = make_backbone("bert")
    union = Union(methods=[Houlsby(), Houlsby(bottleneck=3)])
    with pytest.raises(MethodError, match=r"houlsby and houlsby-2 both replace what site 'embeddings.norm' computes"):
        make_adapter(backbone, union)
    with pytest.raises(MethodError, match="houlsby and union both replace"):
        make_adapter(backbone, Union(methods=[Houlsby(), Union(methods=["layer-norm-tuning", "lora"])]))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "union"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_methods_say_what_they_replace(name, kind):
    """As their ops do."""
    backbone = make_backbone(kind)
    settings = {"bottleneck": 4} if issubclass(METHODS[name], Compacter) else {}
    adapter = make_adapter(backbone, make_method(name, settings), pooling="mean")
    ops = lower(backbone, adapter.method, adapter.head, adapter.tensors)
    found = {name for name, acting in ops.items() if any(op.replaces for op in acting)}
    sites = adapter.method.sites(usable_sites(backbone, adapter.head))
    assert found == {site.name for site in sites if adapter.method.replaces(site)}


def test_a_union_in_a_union():
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = batch_for(backbone, 7, 4)
    nested = make_adapter(backbone, Union(methods=[Union(methods=[LoRA(rank=2), PREFIX]), PROMPT]), trained=True)
    flat = make_adapter(backbone, Union(methods=[LoRA(rank=2), PREFIX, PROMPT]))
    flat = replace(flat, tensors={n.removeprefix("union."): t for n, t in nested.tensors.items()})
    for one, other in zip(states(backbone, nested, batch), states(backbone, flat, batch), strict=True):
        assert torch.equal(one, other)


def test_each_member_has_its_own_rate():
    backbone = make_backbone("bert")
    union = Union(methods=[LoRA(), PREFIX, HeadOnly()])
    assert union.learning_rate == LoRA().learning_rate == 5e-4
    rates = {n: p.rate for n, p in declare(backbone, union, make_head()).items()}
    assert rates["lora.layers.0.ffn.up.A"] == 1.0
    assert rates["prefix-tuning.layers.0.attention.kv.keys"] == pytest.approx(PREFIX.learning_rate / 5e-4) == 60.0
    assert rates["head.classifier.weight"] == 1.0
    assert union.frozen_backbone
    assert not Union(methods=[FullFineTuning()]).frozen_backbone
    assert union.passes == 1
    assert union.num_train_epochs == 10
    assert (union.optim, union.lr_scheduler_type) == ("adamw_torch_fused", "linear")


def test_members_are_trained_by_one_optimiser_and_schedule():
    assert Union(methods=["ulmfit"]).lr_scheduler_type == "slanted_triangular"
    with pytest.raises(MethodError, match="different values of lr_scheduler_type: slanted_triangular and linear"):
        Union(methods=["ulmfit", "lora"])


def test_a_chain_of_tags_is_not_for_members_of_several_passes():
    chain = {"name": "feature-extraction", "model": "bilstm-crf"}
    assert Union(methods=["lora", chain]).head_fields["model"] == "bilstm-crf"
    with pytest.raises(MethodError, match="several passes"):
        Union(methods=["adamix", chain])


def test_what_is_kept_at_the_end_is_the_members():
    backbone = make_backbone("bert")
    batch = batch_for(backbone, 7, 4)
    members = [LoRA(rank=2), PTuning(num_virtual_tokens=2, keep="table"), PROMPT]
    union = Union(methods=members)
    adapter = make_adapter(backbone, union, trained=True)
    ended, tensors = union.finish(adapter.tensors, union.sites(backbone.sites))
    assert ended == Union(methods=[LoRA(rank=2), PROMPT, PROMPT])
    assert {"prompt-tuning.input.prompt", "prompt-tuning-2.input.prompt", "head.classifier.bias"} <= tensors.keys()
    kept = replace(adapter, method=ended, tensors=tensors)
    for one, other in zip(states(backbone, adapter, batch), states(backbone, kept, batch), strict=True):
        assert torch.equal(one, other)


def test_gates_are_kept_at_the_end():
    backbone = make_backbone("bert")
    batch = batch_for(backbone, 7, 4)
    prefix = PrefixTuning(num_virtual_tokens=2, encoder_hidden_size=4, keep="table")
    union = Union(methods=[LoRA(rank=2), prefix], gated=True)
    adapter = make_adapter(backbone, union, trained=True)
    ended, tensors = union.finish(adapter.tensors, union.sites(backbone.sites))
    kept = replace(adapter, method=ended, tensors=tensors)
    for one, other in zip(states(backbone, adapter, batch), states(backbone, kept, batch), strict=True):
        assert torch.equal(one, other)


def test_what_members_read_of_examples_stands_under_their_names():
    """A method that a union and a composition are made of keeps all that it says of itself."""
    backbone = make_backbone("bert")
    features = torch.randn(80, WIDTH, generator=torch.Generator().manual_seed(0))
    reading = BiHNet(bottleneck=3, code_size=4, hidden_size=5)
    alone = reading.from_features(features)
    [adapter] = [make_adapter(backbone, reading, trained=True)]
    union = Union(methods=[LoRA(rank=2), reading])
    for method, start in (
        (union, "bihnet."),
        (Stack(parts=["lora", reading]), "parts.bihnet."),
        (Stack(parts={"known": adapter, "new": union}), "parts.new.bihnet."),
    ):
        assert method.reads_examples
        made = method.from_features(features)
        assert made.keys() == {f"{start}{name}" for name in alone}
        assert made.keys() <= make_adapter(backbone, method).tensors.keys()
        for name, tensor in alone.items():
            assert torch.equal(made[f"{start}{name}"], tensor)
    # The vectors of an adapter that is a part are those of its own task.
    frozen = Stack(parts=[adapter, "lora"])
    assert not frozen.reads_examples
    assert not frozen.from_features(features)


@pytest.mark.parametrize("combined", [Union, Composition])
def test_a_method_of_methods_says_all_that_a_method_can(combined):
    """What is said of a method by default is never said of one that others are part of: it depends on them."""
    of_itself = {"refusal", "refuse_idle", "settings_text", "unmergeable", "name", "paper", "when"}
    said = {name for name in vars(Method) if not name.startswith(("_", "model_"))} - of_itself
    missing = {name for name in said if getattr(combined, name) is getattr(Method, name)}
    assert len(said) > 15
    assert missing == set()
