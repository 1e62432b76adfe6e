"""Metrics against numbers worked out by hand."""

import numpy as np
import pytest
import torch

from graftwork.errors import RecipeError
from graftwork.kinds import KINDS
from graftwork.tasks import METRICS, compute, find_task


def logits(classes, num_classes):
    return np.eye(num_classes)[classes]


def test_binary_metrics():
    # True positives 2, false positives 1, false negatives 1, true negatives 2.
    predictions, labels = logits([1, 1, 1, 0, 0, 0], 2), np.array([1, 1, 0, 1, 0, 0])
    values = compute(("f1", "accuracy", "matthews_correlation", "f1_macro"), "classification", predictions, labels)
    assert list(values) == ["f1", "accuracy", "matthews_correlation", "f1_macro"]
    # F1 = 2·2 / (2·2 + 1 + 1); by symmetry the same for class 0. MCC = (2·2 - 1·1) / √(3·3·3·3).
    assert values == pytest.approx(
        {"f1": 2 / 3, "accuracy": 2 / 3, "matthews_correlation": 1 / 3, "f1_macro": 2 / 3}, abs=1e-15
    )


def test_f1_is_of_class_one():
    values = compute(("f1",), "classification", logits([1, 0, 0, 0], 2), np.array([1, 1, 1, 0]))
    assert values["f1"] == pytest.approx(2 * 1 / (2 * 1 + 0 + 2))


def test_macro_f1_over_three_classes():
    # Class 0: 1 right of 2 said and 1 there; class 1: right; class 2: 0 right, 1 missed.
    values = compute(("f1_macro", "accuracy"), "classification", logits([0, 1, 0], 3), np.array([0, 1, 2]))
    assert values == pytest.approx({"f1_macro": (2 / 3 + 1 + 0) / 3, "accuracy": 2 / 3})


def test_macro_f1_is_over_the_classes_of_the_labels_whatever_is_predicted():
    labels = np.array([0, 0, 1, 1])
    right = compute(("f1_macro",), "classification", logits([0, 0, 1, 1], 4), labels)
    assert right == {"f1_macro": 1.0}
    # One of four is wrong, be it called by the other class's name or by one that no row has: F1 1 and 2/3, or less
    # where the other class is called wrongly as well.
    absent = compute(("f1_macro",), "classification", logits([0, 0, 1, 3], 4), labels)
    assert absent == pytest.approx({"f1_macro": (1 + 2 / 3) / 2})
    other = compute(("f1_macro",), "classification", logits([0, 0, 1, 0], 4), labels)
    assert other == pytest.approx({"f1_macro": (4 / 5 + 2 / 3) / 2})


def test_r2():
    labels = np.array([50_000.0, 150_000.0, 100_000.0])
    r2 = lambda said: compute(("r2",), "regression", np.array(said, dtype=float), labels)["r2"]  # noqa: E731
    assert r2(labels) == 1.0
    assert r2([100_000.0] * 3) == 0.0
    # Errors of 10,000 each: 1 - 3 · 10⁸ / (5 · 10⁹).
    assert r2(labels + 10_000) == pytest.approx(0.94)
    # What is right but for scale and place correlates perfectly, and is worse than nothing.
    assert r2(labels / 1_000) < -1
    assert compute(("r2",), "regression", np.array([1.0, 2.0]), np.array([3.0, 3.0])) == {"r2": 0.0}


def test_a_correlation_chooses_no_checkpoint_by_default():
    assert KINDS["regression"].default_metrics[0] == "r2"
    assert find_task("stsb").metrics == ("r2", "spearman", "pearson")


def test_regression_metrics():
    predictions, labels = np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 2.0])
    values = compute(("pearson", "spearman", "mse", "mae"), "regression", predictions, labels)
    # Deviations (-4, -1, 5)/3 and (-1, 1, 0): pearson = 1 / √((42/9)·2); ranks (1, 2, 3) and (1, 3, 2).
    assert values == pytest.approx(
        {"pearson": 1 / np.sqrt(42 / 9 * 2), "spearman": 0.5, "mse": 5 / 3, "mae": 1.0}, abs=1e-12
    )


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("value", [0.0, 2.5, 0.1 + 1e-17])
def test_correlation_with_a_constant_is_zero(name, value):
    varied, constant = np.array([1.0, 2.0, 3.0]), np.full(3, value)
    assert compute((name,), "regression", constant, varied) == {name: 0.0}
    assert compute((name,), "regression", varied, constant) == {name: 0.0}
    assert compute((name,), "regression", varied[:1], varied[:1]) == {name: 0.0}


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_alone_has_no_correlation(name, dtype):
    """A collapsed head: the states of all texts are one state, but for rounding, and so is what it says of them."""
    generator = torch.Generator().manual_seed(0)
    state, weight = (torch.randn(384, generator=generator) for _ in range(2))
    # Sums in another order, and roundings up and down.
    noise = 1 + (torch.rand(300, 384, generator=generator) - 0.5) * torch.finfo(dtype).eps
    said = (state * noise).to(dtype).float() @ weight / 384**0.5
    labels = torch.rand(300, generator=generator) * 5
    assert said.std() > 0
    # Of noise some sample correlates: the labels are sorted as it is.
    correlated = labels.sort().values[said.argsort().argsort()]
    assert compute((name,), "regression", said.numpy(), correlated.numpy()) == {name: 0.0}
    # What varies as the labels do is heard, however noisy it is; and what is said of large numbers.
    heard = compute((name,), "regression", (labels + said).numpy(), labels.numpy())
    assert heard[name] > 0.5
    large = 100_000 + 50_000 * labels.numpy()
    assert compute((name,), "regression", large.astype(np.float32), large) == {name: pytest.approx(1.0)}


@pytest.mark.parametrize("labels", [[0, 0], [0, 1], [1, 1]])
def test_constant_classes_warn_of_nothing(labels):
    names = [name for name, metric in METRICS.items() if "classification" in metric.kinds]
    values = compute(names, "classification", logits([0, 0], 2), np.array(labels))
    assert values["matthews_correlation"] == 0.0


def test_half_precision_does_not_overflow():
    values = compute(("mse",), "regression", np.array([300.0, 0.0], dtype=np.float16), np.zeros(2))
    assert values["mse"] == 45000.0


def test_errors():
    with pytest.raises(RecipeError, match=r"no metric 'acuracy'(.|\n)*accuracy"):
        compute(("acuracy",), "classification", logits([0], 2), np.array([0]))
    with pytest.raises(RecipeError, match="'f1' is for two classes, and the task has 3"):
        compute(("f1",), "classification", logits([0], 3), np.array([0]))
    with pytest.raises(RecipeError, match="'mse' is for regression"):
        compute(("mse",), "classification", logits([0], 2), np.array([0]))
    with pytest.raises(RecipeError, match="predictions of 1 of 2 rows are not finite"):
        compute(("mse",), "regression", np.array([np.nan, 1.0]), np.zeros(2))
    for predictions, labels in (((2,), 2), ((3, 2), 2), ((0, 2), 0)):
        with pytest.raises(ValueError, match="do not fit classification"):
            compute(("accuracy",), "classification", np.zeros(predictions), np.zeros(labels))


# Tagging


GOLD = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
SAID = [["B-PER", "I-PER", "O", "O"], ["B-ORG", "B-ORG"]]


def test_tagging_metrics():
    # Spans: 3 there, 3 said, 2 right (a span's bounds and type must both be right). Tags: 4 of 6.
    values = compute(KINDS["token-classification"].default_metrics, "token-classification", SAID, GOLD)
    assert values == pytest.approx(
        {"seqeval_f1": 2 / 3, "seqeval_precision": 2 / 3, "seqeval_recall": 2 / 3, "token_accuracy": 4 / 6}
    )


def test_a_span_may_begin_with_inside():
    """As the shared task's conlleval counts, so that tags in IOB1 are right, too."""
    values = compute(
        ("seqeval_f1",), "token-classification", [["I-PER", "I-PER", "I-LOC"]], [["B-PER", "I-PER", "B-LOC"]]
    )
    assert values == {"seqeval_f1": 1.0}


@pytest.mark.parametrize(("said", "there"), [("O", "O"), ("B-X", "O"), ("O", "B-X")])
def test_no_span_warns_of_nothing(said, there):
    values = compute(KINDS["token-classification"].default_metrics, "token-classification", [[said]], [[there]])
    assert values["seqeval_f1"] == values["seqeval_precision"] == values["seqeval_recall"] == 0.0
    assert values["token_accuracy"] == float(said == there)


def test_tagging_errors():
    assert compute(("token_accuracy",), "token-classification", [["NN"]], [["NN"]]) == {"token_accuracy": 1.0}
    with pytest.raises(RecipeError, match=r"'seqeval_f1' is for tags that mark spans .* has 'NN'(.|\n)*token_accuracy"):
        compute(("seqeval_f1",), "token-classification", [["NN"]], [["NN"]])
    for said, there in (([["O"]], [["O", "O"]]), ([["O"]], []), ([], []), ([[]], [[]])):
        with pytest.raises(ValueError, match="do not fit token-classification"):
            compute(("token_accuracy",), "token-classification", said, there)


# Multiple choice and images


def test_multiple_choice_with_fewer_choices_in_some_rows():
    predictions = np.array([[-3.0, -1.0, -np.inf], [0.5, 1.0, 2.0], [1.0, 0.0, -np.inf]])
    assert compute(("accuracy",), "multiple-choice", predictions, np.array([1, 0, 0])) == {"accuracy": 2 / 3}
    with pytest.raises(RecipeError, match="1 of 3 rows are not finite"):
        compute(("accuracy",), "multiple-choice", predictions, np.array([2, 0, 0]))
    with pytest.raises(RecipeError, match="1 of 3 rows are not finite"):
        compute(
            ("accuracy",), "multiple-choice", np.where(predictions == 0.5, np.nan, predictions), np.array([1, 1, 0])
        )


def test_images_are_judged_as_texts_are():
    predictions, labels = logits([0, 1, 0], 3), np.array([0, 1, 2])
    names = KINDS["image-classification"].default_metrics
    assert compute(names, "image-classification", predictions, labels) == compute(
        names, "classification", predictions, labels
    )


# Generation


def test_bleu():
    # Unigrams 5 of 6, bigrams 3 of 5, trigrams 2 of 4, four-grams 1 of 3; the lengths are equal. BLEU is their
    # geometric mean (Papineni et al. 2002), times 100.
    values = compute(("bleu",), "generation", ["the cat sat on the mat"], [["the cat sat on a mat"]])
    assert values["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_brevity_is_judged_by_the_nearest_reference():
    said, near, far = "a b c d e", "a b c d e f", "a b c d e f g h i j"
    values = compute(("bleu",), "generation", [said, said], [[far, near], [near]])
    assert values["bleu"] == pytest.approx(100 * np.exp(1 - 6 / 5))


def test_rouge():
    # The longest common subsequence with "a cat sat" is "cat sat", 2 words of 3 and of 4; the other has none.
    values = compute(("rougeL", "rouge1", "rouge2"), "generation", ["a cat sat"], [["dogs", "the cat has sat"]])
    f1 = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    assert values == pytest.approx({"rougeL": f1, "rouge1": f1, "rouge2": 0.0})
    assert compute(("rouge2",), "generation", ["a b c", "x"], [["a b d"], ["x"]]) == {"rouge2": 0.25}


def test_chrf():
    import sacrebleu

    said, known = ["the cat", "a dog"], [["the cats", "a cat"], ["a dog"]]
    # With one reference a row, by the library's own hand; with more, the best one counts.
    single = sacrebleu.corpus_chrf(said, [["the cats", "a dog"]]).score
    assert compute(("chrf",), "generation", said, [[row[0]] for row in known])["chrf"] == single
    assert compute(("chrf",), "generation", said, known)["chrf"] == pytest.approx(single)


def test_exact_match_of_any_reference():
    values = compute(("exact_match",), "generation", [" a ", "b", "c"], [["x", "a"], ["b\n"], ["C"]])
    assert values == {"exact_match": 2 / 3}


def test_the_loss_is_not_one_of_predictions():
    assert compute(("loss", "exact_match"), "generation", ["a"], [["a"]]) == {"exact_match": 1.0}
    assert not METRICS["loss"].greater_is_better


@pytest.mark.parametrize("text", ["", "."])
def test_empty_texts_warn_of_nothing(text):
    names = [name for name, metric in METRICS.items() if "generation" in metric.kinds]
    assert set(compute(names, "generation", [text], [["a b"]]).values()) == {0.0}


def test_many_texts_that_look_tokenized_say_nothing(caplog):
    compute(("bleu", "rouge1"), "generation", ["a b c d ."] * 101, [["a b c d ."]] * 101)
    assert not caplog.records


def test_generation_errors():
    for said, known in ((["a"], ["a"]), (["a"], [[]]), ([], []), (["a"], [["a"], ["b"]]), ("a", [["a"]])):
        with pytest.raises(ValueError, match="fit generation"):
            compute(("bleu",), "generation", said, known)
    with pytest.raises(
        RecipeError, match="'accuracy' is for classification and multiple-choice and image-classification"
    ):
        compute(("accuracy",), "generation", ["a"], [["a"]])
