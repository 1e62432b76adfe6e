"""Hypernetworks: what they generate is what the papers write, and as many parameters as they count."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from closeness import PASS, close
from tiny import make_adapter, make_backbone, make_batch
from transformers import BertConfig, T5Config

from graftwork import AdaptedModel, BiHNet, HeadOnly, HyperFormer, HyperGrid, LoRA
from graftwork.adapters.declared import declare, usable_sites
from graftwork.backbones import Backbone
from graftwork.errors import MethodError
from graftwork.heads import LanguageHead
from graftwork.methods import make_method
from graftwork.methods.generated import Spot
from graftwork.training.planning import count

D, M, T = 32, 6, 8


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """T5-base, by its configuration alone."""
    folder = tmp_path_factory.mktemp("t5-base")
    T5Config(
        **{"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128},
        **{"architectures": ["T5ForConditionalGeneration"], "decoder_start_token_id": 0},
    ).save_pretrained(folder)
    return str(folder)


# Counts


def groups(folder, method):
    backbone = Backbone.outline(folder)
    declared = declare(backbone, method, LanguageHead(shifted=False))
    own = sum(p.count for p in declared.values() if p.of_each_task)
    norms = sum(p.count for p in declared.values() if p.group == "norms")
    stacks = {
        stack: sum(p.count for name, p in declared.items() if name.startswith(f"{stack}.") and p.group == "adapter")
        for stack in ("encoder", "decoder")
    }
    return own, norms, stacks, sum(p.count for p in declared.values())


def test_hyperformer_plus_plus_has_the_papers_count_on_t5_base(t5):
    """Reduction 32, so m 24; t 64; an MLP of 128: Karimi Mahabadi et al. 2021, section 2.4."""
    own, norms, stacks, total = groups(t5, make_method("hyperformer++"))
    d, m, t = 768, 24, 64
    generators = (t + 1) * (2 * d * m + d + m) + 2 * (t + 1) * d
    assert generators == 2_547_480
    network, code_norm, embeddings = (3 * t + 1) * 128 + (128 + 1) * t, 2 * t, (12 + 2) * t
    assert (network, code_norm, embeddings) == (32_960, 128, 896)
    assert stacks == dict.fromkeys(("encoder", "decoder"), generators + network + code_norm + embeddings)
    assert stacks["encoder"] == 2_581_464
    assert (own, norms) == (64, 47_616)
    # With 8 tasks.
    assert total - norms - own + 8 * own == 5_163_440


def test_hyperformer_has_generators_for_each_of_48_bottlenecks(t5):
    own, norms, stacks, total = groups(t5, HyperFormer())
    assert stacks == dict.fromkeys(("encoder", "decoder"), 24 * 2_547_480)
    assert (own, norms) == (64, 47_616)
    assert total == 48 * 2_547_480 + norms + own + (64 + 1) * 128 + (128 + 1) * 64


def test_bihnet_has_one_trunk_and_vectors_that_are_not_trained(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    t, d, m = 64, 768, 24
    generators = (t + 1) * (2 * d * m + d + m) + 2 * (t + 1) * d
    trunk = (2 * d + 2 * t + 1) * 128 + 129 * t + 2 * t + 14 * t
    assert count(str(tmp_path), "bihnet")["trained"]["adapter"] == generators + trunk
    declared = declare(Backbone.outline(str(tmp_path)), BiHNet(), make_adapter(make_backbone("bert"), LoRA()).head)
    assert {n for n, p in declared.items() if p.of_task} == {"task.long", "task.short"}
    assert not any(p.trained for p in declared.values() if p.of_task)


def test_only_what_is_of_the_task_is_trained_where_the_hypernetwork_is_fixed(t5):
    declared = declare(Backbone.outline(t5), HyperFormer(trains="task"), LanguageHead(shifted=False))
    assert {n for n, p in declared.items() if p.trained} == {"task.embedding"}
    assert HyperFormer(trains="task").learning_rate > HyperFormer().learning_rate


# Formulas


def maps(tensors, name, code):
    """What the generators of a name make of a code, entry by entry."""
    found = {}
    for part in ("down", "down_bias", "up", "up_bias", "norm_gain", "norm_bias"):
        weight, bias = (tensors[f"{name}.{part}.{own}"].double() for own in ("weight", "bias"))
        found[part] = torch.stack([(row * code).sum() + b for row, b in zip(weight, bias, strict=True)])
    return found


def two_layers(tensors, name, x):
    inner, inner_bias = tensors[f"{name}.inner"].double(), tensors[f"{name}.inner_bias"].double()
    outer, outer_bias = tensors[f"{name}.outer"].double(), tensors[f"{name}.outer_bias"].double()
    return outer @ torch.clamp(inner @ x + inner_bias, min=0) + outer_bias


def normalised(x, eps):
    return (x - x.mean()) / ((x - x.mean()) ** 2).mean().add(eps).sqrt()


def code_of(method, tensors, layer, position):
    if isinstance(method, BiHNet):
        z = torch.cat([normalised(tensors[f"task.{name}"].double(), 1e-5) for name in ("long", "short")])
    else:
        z = tensors["task.embedding"].double()
    if getattr(method, "generators", "stack") == "bottleneck":
        return two_layers(tensors, "hypernetwork", z)
    place = [tensors[f"hypernetwork.layer.{layer}"], tensors[f"hypernetwork.position.{position}"]]
    code = two_layers(tensors, "hypernetwork", torch.cat([z, *(p.double() for p in place)]))
    gain, bias = (tensors[f"hypernetwork.code_norm.{name}"].double() for name in ("weight", "bias"))
    return normalised(code, 1e-6) * gain + bias


SIZES = {"bottleneck": M, "code_size": T, "hidden_size": 5}
METHODS = {
    "hyperformer": HyperFormer(**SIZES, norms="none"),
    "hyperformer++": HyperFormer(**SIZES, norms="none", generators="stack"),
    "bihnet": BiHNet(**SIZES),
}


@pytest.mark.parametrize("name", METHODS)
def test_each_bottleneck_is_the_papers_formula(name):
    """x + LN(U gelu(D x + b_D) + b_U), the gelu by tanh, every tensor made of the code I, at each place of a BERT."""
    method, backbone = METHODS[name], make_backbone("bert", dtype=torch.float64)
    adapter = make_adapter(backbone, method, trained=True, pooling="mean")
    model = AdaptedModel(backbone, {"a": adapter})
    seen = {}
    ops = model.residents["a"].ops()
    for site, (op,) in ops.items():
        spot = Spot.of(site)
        generator = site if name == "hyperformer" else "hypernetwork"
        code = code_of(method, adapter.tensors, spot.layer, spot.position)
        made = maps(adapter.tensors, generator, code)
        x = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        down, up = made["down"].view(M, D), made["up"].view(D, M)
        h = down @ x + made["down_bias"]
        h = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))
        expected = x + normalised(up @ h + made["up_bias"], 1e-5) * made["norm_gain"] + made["norm_bias"]
        found = op._changed(x[None, None], x[None, None])[0, 0]
        close(found, expected, 4096)
        seen[site] = found
    assert list(seen) == [f"layers.{i}.{part}.result" for i in range(2) for part in ("attention", "ffn")]
    # Places are told apart, by the generators or by their embeddings.
    assert not torch.allclose(seen["layers.0.attention.result"], seen["layers.1.attention.result"])
    assert not torch.allclose(seen["layers.0.attention.result"], seen["layers.0.ffn.result"])


def test_stacks_have_networks_of_their_own_and_one_task():
    backbone = make_backbone("t5", head=True)
    declared = declare(backbone, METHODS["hyperformer++"], LanguageHead(shifted=False))
    starts = {name.partition(".")[0] for name in declared}
    assert starts == {"encoder", "decoder", "task"}
    shared = declare(backbone, METHODS["hyperformer"], LanguageHead(shifted=False))
    assert {n.partition(".")[0] for n in shared} == {"encoder", "decoder", "task", "hypernetwork"}


def test_shared_and_skipped_layers_are_generated_as_they_act():
    backbone = make_backbone("bert")
    one = HyperFormer(**SIZES, norms="none", generators="stack", share_layers=2, share_positions=True)
    adapter = make_adapter(backbone, one, trained=True)
    model = AdaptedModel(backbone, {"a": adapter})
    ops = [op for acting in model.residents["a"].ops().values() for op in acting]
    assert len(ops) == 4
    assert all(torch.equal(op.down, ops[0].down) for op in ops)
    skipped = HyperFormer(**SIZES, norms="none", generators="stack", skip_layers=1)
    sites = skipped.sites(usable_sites(backbone, adapter.head))
    assert {site.layer for site in sites} == {1}
    assert "hypernetwork.layer.0" not in {name for site in sites for name in skipped.declare(site)}


def test_the_vectors_of_a_task_are_means_of_its_features():
    features = torch.randn(100, D, generator=torch.Generator().manual_seed(0))
    made = BiHNet().from_features(features)
    close(made["task.long"], sum(features) / 100)
    close(made["task.short"], sum(features[36:]) / 64)
    few = BiHNet().from_features(features[:16])
    assert torch.equal(few["task.long"], few["task.short"])


# Written out


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_written_out_it_says_what_is_generated_on_the_fly(name, kind):
    method = METHODS[name].model_copy(update={"norms": "all"})
    backbone = make_backbone(kind, dtype=torch.float64)
    adapter = make_adapter(backbone, method, trained=True)
    sites = method.sites(usable_sites(backbone, adapter.head))
    written, tensors = method.written_out(adapter.tensors, sites)
    assert written.name == "houlsby"
    plain = make_adapter(backbone, written)
    assert plain.tensors.keys() == tensors.keys()
    assert plain.sites == adapter.sites
    model = AdaptedModel(backbone, {"a": adapter, "b": replace(plain, tensors=tensors)})
    batch = make_batch(7, 4, 5)
    # Generators run in float64 here, and what is written is rounded to float32.
    one, other = (model(**batch, adapters=name).logits for name in "ab")
    close(other, one, PASS, precision=torch.float32)
    acting, none = (model(**batch, adapters=[name] * 3).last_hidden_state for name in ("a", None))
    assert not torch.allclose(acting, none, atol=1e-3)
    # As of one layout, both share a pass.
    assert len(model.sharing(["a", "b"])) == 1
    mixed = model(**batch, adapters=["a", "b", "a"]).rows
    for row, alone in zip(mixed, one, strict=True):
        close(row, alone, PASS, precision=torch.float32)


def test_gradients_of_tasks_reach_one_hypernetwork_and_each_its_own_embedding():
    backbone = make_backbone("bert", dtype=torch.float64)
    model = AdaptedModel(backbone)
    method = METHODS["hyperformer++"]
    model.add("a", make_adapter(backbone, method, trained=True, seed=1), trainable=True)
    model.add("b", make_adapter(backbone, method, trained=True, seed=2), trainable=True, shares="a")
    a, b = (model.in_training(name).tensors() for name in "ab")
    own = {name for name in a if a[name] is not b[name]}
    assert own == {"task.embedding", *(name for name in a if name.startswith("head."))}
    assert model.in_training("b").acts_as is not model.in_training("a")
    batch = {**make_batch(6, 5, 4), "adapters": ["a", "b", "b"]}
    model(**batch, labels={"a": torch.tensor([0]), "b": torch.tensor([1, 2])}).loss.backward()
    found = {n: a[n].grad.clone() for n in a if n not in own}
    embeddings = [t["task.embedding"].grad.clone() for t in (a, b)]
    model.zero_grad()
    for name, rows, labels in (("a", slice(0, 1), [0]), ("b", slice(1, 3), [1, 2])):
        mine = {key: value[rows] for key, value in make_batch(6, 5, 4).items()}
        model(**mine, adapters=name, labels=torch.tensor(labels)).loss.backward()
    largest = max(float(g.abs().max()) for g in found.values())
    for name, gradient in found.items():
        close(gradient, a[name].grad, precision=torch.float32, scale=largest, what=name)
    for gradient, tensors in zip(embeddings, (a, b), strict=True):
        close(gradient, tensors["task.embedding"].grad, precision=torch.float32, scale=largest)
        assert float(gradient.abs().max()) > 0


def test_two_tasks_are_two_adapters_of_one_hypernetwork():
    backbone = make_backbone("bert")
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, METHODS["hyperformer"], seed=1), trainable=True)
    model.add("b", make_adapter(backbone, METHODS["hyperformer"], seed=2), trainable=True, shares="a")
    ops = [model.residents[name].ops()["layers.0.ffn.result"][0] for name in "ab"]
    assert not torch.allclose(ops[0].up, ops[1].up)
    assert F.cosine_similarity(ops[0].up.flatten(), ops[1].up.flatten(), dim=0) < 0.99


# HyperGrid


def grid_by_hand(tensors, site, weight):
    """W ⊙ ψ(2σ((L z) Gᵀ)), entry by entry."""
    z, rows = tensors["task.embedding"].double(), tensors[f"{site}.rows"].double()
    columns = tensors[f"{site}.columns"].double()
    gated = weight.clone()
    high, wide = weight.shape[0] // len(rows), weight.shape[1] // len(columns)
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            gated[i, j] *= 2 / (1 + torch.exp(-(rows[i // high] @ z) * columns[j // wide]))
    return gated


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_hypergrid_gates_the_second_map_block_by_block(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    method = HyperGrid(grid_rows=4, grid_columns=2, code_size=5)
    adapters = {name: make_adapter(backbone, method, trained=True, seed=i) for i, name in enumerate("ab")}
    batch = make_batch(7, 4, 5)
    model = AdaptedModel(backbone, adapters)
    alone = {name: model(**batch, adapters=name).logits for name in "ab"}
    # In slots of even and of uneven numbers of rows, and beside the backbone alone.
    for names in (["a", "b", "a"], ["a", "b", None]):
        for i, (name, row) in enumerate(zip(names, model(**batch, adapters=names).rows, strict=True)):
            if name is not None:
                close(row, alone[name][i], PASS)
    model.detach()
    gated = make_backbone(kind, dtype=torch.float64)
    for site in method.sites(gated.sites):
        module = gated.modules[site.path]
        held = module.weight.data.T if site.transposed else module.weight.data
        made = grid_by_hand(adapters["a"].tensors, site.name, held)
        module.weight.data = made.T.contiguous() if site.transposed else made
    head = {name: tensor for name, tensor in adapters["a"].tensors.items() if name.startswith("head.")}
    plain = AdaptedModel(gated, allow_backbone_mismatch=True)
    plain.add("a", replace(adapters["a"], method=HeadOnly(), sites=(), tensors=head))
    close(alone["a"], plain(**batch, adapters="a").logits, PASS)


def test_a_grid_has_the_count_of_its_formula_and_starts_at_nothing(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    assert count(str(tmp_path), "hypergrid")["trained"]["adapter"] == 12 * (32 * 64 + 8) + 64
    tensors = make_adapter(make_backbone("bert"), HyperGrid(grid_rows=4, grid_columns=2)).tensors
    assert not tensors["layers.0.ffn.down.columns"].any()
    assert tensors["layers.0.ffn.down.rows"].any()


def test_a_grid_that_does_not_divide_a_weight_is_refused():
    for settings, said in (({"grid_rows": 5}, "grid_rows=5"), ({"grid_columns": 7}, "grid_columns=7")):
        with pytest.raises(MethodError, match=f"{said} does not divide the .* of site"):
            make_adapter(make_backbone("bert"), HyperGrid(**settings))
