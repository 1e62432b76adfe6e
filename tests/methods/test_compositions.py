"""Compositions: fusion, gates and averages against code that makes every u_n as the papers write it."""

from dataclasses import replace

import pytest
import torch
from closeness import PASS, close
from tiny import WIDTH, inputs_for, make_adapter, make_backbone
from transformers import BertConfig

from graftwork.adapters import Adapter
from graftwork.adapters.declared import declare, lower
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, MethodError
from graftwork.heads import PooledHead
from graftwork.methods import (
    IA3,
    AdaMix,
    Average,
    Compacter,
    FullFineTuning,
    Fuse,
    Gate,
    HeadOnly,
    Houlsby,
    LayerNormTuning,
    LoRA,
    Parallel,
    Pfeiffer,
    PrefixTuning,
    Stack,
    make_method,
)
from graftwork.methods.method import Method
from graftwork.methods.parts import Part
from graftwork.model import AdaptedModel

SIGMA = {"relu": torch.relu, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}


class Lone:
    """A site without a model: what it computes is given."""

    def __init__(self, training=False):
        self.module, self.training, self.memory = torch.nn.Identity(), training, {}


def parts_on(backbone, *methods):
    """Trained adapters of these methods."""
    return [make_adapter(backbone, method, trained=True, seed=i) for i, method in enumerate(methods)]


def doubled(adapter):
    return {name: tensor.double() for name, tensor in adapter.tensors.items()}


def part_outputs(tensors, part, site, x, sigma):
    """u_n = U σ(D x + b_D) + b_U."""
    D, b_D, U, b_U = (tensors[f"parts.{part}.{site}.{n}"] for n in ("down", "down_bias", "up", "up_bias"))
    return SIGMA[sigma](x @ D.T + b_D) @ U.T + b_U


def attention(tensors, site, q, u, kept=None):
    """Σ p_n V u_n of u (N, B, T, d), written with every K u_n and V u_n; scores are multiplied by `kept` (B, T, N)."""
    Q, b_q, K, b_k, V = (tensors[f"fusion.{site}.{n}"] for n in ("query", "query_bias", "key", "key_bias", "value"))
    scores = ((q @ Q.T + b_q) * (u @ K.T + b_k)).sum(-1)
    if kept is not None:
        scores = scores * kept.movedim(-1, 0)
    p = scores.softmax(dim=0)
    return (p[..., None] * (u @ V.T)).sum(0), p


def ops_of(backbone, adapter, tensors=None):
    return lower(backbone, adapter.method, adapter.head, tensors or doubled(adapter))


def states_of(backbone, adapter, batch):
    model = AdaptedModel(backbone, {"a": adapter}).to(backbone.dtype)
    try:
        with torch.no_grad(), model.graft.run(model.residents["a"].ops()):
            output = model.graft.base(**batch, output_hidden_states=True)
        return list(output.get("hidden_states") or [*output.encoder_hidden_states, *output.decoder_hidden_states])
    finally:
        model.detach()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_fusion_is_that_of_the_paper_and_so_are_its_gradients(dropout):
    """In training: dropout of the scores is drawn once and given to both."""
    backbone = make_backbone("bert", dtype=torch.float64)
    sizes = (6, 3, 5)
    adapter = make_adapter(
        backbone,
        Fuse(parts=[Pfeiffer(bottleneck=m, activation="relu") for m in sizes], attention_dropout=dropout),
        trained=True,
    )
    tensors = {name: tensor.requires_grad_() for name, tensor in doubled(adapter).items()}
    site = "layers.1.ffn.norm"
    names = [part.name for part in adapter.method.parts]
    generator = torch.Generator().manual_seed(3)
    s = torch.randn(2, 5, WIDTH, generator=generator, dtype=torch.float64)
    norm = torch.nn.LayerNorm(WIDTH, dtype=torch.float64)
    [op] = ops_of(backbone, adapter, tensors)[site]
    torch.manual_seed(5)
    found = op.around(norm, Lone(training=True))(s)
    torch.manual_seed(5)
    kept = torch.nn.functional.dropout(torch.ones(2, 5, len(sizes), dtype=torch.float64), dropout)
    x = norm(s)
    owner = "layers.1.ffn.result"
    u = torch.stack([part_outputs(tensors, name, owner, x, "relu") for name in names])
    expected = norm(s + attention(tensors, site, x, u, kept)[0])
    close(found, expected)
    # Without dropout, the keys' bias shifts all scores of a softmax alike, and has no part.
    own = [n for n in tensors if (site in n or owner in n) and (dropout or not n.endswith("key_bias"))]
    direction = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((y * direction).sum(), [tensors[n] for n in own]) for y in (found, expected)]
    assert len(own) == 4 + bool(dropout) + 4 * len(sizes)
    for name, mine, theirs in zip(own, *gradients, strict=True):
        close(mine, theirs, what=name, scale=float(gradients[1][own.index(f"fusion.{site}.value")].abs().max()))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "vit"])
def test_the_query_includes_the_residual_where_the_norm_comes_first(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    pooling = "mean" if backbone.is_encoder_decoder else backbone.pooling
    method = Fuse(parts=[Pfeiffer(bottleneck=6), Pfeiffer(bottleneck=3)])
    adapter = make_adapter(backbone, method, trained=True, pooling=pooling)
    tensors = doubled(adapter)
    stack = "encoder." if backbone.is_encoder_decoder else ""
    site = f"{stack}layers.1.ffn.result"
    ops = ops_of(backbone, adapter)
    place = Lone()
    generator = torch.Generator().manual_seed(3)
    r, h = torch.randn(2, 2, 5, WIDTH, generator=generator, dtype=torch.float64)
    [remember] = ops[f"{stack}layers.1.ffn.norm"]
    remember.around(lambda x: x, place)(r)
    [op] = ops[site]
    found = op.around(lambda x: x, place)(h)
    u = torch.stack([part_outputs(tensors, part.name, site, h, "relu") for part in method.parts])
    close(found, h + attention(tensors, site, h + r, u)[0])
    # In the model, too, what is remembered is there.
    assert len(states_of(backbone, adapter, inputs_for(backbone.model, 7, 4))) > 2


def test_a_fusion_of_fusions_is_that_of_the_paper():
    backbone = make_backbone("bert", dtype=torch.float64)
    inner = [Fuse(parts=[Houlsby(bottleneck=m, norms="none") for m in sizes]) for sizes in ((4, 3), (5, 2, 2))]
    adapter = make_adapter(backbone, Fuse(parts=[*inner, Houlsby(bottleneck=6, norms="none")]), trained=True)
    tensors = doubled(adapter)
    site = "layers.0.attention.result"
    h = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    [op] = ops_of(backbone, adapter)[site]
    found = op.around(lambda x: x, Lone())(h)
    u = []
    for part in adapter.method.parts:
        start = f"parts.{part.name}."
        own = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        if isinstance(part.method, Fuse):
            each = [part_outputs(own, p.name, site, h, "gelu") for p in part.method.parts]
            u.append(attention(own, site, h, torch.stack(each))[0])
        else:
            u.append(part_outputs(tensors, part.name, site, h, "gelu"))
    close(found, h + attention(tensors, site, h, torch.stack(u))[0])


def test_gates_are_numbers_a_token_and_part():
    backbone = make_backbone("bert", dtype=torch.float64)
    for normalise, share in (("sigmoid", torch.sigmoid), ("softmax", lambda s: s.softmax(-1))):
        method = Gate(parts=[Parallel(bottleneck=6), Parallel(bottleneck=3)], normalise=normalise)
        adapter = make_adapter(backbone, method, trained=True)
        tensors, site, place = doubled(adapter), "layers.0.ffn.result", Lone()
        h, x = torch.randn(2, 2, 5, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        place.memory["ffn"] = x
        [op] = ops_of(backbone, adapter)[site]
        g = share(h @ tensors[f"gate.{site}.weight"].T + tensors[f"gate.{site}.bias"])
        each = [part_outputs(tensors, part.name, site, x, "relu") for part in method.parts]
        expected = h + sum(g[..., n, None] * u for n, u in enumerate(each))
        close(op.around(lambda x: x, place)(h), expected)


def test_low_rank_parts_are_fused_over_what_the_linear_map_gives():
    backbone = make_backbone("bert", dtype=torch.float64)
    method = Fuse(parts=[LoRA(rank=3, targets="ffn.up"), LoRA(rank=2, targets="ffn.up", alpha=5)])
    adapter = make_adapter(backbone, method, trained=True)
    tensors, site = doubled(adapter), "layers.0.ffn.up"
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    linear = torch.nn.Linear(WIDTH, 64, dtype=torch.float64)
    [op] = ops_of(backbone, adapter)[site]
    u = torch.stack(
        [
            x @ tensors[f"parts.{p.name}.{site}.A"].T @ tensors[f"parts.{p.name}.{site}.B"].T * p.method.scale
            for p in method.parts
        ]
    )
    close(op.around(linear, Lone())(x), linear(x) + attention(tensors, site, linear(x), u)[0])


@pytest.mark.parametrize(
    ("config", "count"),
    [(BertConfig(), 21_252_096), (BertConfig(num_hidden_layers=6, hidden_size=384), 2_658_816)],
    ids=["BERT-base", "MiniLM"],
)
def test_the_regulariser_and_the_counts_are_the_papers(config, count, tmp_path):
    config.save_pretrained(tmp_path)
    backbone = Backbone.outline(str(tmp_path))
    method = Fuse(parts=[Pfeiffer(), Pfeiffer(bottleneck=2)])
    head = PooledHead(kind="classification", num_outputs=2, pooling="mean")
    own = {n: p for n, p in declare(backbone, method, head).items() if n.startswith("fusion.")}
    assert sum(parameter.count for parameter in own.values()) == count
    values = {name: torch.empty(p.shape, dtype=torch.float64) for name, p in own.items() if name.endswith(".value")}
    for name, tensor in values.items():
        own[name].init(tensor, {}, torch.Generator())
    layers, d = config.num_hidden_layers, config.hidden_size
    assert len(values) == layers
    start = {768: 7.0687e-8}.get(d, 0.01 * layers * d * (d - 1) * 1e-12)
    assert method.penalty(values).item() == pytest.approx(start, rel=1e-4)


def test_parts_of_adapters_are_frozen_unless_they_are_to_be_trained():
    backbone = make_backbone("bert")
    one, other = parts_on(backbone, Pfeiffer(bottleneck=6), Pfeiffer(bottleneck=3))
    frozen = make_adapter(backbone, Fuse(parts={"one": one, "other": other}))
    assert {n for n in frozen.tensors if n.startswith("parts.")} == set(frozen.fixed)
    assert torch.equal(frozen.tensors["parts.other.layers.1.ffn.result.up"], other.tensors["layers.1.ffn.result.up"])
    trained = make_adapter(backbone, Fuse(parts={"one": one, "other": other}, train_parts=True))
    assert not trained.fixed
    mixed = make_adapter(backbone, Fuse(parts={"one": one, "new": Pfeiffer(bottleneck=2)}))
    assert {n.split(".")[1] for n in mixed.fixed} == {"one"}


def test_a_fusion_stands_alone_on_disk(tmp_path):
    backbone = make_backbone("bert")
    adapters = parts_on(backbone, Pfeiffer(bottleneck=6), Pfeiffer(bottleneck=3))
    fusion = make_adapter(backbone, Stack(parts=[Average(parts=adapters), "lora"]), trained=True)
    fusion.save(tmp_path / "fusion")
    loaded = Adapter.load(tmp_path / "fusion")
    loaded.check(backbone)
    batch = inputs_for(backbone.model, 7, 4)
    for mine, theirs in zip(*(states_of(backbone, own, batch) for own in (fusion, loaded)), strict=True):
        assert torch.equal(mine, theirs)
    again = make_adapter(backbone, Average(parts=[loaded, fusion]))
    assert again.tensors.keys() >= {"parts.t.parts.lora.layers.0.attention.query.A"}


@pytest.mark.parametrize("composition", [Fuse, Gate])
def test_attention_on_one_part_only_gives_that_part(composition):
    backbone = make_backbone("bert", dtype=torch.float64)
    adapters = parts_on(backbone, Pfeiffer(bottleneck=6), Pfeiffer(bottleneck=3))
    method = composition(parts={"a": adapters[0], "b": adapters[1]}, masked_parts="a")
    fusion = make_adapter(backbone, method)
    tensors = dict(fusion.tensors)
    for name, tensor in tensors.items():
        if name.endswith(".value"):
            tensors[name] = torch.eye(len(tensor))
        elif name.startswith("gate.") and name.endswith(".bias"):
            tensors[name] = torch.full_like(tensor, 1e3)
    batch = inputs_for(backbone.model, 7, 4)
    found = states_of(backbone, replace(fusion, tensors=tensors), batch)
    alone = states_of(backbone, adapters[1], batch)
    for mine, theirs in zip(found, alone, strict=True):
        close(mine, theirs, PASS)


def test_an_average_of_one_adapter_twice_is_that_adapter():
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = inputs_for(backbone.model, 7, 4)
    for method in (Houlsby(bottleneck=6), IA3(), LoRA(rank=3), Parallel(bottleneck=4), Compacter(bottleneck=8)):
        [adapter] = parts_on(backbone, method)
        average = make_adapter(backbone, Average(parts=[adapter, adapter]))
        found, alone = (states_of(backbone, own, batch) for own in (average, adapter))
        for mine, theirs in zip(found, alone, strict=True):
            close(mine, theirs, PASS, what=method.name)


def test_given_weights_multiply_what_the_parts_add():
    backbone = make_backbone("bert", dtype=torch.float64)
    adapter = make_adapter(backbone, Average(parts=[LoRA(rank=3), LoRA(rank=2)], weights=(0.25, 2.0)), trained=True)
    tensors, site = doubled(adapter), "layers.0.ffn.up"
    [op] = ops_of(backbone, adapter)[site]
    x = torch.randn(5, WIDTH, dtype=torch.float64)
    products = [
        tensors[f"parts.{p.name}.{site}.B"] @ tensors[f"parts.{p.name}.{site}.A"] * p.method.scale
        for p in adapter.method.parts
    ]
    close(x @ op.A.T @ op.B.T, x @ (0.25 * products[0] + 2.0 * products[1]).T)


def test_new_parts_are_finished_as_alone():
    backbone = make_backbone("bert")
    adapter = make_adapter(backbone, Fuse(parts=[AdaMix(bottleneck=6), Pfeiffer(bottleneck=3)]), trained=True)
    finished = adapter.finished(backbone)
    assert [part.method.name for part in finished.method.parts] == ["pfeiffer", "pfeiffer"]
    finished.check(backbone)
    batch = inputs_for(backbone.model, 7, 4)
    for mine, theirs in zip(*(states_of(backbone, own, batch) for own in (adapter, finished)), strict=True):
        close(mine, theirs, PASS)


def test_settings_written_and_read_find_their_tensors(tmp_path):
    backbone = make_backbone("bert")
    [adapter] = parts_on(backbone, Pfeiffer(bottleneck=6))
    adapter.save(tmp_path / "a")
    method = Fuse(parts=[adapter, "pfeiffer"])
    text = {"name": "fuse", **method.model_dump(mode="json")}
    read = make_method("fuse", method.model_dump(mode="json"))
    assert read == method
    assert declare(backbone, read, make_adapter(backbone, read).head)
    del read, method
    with pytest.raises(MethodError, match="not at hand"):
        make_adapter(backbone, make_method("fuse", {k: v for k, v in text.items() if k != "name"}))


def test_what_weights_leave_is_the_frozen_backbones():
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = inputs_for(backbone.model, 7, 4)
    [bare] = [states_of(backbone, make_adapter(backbone, HeadOnly()), batch)]
    for method in (LayerNormTuning(), IA3(), Houlsby(bottleneck=4), LoRA(rank=2)):
        [adapter] = parts_on(backbone, method)
        nothing = make_adapter(backbone, Average(parts=[adapter], weights=(0.0,)))
        for mine, theirs in zip(states_of(backbone, nothing, batch), bare, strict=True):
            close(mine, theirs, PASS, what=method.name, precision=torch.float32)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_fusion_is_averaged_with_a_bottleneck_in_any_order(order):
    backbone = make_backbone("gpt2", dtype=torch.float64)
    fusion = Fuse(parts=[Pfeiffer(bottleneck=6), Pfeiffer(bottleneck=3)])
    both = [("f", fusion), ("p", Pfeiffer(bottleneck=4))]
    adapter = make_adapter(backbone, Average(parts=dict(both[i] for i in order)), trained=True)
    tensors, site, place = doubled(adapter), "layers.1.ffn.result", Lone()
    r, h = torch.randn(2, 2, 5, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ops = ops_of(backbone, adapter)
    [remember] = ops["layers.1.ffn.norm"]
    remember.around(lambda x: x, place)(r)
    own = {name.removeprefix("parts.f."): t for name, t in tensors.items() if name.startswith("parts.f.")}
    u = torch.stack([part_outputs(own, part.name, site, h, "relu") for part in fusion.parts])
    expected = h + (attention(own, site, h + r, u)[0] + part_outputs(tensors, "p", site, h, "relu")) / 2
    [op] = ops[site]
    close(op.around(lambda x: x, place)(h), expected)


def test_trained_parts_keep_their_own_penalty():
    backbone = make_backbone("bert")
    fusion = make_adapter(backbone, Fuse(parts=[Pfeiffer(bottleneck=3)] * 2), trained=True)
    for train in (False, True):
        outer = Fuse(parts={"f": fusion, "g": fusion}, train_parts=train)
        adapter = make_adapter(backbone, outer)
        inner = fusion.method.penalty(fusion.tensors).item()
        expected = 2 * inner if train else 0.0
        assert inner > 0.01
        assert outer.penalty(adapter.tensors).item() == pytest.approx(expected, abs=1e-6)


def test_scores_have_dropout_in_training_only():
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone)
    method = Fuse(parts=[Pfeiffer(bottleneck=6), Pfeiffer(bottleneck=3)], attention_dropout=0.5)
    model.add("a", make_adapter(backbone, method, trained=True), trainable=True)
    batch = inputs_for(backbone.model, 7, 4)
    with torch.no_grad():
        resting = model.eval()(**batch).logits
        assert torch.equal(model(**batch).logits, resting)
        model.train()
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
    model(**batch, labels=torch.tensor([0, 1])).loss.backward()
    assert model.in_training("a").tensors()["fusion.layers.0.ffn.norm.key_bias"].grad.abs().max() > 0
    model.detach()


def mistakes(backbone):
    bottleneck, prefix, lora = parts_on(
        backbone, Pfeiffer(bottleneck=6), PrefixTuning(num_virtual_tokens=2, reparametrise=False), LoRA(rank=2)
    )
    normed, deep = parts_on(backbone, Houlsby(bottleneck=4), Pfeiffer(bottleneck=4, depth=2))
    [skipping] = parts_on(backbone, Pfeiffer(bottleneck=6, skip_layers=1))
    return {
        "different sites": (lambda: Fuse(parts=[bottleneck, lora]), "acts at site"),
        "skipped layers": (lambda: Fuse(parts=[bottleneck, skipping]), "does not"),
        "prefixes": (lambda: Gate(parts=[prefix, prefix]), "KeyValue"),
        "trained norms": (lambda: Fuse(parts=[normed, normed]), "Norm"),
        "several layers": (lambda: Fuse(parts=[deep, bottleneck]), "depth"),
        "masks": (lambda: Fuse(parts={"a": bottleneck, "b": bottleneck}, masked_parts="c"), "'c', which is no part"),
        "all masked": (lambda: Fuse(parts={"a": bottleneck}, masked_parts=["a"]), "every part"),
        "weights": (lambda: Average(parts=[bottleneck] * 3, weights=(1.0, 2.0)), "2 numbers for 3 parts"),
        "no parts": (lambda: Fuse(parts=[]), "at least 1"),
        "names": (lambda: Fuse(parts={"a.b": bottleneck}), "letters"),
        "rivals": (lambda: Stack(parts=[normed, normed]), "both replace"),
        "draws": (lambda: Gate(parts=[Pfeiffer(robust_drop=True)] * 2), "robust_drop"),
        "IA3": (lambda: Fuse(parts=[IA3(), IA3()]), "Scale"),
    }


@pytest.mark.parametrize("mistake", list(mistakes(make_backbone("bert"))))
def test_parts_that_cannot_be_combined_are_refused_by_name(mistake):
    backbone = make_backbone("bert")
    make, said = mistakes(backbone)[mistake]
    with pytest.raises(MethodError, match=said) as caught:
        AdaptedModel(backbone, {"a": make_adapter(backbone, make())})
    assert caught.value.expected


def test_parts_of_another_backbone_are_refused():
    backbone, other = make_backbone("bert"), make_backbone("bert", seed=1)
    parts = parts_on(other, Pfeiffer(bottleneck=6))
    with pytest.raises(AdapterError, match="part 't' was made for backbone"):
        make_adapter(backbone, Fuse(parts=parts))


def test_a_part_has_one_name():
    backbone = make_backbone("bert")
    [adapter] = parts_on(backbone, Pfeiffer(bottleneck=6))
    assert [part.name for part in Fuse(parts=[adapter, adapter, "pfeiffer"]).parts] == ["t", "t-2", "pfeiffer"]
    assert Part.of(adapter, name="x").digest == adapter.digest


def test_new_parts_say_how_a_composition_is_trained():
    backbone = make_backbone("bert")
    [adapter] = parts_on(backbone, Pfeiffer(bottleneck=6))
    slow = FullFineTuning(gradual_unfreezing=True)
    several = Stack(parts=[adapter, slow])
    assert several.num_train_epochs == slow.num_train_epochs != Method.num_train_epochs.fget(several)
    assert several.head_learning_rate == slow.head_learning_rate != Method.head_learning_rate.fget(several)
    shaped = Stack(parts=[adapter, "ulmfit"])
    assert shaped.lr_scheduler_type == "slanted_triangular"
    deeper = Stack(parts=[adapter, Houlsby(bottleneck=3, extra_classifier=True)])
    assert deeper.head_fields == {"extra_layer": True}
    assert Adapter.new(backbone, deeper, labels=["a", "b"]).head.extra_layer
    alone = Stack(parts=[adapter, adapter], train_parts=True)
    for name in ("num_train_epochs", "head_learning_rate", "optim", "lr_scheduler_type"):
        assert getattr(alone, name) == getattr(Method, name).fget(alone)
    with pytest.raises(MethodError, match="new parts need different values of lr_scheduler_type"):
        Stack(parts=["ulmfit", "lora"])
