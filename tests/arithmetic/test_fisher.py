"""Fisher information against every answer summed by hand, and what is merged by it."""

import pytest
import torch
from closeness import close
from hypothesis import given
from hypothesis import strategies as st
from tiny import inputs_for, make_adapter, make_backbone, make_batch

from graftwork import IA3, AdaptedModel, BitFit, FullFineTuning, Houlsby, LoRA
from graftwork.arithmetic.adapters.bodies import LowRankBodies, WeightBodies
from graftwork.arithmetic.adapters.mergeable import bodies_of
from graftwork.arithmetic.data.fisher import fisher_merge
from graftwork.arithmetic.data.information import fisher_information
from graftwork.arithmetic.data.keeping import Kept
from graftwork.arithmetic.data.likelihoods import entropies, kind_for, scores_of
from graftwork.arithmetic.data.settings import FisherSettings
from graftwork.errors import MethodError
from graftwork.heads import LanguageHead, PooledHead, TokenHead
from graftwork.heads.numbers import Scale
from graftwork.kinds.multi_label import MultiLabelHead


class Batches:
    """Rows as a fixed list of texts of different lengths."""

    def __init__(self, backbone, labels=None, lengths=(7, 4, 5, 6, 3), seed=0):
        self.batch = make_batch(*lengths, seed=seed, pad=backbone.config.pad_token_id or 0)
        if labels is not None:
            self.batch["labels"] = labels
        self.origin = f"{lengths} {seed}"

    def __len__(self):
        return len(next(iter(self.batch.values())))

    def batches(self, size, *, start=0):
        for begin in range(start, len(self), size):
            end = min(len(self), begin + size)
            yield end, {name: tensor[begin:end] for name, tensor in self.batch.items()}


def by_hand(adapter, backbone, rows, names, log_probabilities, *, in_weights):
    """Σ over rows and answers of p · (∂ log p)², each by a pass and a backward pass of its own."""
    model = AdaptedModel(backbone)
    model.add("a", adapter, trainable=not in_weights)
    if in_weights:
        model.merge("a") if adapter.method.name == "lora" else None
    found = dict.fromkeys(names, 0.0)
    for row in range(len(rows)):
        batch = {name: tensor[row : row + 1] for name, tensor in rows.batch.items()}
        parameters = trained(model, backbone, names, in_weights)
        logits = model(**batch, adapters="a").logits
        for p, log_p in log_probabilities(logits, batch):
            gradients = torch.autograd.grad(log_p, [*parameters.values()], retain_graph=True, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    own = backbone.weights.where(name).of(gradient) if in_weights else gradient
                    found[name] = found[name] + p.detach() * own.square() / len(rows)
    if in_weights and adapter.method.name == "lora":
        model.unmerge()
    model.detach()
    return found


def trained(model, backbone, names, in_weights):
    if not in_weights:
        return {name: model.in_training("a").tensors()[name] for name in names}
    root = model.graft.root
    found = {}
    for name in names:
        place = backbone.weights.where(name)
        module = root.get_submodule(place.path)
        # What runs there: of a merged adapter another module than the backbone's.
        running = getattr(module, "inner", module)
        found[name] = running.get_parameter(place.parameter).requires_grad_(True)
    return found


def classes(logits, batch):
    log_p = logits.log_softmax(dim=-1)[0]
    return [(own.exp(), own) for own in log_p]


def same(found, expected):
    """Assert that two informations are equal; gives how many tensors have any. The gradient of a key's bias is zero but
    for rounding."""
    largest = max(float(t.max()) for t in expected.values() if not isinstance(t, float))
    reached = 0
    for name, tensor in expected.items():
        if isinstance(tensor, float) or float(tensor.max()) < 1e-20 * largest:
            assert found[name].max() < 1e-10 * largest, name
        else:
            reached += 1
            close(found[name], tensor.float(), 512, what=name)
    return reached


def information(adapter, backbone, rows, names, **settings):
    in_weights = settings.pop("in_weights")
    kept = settings.pop("kept", None)
    own = FisherSettings(**{"kind": "exact", "batch_size": 2, **settings})
    return fisher_information(adapter, backbone, rows, names, in_weights=in_weights, settings=own, kept=kept)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart", "t5", "albert", "deberta-v2", "modernbert", "mpnet"])
def test_the_exact_information_of_weights_is_the_sum_over_all_classes(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    adapter = make_adapter(backbone, FullFineTuning(), trained=True)
    bodies = bodies_of({"a": adapter}, backbone)
    assert isinstance(bodies, WeightBodies)
    names = [*bodies.vectors[0]]
    rows = Batches(backbone)
    expected = by_hand(adapter, backbone, rows, names, classes, in_weights=True)
    found = information(adapter, backbone, rows, names, in_weights=True)
    assert same(found, expected) > len(names) // 2


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_information_of_lora_is_that_of_the_weights_that_it_makes(kind):
    backbone = make_backbone(kind, dtype=torch.float64)
    adapter = make_adapter(backbone, LoRA(rank=3), trained=True)
    bodies = bodies_of({"a": adapter}, backbone)
    assert isinstance(bodies, LowRankBodies)
    names = [*bodies.vectors[0]]
    rows = Batches(backbone)
    found = information(adapter, backbone, rows, names, in_weights=True)
    expected = by_hand(adapter, backbone, rows, names, classes, in_weights=True)
    assert same(found, expected) == len(names)


@pytest.mark.parametrize("method", [IA3(), BitFit(), Houlsby(bottleneck=4)])
def test_the_information_of_parameters_is_the_sum_over_all_classes(method):
    backbone = make_backbone(dtype=torch.float64)
    adapter = make_adapter(backbone, method, trained=True)
    names = [name for name in adapter.tensors if not name.startswith("head.")]
    rows = Batches(backbone)
    found = information(adapter, backbone, rows, names, in_weights=False)
    expected = by_hand(adapter, backbone, rows, names, classes, in_weights=False)
    assert same(found, expected)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_positions_that_all_rows_share_are_not_taken_for_rows(size):
    """As many positions as there are rows in a pass, or twice as many."""
    backbone = make_backbone("t5", dtype=torch.float64)
    adapter = make_adapter(backbone, FullFineTuning(), trained=True)
    names = [*bodies_of({"a": adapter}, backbone).vectors[0]]
    rows = Batches(backbone, lengths=(6,) * 6)
    expected = by_hand(adapter, backbone, rows, names, classes, in_weights=True)
    assert same(information(adapter, backbone, rows, names, in_weights=True, batch_size=size), expected)


def test_the_information_of_images():
    backbone = make_backbone("vit", dtype=torch.float64)
    adapter = make_adapter(backbone, FullFineTuning(), trained=True, kind="image-classification")
    names = [*bodies_of({"a": adapter}, backbone).vectors[0]]
    rows = Batches(make_backbone())
    rows.batch = inputs_for(backbone.model, *[1] * 5)
    expected = by_hand(adapter, backbone, rows, names, classes, in_weights=True)
    assert same(information(adapter, backbone, rows, names, in_weights=True), expected)


def test_the_information_of_choices_is_over_all_rows_of_a_question():
    backbone = make_backbone(dtype=torch.float64)
    adapter = make_adapter(backbone, LoRA(rank=3), trained=True, kind="multiple-choice")
    names = [*bodies_of({"a": adapter}, backbone).vectors[0]]
    rows = Batches(backbone, lengths=(7, 4, 5, 6, 3, 2, 4, 5, 6))
    rows.batch = {name: tensor.view(3, 3, 7) for name, tensor in rows.batch.items()}
    expected = by_hand(adapter, backbone, rows, names, classes, in_weights=True)
    assert same(information(adapter, backbone, rows, names, in_weights=True), expected)


def test_it_is_not_the_square_of_a_batch_mean():
    backbone = make_backbone(dtype=torch.float64)
    adapter = make_adapter(backbone, LoRA(rank=3), trained=True)
    names = ["layers.0.ffn.up.weight"]
    rows = Batches(backbone)
    one, several = (information(adapter, backbone, rows, names, in_weights=True, batch_size=n) for n in (1, 5))
    close(one[names[0]], several[names[0]], 64)


# -- other answers -----------------------------------------------------------------------------------------------------


def numbers(logits, batch):
    return [(torch.ones(()), logits[0, 0] / 2.0)]


def several_labels(logits, batch):
    p = logits[0].sigmoid()
    found = []
    for label in range(len(p)):
        found += [(p[label], p[label].log()), (1 - p[label], (1 - p[label]).log())]
    return found


def true_tokens(logits, batch):
    log_p = logits[0, :-1].log_softmax(dim=-1)
    labels = batch["labels"][0, 1:]
    return [(torch.ones(()), log_p[labels != -100].gather(-1, labels[labels != -100][:, None]).sum())]


def true_tags(logits, batch):
    labels = batch["labels"][0]
    log_p = logits[0, : len(labels)].log_softmax(dim=-1)
    return [(torch.ones(()), log_p[labels != -100].gather(-1, labels[labels != -100][:, None]).sum())]


def heads(name, backbone):
    d = {"dropout": 0.0}
    if name == "numbers":
        return PooledHead(kind="regression", num_outputs=1, pooling="mean", scale=Scale(mean=3.0, deviation=2.0), **d)
    if name == "labels":
        return MultiLabelHead(num_outputs=3, pooling="mean", **d)
    return TokenHead(num_outputs=4, **d) if name == "tags" else LanguageHead(shifted=True)


@pytest.mark.parametrize(
    ("name", "kind", "answers"),
    [
        ("numbers", "exact", numbers),
        ("labels", "exact", several_labels),
        ("tags", "empirical", true_tags),
        ("texts", "empirical", true_tokens),
    ],
)
def test_the_information_of_other_answers_is_their_sum(name, kind, answers):
    backbone = make_backbone("gpt2", head=True, dtype=torch.float64)
    head = heads(name, backbone)
    adapter = make_adapter(backbone, LoRA(rank=3), trained=True, head=head, kind=head.task_kind)
    labels = None
    if name in ("tags", "texts"):
        labels = torch.randint(0, 4, (5, 7), generator=torch.Generator().manual_seed(1))
        labels[:, 0], labels[2, 2:] = -100, -100
    rows = Batches(backbone, labels)
    names = ["layers.0.attention.query.weight", "layers.1.ffn.down.weight"]
    expected = by_hand(adapter, backbone, rows, names, answers, in_weights=True)
    found = information(adapter, backbone, rows, names, in_weights=True, kind=kind)
    for own in names:
        close(found[own], expected[own].float(), 512, what=own)


@pytest.mark.parametrize("name", ["classes", "labels", "numbers"])
def test_the_mean_over_samples_is_the_exact_one(name):
    """Of the squares of the scores' derivatives with respect to the logits, over many draws."""
    backbone = make_backbone()
    head = (
        PooledHead(kind="classification", num_outputs=3, pooling="mean") if name == "classes" else heads(name, backbone)
    )
    count = 1 if name == "numbers" else 3
    logits = torch.randn(1, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    generator = torch.Generator().manual_seed(0)

    def squares(kind, rows):
        many = logits.expand(rows, count).detach().clone().requires_grad_()
        scores = scores_of(head, many, None, kind, generator)
        return sum(torch.autograd.grad(s.sum(), many, retain_graph=True)[0].square() for s in scores).mean(dim=0)

    draws = 40_000
    # The mean of so many draws of numbers of order 1 has an error of order 1 / √draws.
    torch.testing.assert_close(squares("sampled", draws), squares("exact", 1), rtol=0, atol=6 / draws**0.5)


def test_a_choice_that_is_none_counts_nothing():
    head = make_adapter(make_backbone(), LoRA(), kind="multiple-choice").head
    logits = torch.tensor([[0.3, -torch.inf, 1.0]], requires_grad=True)
    for score in scores_of(head, logits, None, "exact", torch.Generator()):
        [gradient] = torch.autograd.grad(score.sum(), logits, retain_graph=True)
        assert gradient.isfinite().all()
    own = logits.detach()[:, [0, 2]]
    close(entropies(head, logits), -(own.softmax(-1) * own.log_softmax(-1)).sum(-1))


def test_the_exact_information_of_texts_is_refused():
    backbone, head = make_backbone(), LanguageHead(shifted=True)
    with pytest.raises(MethodError, match="is a sum over all texts"):
        scores_of(head, torch.zeros(1, 3, 5), torch.ones(1, 3, dtype=torch.long), "exact", torch.Generator())
    assert kind_for(head, None) == "sampled"
    with pytest.raises(MethodError, match="which have no entropy"):
        entropies(heads("numbers", backbone), torch.zeros(2, 1))


# -- interrupted -------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Stands for a process that is killed."""


@pytest.mark.parametrize("kind", ["exact", "sampled"])
def test_an_interrupted_computation_goes_on_to_the_same_bits(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("graftwork.arithmetic.data.keeping.EVERY", 0.0)
    backbone = make_backbone()
    adapter = make_adapter(backbone, LoRA(rank=3), trained=True)
    rows, names = Batches(backbone), ["layers.0.ffn.up.weight"]
    whole = information(adapter, backbone, rows, names, in_weights=True, kind=kind)
    if kind == "sampled":
        other = information(adapter, backbone, rows, names, in_weights=True, kind=kind, seed=2**31 - 1)
        assert not torch.equal(other[names[0]], whole[names[0]])

    class Half(Batches):
        def batches(self, size, *, start=0):
            for count, batch in super().batches(size, start=start):
                if count > 2:
                    raise StoppedError
                yield count, batch

    with pytest.raises(StoppedError):
        information(
            adapter, backbone, Half(backbone), names, in_weights=True, kind=kind, kept=Kept(tmp_path, "f", {"a": 1})
        )
    seen = []

    class Rest(Batches):
        def batches(self, size, *, start=0):
            seen.append(start)
            yield from super().batches(size, start=start)

    again = information(
        adapter, backbone, Rest(backbone), names, in_weights=True, kind=kind, kept=Kept(tmp_path, "f", {"a": 1})
    )
    assert seen == [2]
    assert torch.equal(again[names[0]], whole[names[0]])
    assert Kept(tmp_path, "f", {"a": 2}).read() is None
    (tmp_path / "f.kept").write_bytes(b"nothing")
    assert Kept(tmp_path, "f", {"a": 1}).read() is None


# -- the formula -------------------------------------------------------------------------------------------------------

VECTORS = st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3)
INFORMATION = st.lists(st.floats(0, 4, width=32), min_size=3, max_size=3)


@given(
    a=VECTORS, b=VECTORS, f=INFORMATION, g=INFORMATION, mix=st.floats(0, 1), floored=st.sampled_from(["all", "target"])
)
def test_the_merge_is_the_weighted_mean(a, b, f, g, mix, floored):
    vectors = [{"w": torch.tensor(v)} for v in (a, b)]
    information = [{"w": torch.tensor(v)} for v in (f, g)]
    found = fisher_merge(vectors, information, [mix, 1 - mix], normalise=False, floored=floored)["w"]
    for j in range(3):
        low = [max(f[j], 1e-6), max(g[j], 1e-6) if floored == "all" else g[j]]
        below = mix * low[0] + (1 - mix) * low[1]
        expected = (mix * low[0] * a[j] + (1 - mix) * low[1] * b[j]) / below if below and max(f[j], g[j]) > 0 else a[j]
        assert float(found[j]) == pytest.approx(expected, abs=1e-6)


def test_the_merge_does_not_depend_on_how_large_a_model_s_information_is():
    generator = torch.Generator().manual_seed(0)
    vectors = [{"w": torch.randn(4, 3, generator=generator), "b": torch.randn(3, generator=generator)} for _ in "ab"]
    information = [{name: t.square() + 0.1 for name, t in v.items()} for v in vectors]
    scaled = [information[0], {name: 1000 * t for name, t in information[1].items()}]
    one, other = (fisher_merge(vectors, f, [0.3, 0.7], floor=0.0) for f in (information, scaled))
    for name in one:
        close(one[name], other[name])
    same = fisher_merge([vectors[0]] * 2, information, [0.3, 0.7])
    for name in same:
        close(same[name], vectors[0][name])


@pytest.mark.parametrize(
    ("lambdas", "said"),
    [([1.0], "1 lambdas"), ([0.0, 0.0], "the lambdas are 0, 0"), ([1.0, -1.0], "the lambdas are 1, -1")],
)
def test_lambdas_that_make_no_mean_are_refused(lambdas, said):
    vector = {"w": torch.ones(2)}
    with pytest.raises(MethodError, match=said):
        fisher_merge([vector, vector], [vector, vector], lambdas)


def test_vectors_of_other_shapes_are_refused():
    one, other = {"w": torch.ones(2)}, {"w": torch.ones(3)}
    with pytest.raises(MethodError, match=r"w is \(2,\) in one vector and \(3,\) in another"):
        fisher_merge([one, one], [one, other], [1.0, 1.0])
    with pytest.raises(MethodError, match="v is in one vector"):
        fisher_merge([one, {"v": torch.ones(2)}], [one, one], [1.0, 1.0])
