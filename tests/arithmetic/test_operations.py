"""Operations against the papers' formulas in float64, and the laws that they obey."""

from itertools import product
from pathlib import Path

import pytest
import torch
from arithmetic import formulas
from arithmetic.models import random_tensors
from closeness import close
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork import arithmetic
from graftwork.arithmetic import (
    Weights,
    analogy,
    average,
    breadcrumbs,
    dare,
    dare_merge,
    della,
    elected,
    emr,
    interpolate,
    iso_c,
    model_stock,
    sce,
    slerp,
    task_arithmetic,
    ties,
    tsv_m,
)
from graftwork.arithmetic.operations import selection
from graftwork.arithmetic.operations.selection import ALL, NONE, cut_of, cuts_of
from graftwork.arithmetic.values.running import Piece
from graftwork.arithmetic.values.sources import Held
from graftwork.errors import RecipeError, WeightsError
from graftwork.training.display import SILENT

seeds = st.integers(0, 10**6)
counts = st.integers(2, 5)
shares = st.floats(0.05, 1.0)


def vectors_of(seed, count, *, ties_in=False):
    """Task vectors; with ties, of few different numbers, zeros and opposites among them."""
    found = [random_tensors(seed + i, dtype=torch.float64) for i in range(count)]
    if ties_in:
        found = [{name: (own * 2).round() / 2 for name, own in each.items()} for each in found]
    return found


def same(found, expected, units=32):
    assert {*found} == {*expected}
    for name in found:
        scale = max(1.0, float(expected[name].abs().max()))
        close(found[name].double(), expected[name].double(), units=units, scale=scale, what=name)


def negative(vectors):
    return [{name: -own for name, own in each.items()} for each in vectors]


@settings(max_examples=20)
@given(seeds, counts, shares, st.sampled_from(["global", "tensor"]), st.sampled_from(["mean", "sum"]), st.booleans())
def test_ties_is_the_paper_s(seed, count, keep, scope, how, ties_in):
    vectors = vectors_of(seed, count, ties_in=ties_in)
    found = ties(vectors, keep=keep, scope=scope, merge=how)
    same(found, formulas.ties(vectors, keep, scope, how))


@settings(max_examples=20)
@given(seeds, counts, st.lists(st.floats(0.1, 2), min_size=5, max_size=5))
def test_weighted_ties(seed, count, weights):
    vectors = vectors_of(seed, count)
    found = ties(vectors, keep=0.5, weights=weights[:count])
    same(found, formulas.ties(vectors, 0.5, "global", "mean", weights[:count]))


@settings(max_examples=20)
@given(seeds, counts, shares, st.sampled_from(["global", "tensor"]), st.sampled_from(["mean", "sum"]))
def test_ties_of_the_negative_is_the_negative(seed, count, keep, scope, how):
    vectors = vectors_of(seed, count, ties_in=True)
    one, other = (ties(each, keep=keep, scope=scope, merge=how) for each in (vectors, negative(vectors)))
    assert all(torch.equal(one[name], -other[name]) for name in one)


def test_a_toy_case_of_ties_by_hand():
    """Three vectors of six numbers, of which half are kept.

    Kept:     a  3 −2  0  0  1  0      of  3.0 −2.0  0.1  0.2  1.0 −0.3
              b −1  0  2  0  4  0      of −1.0  0.5  2.0 −0.4  4.0  0.3
              c  2 −4  0  1  0  0      of  2.0 −4.0  0.9  1.0 −0.2  0.5
    Sums:        4 −6  2  1  5  0
    Means of those with that sign: 2.5, −3, 2, 1, 2.5, 0.
    """
    rows = [[3.0, -2.0, 0.1, 0.2, 1.0, -0.3], [-1.0, 0.5, 2.0, -0.4, 4.0, 0.3], [2.0, -4.0, 0.9, 1.0, -0.2, 0.5]]
    vectors = [{"w": torch.tensor(row)} for row in rows]
    assert ties(vectors, keep=0.5)["w"].tolist() == [2.5, -3.0, 2.0, 1.0, 2.5, 0.0]
    assert ties(vectors, keep=0.5, merge="sum")["w"].tolist() == [5.0, -6.0, 2.0, 1.0, 5.0, 0.0]


def test_a_sum_of_zero_takes_the_sign_of_most_places():
    a = {"w": torch.tensor([1.0, 1.0, 2.0, -1.0])}
    b = {"w": torch.tensor([-1.0, 1.0, 2.0, -1.0])}
    assert ties([a, b], keep=1.0)["w"].tolist() == [1.0, 1.0, 2.0, -1.0]  # more sums are positive
    c, d = {"w": torch.tensor([1.0, 1.0, -1.0])}, {"w": torch.tensor([-1.0, 1.0, -1.0])}
    assert ties([c, d], keep=1.0)["w"].tolist() == [0.0, 1.0, -1.0]  # as many are negative


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=40), st.data())
def test_exactly_so_many_are_kept_and_the_first_of_equal_ones(numbers, data):
    row = torch.tensor(numbers, dtype=data.draw(st.sampled_from([torch.float32, torch.float64]))) / 3
    count = data.draw(st.integers(0, len(numbers)))
    left = cut_of(row, count).above(row)
    expected = formulas.top(row, count)
    assert torch.equal(left & (row != 0), expected & (row != 0))
    # The same from pieces that are never held together, of one tensor or of two.
    cut = data.draw(st.integers(0, len(numbers)))
    size = data.draw(st.integers(1, 8))
    sizes = {"a": cut, "b": len(numbers) - cut}
    pieces = [Piece(n, i, min(i + size, own)) for n, own in sizes.items() for i in range(0, own, size)]
    parts = {"a": row[:cut], "b": row[cut:]}
    (cuts,) = cuts_of(
        lambda piece: [parts[piece.name][piece.start : piece.stop]],
        lambda work: map(work, pieces),
        pieces,
        [(0, count)],
        row.dtype,
    )
    found = [cuts[piece.name].above(parts[piece.name][piece.start : piece.stop], piece.start) for piece in pieces]
    assert torch.equal(torch.cat(found) & (row != 0), expected & (row != 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "few values", "two halves", "sorted"])
@pytest.mark.parametrize("share", [1e-4, 0.2, 0.9])
def test_many_are_cut_in_one_pass_at_the_same_number(monkeypatch, dtype, kind, share):
    """As a sort has it; of numbers whose sample misleads in as many passes as without one."""
    size = 40_000
    row = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    if kind == "few values":
        row = row.round(decimals=1)
    if kind == "two halves":
        row[size // 2 :] *= 1e6
    if kind == "sorted":
        row = row.sort().values
    monkeypatch.setattr(selection, "SAMPLED", 0)
    pieces = [Piece(name, i, i + 1000) for name in "ab" for i in range(0, size // 2, 1000)]
    parts, passes, count = {"a": row[: size // 2], "b": row[size // 2 :]}, [], round(share * size)

    def read(piece):
        passes.append(piece.stop - piece.start)
        return [-row, parts[piece.name][piece.start : piece.stop]]

    (cuts,) = cuts_of(read, lambda work: map(work, pieces), pieces, [(1, count)], dtype, sampled=True)
    found = [cuts[piece.name].above(parts[piece.name][piece.start : piece.stop], piece.start) for piece in pieces]
    assert torch.equal(torch.cat(found), formulas.top(row, count))
    if kind == "normal":
        assert sum(passes) < 1.1 * size


def test_what_vectors_have_in_common_is_read_once(monkeypatch):
    base, *models = (Weights.of(random_tensors(seed)) for seed in range(3))
    counts = {}
    plain = Held.read

    def counted(self, piece):
        counts[id(self), piece] = counts.get((id(self), piece), 0) + 1
        return plain(self, piece)

    merged = ties([model - base for model in models], scope="tensor")
    monkeypatch.setattr(Held, "read", counted)
    assert merged["layers.0.weight"].isfinite().all()
    assert {*counts.values()} == {2}  # once for the thresholds and once for the merge, of each of the three
    assert len(counts) == 3


def test_none_and_all():
    row = torch.tensor([0.0, -0.0, float("inf"), 1e-45])
    assert not NONE.above(row).any()
    assert ALL.above(row).all()


@settings(max_examples=20)
@given(seeds, counts, shares, st.floats(0, 0.3))
def test_breadcrumbs(seed, count, keep, outliers):
    vectors, keep = vectors_of(seed, count), min(keep, 1 - outliers)
    same(breadcrumbs(vectors, keep=keep, outliers=outliers), formulas.breadcrumbs(vectors, keep, outliers))


@settings(max_examples=20)
@given(seeds, counts, shares)
def test_sce(seed, count, keep):
    vectors = vectors_of(seed, count)
    same(sce(vectors, keep=keep), formulas.sce(vectors, keep))


@given(seeds, st.floats(0, 1))
def test_slerp(seed, t):
    vectors = vectors_of(seed, 2)
    same(slerp(vectors, t=t), formulas.slerp(vectors, t))


@given(seeds)
def test_slerp_keeps_lengths_and_ends(seed):
    vectors = vectors_of(seed, 2)
    unit = [{name: own / own.norm() for name, own in each.items()} for each in vectors]
    half = slerp(unit, t=0.5)
    for name in half:
        if abs(float((unit[0][name] * unit[1][name]).sum())) < 0.99:
            assert abs(float(half[name].norm()) - 1) < 1e-12
    same(slerp(vectors, t=0), vectors[0])
    same(slerp(vectors, t=1), vectors[1])


@given(seeds, counts)
def test_model_stock(seed, count):
    vectors = vectors_of(seed, count)
    near = [{name: own + 3 * vectors[0][name] for name, own in each.items()} for each in vectors]
    same(model_stock(near), formulas.model_stock(near), units=128)


@given(seeds, counts)
def test_singular_values(seed, count):
    vectors = vectors_of(seed, count)
    same(iso_c(vectors), formulas.matrices(formulas.iso_c, vectors), units=10**4)
    same(tsv_m(vectors), formulas.matrices(formulas.tsv_m, vectors), units=10**5)


def low_rank_vectors(count, rank=2, shape=(9, 7)):
    """Task matrices of a small rank, the third row and the fifth column of which nothing changed."""
    generator = torch.Generator().manual_seed(count)
    left, right = (torch.randn(count, size, rank, generator=generator) for size in shape)
    left[:, 2], right[:, 4] = 0, 0
    return [{"w": one @ other.T} for one, other in zip(left, right, strict=True)]


@pytest.mark.parametrize("operation", [iso_c, tsv_m])
def test_singular_vectors_that_are_none_are_left_out(operation):
    """What no model changed stays as it is, and the result has the rows and columns of what the models changed."""
    vectors = low_rank_vectors(2)
    found = operation(vectors)["w"].double()
    assert found.any()
    assert not found[2].any()
    assert not found[:, 4].any()
    left, values, right = torch.linalg.svd(sum(own["w"] for own in vectors).double(), full_matrices=False)
    within = left[:, :4] @ (left[:, :4].T @ found @ right[:4].T) @ right[:4]
    close(within, found, units=256, precision=torch.float32)
    if operation is iso_c:
        expected = values[:4].mean() * left[:, :4] @ right[:4]
        close(found, expected, units=256, precision=torch.float32)


@pytest.mark.parametrize("operation", [iso_c, tsv_m])
def test_singular_values_of_no_change(operation):
    nothing = {"w": torch.zeros(3, 4)}
    assert torch.equal(operation([nothing, nothing])["w"], nothing["w"])
    (vector,) = low_rank_vectors(1)
    opposite = {"w": -vector["w"]}
    assert not iso_c([vector, opposite])["w"].any()


def test_tsv_m_of_equals_is_themselves():
    vector = low_rank_vectors(1)[0]
    close(tsv_m([vector] * 3)["w"], vector["w"], units=64)


@settings(max_examples=20)
@given(seeds, counts)
def test_emr(seed, count):
    vectors = vectors_of(seed, count)
    made = emr(vectors)
    rows = [formulas.flat(own) for own in vectors]
    unified = formulas.merge(rows, formulas.elect(rows, formulas.majority_of(rows)), "max", [])
    same(made.unified, formulas.unflat(unified, vectors[0]))
    same(elected(vectors), made.unified)
    for i, row in enumerate(rows):
        mask = row * unified > 0
        scale = row.abs().sum() / (mask * unified).abs().sum()
        assert made.scales[i] == pytest.approx(float(scale), rel=1e-12)
        same(made.vector(i), formulas.unflat(scale * mask * unified, vectors[0]))
    with pytest.raises(RecipeError, match=f"no task {count}"):
        made.vector(count)


def test_dare_s_mean_over_all_masks_is_the_vector():
    """Each of all 2^4 masks with its probability."""
    row, p = torch.tensor([1.0, -2.0, 3.0, 0.5]), 0.25
    total = sum(
        (torch.tensor(mask) * row / (1 - p)) * (1 - p) ** sum(mask) * p ** (4 - sum(mask))
        for mask in product([0.0, 1.0], repeat=4)
    )
    close(total, row)
    # What it draws is such masks, and each number with that probability.
    found = torch.stack([dare({"w": row.repeat(500)}, drop=p, seed=i)["w"] for i in range(20)]).view(-1, 4)
    assert {*(found / row * (1 - p)).round(decimals=5).unique().tolist()} == {0.0, 1.0}
    deviation = (row / (1 - p)).abs() * (p * (1 - p) / len(found)) ** 0.5
    assert ((found.mean(0) - row).abs() < 5 * deviation).all()


def test_what_dare_drops_depends_on_seed_name_and_vector_alone():
    a = {name: torch.ones(50) for name in ("one", "two")}
    found = dare(a, drop=0.5, seed=3)
    assert torch.equal(found["one"], dare({"one": torch.ones(50)}, drop=0.5, seed=3)["one"])
    assert not torch.equal(found["one"], found["two"])
    assert not torch.equal(found["one"], dare(a, drop=0.5, seed=4)["one"])
    alone = dare(a, drop=0.5, seed=3)
    both = dare_merge([a, a], drop=0.5, seed=3)
    assert {*both["one"].tolist()} == {0.0, 2.0, 4.0}
    assert torch.equal((both["one"] - alone["one"]).clamp(max=2), both["one"] - alone["one"])


def test_della_drops_small_numbers_more_often():
    width, rows = 8, 4000
    row = torch.tensor([4.0, -1.0, 3.0, 0.5, -8.0, 7.0, 2.0, 6.0])
    found = della([{"w": row.repeat(rows, 1)}], drop=0.5, spread=0.4)["w"] / row
    ranks = row.abs().argsort(descending=True).argsort()
    drop = 0.5 + 0.4 * (ranks / (width - 1) - 0.5)
    left = (found != 0).float().mean(0)
    assert (left - (1 - drop)).abs().max() < 5 * (0.25 / rows) ** 0.5
    close(found.amax(0), 1 / (1 - drop), units=4)


@given(seeds, counts)
def test_sums_means_and_analogies(seed, count):
    vectors = vectors_of(seed, count)
    weights = [0.3 * (i + 1) for i in range(count)]
    total = {n: sum(w * own[n] for w, own in zip(weights, vectors, strict=True)) for n in vectors[0]}
    same(task_arithmetic(vectors, weights=weights), total)
    same(average(vectors, weights=weights), {name: own / sum(weights) for name, own in total.items()})
    same(interpolate(vectors[:2], t=0.3), {n: 0.7 * vectors[0][n] + 0.3 * vectors[1][n] for n in total})
    a, b, c = vectors[0], vectors[1], vectors[-1]
    same(analogy([a, b, c]), {name: c[name] + b[name] - a[name] for name in a})


@given(seeds, st.integers(1, 7))
def test_the_average_of_equals_is_exactly_themselves(seed, count):
    tensors = random_tensors(seed)
    found = average([{name: own.clone() for name, own in tensors.items()} for _ in range(count)])
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


OPERATIONS = {
    "average": average,
    "interpolate": interpolate,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "ties, tensor": lambda vectors: ties(vectors, scope="tensor", keep=0.4),
    "dare": dare_merge,
    "dare, elect": lambda vectors: dare_merge(vectors, elect=True, drop=0.4),
    "breadcrumbs": breadcrumbs,
    "breadcrumbs, elect": lambda vectors: breadcrumbs(vectors, elect=True),
    "della": della,
    "sce": lambda vectors: sce(vectors, keep=0.5),
    "model_stock": model_stock,
    "iso_c": iso_c,
    "tsv_m": tsv_m,
    "elected": elected,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_made_piece_by_piece_is_the_same(name, monkeypatch):
    """With several pieces for each tensor, in several threads."""
    operation = OPERATIONS[name]
    vectors = [random_tensors(seed) for seed in range(2)]
    vectors = [{**own, "layers.0.weight": (own["layers.0.weight"] * 2).round()} for own in vectors]
    expected = operation(vectors)
    assert isinstance(expected, dict)
    monkeypatch.setattr("graftwork.arithmetic.values.running.LARGEST", 4)
    monkeypatch.setattr("graftwork.arithmetic.values.running.SMALLEST", 4)
    found = operation([Weights.of(own) for own in vectors])
    assert isinstance(found, Weights)
    for tensor in expected:
        close(found[tensor], expected[tensor], units=4, what=tensor)
        source = found.source
        source.prepare(SILENT)
        unit, size = source.unit(tensor), source.size(tensor)
        pieces = [source.read(Piece(tensor, i, min(i + unit, size))) for i in range(0, size, unit)]
        close(torch.cat(pieces), expected[tensor].flatten(), units=4, what=tensor)


@pytest.mark.parametrize("name", OPERATIONS)
def test_whole_numbers_are_kept_and_statistics_averaged(name):
    vectors = [
        {
            **random_tensors(i),
            "b.num_batches_tracked": torch.tensor(i + 3),
            "b.running_var": torch.full((9,), i + 1.0),
        }
        for i in range(2)
    ]
    found = OPERATIONS[name](vectors)
    assert found["b.num_batches_tracked"] == 3
    expected = 3.0 if name == "task_arithmetic" else 1.5
    assert torch.equal(found["b.running_var"], torch.full((9,), expected))


@pytest.mark.parametrize("name", OPERATIONS)
def test_tied_tensors_count_once(name):
    """Stored once or twice gives the same, also of what counts over all tensors."""
    once = [{"embed": own["layers.0.weight"], "rest": own["layers.1.weight"]} for own in map(random_tensors, range(2))]
    twice = [{**own, "lm_head": own["embed"]} for own in once]
    one, two = OPERATIONS[name](once), OPERATIONS[name](twice)
    for tensor in one:
        assert torch.equal(one[tensor], two[tensor])
    assert torch.equal(two["embed"], two["lm_head"])


def test_operands_that_do_not_fit_are_named():
    a, b = random_tensors(0), random_tensors(1)
    with pytest.raises(WeightsError, match=r"lacks norm"):
        ties([a, {name: own for name, own in b.items() if name != "norm"}])
    with pytest.raises(WeightsError, match=r"norm is \(\) in .* and \(2,\)"):
        average([a, {**b, "norm": torch.zeros(2)}])
    for call, message in {
        lambda: slerp([a]): "1 operands",
        lambda: model_stock([a]): "1 operands",
        lambda: average([]): "0 operands",
        lambda: average(a): "no list",
        lambda: analogy([a, b]): "2 operands",
        lambda: average([a, b], weights=[1.0]): "1 weights are given for 2 operands",
        lambda: average([a, b], weights=[1.0, -1.0]): "add up to 0",
        lambda: ties([a, b], keep=1.5): "keep is 1.5",
        lambda: dare(a, drop=1): "drop is 1",
        lambda: della([a], drop=0.05): "probabilities from -0.05",
        lambda: della([a], drop=[0.5, 0.95], spread=0.2): r"layers.1.weight would be .* from 0.85 to 1.05",
        lambda: della(
            [a], drop=[{"filter": "layers.1.weight", "value": 0.05}, {"value": 0.5}]
        ): "layers.1.weight would",
        lambda: breadcrumbs([a], keep=0.95, outliers=0.1): "keep 0.95 and outliers 0.1 add up to 1.05",
        lambda: breadcrumbs([a], keep=[0.5, 1.0], outliers=0.1): "at layers.1.weight keep 1 and outliers 0.1",
        lambda: ties([a, b], keep=[0.1, 0.2]): "keep differs from tensor to tensor",
        lambda: ties([a, b], keep="much", scope="tensor"): "'much' is no number",
    }.items():
        with pytest.raises(RecipeError, match=message):
            call()


def test_no_module_has_the_name_of_an_operation():
    """It would take its place in the package once it is imported."""
    folder = Path(arithmetic.__file__).parent
    assert not {path.stem for path in folder.glob("*.py")} & {*arithmetic.__all__}


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_large_vectors_with_many_equal_and_opposite_numbers(scope, tmp_path):
    """As of models in bfloat16: many numbers are on the threshold, and many sums are 0. In many pieces and threads."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"one": 400_000, "two": 150_000, "three": 7}
    vectors = [
        {name: (torch.randn(size, generator=generator) * 8 + 0.5).round() / 8 for name, size in sizes.items()}
        for _ in range(2)
    ]
    weights = [Weights.of(own) for own in vectors]
    ties(weights, keep=0.4, scope=scope).save(tmp_path / "out.safetensors")
    expected = formulas.ties(vectors, 0.4, scope, "mean")
    found = Weights.open(tmp_path / "out.safetensors")
    assert all(torch.equal(found[name].double(), expected[name]) for name in sizes)
