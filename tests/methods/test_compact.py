"""Compacter, PHM and AdaMix: formulas by hand in float64, counts, draws, averages."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from beside import FEED_FORWARDS, NORMS, Hooked, adapted_states, bottleneck, gelu, states
from closeness import PASS, close
from tiny import LAYERS, WIDTH, batch_for, inputs_for, make_adapter, make_backbone
from torch import Tensor
from transformers import BertConfig, T5Config

from graftwork.adapters import Adapter
from graftwork.adapters.declared import declare, lower
from graftwork.backbones import Backbone
from graftwork.errors import MethodError
from graftwork.heads import LanguageHead, TokenHead
from graftwork.methods import AdaMix, Compacter, Pfeiffer, make_method
from graftwork.model import AdaptedModel
from graftwork.training.planning import count

KINDS = [kind for kind in FEED_FORWARDS if kind != "llama"]
"""Llama's own norms round to float32."""


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


def assert_close(found, expected) -> None:
    assert len(found) == len(expected) > LAYERS
    for one, other in zip(found, expected, strict=True):
        close(one, other, PASS)


# -- Compacter ---------------------------------------------------------------------------------------------------------


def kronecker(tensors: dict[str, Tensor], name: str, *, shared: bool, rank: int | None) -> Tensor:
    """H (k, d), the sum of Kronecker products as the paper writes it."""
    t = {key: tensor.double() for key, tensor in tensors.items()}
    A = t["shared.A" if shared else f"{name}.A"]
    if rank is None:
        return sum(torch.kron(A[i], t[f"{name}.B"][i]) for i in range(len(A)))
    return sum(torch.kron(A[i], t[f"{name}.s"][i] @ t[f"{name}.t"][i]) for i in range(len(A)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"phm_dim": 2, "phm_rank": 3},
        {"phm_rank": None},
        {"phm_dim": 8, "share_rule": False},
        {"phm_rank": None, "share_rule": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_compacter_is_the_papers_formula(kind, settings):
    method = Compacter(bottleneck=8, norms="none", sublayers="ffn", **settings)
    backbone = make_backbone(kind, dtype=torch.float64)
    batch, adapter = inputs_for(backbone.model, 7, 4), make_adapter(backbone, method, trained=True)
    with Hooked(backbone.model) as hooked:
        for (stack, (_, end)), i in product(FEED_FORWARDS[kind].items(), range(LAYERS)):
            owner = f"{stack}layers.{i}.ffn.result"
            down, up = (
                kronecker(adapter.tensors, f"{owner}.{name}", shared=method.share_rule, rank=method.phm_rank)
                for name in ("down", "up")
            )
            b_down, b_up = (adapter.tensors[f"{owner}.{name}.bias"].double() for name in ("down", "up"))
            assert (down.shape, up.shape) == ((WIDTH, 8), (8, WIDTH))

            def change(x, down=down, up=up, b_down=b_down, b_up=b_up):
                return gelu(x @ down + b_down) @ up + b_up

            hooked.after(end.format(i=i), change)
        expected = states(backbone.model, batch)
    assert_close(adapted_states(backbone, adapter, batch), expected)


def test_what_is_lowered_is_differentiable_in_every_factor():
    backbone = make_backbone("bert", dtype=torch.float64)
    adapter = make_adapter(backbone, Compacter(bottleneck=8, phm_dim=2, norms="none"), trained=True)
    tensors = {n: t.double().requires_grad_() for n, t in adapter.tensors.items() if not n.startswith("head.")}
    site = backbone.sites["layers.0.ffn.result"]

    def weights(A: Tensor, s: Tensor, t: Tensor) -> Tensor:
        given = {**tensors, "shared.A": A, f"{site.name}.down.s": s, f"{site.name}.down.t": t}
        (op,) = adapter.method.lower(site, given, {})
        return op.down

    inputs = [tensors[name] for name in ("shared.A", f"{site.name}.down.s", f"{site.name}.down.t")]
    assert torch.autograd.gradcheck(weights, inputs)


def test_compacter_starts_as_its_code_does():
    tensors = make_adapter(make_backbone("bert"), Compacter(bottleneck=16, phm_dim=4)).tensors
    A = tensors["shared.A"]
    assert A.shape == (4, 4, 4)
    # 64 draws know their deviation to 9 %.
    assert A.std().item() == pytest.approx(1e-4, rel=0.3)
    factors = {
        "down.s": (4, WIDTH // 4, 1),
        "down.t": (4, 1, 16 // 4),
        "up.s": (4, 16 // 4, 1),
        "up.t": (4, 1, WIDTH // 4),
    }
    for name, shape in factors.items():
        values = torch.stack([t for key, t in tensors.items() if key.endswith(f"result.{name}")])
        assert values.shape[1:] == shape
        bound = (6 / (shape[1] + shape[2])) ** 0.5
        assert 0.85 * bound < values.abs().max() <= bound
    assert not any(t.any() for name, t in tensors.items() if name.endswith("result.down.bias"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_compacter_changes_nearly_nothing(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    batch = inputs_for(backbone.model, 7, 4)
    expected = states(backbone.model, batch)
    found = adapted_states(backbone, make_adapter(backbone, Compacter(bottleneck=8, norms="none")), batch)
    # Weights are of order 1e-4 in both maps, over sums of 32 and 8 terms, in two layers, two positions and a few norms.
    assert 0 < max((one - other).abs().max() for one, other in zip(found, expected, strict=True)) < 1e-4


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"bottleneck": 6}, ["phm_dim=4", "hidden size 32", "bottleneck's 6", "a divisor of both"]),
        ({"bottleneck": 9, "phm_dim": 3}, ["phm_dim=3", "hidden size 32"]),
        ({}, ["bottleneck's 1", "--method.reduction"]),
    ],
)
def test_n_must_divide_both_sizes(settings, parts):
    backbone = make_backbone("bert")
    with pytest.raises(MethodError) as caught:
        make_adapter(backbone, Compacter(**settings))
    assert all(part in str(caught.value) for part in parts)


def test_layers_and_positions_that_share():
    sites = make_backbone("bert").sites
    method = Compacter(bottleneck=8, norms="none", share_layers=2, share_positions=True)
    names = {name for site in method.sites(sites) for name in method.declare(site)}
    factors = {f"{m}.{n}" for m in ("down", "up") for n in ("s", "t", "bias")}
    assert names == {"shared.A", *(f"layers.0.attention.result.{factor}" for factor in factors)}


@pytest.mark.parametrize(
    ("name", "settings", "trained"),
    [
        ("compacter", {}, 161_728),
        ("compacter++", {}, 104_704),
        ("phm", {"phm_dim": 12}, 47_616 + 48 * (2 * (768 * 24 // 12 + 12**3) + 24 + 768)),
    ],
)
def test_counts_on_t5_base(t5, name, settings, trained):
    """Karimi Mahabadi et al. 2021, table 1, with 47,616 in layer norms."""
    found = count(t5, name, settings)["trained"]
    assert (found["norms"], found["without_classifier"]) == (47_616, trained)


@pytest.mark.parametrize(("name", "trained"), [("compacter", 57_088), ("compacter++", 28_576)])
def test_counts_on_bert_base(bert, name, trained):
    found = count(bert, name, {"norms": "none"})["trained"]
    assert (found["adapter"], found["without_classifier"]) == (trained, trained)


# -- AdaMix ------------------------------------------------------------------------------------------------------------


def expert(tensors, owner, e):
    """The adapter's tensors with expert e, or the average, in the place of all of that owner's."""
    own = {name: tensors[f"{owner}.{name}"].double() for name in ("down", "down_bias")}
    chosen = {name: t.mean(0) if e is None else t[e] for name, t in own.items()}
    return {**tensors, **{f"{owner}.{name}": t for name, t in chosen.items()}}


def by_hand(kind, backbone, adapter, batch, experts) -> list[Tensor]:
    """All states with expert e at each position, in order; None for the average."""
    places = list(product(FEED_FORWARDS[kind].items(), range(LAYERS)))
    with Hooked(backbone.model) as hooked:
        for ((stack, (_, end)), i), e in zip(places, experts, strict=True):
            owner = f"{stack}layers.{i}.ffn.result"
            change = bottleneck(expert(adapter.tensors, owner, e), owner)
            if kind in NORMS:
                hooked.at_norm(NORMS[kind].format(stack=stack, i=i), change)
            else:
                hooked.after(end.format(i=i), change)
        return states(backbone.model, batch)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_averaged_where_nothing_is_trained(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    batch = inputs_for(backbone.model, 7, 4)
    adapter = make_adapter(backbone, AdaMix(bottleneck=6, experts=3), trained=True)
    places = LAYERS * len(FEED_FORWARDS[kind])
    assert_close(adapted_states(backbone, adapter, batch), by_hand(kind, backbone, adapter, batch, [None] * places))


def drawn(adapter, backbone) -> tuple[int, ...]:
    """Which expert acts at each place, in one pass of training."""
    ops = lower(backbone, adapter.method, adapter.head, adapter.tensors, training=True)
    method, found = adapter.method, []
    for site in method.sites(backbone.sites):
        downs, biases = (adapter.tensors[f"{method.owner(site)}.{name}"] for name in ("down", "down_bias"))
        (op,) = ops[site.name]
        (e,) = [e for e in range(method.experts) if torch.equal(downs[e], op.down)]
        assert torch.equal(biases[e], op.down_bias)
        found.append(e)
    return tuple(found)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_each_pass_draws_one_expert_a_layer(kind):
    backbone = make_backbone(kind)
    adapter = make_adapter(backbone, AdaMix(bottleneck=6, experts=3))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    draws = [drawn(adapter, backbone) for _ in range(300)]
    for place in range(len(draws[0])):
        # 100 of 300 each, give or take 8; five deviations are allowed.
        assert all(60 < [draw[place] for draw in draws].count(e) < 140 for e in range(3))
    # The layers draw on their own: of 81 draws of four layers, 300 leave out two or so.
    assert len(set(draws)) > 0.9 * 3 ** len(draws[0])
    torch.set_rng_state(state)
    assert [drawn(adapter, backbone) for _ in range(300)] == draws


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_loss_by_hand(kind):
    """CE(p1) + ½ [KL(p2 ‖ p1) + KL(p1 ‖ p2)], the targets detached; of numbers, the squared difference."""
    backbone = make_backbone("bert", dtype=torch.float64)
    batch = batch_for(backbone, 7, 4, 5)
    adapter = make_adapter(backbone, AdaMix(bottleneck=6), trained=True, kind=kind, pooling="first")
    regression = kind == "regression"
    labels = torch.tensor([0.5, -1.0, 2.0]) if regression else torch.tensor([0, 2, 1])
    torch.manual_seed(11)
    passes = [drawn(adapter, backbone) for _ in range(2)]
    assert passes[0] != passes[1]
    model = AdaptedModel(backbone)
    model.add("a", adapter, trainable=True)
    model.train()
    torch.manual_seed(11)
    output = model(**batch, labels=labels)
    output.loss.backward()
    found = {n: p.grad for n, p in model.residents["a"].parameters_by_name.named_parameters()}
    model.detach()
    weight, bias = (adapter.tensors[f"head.classifier.{n}"].clone().requires_grad_() for n in ("weight", "bias"))
    z1, z2 = (
        by_hand("bert", backbone, adapter, batch, experts)[-1][:, 0].float() @ weight.T + bias for experts in passes
    )
    if regression:
        expected = ((z1[:, 0] - labels) ** 2).mean() + ((z1 - z2) ** 2).mean()
    else:
        p1, p2 = z1.softmax(-1), z2.softmax(-1)
        forth = (p2.detach() * (p2.detach().log() - p1.log())).sum(-1).mean()
        back = (p1.detach() * (p1.detach().log() - p2.log())).sum(-1).mean()
        expected = -p1[range(3), labels].log().mean() + (forth + back) / 2
    expected.backward()
    # The head computes in float32.
    close(output.logits, z1)
    close(output.loss, expected)
    close(found["head.classifier.weight"], weight.grad)
    touched = {(i, e) for experts in passes for i, e in enumerate(experts)}
    for i, e in product(range(LAYERS), range(4)):
        assert found[f"layers.{i}.ffn.result.down"][e].any() == ((i, e) in touched)


@pytest.mark.parametrize("kind", ["token-classification", "generation"])
def test_padding_changes_nothing_of_the_loss(kind):
    of_tags = kind == "token-classification"
    silent = {"hidden_dropout_prob": 0.0} if of_tags else {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    backbone = make_backbone("bert" if of_tags else "gpt2", dtype=torch.float64, head=not of_tags, **silent)
    head = TokenHead(num_outputs=3, dropout=0.0) if of_tags else LanguageHead(shifted=True)
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, AdaMix(bottleneck=6), head=head, trained=True), trainable=True)
    model.train()
    batch = inputs_for(backbone.model, 4, 3)
    labels = torch.where(batch["attention_mask"] > 0, batch["input_ids"] % 3, -100)
    longer = {name: torch.nn.functional.pad(tensor, (0, 5)) for name, tensor in batch.items()}
    losses = []
    for inputs, wanted in ((batch, labels), (longer, torch.nn.functional.pad(labels, (0, 5), value=-100))):
        torch.manual_seed(11)
        losses.append(model(**inputs, labels=wanted).loss)
    # The heads compute in float32.
    close(*losses)


def test_one_pass_where_there_is_nothing_to_train():
    backbone = make_backbone("bert")
    batch, labels = batch_for(backbone, 7, 4, 5), torch.tensor([0, 2, 1])
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, AdaMix(bottleneck=6), trained=True), trainable=True)
    model.eval()
    output = model(**batch, labels=labels)
    assert torch.equal(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))


@pytest.mark.parametrize(
    "settings",
    [{}, {"sublayers": "attention,ffn", "norms": "all"}, {"share_layers": 2, "extra_classifier": True}],
    ids=str,
)
@pytest.mark.parametrize("kind", ["bert", "t5", "llama"])
def test_what_is_kept_is_an_ordinary_adapter_that_says_the_same(kind, settings, tmp_path):
    backbone = make_backbone(kind)
    batch = inputs_for(backbone.model, 7, 4)
    mixed = make_adapter(backbone, AdaMix(bottleneck=6, **settings), trained=True)
    method, tensors = mixed.method.finish(mixed.tensors, mixed.method.sites(backbone.sites))
    assert method == Pfeiffer(bottleneck=6, **settings)
    finished = replace(mixed, method=method, tensors=tensors)
    assert {name: t.shape for name, t in tensors.items()} == {
        name: p.shape for name, p in declare(backbone, method, mixed.head).items()
    }
    finished.save(tmp_path / "a")
    again = Adapter.load(tmp_path / "a")
    assert again.method == method
    expected, found = adapted_states(backbone, mixed, batch), adapted_states(backbone, again, batch)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_finishing_leaves_what_it_was_given():
    backbone = make_backbone("bert")
    mixed = make_adapter(backbone, AdaMix(bottleneck=6))
    before = {name: t.clone() for name, t in mixed.tensors.items()}
    mixed.method.finish(mixed.tensors, mixed.method.sites(backbone.sites))
    assert mixed.tensors.keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in mixed.tensors.items())


def test_experts_start_apart_and_as_pfeiffers_do():
    tensors = make_adapter(make_backbone("bert"), AdaMix(bottleneck=24)).tensors
    down = tensors["layers.0.ffn.result.down"]
    assert down.shape == (4, 24, WIDTH)
    assert down.flatten(1).corrcoef().triu(1).abs().max() < 0.2
    assert down.std().item() == pytest.approx(0.02, rel=0.1)
    zero = make_adapter(make_backbone("bert"), AdaMix(bottleneck=24, init_std=None)).tensors
    bound = (6 / ((1 + 5) * WIDTH)) ** 0.5
    assert 0.95 * bound < zero["layers.0.ffn.result.down"].abs().max() <= bound
    assert not zero["layers.0.ffn.result.up"].any()


def test_adamix_on_bert_base(bert):
    """Wang et al. 2022, table 2: E (md + m) + md + d a layer in training, an ordinary adapter afterwards."""
    assert count(bert, "adamix")["trained"]["adapter"] == 2_223_360
    outline = Backbone.outline(bert)
    method = make_method("adamix")
    sites = method.sites(outline.sites)
    empty = {name: torch.zeros(p.shape) for site in sites for name, p in method.declare(site).items()}
    finished, tensors = method.finish(empty, sites)
    assert sum(t.numel() for t in tensors.values()) == 894_528 == count(bert, finished.name)["trained"]["adapter"]
