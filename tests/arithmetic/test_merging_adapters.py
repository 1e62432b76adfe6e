"""Adapters merged as what they change: the parametrisation does not matter, and nothing else is calculated with."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from closeness import PASS, close
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_adapter, make_backbone, make_batch

from graftwork import (
    IA3,
    AdaptedModel,
    Adapter,
    BitFit,
    Compacter,
    DoRA,
    FullFineTuning,
    HeadOnly,
    Houlsby,
    LayerNormTuning,
    LoRA,
    Parallel,
    PrefixTuning,
    Union,
    VeRA,
)
from graftwork.arithmetic import Weights, dare_merge, fisher_merge, iso_c, knots, merge_adapters, regmean, ties, tsv_m
from graftwork.arithmetic.adapters.differences import factors_of, weights_of
from graftwork.arithmetic.adapters.lowrank import Factors, Products, best_of_rank, concatenated, truncated
from graftwork.arithmetic.adapters.units import matched, permuted
from graftwork.arithmetic.merging.adaptermethods import AdapterOperands, run_on_adapters
from graftwork.arithmetic.merging.method import make_merge_method
from graftwork.arithmetic.values.running import Piece
from graftwork.errors import AdapterError, MethodError, OutputError

F32 = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def backbone():
    return make_backbone(dtype=torch.float64)


def adapters_of(backbone, one, other=None, **options):
    """Two trained adapters of different seeds."""
    return {
        "a": make_adapter(backbone, one, trained=True, seed=0, **options),
        "b": make_adapter(backbone, other or one, trained=True, seed=7, **options),
    }


def mean_of(vectors):
    return {name: torch.stack([vector[name] for vector in vectors]).mean(dim=0) for name in vectors[0]}


def largest(vectors):
    """A formula that is not linear, but for which f(-τ) = -f(τ): the entry of the largest size."""
    stacked = {name: torch.stack([vector[name] for vector in vectors]) for name in vectors[0]}
    return {name: t.gather(0, t.abs().argmax(dim=0, keepdim=True)).squeeze(0) for name, t in stacked.items()}


def logits(backbone, adapter):
    model = AdaptedModel(backbone, {"t": adapter})
    try:
        return model(**make_batch(7, 4, 5), adapters="t").logits.detach()
    finally:
        model.detach()


def random_factors(seed, ranks=(3, 2), shape=(6, 9)):
    generator = torch.Generator().manual_seed(seed)
    made = partial(torch.randn, generator=generator, dtype=torch.float64)
    return [Factors(A=made(r, shape[1]), B=made(shape[0], r)) for r in ranks]


# -- products ----------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**16), rank=st.integers(1, 8), wide=st.booleans())
def test_the_best_product_is_that_of_a_dense_decomposition(seed, rank, wide):
    each = random_factors(seed, shape=(6, 9) if wide else (9, 6))
    joined = concatenated(each, (0.7, -1.3))
    delta = 0.7 * each[0].B @ each[0].A - 1.3 * each[1].B @ each[1].A
    close(joined.B @ joined.A, delta)
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    for found in (truncated(joined, rank), best_of_rank(delta, rank)):
        assert found.factors.rank == rank
        close(found.factors.dense(), best.float(), 64, precision=torch.float32, scale=float(delta.abs().max()))
        assert found.kept == pytest.approx(float(s[:rank].square().sum() / s.square().sum()), abs=1e-6)


def test_a_product_of_zeros_is_kept_whole():
    found = best_of_rank(torch.zeros(4, 3), 2)
    assert found.kept == 1.0
    assert not found.factors.dense().any()


@given(seed=st.integers(0, 2**16))
def test_what_is_made_of_products_does_not_depend_on_their_factors(seed):
    each = random_factors(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    turns = [torch.randn(f.rank, f.rank, generator=generator, dtype=torch.float64) for f in each]
    turned = [Factors(A=r @ f.A, B=f.B @ torch.linalg.inv(r)) for f, r in zip(each, turns, strict=True)]
    negated = [Factors(A=-f.A, B=-f.B) for f in each]
    # How far an inverse may be off depends on the matrix.
    units = 64 * max(float(torch.linalg.cond(r)) for r in turns)
    for others in (turned, negated):
        one, other = (truncated(concatenated(f, (0.5, 0.5)), 2).factors.dense() for f in (each, others))
        close(other, one, min(units, 2**20), scale=float(one.abs().max()))


# -- LoRA and others by their differences ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_the_mean_of_lora_adapters_is_that_of_their_products(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    own = adapters_of(backbone, LoRA(rank=3), LoRA(rank=2, alpha=6, rank_stabilised=True))
    merged = merge_adapters(own, backbone).adapter
    assert merged.method.rank == 5
    a, b = (weights_of(adapter, backbone) for adapter in own.values())
    found = weights_of(merged, backbone)
    assert found.keys() == a.keys()
    for name in found:
        close(found[name], (a[name] + b[name]) / 2, what=name)


FORMULAS = {
    "ties": partial(ties, keep=0.3),
    "ties of each tensor": partial(ties, keep=0.3, scope="tensor", merge="sum"),
    "dare": partial(dare_merge, drop=0.5, seed=3),
    "iso_c": iso_c,
    "tsv_m": tsv_m,
}
"""Formulas whose result for -τ is that for τ, negated."""


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("basis", [False, True])
def test_what_is_subtracted_is_what_would_be_added(backbone, formula, basis):
    own = adapters_of(backbone, LoRA(rank=3))
    negated = {
        n: replace(a, tensors={k: -t if k.endswith(".B") else t for k, t in a.tensors.items()}) for n, a in own.items()
    }
    one, other = (
        weights_of(merge_adapters(given, backbone, formula=FORMULAS[formula], basis=basis).adapter, backbone)
        for given in (own, negated)
    )
    assert any(bool(tensor.any()) for tensor in one.values())
    for name, tensor in one.items():
        close(other[name], -tensor, PASS, what=name)


@pytest.mark.parametrize("formula", [iso_c, tsv_m])
@pytest.mark.parametrize("ranks", [(3, 3), (2, 20)], ids=["small", "cut"])
def test_merges_by_singular_values_are_lora_and_those_of_the_differences(backbone, formula, ranks):
    """Of 20 triples of a matrix of 32, TSV-M takes 16."""
    own = adapters_of(backbone, LoRA(rank=ranks[0]), LoRA(rank=ranks[1]))
    dense = merge_adapters(own, backbone, formula=formula, scale=0.5).adapter
    found = merge_adapters(own, backbone, formula=formula, by_singular_values=True, scale=0.5).adapter
    assert dense.method.name == "full-fine-tuning"
    assert found.method.name == "lora"
    assert max(t.shape[0] for n, t in found.tensors.items() if n.endswith(".A")) <= sum(ranks)
    expected, own = (weights_of(one, backbone) for one in (dense, found))
    assert expected.keys() == own.keys()
    for name, tensor in expected.items():
        close(own[name], tensor, PASS, what=name)


OPTIONS = [
    *({}, {"rank": 2}, {"formula": largest}, {"formula": largest, "basis": True}),
    *({"formula": formula, "basis": basis} for formula in FORMULAS.values() for basis in (False, True)),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_signs_and_bases_of_the_factors_change_nothing(backbone, options):
    own = adapters_of(backbone, LoRA(rank=3))
    generator = torch.Generator().manual_seed(3)
    turned = {}
    for name, adapter in own.items():
        tensors = dict(adapter.tensors)
        for site in adapter.sites:
            turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]  # as exact as float32 can be
            tensors[f"{site}.A"] = turn @ tensors[f"{site}.A"]
            tensors[f"{site}.B"] = tensors[f"{site}.B"] @ turn.T
        turned[name] = replace(adapter, tensors=tensors)
    negated = {
        name: replace(a, tensors={n: t if n.startswith("head.") else -t for n, t in a.tensors.items()})
        for name, a in own.items()
    }
    expected = weights_of(merge_adapters(own, backbone, **options).adapter, backbone)
    for others in (turned, negated):
        found = weights_of(merge_adapters(others, backbone, **options).adapter, backbone)
        assert found.keys() == expected.keys()
        for name in found:
            close(found[name], expected[name], PASS, what=name)


def test_factors_averaged_by_themselves_would_be_another_adapter(backbone):
    own = adapters_of(backbone, LoRA(rank=3))
    flipped = {n: t if n.startswith("head.") else -t for n, t in own["a"].tensors.items()}
    same = replace(own["a"], tensors=flipped)
    merged = merge_adapters({"a": own["a"], "b": same}, backbone).adapter
    close(logits(backbone, merged), logits(backbone, own["a"]), 64, precision=torch.float32)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "vit", "resnet"])
def test_a_mean_of_full_fine_tunings_is_that_of_their_tensors(kind):
    backbone = make_backbone(kind, head=kind == "t5")
    own = adapters_of(backbone, FullFineTuning())
    merged = merge_adapters(own, backbone).adapter
    assert merged.method == FullFineTuning()
    for name, tensor in merged.tensors.items():
        mean = (own["a"].tensors[name] + own["b"].tensors[name]) / 2
        # A difference is read off a sum with its weight in float64, and is float32 again.
        close(tensor, mean, 8, what=name)


@pytest.mark.parametrize("method", [DoRA(rank=3), VeRA(rank=5), Union(methods=[LoRA(rank=2), BitFit()])])
def test_an_adapter_that_is_merged_with_itself_says_the_same(backbone, method):
    one = make_adapter(backbone, method, trained=True)
    merged = merge_adapters({"a": one, "b": one}, backbone).adapter
    assert merged.method.name in ("lora", "full-fine-tuning")
    close(logits(backbone, merged), logits(backbone, one), PASS, precision=torch.float32)


def test_adapters_of_different_methods_are_merged_by_what_they_change(backbone):
    own = adapters_of(backbone, LoRA(rank=3), FullFineTuning())
    merged = merge_adapters(own, backbone).adapter
    a, b = (weights_of(adapter, backbone) for adapter in own.values())
    found = weights_of(merged, backbone)
    for name in found:
        close(found[name], (a.get(name, 0) + b[name]) / 2, what=name)


@given(coefficients=st.lists(st.floats(-2, 2), min_size=2, max_size=2))
def test_a_sum_has_the_coefficients_and_the_scale(backbone, coefficients):
    own = adapters_of(backbone, IA3())
    merged = merge_adapters(own, backbone, coefficients=coefficients, scale=0.5).adapter
    a, b = own["a"].tensors, own["b"].tensors
    for name in (name for name in merged.tensors if not name.startswith("head.")):
        expected = 1 + 0.5 * (coefficients[0] * (a[name] - 1) + coefficients[1] * (b[name] - 1))
        close(merged.tensors[name], expected, scale=1.0, what=name)


@pytest.mark.parametrize("method", [IA3(), BitFit(), LayerNormTuning()])
def test_vectors_are_relative_to_what_changes_nothing(backbone, method):
    """Nothing at all is the adapter that has just begun."""
    own = adapters_of(backbone, method)
    nothing = merge_adapters(own, backbone, coefficients=[0.0, 0.0], heads="keep").adapters["a"]
    begun = make_adapter(backbone, method)
    for name in nothing.tensors.keys() - own["a"].head.declare(backbone).keys():
        assert torch.equal(nothing.tensors[name], begun.tensors[name])


def test_the_best_lora_of_a_merge_is_asked_for_by_its_rank(backbone):
    own = adapters_of(backbone, LoRA(rank=3))
    merged = merge_adapters(own, backbone, formula=largest, rank=4).adapter
    assert merged.method.rank == 4
    a, b = (weights_of(adapter, backbone) for adapter in own.values())
    found = weights_of(merged, backbone)
    for name, tensor in largest([a, b]).items():
        close(found[name], best_of_rank(tensor, 4).factors.dense(), 64, what=name)


# -- KnOTS -------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**16), tall=st.booleans())
def test_knots_with_a_mean_is_the_mean(seed, tall):
    generator = torch.Generator().manual_seed(seed)
    shape = (40, 5) if tall else (5, 40)
    vectors = [{"w": torch.randn(shape, generator=generator), "b": torch.randn(3, generator=generator)} for _ in "ab"]
    found = knots(vectors, mean_of)
    for name, tensor in mean_of(vectors).items():
        close(found[name], tensor, 64, what=name)


def test_knots_is_the_formula_in_the_common_basis():
    vectors = [{"w": factors.dense()} for factors in random_factors(1)]
    u, s, vh = torch.linalg.svd(torch.cat([v["w"].double() for v in vectors], dim=1), full_matrices=False)
    sign = torch.sign(u.gather(0, u.abs().argmax(dim=0, keepdim=True)))
    u, inner = (u * sign)[:, :5], (sign.T * s[:, None] * vh)[:5].float()
    parts = inner.split(9, dim=1)
    expected = u @ largest([{"w": part} for part in parts])["w"].double()
    close(knots(vectors, largest)["w"], expected.float(), 64)


def knotted(own, backbone, **settings):
    return run_on_adapters(
        make_merge_method("knots", settings), AdapterOperands(adapters=own, backbone=backbone)
    ).merged.adapter


@pytest.mark.parametrize(
    ("settings", "formula", "scale"),
    [
        ({}, partial(ties, keep=0.2), 1.0),
        ({"scope": "tensor", "combined": "sum"}, partial(ties, scope="tensor", merge="sum"), 0.3),
        ({"formula": "dare", "drop": 0.4, "seed": 2}, partial(dare_merge, drop=0.4, seed=2), 0.3),
        ({"formula": "dare", "drop": 0.4, "elect": True}, partial(dare_merge, drop=0.4, elect=True), 1.0),
        ({"formula": "dare", "elect": True, "scale": 0.7}, partial(dare_merge, elect=True), 0.7),
    ],
)
def test_knots_has_the_settings_and_the_scale_of_its_formula(backbone, settings, formula, scale):
    own = adapters_of(backbone, LoRA(rank=3))
    expected = weights_of(merge_adapters(own, backbone, formula=formula, basis=True, scale=scale).adapter, backbone)
    found = weights_of(knotted(own, backbone, **settings), backbone)
    assert any(bool(tensor.any()) for tensor in expected.values())
    for name in expected:
        close(found[name], expected[name], PASS, what=name)


def test_settings_that_the_formula_of_knots_has_not_are_refused():
    with pytest.raises(MethodError, match="drop would do nothing: formula ties has no such setting"):
        make_merge_method("knots", {"drop": 0.5})
    with pytest.raises(MethodError, match="combined, scope would do nothing: formula dare"):
        make_merge_method("knots", {"formula": "dare", "scope": "tensor", "combined": "sum"})
    settled = make_merge_method("knots", {"formula": "dare", "elect": True}).described()
    assert settled == {"name": "knots", "formula": "dare", "drop": 0.9, "seed": 0, "elect": True, "scale": 1.0}
    assert make_merge_method("knots", {k: v for k, v in settled.items() if k != "name"}).described() == settled


def test_knots_of_adapters_that_change_nothing_says_so(backbone):
    own = {name: make_adapter(backbone, LoRA(rank=2), seed=i) for i, name in enumerate("ab")}
    with pytest.raises(MethodError, match="the adapters change no linear map"):
        run_on_adapters(make_merge_method("knots"), AdapterOperands(adapters=own, backbone=backbone))


def test_knots_of_factors_is_that_of_what_they_make(backbone):
    own = adapters_of(backbone, LoRA(rank=3), LoRA(rank=2))
    merged = merge_adapters(own, backbone, formula=largest, basis=True).adapter
    assert merged.method.rank == 5
    found = weights_of(merged, backbone)
    for name, tensor in knots([weights_of(adapter, backbone) for adapter in own.values()], largest).items():
        close(found[name], tensor, 64, what=name)


def test_vectors_are_given_back_as_they_came():
    generator = torch.Generator().manual_seed(0)
    plain = [{"w": torch.randn(4, 3, generator=generator), "b": torch.randn(4, generator=generator)} for _ in "ab"]
    held = [Weights.of(vector) for vector in plain]
    ones = [{name: torch.ones_like(t) for name, t in vector.items()} for vector in plain]
    grams = [{"w": torch.eye(3)}] * 2
    for merge in (
        lambda vectors: knots(vectors, partial(ties, keep=0.5)),
        lambda vectors: fisher_merge(vectors, ones, [0.5, 0.5]),
        lambda vectors: regmean(vectors, grams),
    ):
        one, other = merge(plain), merge(held)
        assert (type(one), type(other)) == (dict, Weights)
        for name in one:
            assert torch.equal(one[name], other[name])


# -- bottlenecks -------------------------------------------------------------------------------------------------------


def shuffled(adapter, seed=0):
    """An adapter that computes the same, with the units of each bottleneck in another order."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(adapter.tensors)
    for owner in [name.removesuffix(".down") for name in tensors if name.endswith(".down")]:
        own = {name.removeprefix(f"{owner}."): t for name, t in tensors.items() if name.startswith(f"{owner}.")}
        orders = [torch.randperm(len(own["down"]), generator=generator) for _ in range(1 + len(own.get("hidden", ())))]
        tensors |= {f"{owner}.{name}": t for name, t in permuted(own, orders).items()}
    return replace(adapter, tensors=tensors, seed=adapter.seed + 1)


BOTTLENECKS = [Houlsby(bottleneck=6), Parallel(bottleneck=6, scale=2.0), Houlsby(bottleneck=6, depth=3)]


@pytest.mark.parametrize("method", BOTTLENECKS)
def test_units_in_another_order_compute_the_same(backbone, method):
    one = make_adapter(backbone, method, trained=True)
    close(logits(backbone, shuffled(one)), logits(backbone, one))


@pytest.mark.parametrize("method", BOTTLENECKS)
def test_bottlenecks_whose_units_stand_in_another_order_are_found_to_be_the_same(backbone, method):
    one = make_adapter(backbone, method, trained=True)
    merged = merge_adapters({"a": one, "b": shuffled(one), "c": shuffled(one, seed=5)}, backbone).adapter
    close(logits(backbone, merged), logits(backbone, one), PASS, precision=torch.float32)
    naive = merge_adapters({"a": one, "b": shuffled(one)}, backbone, align="none").adapter
    assert (logits(backbone, naive) - logits(backbone, one)).abs().max() > 1e-3


def test_a_planted_order_is_found_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    made = partial(torch.randn, generator=generator)
    own = {"down": made(7, 5), "down_bias": made(7), "up": made(5, 7), "up_bias": made(5)}
    [first, second] = matched([own, permuted(own, [torch.randperm(7, generator=generator)])])
    assert all(torch.equal(first[name], own[name]) and torch.equal(second[name], own[name]) for name in own)


def test_bottlenecks_that_began_alike_are_averaged_as_they_are(backbone):
    one = make_adapter(backbone, Houlsby(bottleneck=6), trained=True)
    other = replace(shuffled(one), seed=one.seed)
    merged = merge_adapters({"a": one, "b": other}, backbone).adapter
    for name, tensor in merged.tensors.items():
        close(tensor, (one.tensors[name] + other.tensors[name]) / 2)


@pytest.mark.parametrize("options", [{"coefficients": [1.0, 1.0]}, {"coefficients": [2.0, -1.0]}, {"scale": 0.5}])
def test_bottlenecks_are_merged_by_a_mean_only(backbone, options):
    own = adapters_of(backbone, Houlsby(bottleneck=6))
    with pytest.raises(MethodError, match="by a mean only"):
        merge_adapters(own, backbone, **options)


def test_bottlenecks_are_not_merged_by_a_formula(backbone):
    with pytest.raises(MethodError, match=r"by a mean only, and not by largest"):
        merge_adapters(adapters_of(backbone, Houlsby(bottleneck=6)), backbone, formula=largest)


def test_products_are_read_in_pieces_of_the_same_bits():
    generator = torch.Generator().manual_seed(0)
    own = Factors(A=torch.randn(3, 7, generator=generator), B=torch.randn(600, 3, generator=generator))
    source = Products({"w": own, "none": Factors(A=torch.zeros(0, 7), B=torch.zeros(5, 0))})
    whole = source.whole("w")
    close(whole.double(), own.B.double() @ own.A.double(), precision=torch.float32)
    for start, stop in ((0, 1), (5, 29), (7, 14), (1790, 1800), (1792, 4200), (4199, 4200), (13, 4193)):
        assert torch.equal(source.read(Piece("w", start, stop)), whole.flatten()[start:stop])
    assert not source.whole("none").any()


def test_a_formula_over_lora_holds_no_difference_whole_but_the_result(backbone, monkeypatch):
    own = adapters_of(backbone, LoRA(rank=3))
    dense = [{n: f.dense() for n, f in factors_of(one, backbone).items()} for one in own.values()]
    monkeypatch.setattr(Factors, "dense", None)
    merged = merge_adapters(own, backbone, formula=partial(ties, keep=0.3)).adapter
    expected = ties(dense, keep=0.3)
    found = weights_of(merged, backbone)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)


# -- heads -------------------------------------------------------------------------------------------------------------


def test_heads_are_averaged_where_the_labels_agree(backbone):
    own = adapters_of(backbone, HeadOnly())
    merged = merge_adapters(own, backbone).adapter
    assert merged.task.name == "a+b"
    for name, tensor in merged.tensors.items():
        close(tensor, (own["a"].tensors[name] + own["b"].tensors[name]) / 2)


def test_other_heads_are_kept_for_their_tasks_in_one_folder(backbone, tmp_path):
    own = adapters_of(backbone, LoRA(rank=3))
    own["c"] = make_adapter(backbone, LoRA(rank=3), trained=True, seed=9, num_labels=2)
    merged = merge_adapters(own, backbone, rank=3)
    assert [*merged.adapters] == ["a+b", "c"]
    assert torch.equal(
        merged.adapters["c"].tensors["head.classifier.weight"], own["c"].tensors["head.classifier.weight"]
    )
    merged.save(tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == [
        "a+b",
        "c",
        "heads.yaml",
        "shared.safetensors",
    ]
    for name, adapter in merged.adapters.items():
        found = Adapter.load(tmp_path / "merged" / name)
        assert found.digest == adapter.digest
        assert found.recipe["merged"]["adapters"].keys() == own.keys()
    with pytest.raises(OutputError, match="exists already"):
        merged.save(tmp_path / "merged")
    merged.save(tmp_path / "merged", overwrite=True)
    (tmp_path / "merged" / "mine").mkdir()
    with pytest.raises(OutputError, match="is not an adapter's folder"):
        merged.save(tmp_path / "merged", overwrite=True)
    (tmp_path / "merged" / "mine").rmdir()
    one = merge_adapters({"a": own["a"], "b": own["b"]}, backbone)
    one.save(tmp_path / "merged", overwrite=True)
    assert Adapter.load(tmp_path / "merged").digest == one.adapter.digest
    with pytest.raises(AdapterError, match=r"2 heads \(a\+b, c\)"):
        _ = merged.adapter


def test_heads_can_be_kept_and_must_agree_where_they_are_to_be_averaged(backbone):
    own = adapters_of(backbone, LoRA(rank=3))
    assert [*merge_adapters(own, backbone, heads="keep").adapters] == ["a", "b"]
    own["b"] = make_adapter(backbone, LoRA(rank=3), num_labels=2)
    with pytest.raises(AdapterError, match="their labels are a, b, c and a, b"):
        merge_adapters(own, backbone, heads="average")


def test_an_adapter_that_is_subtracted_has_no_say_in_the_head(backbone):
    own = adapters_of(backbone, LoRA(rank=3))
    merged = merge_adapters(own, backbone, coefficients=[1.0, -1.0]).adapter
    assert torch.equal(merged.tensors["head.classifier.weight"], own["a"].tensors["head.classifier.weight"])


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (PrefixTuning(num_virtual_tokens=3), None, "'prefix-tuning' cannot be merged with others"),
        (Houlsby(bottleneck=6), LoRA(rank=3), "with bottlenecks of the same settings only"),
        (Houlsby(bottleneck=6), Houlsby(bottleneck=5), "with bottlenecks of the same settings only"),
        (Compacter(bottleneck=8), None, "made by something else"),
        (LoRA(rank=2), PrefixTuning(num_virtual_tokens=3), "adapter 'b' of method 'prefix-tuning'"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(backbone, one, other, said):
    with pytest.raises(MethodError, match=said):
        merge_adapters(adapters_of(backbone, one, other), backbone)


def test_adapters_of_one_method_at_different_sites_are_refused():
    backbone = make_backbone("t5", head=True)
    method = IA3(outputs="value", inputs="ffn.down")
    own = {
        "a": make_adapter(backbone, method, trained=True),
        "b": make_adapter(backbone, method, trained=True, kind="token-classification"),
    }
    with pytest.raises(MethodError, match="'a' and 'b' act at different sites"):
        merge_adapters(own, backbone)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"coefficients": [1.0]}, "1 coefficients are given for 2 adapters"),
        ({"coefficients": [1.0, 1.0], "formula": largest}, "coefficients would do nothing"),
        ({"basis": True}, "basis would do nothing"),
        ({"align": "units"}, "the adapters have no bottlenecks"),
        ({"formula": lambda vectors: {}}, "gives other tensors"),
    ],
)
def test_settings_that_do_nothing_are_refused(backbone, options, said):
    with pytest.raises(MethodError, match=said):
        merge_adapters(adapters_of(backbone, LoRA(rank=2)), backbone, **options)


def test_a_rank_is_refused_where_no_lora_is_made(backbone):
    with pytest.raises(MethodError, match="rank 2 would do nothing"):
        merge_adapters(adapters_of(backbone, IA3()), backbone, rank=2)
    with pytest.raises(MethodError, match=r"changes .*bias, which is no weight of a linear map"):
        merge_adapters(adapters_of(backbone, FullFineTuning()), backbone, rank=2)


def test_adapters_of_another_backbone_and_of_one_name_are_refused(backbone):
    own = adapters_of(backbone, LoRA(rank=2))
    with pytest.raises(AdapterError, match="was made for backbone"):
        merge_adapters(own, make_backbone(seed=3))
    with pytest.raises(AdapterError, match="two adapters are for a task 't'"):
        merge_adapters([*own.values()], backbone)
    with pytest.raises(AdapterError, match="an adapter is named 'a/b'"):
        merge_adapters({"a/b": own["a"]}, backbone)


def test_what_is_merged_can_be_merged_again(backbone):
    own = adapters_of(backbone, LoRA(rank=2))
    once = merge_adapters(own, backbone)
    assert once.members == {"a+b": ("a", "b")}
    again = merge_adapters([once.adapter, make_adapter(backbone, LoRA(rank=2), num_labels=2)], backbone)
    assert again.members == {"a+b": ("a+b",), "t": ("t",)}
