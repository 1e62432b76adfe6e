"""Weights as values: what is opened, calculated, saved, and refused."""

import json
import shutil

import pytest
import torch
from arithmetic.models import make_classifier, random_tensors, save_classifier, save_tensors, tensors_in
from closeness import close
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_config, make_model
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from graftwork.arithmetic import Weights
from graftwork.arithmetic.values.running import Piece
from graftwork.errors import OutputError, RecipeError, WeightsError

numbers = st.floats(-3, 3, width=16)
seeds = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two classifiers, and a bare model."""
    where = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        save_classifier(where / name, seed)
    make_model("bert", seed=7).save_pretrained(where / "bare")
    return where


def test_what_is_opened_is_as_it_is_stored(folders):
    weights, stored = Weights.open(folders / "a"), tensors_in(folders / "a")
    assert {*weights} == {*stored}
    assert all(torch.equal(weights[name], stored[name]) for name in stored)
    assert {weights.dtypes[name] for name in weights} == {torch.float32}
    assert dict(weights.shapes) == {name: tuple(own.shape) for name, own in stored.items()}


def test_opening_reads_headers_alone(tmp_path):
    file = save_tensors(tmp_path / "w.safetensors", random_tensors(0))
    weights = Weights.open(file)
    doubled = 2 * weights - weights * 0.5
    content = file.read_bytes()
    file.write_bytes(content[:-8] + b"\x00" * 8)  # the numbers change after it was opened
    assert random_tensors(0)["norm"] != 0
    assert doubled["norm"] == 0


@given(seeds, numbers, numbers)
def test_weights_are_a_vector_space_to_rounding(seed, one, other):
    tensors = [random_tensors(seed + i) for i in range(3)]
    a, b, c = (Weights.of(own) for own in tensors)
    pairs = [
        (a + b, b + a),
        ((a + b) + c, a + (b + c)),
        (one * (a + b), one * a + one * b),
        ((one + other) * a, one * a + other * a),
        (one * (other * a), (one * other) * a),
        (a - b, a + -b),
        (-1 * -a, a),
        (a - a, 0 * b),
    ]
    scale = 40 * max(float(own.abs().max()) for each in tensors for own in each.values())
    for left, right in pairs:
        for name in a:
            close(left[name], right[name], units=1, scale=scale, what=name)


@given(seeds)
def test_base_and_a_difference_from_it_is_exactly_the_other(seed):
    a, base = (Weights.of(random_tensors(seed + i, scale=10.0**i)) for i in range(2))
    again = base + (a - base)
    assert all(torch.equal(again[name], a[name]) for name in a)
    halves = base + 0.5 * (a - base) + 0.5 * (a - base)
    assert all(torch.equal(halves[name], a[name]) for name in a)


@given(seeds, st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
def test_any_mean_of_equals_is_exactly_themselves(seed, shares):
    tensors = random_tensors(seed)
    total = sum(shares)
    mean = Weights.of(tensors) * (shares[0] / total)
    for share in shares[1:]:
        mean = mean + Weights.of({name: own.clone() for name, own in tensors.items()}) * (share / total)
    assert all(torch.equal(mean[name], tensors[name]) for name in tensors)


def test_sums_equal_float64_by_hand():
    tensors = [random_tensors(seed) for seed in range(4)]
    a, b, c, d = (Weights.of(own) for own in tensors)
    found = 0.3 * (a - b) + c / 2 - 2 * d
    for name in a:
        own = [each[name].double() for each in tensors]
        close(found[name].double(), 0.3 * (own[0] - own[1]) + own[2] / 2 - 2 * own[3], precision=torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_arithmetic_is_in_float32_or_wider_whatever_is_stored(dtype):
    tensors = [random_tensors(seed, dtype=dtype) for seed in range(2)]
    found = Weights.of(tensors[0]) - 0.25 * Weights.of(tensors[1])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name in found:
        assert found.dtypes[name] == found[name].dtype == wide
        close(found[name], tensors[0][name].to(wide) - 0.25 * tensors[1][name].to(wide), units=1)


def test_whole_numbers_are_those_of_the_left_operand():
    a, b = (Weights.of({**random_tensors(i), "count": torch.tensor(i + 5)}) for i in range(2))
    assert (a - b)["count"] == 5
    assert (b + (a - b))["count"] == 6
    assert (0.5 * a)["count"].dtype == torch.int64


@given(st.data())
def test_pieces_are_parts_of_the_whole(data):
    tensors = [random_tensors(seed) for seed in range(3)]
    found = Weights.of(tensors[0]) - 0.5 * Weights.of(tensors[1]) + 3 * Weights.of(tensors[2])
    name = data.draw(st.sampled_from(sorted(found)))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, found[name].numel())] * 2)))
    assert torch.equal(found.source.read(Piece(name, start, stop)), found[name].flatten()[start:stop])


def test_a_sum_loads_as_a_model(folders, tmp_path):
    a, b = (Weights.open(folders / name) for name in "ab")
    (0.5 * a + 0.5 * b).save(tmp_path / "mean")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mean")
    mine, theirs = (make_classifier(seed).state_dict() for seed in range(2))
    for name, tensor in model.state_dict().items():
        close(tensor, (mine[name].double() + theirs[name].double()).div(2).float(), units=1)
    assert AutoTokenizer.from_pretrained(tmp_path / "mean")("a film")["input_ids"]


def test_heads_are_known_beside_a_bare_model(folders):
    a, bare = Weights.open(folders / "a"), Weights.open(folders / "bare")
    assert {*a.head} == {"classifier.weight", "classifier.bias"}
    with pytest.raises(WeightsError, match=r"lacks classifier\.bias.*lacks classifier\.weight") as error:
        a - bare
    assert ".body" in error.value.expected
    vector = a.body - bare
    again = bare + vector
    assert {*again} == {*bare}
    assert all(torch.equal(again[name], a[f"bert.{name}"]) for name in bare)
    whole = (a.body - vector) | a.head
    assert {*whole} == {*a}
    assert torch.equal(whole["bert.pooler.dense.bias"], bare["pooler.dense.bias"])


def test_other_vocabularies_and_shapes_are_named(folders, tmp_path):
    save_classifier(tmp_path / "c", 0, vocab_size=120, intermediate_size=48)
    with pytest.raises(WeightsError) as error:
        Weights.open(folders / "a") + Weights.open(tmp_path / "c")
    assert "vocabularies of 100 and 120 tokens" in error.value.problem
    assert "bert.encoder.layer.0.intermediate.dense.weight is (64, 32)" in error.value.problem


def test_a_tied_tensor_stored_once_or_twice_gives_the_same(tmp_path):
    folders = {}
    for seed, name in enumerate("ab"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForMaskedLM.from_config(make_config("bert"))
        model.save_pretrained(tmp_path / name)
        stored = tensors_in(tmp_path / name)
        shutil.copytree(tmp_path / name, tmp_path / f"{name}2")
        word = stored["bert.embeddings.word_embeddings.weight"]
        twice = {**stored, "cls.predictions.decoder.weight": word.clone()}
        save_tensors(tmp_path / f"{name}2" / "model.safetensors", twice)
        folders[name] = stored
    once, both = (Weights.open(tmp_path / name) for name in ("a", "a2"))
    assert both.tied == [{"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"}]
    for left, right in [("a", "b"), ("a", "b2"), ("a2", "b"), ("a2", "b2")]:
        found = Weights.open(tmp_path / left) - Weights.open(tmp_path / right)
        assert {*found} == {*(once if left == "a" else both)}
        for name in once:
            assert torch.equal(found[name], folders["a"][name] - folders["b"][name])
    broken = {**tensors_in(tmp_path / "b2"), "cls.predictions.decoder.weight": torch.zeros(100, 32)}
    save_tensors(tmp_path / "b2" / "model.safetensors", broken)
    with pytest.raises(WeightsError, match=r"lacks cls\.predictions\.decoder\.weight"):
        once - Weights.open(tmp_path / "b2")


def test_shards_and_pickled_files_are_read(folders, tmp_path):
    stored = tensors_in(folders / "a")
    model = make_classifier(0)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    for name, new in (("new", True), ("old", False)):
        (tmp_path / name).mkdir()
        torch.save(model.state_dict(), tmp_path / name / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    for name in ("shards", "new", "old"):
        weights = Weights.open(tmp_path / name)
        assert {*stored} <= {*weights}
        assert all(torch.equal(weights[own], stored[own]) for own in stored)


def test_a_model_is_written_in_shards(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("graftwork.arithmetic.values.writing.write_source.__kwdefaults__", {"shard": 20_000})
    a = Weights.open(folders / "a")
    (2 * a).save(tmp_path / "out")
    assert len([*(tmp_path / "out").glob("*.safetensors")]) > 2
    again = Weights.open(tmp_path / "out")
    assert all(torch.equal(again[name], 2 * a[name]) for name in a)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")


def test_the_type_of_what_is_saved(folders, tmp_path):
    a, b = (Weights.open(folders / name) for name in "ab")
    (0.5 * a + 0.5 * b).save(tmp_path / "half", dtype="bfloat16")
    found = Weights.open(tmp_path / "half")
    mean = 0.5 * a + 0.5 * b
    assert all(torch.equal(found[name], mean[name].bfloat16()) for name in mean)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    half = Weights.open(tmp_path / "half")
    (half + half).save(tmp_path / "again")
    assert {*Weights.open(tmp_path / "again").dtypes.values()} == {torch.bfloat16}
    (half - half * 0.5).save(tmp_path / "v.safetensors")
    assert {*Weights.open(tmp_path / "v.safetensors").dtypes.values()} == {torch.float32}


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    save_tensors(tmp_path / "w.safetensors", {"w": torch.full((3,), 60_000.0)})
    weights = Weights.open(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="w holds numbers too large for float16"):
        (2 * weights).save(tmp_path / "x.safetensors", dtype="float16")
    with pytest.raises(WeightsError, match="w holds NaN or infinity"):
        (weights * 3e38).save(tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_what_cannot_be_opened_says_why(folders, tmp_path):
    def refused(path):
        with pytest.raises(WeightsError) as error:
            Weights.open(path)
        return error.value.problem

    assert "does not exist" in refused(tmp_path / "none")
    assert "hf download org/name" in refused("org/name")
    (tmp_path / "empty").mkdir()
    assert "holds no weights" in refused(tmp_path / "empty")
    shutil.copytree(folders / "a", tmp_path / "quantised")
    config = tmp_path / "quantised" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"bits": 4}}))
    assert "quantised" in refused(tmp_path / "quantised")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter.json").write_text("{}")
    assert "is an adapter of graftwork" in refused(tmp_path / "adapter")
    for cut in (4, 40, 3000):
        file = tmp_path / "cut.safetensors"
        file.write_bytes((folders / "a" / "model.safetensors").read_bytes()[:-1][:cut] + b"{" * (cut == 40))
        assert "damaged" in refused(file)
    torch.save([1, 2], tmp_path / "list.bin")
    assert "cannot be read as tensors by name" in refused(tmp_path / "list.bin")
    make_classifier(0).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    index = tmp_path / "shards" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    file = content["weight_map"].pop(first)
    index.write_text(json.dumps(content))
    assert first in refused(tmp_path / "shards")
    (tmp_path / "shards" / file).unlink()
    assert file in refused(tmp_path / "shards")


def test_what_cannot_be_saved_says_why(folders, tmp_path):
    a = Weights.open(folders / "a")
    with pytest.raises(OutputError, match="exists already"):
        a.save(folders / "b")
    with pytest.raises(WeightsError, match="of no model's folder"):
        Weights.of(random_tensors(0)).save(tmp_path / "out")
    with pytest.raises(WeightsError, match="they differ in"):
        a.body.save(tmp_path / "out")
    with pytest.raises(RecipeError, match="unknown dtype"):
        a.save(tmp_path / "out", dtype="int8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a model's folder"):
        a.save(tmp_path / "other", overwrite=True)
    assert not (tmp_path / "out").exists()


def test_a_model_is_replaced_also_by_what_is_made_of_it(folders, tmp_path):
    shutil.copytree(folders / "a", tmp_path / "a")
    a, before = Weights.open(tmp_path / "a"), tensors_in(folders / "a")
    (a * 3).save(tmp_path / "a", overwrite=True)
    assert all(torch.equal(own, 3 * before[name]) for name, own in tensors_in(tmp_path / "a").items())


def test_misuse_is_refused():
    a = Weights.of(random_tensors(0))
    with pytest.raises(RecipeError):
        a * float("nan")
    with pytest.raises(TypeError):
        a + 1
    with pytest.raises(KeyError):
        a["none"]
    with pytest.raises(WeightsError, match="no tensor 'lst'"):
        a.only(["lst"])
