"""What each head says, loses and decides, by hand; and which heads tasks and methods make."""

import math

import pytest
import torch
import torch.nn.functional as F
from closeness import PASS, close
from pydantic import TypeAdapter
from tiny import MODELS, batch_for, inputs_for, make_backbone

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.errors import BackboneError, DataError, MethodError
from graftwork.heads import ChoiceHead, FeatureHead, LanguageHead, LikelihoodHead, PooledHead, States, TokenHead
from graftwork.heads.crf import log_likelihood, viterbi
from graftwork.kinds.heads import AnyHead, head_for
from graftwork.methods import FeatureExtraction, HeadOnly, Houlsby, Union
from graftwork.model import AdaptedModel

KINDS = ("classification", "regression", "token-classification", "multiple-choice")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw(head, backbone, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator) * 0.3 for n, p in head.declare(backbone).items()}


def make_model(backbone, head, method=None) -> AdaptedModel:
    labels = None if head.num_labels is None else tuple("abcdefgh"[: head.num_labels])
    adapter = Adapter.create(backbone, method or HeadOnly(), head, TaskIdentity(name="t", labels=labels))
    generator = torch.Generator().manual_seed(1)
    for tensor in adapter.tensors.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return AdaptedModel(backbone, {"a": adapter})


def test_classifiers_start_normal():
    """N(0, 0.02²) and no bias (Houlsby et al. 2019, as BERT's)."""
    backbone = make_backbone()
    head = PooledHead(kind="classification", num_outputs=500, pooling="first")
    adapter = Adapter.create(backbone, HeadOnly(), head, TaskIdentity(name="t", labels=tuple(map(str, range(500)))))
    weight = adapter.tensors["head.classifier.weight"]
    # The deviation of 16,000 numbers is known to 0.6 %.
    assert weight.std() == pytest.approx(0.02, rel=0.03)
    assert abs(weight.mean()) < 0.001
    assert not adapter.tensors["head.classifier.bias"].any()


# Tokens


def test_token_head_classifies_each_token_and_skips_those_without_a_tag():
    backbone = make_backbone()
    head = TokenHead(num_outputs=3)
    parameters = draw(head, backbone)
    states = States(last=random(2, 4, 32))
    logits = head.logits(states, parameters, training=False)
    expected = states.last @ parameters["head.classifier.weight"].T + parameters["head.classifier.bias"]
    close(logits, expected)
    labels = torch.tensor([[-100, 2, -100, 0], [1, -100, -100, -100]])
    picked = [(0, 1, 2), (0, 3, 0), (1, 0, 1)]
    loss = -sum(logits[b, t].log_softmax(-1)[tag] for b, t, tag in picked) / len(picked)
    close(head.loss(logits, labels, states, parameters), loss)
    assert torch.equal(head.decide(logits, labels != -100, parameters), logits.argmax(-1))


# Choices


def test_choice_head_scores_the_choices_of_a_question_together():
    backbone = make_backbone()
    head = ChoiceHead(pooling="first", dropout=0.0)
    batch = inputs_for(backbone.model, 5, 5, 5, 5, 5, 5)
    choices = {name: value.view(2, 3, 5) for name, value in batch.items()}
    model = make_model(backbone, head)
    with torch.no_grad():
        output = model(**choices, labels=torch.tensor([2, 0]))
        first = backbone.model(**batch).last_hidden_state[:, 0]
    tensors = model.adapter("a").tensors
    scores = first @ tensors["head.classifier.weight"].T + tensors["head.classifier.bias"]
    close(output.logits, scores.view(2, 3))
    loss = F.cross_entropy(scores.view(2, 3), torch.tensor([2, 0]))
    close(output.loss, loss)
    assert head.decide(output.logits, None, tensors).tolist() == scores.view(2, 3).argmax(-1).tolist()


# Language


@pytest.mark.parametrize("shifted", [True, False])
def test_language_head_is_the_cross_entropy_of_the_next_token(shifted):
    head = LanguageHead(shifted=shifted)
    scores, labels = random(2, 4, 7), torch.tensor([[-100, 3, 1, 6], [-100, -100, 2, -100]])
    states = States(scores=scores)
    picked = [(b, t, int(labels[b, t])) for b in range(2) for t in range(4) if labels[b, t] >= 0]
    loss = -sum(scores[b, t - shifted].log_softmax(-1)[token] for b, t, token in picked) / len(picked)
    logits = head.logits(states, {}, training=False)
    close(head.loss(logits, labels, states, {}), loss)
    assert torch.equal(head.decide(logits, None, {}), scores.argmax(-1))


@pytest.mark.parametrize("shifted", [True, False])
@pytest.mark.parametrize("others", [{}, {"unlikelihood": False}, {"length_normalised": False}])
def test_likelihood_head_has_the_losses_of_t_few(shifted, others):
    """Liu et al. 2022, section 3.2: L_LM + L_UL + L_LN, token by token."""
    head = LikelihoodHead(shifted=shifted, **others)
    scores = random(6, 5, 9)
    targets = torch.full((6, 5), -100)
    for row, length in enumerate([1, 3, 2, 4, 1, 2]):
        targets[row, 1 : 1 + length] = torch.arange(row, row + length) % 9
    right = torch.tensor([1, 0])
    states = States(scores=scores, targets=targets, choices=3)
    found = [
        [scores[n, t - shifted].log_softmax(-1)[targets[n, t]].item() for t in range(5) if targets[n, t] >= 0]
        for n in range(6)
    ]
    means = [sum(row) / len(row) for row in found]
    logits = head.logits(states, {}, training=False)
    close(logits, torch.tensor(means).view(2, 3))
    rights = [1, 3]
    language = -sum(means[n] for n in rights) / 2
    wrong = [p for n in range(6) if n not in rights for p in found[n]]
    unlikely = -sum(math.log(1 - math.exp(p)) for p in wrong) / len(wrong)
    normalised = 0.0
    for row, n in zip((means[:3], means[3:]), rights, strict=True):
        normalised -= (means[n] - math.log(sum(math.exp(mean) for mean in row))) / 2
    expected = language + (0 if "unlikelihood" in others else unlikely)
    expected += 0 if "length_normalised" in others else normalised
    close(head.loss(logits, right, states, {}), torch.tensor(expected))
    assert head.decide(logits, None, {}).tolist() == logits.argmax(-1).tolist()


def test_a_certain_wrong_choice_loses_much_and_not_infinitely():
    head = LikelihoodHead(shifted=False)
    scores = torch.zeros(2, 1, 3)
    scores[1, 0, 0] = 200.0
    states = States(scores=scores, targets=torch.zeros(2, 1, dtype=torch.long), choices=2)
    loss = head.loss(head.logits(states, {}, training=False), torch.tensor([0]), states, {})
    assert 10 < loss.item() < 100


@pytest.mark.parametrize("head", [LanguageHead(shifted=True), LikelihoodHead(shifted=True)], ids=lambda h: h.kind)
def test_language_heads_refuse_a_backbone_without_one(head):
    with pytest.raises(BackboneError, match="no language-model head"):
        head.check(make_backbone())


# Classes and numbers


def test_decisions_of_classes_and_numbers():
    logits = random(4, 3)
    classes = PooledHead(kind="classification", num_outputs=3, pooling="first")
    numbers = PooledHead(kind="regression", num_outputs=1, pooling="first")
    assert torch.equal(classes.decide(logits, None, {}), logits.argmax(-1))
    assert torch.equal(numbers.decide(logits[:, :1], None, {}), logits[:, 0])


# Two passes

PADDED = {
    "tokens": (TokenHead(num_outputs=5), 0),
    "mixed tokens": (FeatureHead(task="token-classification", num_outputs=5), 0),
    "decoder": (LanguageHead(shifted=False), 0),
    "causal": (LanguageHead(shifted=True), 1),
}


@pytest.mark.parametrize(("head", "shift"), PADDED.values(), ids=PADDED)
def test_two_passes_are_compared_where_something_is_judged(head, shift):
    """½ [KL(p2 ‖ p1) + KL(p1 ‖ p2)], the mean over the labelled places, whatever stands at the others."""
    one, other = random(2, 6, 5).double(), random(2, 6, 5, seed=1).double()
    labels = torch.tensor([[-100, 3, 1, -100, -100, -100], [-100, -100, 2, 4, -100, -100]])
    found = head.divergence(one, other, labels)
    expected = []
    for row, place in (labels != -100).nonzero().tolist():
        p, q = one[row, place - shift].softmax(-1), other[row, place - shift].softmax(-1)
        expected.append(((q * (q / p).log()).sum() + (p * (p / q).log()).sum()) / 2)
    close(found, torch.stack(expected).mean())
    # Without the padding, and with other padding behind the labels.
    close(head.divergence(one[:, :4], other[:, :4], labels[:, :4]), found)
    longer = [torch.cat([z, random(2, 3, 5, seed=seed)], dim=1) for seed, z in enumerate((one, other))]
    if head.kind == "generation":
        close(head.divergence(*longer, labels), found)
    labels = F.pad(labels, (0, 3), value=-100)
    close(head.divergence(*longer, labels), found)


def test_two_passes_of_a_chain_of_tags_are_not_compared():
    head = FeatureHead(task="token-classification", model="bilstm-crf", num_outputs=5)
    with pytest.raises(MethodError, match=r"random field(.|\n)*bilstm(.|\n)*--method\.model"):
        head.divergence(random(2, 6, 5), random(2, 6, 5), torch.zeros(2, 6, dtype=torch.long))


# Features


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "resnet"])
def test_features_are_the_mixed_layers(kind):
    """γ Σ softmax(w)_j h_j over the embeddings and every layer, of an encoder-decoder's encoder; their mean, and a
    linear classifier.
    """
    backbone = make_backbone(kind)
    head = head_for("classification", backbone, num_labels=3, pooling="mean", **FeatureExtraction().head_fields)
    assert head.pooling == "mean"
    model = make_model(backbone, head, FeatureExtraction())
    batch = inputs_for(backbone.model, 5, 5)
    batch.pop("decoder_input_ids", None)
    tensors = model.adapter("a").tensors
    with torch.no_grad():
        found = model(**batch).logits
        run = backbone.base.encoder if backbone.is_encoder_decoder else backbone.base
        layers = run(**batch, output_hidden_states=True).hidden_states
    shares = tensors["head.mix.weight"].softmax(0)
    mixed = tensors["head.mix.gain"] * sum(s * h for s, h in zip(shares, layers, strict=True))
    expected = mixed.mean(1) @ tensors["head.classifier.weight"].T + tensors["head.classifier.bias"]
    close(found, expected, PASS)


def test_layers_of_a_convolutional_network_cannot_be_mixed():
    backbone = make_backbone("resnet")
    head = head_for("classification", backbone, num_labels=3, pooling="first", **FeatureExtraction().head_fields)
    with pytest.raises(BackboneError, match="different widths"):
        make_model(backbone, head, FeatureExtraction())


SMALL = {"hidden_size": 5, "dropout": 0.0}


def small(model):
    """The method with heads of that size; the linear model has none."""
    return FeatureExtraction(model=model, **({"dropout": 0.0} if model == "linear" else SMALL))


PAIRS = [
    *((task, model) for task in KINDS for model in ("linear", "bilstm")),
    *((task, "esim") for task in KINDS if task != "token-classification"),
    ("token-classification", "bilstm-crf"),
]


def case(task, model, backbone):
    """A head, a batch of three rows, and labels for it."""
    head = head_for(task, backbone, num_labels=4, pooling="mean", model=model, **SMALL)
    batch = batch_for(backbone, 7, 4, 5)
    batch["token_type_ids"] = (torch.arange(7) > 2).long().expand(3, 7) * batch["attention_mask"]
    labels = {
        "classification": torch.tensor([0, 3, 1]),
        "regression": torch.tensor([0.5, -1.0, 2.0]),
        "multiple-choice": torch.tensor([2]),
        "token-classification": torch.where(batch["attention_mask"] > 0, torch.arange(7) % 4, -100),
    }[task]
    if task == "multiple-choice":
        batch = {name: value.unsqueeze(0) for name, value in batch.items()}
    if task == "token-classification":
        labels[:, 1] = -100  # not the first word-piece of its word
    return head, batch, labels


@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_gradients_reach_exactly_what_the_task_model_declares(task, model):
    backbone = make_backbone()
    head, batch, labels = case(task, model, backbone)
    adapted = AdaptedModel(backbone)
    identity = TaskIdentity(name="t", labels=None if head.num_labels is None else tuple("abcd"))
    adapter = Adapter.create(backbone, small(model), head, identity)
    generator = torch.Generator().manual_seed(1)
    for tensor in adapter.tensors.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
    adapted.add("a", adapter, trainable=True)
    adapted.train()(**batch, labels=labels).loss.backward()
    found = dict(adapted.residents["a"].parameters_by_name.named_parameters())
    assert set(found) == set(head.declare(backbone))
    assert all(name.startswith("head.") for name in found)
    for name, parameter in found.items():
        # Adding the same to all choices' scores changes none of their probabilities.
        constant = task == "multiple-choice" and name == "head.classifier.bias"
        assert (parameter.grad.abs().max() > 1e-6) != constant, name
    assert all(p.grad is None for p in backbone.model.parameters())


@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_padding_changes_no_row(task, model):
    backbone = make_backbone(dtype=torch.float64)
    head, batch, _ = case(task, model, backbone)
    adapted = make_model(backbone, head, small(model))
    if task == "multiple-choice":
        batch = {name: value[0] for name, value in batch.items()}
    with torch.no_grad():
        together = adapted(**batch).logits[1]
        alone = adapted(**{name: value[1:2, :4] for name, value in batch.items()}).logits[0]
    # The head computes in float32, through recurrent sums.
    close(together[:4] if task == "token-classification" else together, alone, PASS)


@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_saved_and_loaded_it_says_the_same(task, model, tmp_path):
    backbone = make_backbone()
    head, batch, labels = case(task, model, backbone)
    adapted = make_model(backbone, head, small(model))
    adapter = adapted.adapter("a")
    with torch.no_grad():
        expected = adapted(**batch, labels=labels)
    adapted.detach()
    adapter.save(tmp_path / "a")
    loaded = Adapter.load(tmp_path / "a")
    assert loaded.head == head
    assert TypeAdapter(AnyHead).validate_json(head.model_dump_json()) == head
    with torch.no_grad():
        found = AdaptedModel(backbone, {"a": loaded})(**batch, labels=labels)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.loss, expected.loss)


def test_the_chain_of_tags_runs_over_first_word_pieces():
    backbone = make_backbone()
    head, batch, labels = case("token-classification", "bilstm-crf", backbone)
    adapted = make_model(backbone, head, small("bilstm-crf"))
    tensors, words = adapted.adapter("a").tensors, labels != -100
    with torch.no_grad():
        output = adapted(**batch, labels=labels)
    assert torch.equal(output.loss, -log_likelihood(output.logits, labels, words, tensors).mean())
    decided = head.decide(output.logits, words, tensors)
    assert torch.equal(decided, viterbi(output.logits, words, tensors, elsewhere=-100))
    assert torch.equal(decided == -100, ~words)


def test_texts_are_told_apart_by_the_first_separator_where_nothing_marks_them():
    backbone = make_backbone("distilbert", tokenizer=True)
    marked = make_backbone("bert", tokenizer=True).tokenizer("the film", "a good book", return_tensors="pt")
    head = head_for("classification", backbone, num_labels=2, pooling="mean", model="esim", **SMALL)
    model = make_model(backbone, head, small("esim"))
    assert torch.equal(model._runner._segments({"input_ids": marked["input_ids"]}), marked["token_type_ids"])
    with torch.no_grad():
        model(input_ids=marked["input_ids"])
        with pytest.raises(DataError, match="a row has only one"):
            model(**backbone.tokenizer("the film", return_tensors="pt"))


@pytest.mark.parametrize(
    ("task", "model"),
    [("classification", "bilstm-crf"), ("token-classification", "esim"), ("regression", "bilstm-crf")],
)
def test_task_models_refuse_tasks_that_they_are_not_for(task, model):
    with pytest.raises(MethodError, match=rf"{model}(.|\n)*{task}(.|\n)*bilstm(.|\n)*--method\.model"):
        head_for(task, make_backbone(), num_labels=3, pooling="first", **FeatureExtraction(model=model).head_fields)


def test_feature_extraction_does_not_generate():
    backbone = make_backbone("gpt2", head=True)
    with pytest.raises(MethodError, match="cannot generate"):
        head_for("generation", backbone, num_labels=0, pooling="last", **FeatureExtraction().head_fields)


@pytest.mark.parametrize("kind", ["token-classification", "multiple-choice", "generation"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_an_extra_layer_is_for_pooled_heads(kind, name):
    backbone = make_backbone(name, head=name == "gpt2")
    fields = Houlsby(extra_classifier=True).head_fields
    with pytest.raises(MethodError, match=rf"{kind}(.|\n)*--method\.extra_classifier"):
        head_for(kind, backbone, num_labels=3, pooling="last", **fields)


def test_feature_extraction_has_no_extra_layer():
    fields = Union(methods=["feature-extraction", Houlsby(extra_classifier=True)]).head_fields
    with pytest.raises(MethodError, match=r"--method\.extra_classifier"):
        head_for("classification", make_backbone(), num_labels=3, pooling="first", **fields)


def test_heads_of_tasks():
    plain, causal, whole = make_backbone(), make_backbone("gpt2", head=True), make_backbone("t5", head=True)

    def made(kind, backbone, **fields):
        return head_for(kind, backbone, num_labels=3, pooling=backbone.pooling, **fields)

    assert isinstance(made("classification", plain), PooledHead)
    assert made("regression", plain).num_outputs == 1
    assert made("classification", plain, extra_layer=True).extra_layer
    assert isinstance(made("token-classification", plain), TokenHead)
    assert isinstance(made("multiple-choice", plain), ChoiceHead)
    assert made("multiple-choice", causal) == LikelihoodHead(shifted=True)
    assert made("multiple-choice", whole) == LikelihoodHead(shifted=False)
    assert made("generation", causal) == LanguageHead(shifted=True)
    assert made("generation", whole) == LanguageHead(shifted=False)
    mixed = made("classification", plain, model="linear")
    assert isinstance(mixed, FeatureHead)
    assert (plain.pooling, mixed.pooling) == ("mean", "mean")
