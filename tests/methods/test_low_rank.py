"""LoRA and its variants, DoRA and VeRA against their papers' formulas, written out by hand in float64."""

import pytest
import torch
from closeness import PASS, T5, close
from layouts import BASES, backbone_of, make_layout, run, run_adapted, texts
from tiny import batch_for, make_adapter, make_backbone
from transformers import BertConfig, RobertaConfig

from graftwork.adapters import Adapter
from graftwork.adapters.declared import counts, declare
from graftwork.errors import MethodError, SiteError
from graftwork.methods import NAMED, DoRA, LoRA, VeRA, make_method
from graftwork.model import AdaptedModel
from graftwork.training.planning import count

METHODS = {
    "lora": LoRA(rank=4, alpha=8),
    "rslora": LoRA(rank=4, alpha=8, rank_stabilised=True),
    "pissa": LoRA(rank=4, alpha=8, init="pissa"),
    "vera": VeRA(rank=6),
    "dora": DoRA(rank=4, alpha=8),
}
"""With scales that are powers of two, so that multiplying by them in float32 is exact."""


def weight_by_hand(method, name, W, tensors):
    """W' in float64."""
    t = {key: tensor.double() for key, tensor in tensors.items()}
    if isinstance(method, VeRA):
        out, into = W.shape
        A, B = t[f"shared.A.{into}"], t[f"shared.B.{out}"]
        return W + t[f"{name}.b"].diag() @ B @ t[f"{name}.d"].diag() @ A
    scale = 8 / 4**0.5 if method == METHODS["rslora"] else 8 / 4
    changed = W + scale * t[f"{name}.B"] @ t[f"{name}.A"]
    if f"{name}.A0" in t:
        return changed - scale * t[f"{name}.B0"] @ t[f"{name}.A0"]
    if isinstance(method, DoRA):
        return t[f"{name}.magnitude"][:, None] * changed / changed.square().sum(1, keepdim=True).sqrt()
    return changed


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("name", METHODS)
def test_the_formula(name, kind):
    method = METHODS[name]
    backbone, batch = backbone_of(kind, torch.float64), texts(kind)
    adapter = make_adapter(backbone, method, trained=True)
    found = run_adapted(AdaptedModel(backbone, {"a": adapter}), "a", batch)
    other = make_layout(kind, torch.float64)
    with torch.no_grad():
        for site in method.sites(backbone.sites):
            weight = other.get_submodule(site.path).weight
            weight = weight.T if kind == "gpt2" else weight
            if kind == "gpt2" and site.path.endswith("c_attn"):
                third = ("query", "key", "value").index(site.name.rpartition(".")[2])
                weight = weight[32 * third : 32 * third + 32]
            weight.copy_(weight_by_hand(method, site.name, weight, adapter.tensors))
    expected = run(other, batch)
    # The lowered tensors are float32's: exact but for DoRA's c (2^-23), PiSSA's differences B − B0 and A − A0, and
    # VeRA's products with d and b, each rounded to 2^-24 of its size.
    precision = torch.float64 if name in ("lora", "rslora") else torch.float32
    for one, two in zip(found, expected, strict=True):
        close(one, two, T5 if kind == "t5" else PASS, precision=precision)
    assert (found[-1] - run(make_layout(kind, torch.float64), batch)[-1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", METHODS)
def test_what_is_lowered_is_the_formula_in_float64(name):
    """The same with parameters in float64, where nothing is rounded on the way but DoRA's lengths."""
    method, backbone = METHODS[name], backbone_of("bert", torch.float64)
    adapter = make_adapter(backbone, method, trained=True)
    parameters = {key: tensor.double() for key, tensor in adapter.tensors.items()}
    for site in method.sites(backbone.sites):
        frozen = backbone.frozen(site)
        merged = dict(frozen)
        for op in method.lower(site, parameters, frozen):
            merged |= op.into(merged)
        expected = weight_by_hand(method, site.name, frozen["weight"], adapter.tensors)
        precision = torch.float32 if name == "dora" else torch.float64
        close(merged["weight"], expected, precision=precision)
        close(merged["bias"], frozen["bias"], precision=precision)


# -- PiSSA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BASES)
def test_pissa_changes_nothing_at_first_in_any_precision(kind, dtype):
    """s [B − B0, B0] [A; A − A0] is zero times something and something times zero: exactly zero, not by cancelling."""
    backbone, batch = backbone_of(kind, dtype), texts(kind)
    plain = run(backbone.model, batch)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=4, init="pissa"))})
    assert all(torch.equal(one, two) for one, two in zip(run_adapted(model, "a", batch), plain, strict=True))


@pytest.mark.parametrize("settings", [{}, {"alpha": 4}, {"rank_stabilised": True}])
def test_pissa_starts_at_the_principal_singular_vectors(settings):
    backbone = make_backbone("bert")
    method = LoRA(rank=5, init="pissa", **settings)
    tensors = make_adapter(backbone, method).tensors
    for site in method.sites(backbone.sites):
        A, B = tensors[f"{site.name}.A"].double(), method.scale * tensors[f"{site.name}.B"].double()
        W = backbone.frozen(site)["weight"].double()
        S = torch.linalg.svdvals(W)
        # The best approximation of rank 5 leaves the singular values after the fifth, and both factors have √S; in
        # float32, in which it is found, to some roundings of the largest.
        rest = torch.linalg.svdvals(W - B @ A)
        close(rest[: len(S) - 5], S[5:], precision=torch.float32, scale=float(S[0]))
        close(A @ A.T, S[:5].diag(), precision=torch.float32)
        close(B.T @ B, S[:5].diag(), precision=torch.float32)
        assert torch.equal(tensors[f"{site.name}.A"], tensors[f"{site.name}.A0"])
        assert torch.equal(tensors[f"{site.name}.B"], tensors[f"{site.name}.B0"])


def test_pissas_start_is_kept_and_not_trained():
    backbone = make_backbone("bert")
    method = LoRA(rank=3, init="pissa", targets="query")
    adapter = make_adapter(backbone, method)
    assert set(adapter.fixed) == {f"layers.{i}.attention.query.{name}" for i in range(2) for name in ("A0", "B0")}
    plain = make_adapter(backbone, LoRA(rank=3, targets="query"))
    assert adapter.num_parameters == plain.num_parameters
    model = AdaptedModel(backbone)
    model.add("a", adapter, trainable=True)
    model.train()
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    model(**batch_for(backbone, 7, 4), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    after = model.adapter("a").tensors
    moved = {key for key, tensor in adapter.tensors.items() if not torch.equal(tensor, after[key])}
    assert {key for key in moved if not key.startswith("head.")} == {
        f"layers.{i}.attention.query.{name}" for i in range(2) for name in "AB"
    }


def test_pissas_gradients_are_those_of_its_factors():
    """[B − B0, B0] [A; A − A0] has the derivatives of B A."""
    backbone = backbone_of("bert", torch.float64)
    method = LoRA(rank=4, alpha=8, init="pissa", targets="query")
    site = method.sites(backbone.sites)[0]
    tensors = {k: t.double().requires_grad_() for k, t in make_adapter(backbone, method, trained=True).tensors.items()}
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (op,) = method.lower(site, tensors, backbone.frozen(site))
    ((op.B @ op.A) * weight).sum().backward()
    A, B = tensors[f"{site.name}.A"], tensors[f"{site.name}.B"]
    close(B.grad, 2 * weight @ A.T)
    close(A.grad, 2 * B.T @ weight)


def test_pissas_rank_is_at_most_the_weights():
    with pytest.raises(
        MethodError, match=r"rank 33 does not fit site 'layers.0.attention.query', whose weight is 32 x 32"
    ):
        make_adapter(make_backbone("bert"), LoRA(rank=33, init="pissa"))


# -- DoRA ----------------------------------------------------------------------------------------------------------


def test_doras_lengths_are_constants_in_the_backward_pass():
    backbone = backbone_of("bert", torch.float64)
    method = DoRA(rank=4, alpha=8, targets="query")
    site = method.sites(backbone.sites)[0]
    tensors = {k: t.double().requires_grad_() for k, t in make_adapter(backbone, method, trained=True).tensors.items()}
    frozen = backbone.frozen(site)
    A, B, g = (tensors[f"{site.name}.{name}"] for name in ("A", "B", "magnitude"))
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probe = torch.randn(9, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def lowered():
        rank, scale, bias = method.lower(site, tensors, frozen)
        return (x @ frozen["weight"].T + frozen["bias"] + x @ rank.A.T @ rank.B.T) * scale.v + bias.b

    def by_hand(detached):
        changed = frozen["weight"] + 2 * B @ A
        lengths = changed.norm(dim=1)
        lengths = lengths.detach() if detached else lengths
        return x @ ((g / lengths)[:, None] * changed).T + frozen["bias"]

    gradients = []
    for y in (lowered(), by_hand(True), by_hand(False)):
        gradients.append(torch.autograd.grad((y * probe).sum(), [A, B, g]))
    for found, expected, other in zip(*gradients, strict=True):
        close(found, expected, precision=torch.float32)  # which the lengths are in
        if found.dim() == 2:
            assert (expected - other).abs().max() > 1e-2


def test_dora_starts_at_the_rows_lengths_and_changes_nothing():
    backbone = make_backbone("bert")
    tensors = make_adapter(backbone, DoRA(rank=3)).tensors
    for site in backbone.sites.match(("layers.*",), "linear"):
        expected = backbone.frozen(site)["weight"].double().norm(dim=1).float()
        close(tensors[f"{site.name}.magnitude"], expected)
        assert not tensors[f"{site.name}.B"].any()


def test_dora_takes_a_row_of_zeros():
    backbone = make_backbone("bert")
    backbone.modules["encoder.layer.0.attention.self.query"].weight.data[3] = 0
    batch = texts("bert")
    plain = run(backbone.model, batch)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, DoRA(rank=3))})
    assert all(torch.equal(one, two) for one, two in zip(run_adapted(model, "a", batch), plain, strict=True))


# -- VeRA ----------------------------------------------------------------------------------------------------------


def test_vera_keeps_one_pair_of_matrices_for_all_layers():
    backbone = make_backbone("bert")
    adapter = make_adapter(backbone, VeRA(rank=5, d_init=0.3))
    shapes = {name: tuple(adapter.tensors[name].shape) for name in adapter.fixed}
    assert len(adapter.fixed) == len(shapes)
    assert shapes == {
        "shared.A.32": (5, 32),
        "shared.A.64": (5, 64),
        "shared.B.32": (32, 5),
        "shared.B.64": (64, 5),
    }
    bound = (6 / 32) ** 0.5
    assert 0.9 * bound < adapter.tensors["shared.A.32"].abs().max() <= bound
    assert (adapter.tensors["layers.1.ffn.up.d"] == 0.3).all()
    assert not adapter.tensors["layers.1.ffn.up.b"].any()
    # Without A and B: they are not trained.
    assert counts(declare(backbone, adapter.method, adapter.head))["adapter"] == sum(
        5 + site.out_features for site in backbone.sites.match(("layers.*",), "linear")
    )


def test_adapters_of_any_seed_have_the_same_matrices_unless_another_projection_seed_is_given():
    backbone = make_backbone("bert")
    one, two = (make_adapter(backbone, VeRA(rank=5), seed=seed) for seed in range(2))
    other = make_adapter(backbone, VeRA(rank=5, projection_seed=1))
    for name in one.fixed:
        assert torch.equal(one.tensors[name], two.tensors[name])
        assert not torch.equal(one.tensors[name], other.tensors[name])


def test_vera_is_read_back_with_its_matrices(tmp_path):
    backbone = make_backbone("bert")
    adapter = make_adapter(backbone, VeRA(rank=5), trained=True)
    adapter.save(tmp_path / "a")
    again = Adapter.load(tmp_path / "a")
    assert set(again.fixed) == set(adapter.fixed)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in adapter.tensors.items())


# -- counts, names and rates ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    BertConfig().save_pretrained(root / "bert-base")
    RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1).save_pretrained(root / "roberta")
    return root


@pytest.mark.parametrize(
    ("folder", "method", "settings", "adapter"),
    [
        ("roberta", "lora", {"rank": 8, "targets": "query,value"}, 294_912),
        ("roberta", "pissa", {"rank": 8, "targets": "query,value"}, 294_912),
        # Kopiczko et al. 2023, table 2, RoBERTa-base: 0.043M
        ("roberta", "vera", {"rank": 1024, "targets": "query,value"}, 12 * 2 * (1024 + 768)),
        ("roberta", "dora", {"rank": 8, "targets": "query,value"}, 294_912 + 12 * 2 * 768),
        ("bert-base", "dora", {}, 1_327_104 + 12 * (5 * 768 + 3072)),
    ],
)
def test_counts(folders, folder, method, settings, adapter):
    assert count(str(folders / folder), method, settings)["trained"]["adapter"] == adapter


def test_variants_have_names_of_their_own():
    assert make_method("rsLoRA", {"rank": 4}) == LoRA(rank=4, rank_stabilised=True)
    assert make_method("LoRA+") == LoRA(b_rate=16)
    assert make_method("lora+", {"b_rate": 8}) == LoRA(b_rate=8)
    assert make_method("PiSSA") == LoRA(init="pissa")
    assert set(NAMED) >= {"rslora", "lora+", "pissa"}


def test_only_b_learns_faster():
    site = make_backbone("bert").sites["layers.0.ffn.up"]
    rates = {name.rpartition(".")[2]: p.rate for name, p in LoRA(b_rate=16).declare(site).items()}
    assert rates == {"A": 1.0, "B": 16.0}
    assert {p.rate for p in LoRA().declare(site).values()} == {1.0}


def test_rank_stabilised_is_divided_by_the_root():
    assert LoRA(rank=16, alpha=8).scale == 0.5
    assert LoRA(rank=16, alpha=8, rank_stabilised=True).scale == 2.0


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        ("lora", {"init": "pisa", "b_rate": 0}, ["init='pisa'", "'default' or 'pissa'", "b_rate=0"]),
        ("dora", {"rank": 0, "targets": ""}, ["rank=0", "targets=", "a list of at least 1"]),
        ("vera", {"projection_seed": 2**32}, ["projection_seed=4294967296"]),
        ("vera", {"projection_seed": -1}, ["projection_seed=-1"]),
        ("vera", {"alpha": 1, "dropout": -0.1}, ["'alpha'", "dropout=-0.1", "settings of vera: rank, d_init"]),
    ],
)
def test_wrong_settings_are_all_named(name, settings, parts):
    with pytest.raises(MethodError) as caught:
        make_method(name, settings)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize("method", [LoRA, DoRA, VeRA])
def test_only_linear_maps_are_targets(method):
    sites = backbone_of("gpt2-lm").sites
    with pytest.raises(SiteError, match=r"'embeddings.word' matches no linear site: it names sites of kind embedding"):
        method(targets="embeddings.word").sites(sites)
    with pytest.raises(SiteError, match="it names sites of kind fused"):
        method(targets="fused").sites(sites)
    assert "lm_head" not in {site.name for site in method().sites(sites)}
    assert [site.name for site in method(targets="lm_head").sites(sites)] == ["lm_head"]
