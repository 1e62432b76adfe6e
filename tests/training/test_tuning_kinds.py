"""Every kind of task from Python: it is learned, saved, scored again to the same figures, and predicted."""

import logging
import random
from dataclasses import replace

import pytest
import torch
from closeness import PASS, close
from training.kinds import SETTINGS, TAGS, choice_rows, generation_rows, tag_rows, write_jsonl
from training.workbench import FAST, FILLERS

from graftwork import AdaptedModel, Adapter, Backbone, LoRA, Task, evaluate, tune, tune_many
from graftwork.errors import MethodError, RecipeError
from graftwork.inference.predicting import Inference
from graftwork.kinds import KINDS
from graftwork.kinds.token_classification import spans_of
from graftwork.tasks import METRICS, load_split
from graftwork.training.evaluation import task_of
from graftwork.training.scoring import Scorer

LORA = LoRA(rank=4)

TASKS = {
    "tags": {"kind": "token-classification", "text": "words", "label": "tags"},
    "choices": {"kind": "multiple-choice", "text": "question", "choices": "choices"},
    "likelihood": {"kind": "multiple-choice", "text": "question", "choices": "choices"},
    "likelihood-t5": {"kind": "multiple-choice", "text": "question", "choices": "choices"},
    "generation": {"kind": "generation", "text": "source", "label": "target", "metrics": ["loss", "exact_match"]},
    "generation-t5": {"kind": "generation", "text": "source", "label": "target", "metrics": ["loss", "exact_match"]},
    "images": {"kind": "image-classification"},
}
BACKBONES = {"tags": "bert", "choices": "bert", "likelihood": "gpt2", "generation": "gpt2", "images": "vit"}
ENOUGH = {"tags": 0.6, "choices": 0.9, "likelihood": 0.9, "likelihood-t5": 0.9, "images": 1.0}
"""What the first metric has to reach."""


@pytest.fixture(scope="module")
def loaded(backbones):
    return {name: Backbone.load(str(folder), dtype="float32", device="cpu") for name, folder in backbones.items()}


@pytest.fixture
def make(loaded, kinds_data):
    """The backbone and the task of a case."""

    def make(case, **changes):
        fields = {**TASKS[case], "validation_fraction": 0.2, **changes}
        task = Task.parse({"name": case, "data": str(kinds_data[case]), **fields}, origin="the test")
        return loaded[BACKBONES.get(case, "t5")], task

    return make


@pytest.mark.parametrize("case", TASKS)
def test_it_is_learned_saved_and_scored_again(make, case, tmp_path):
    backbone, task = make(case, test_fraction=0.1)
    longer = {"num_train_epochs": 10} if case == "generation-t5" else {}
    adapter = tune(backbone, task=task, method=LORA, output=tmp_path / "a", **settings_of(task, **longer))
    before = tune(backbone, task=task, method=LORA, **settings_of(task, max_steps=1, learning_rate=1e-9))
    assert adapter.metrics["validation"]["loss"] < 0.9 * before.metrics["validation"]["loss"]
    assert adapter.metrics["validation"].keys() == adapter.metrics["test"].keys() == {"loss", *task.metrics}
    if case in ENOUGH:
        assert adapter.metrics["validation"][task.main_metric] >= ENOUGH[case]
    else:
        assert adapter.metrics["validation"]["exact_match"] >= 0.5 > before.metrics["validation"]["exact_match"]
    read = Adapter.load(tmp_path / "a")
    assert (read.kind, read.task) == (task.kind, adapter.task)
    for split in ("validation", "test"):
        saved = {name: value for name, value in adapter.metrics[split].items() if name in METRICS}
        # The very same passes over the very same batches.
        scores = evaluate(read, backbone=backbone, split=split)
        assert scores == {name: saved[name] for name in task.metrics}
    model = AdaptedModel(backbone, {"a": read})
    try:
        rows = load_split(task_of(read), "validation")
        assert len(model.predict(inputs(task, rows)[:3])) == 3
    finally:
        model.detach()


def settings_of(task, **changes):
    """Those of the kind: what is generated is short."""
    return {**SETTINGS, **({"max_new_tokens": 4} if task.kind == "generation" else {}), **changes}


def inputs(task, rows):
    return KINDS[task.kind].inputs_of(rows)


@pytest.mark.parametrize("case", ["tags", "likelihood", "generation"])
def test_scores_do_not_depend_on_the_batch_size(make, case):
    backbone, task = make(case)
    adapter = tune(backbone, task=task, method=LORA, **settings_of(task, max_steps=2))
    one, many = (evaluate(adapter, backbone=backbone, batch_size=size) for size in (1, 64))
    # Padding changes the order of sums of float32 only; means are over rows or tokens, not over batches.
    assert one == pytest.approx(many, rel=1e-5)


# Pairs


def parted_rows(count: int = 80) -> list[dict]:
    """Each sentence twice, parted before its deciding word and behind it: only where it is parted tells them apart."""
    source, rows = random.Random(0), []
    for _ in range(count):
        before, behind = (source.sample(FILLERS, 2) for _ in range(2))
        rows.append({"one": " ".join([*before, "good"]), "two": " ".join(behind), "label": "first"})
        rows.append({"one": " ".join(before), "two": " ".join(["good", *behind]), "label": "second"})
    return rows


def test_a_causal_model_is_shown_where_a_pair_is_parted(loaded, tmp_path):
    """Its tokenizer puts nothing there."""
    data = write_jsonl(tmp_path / "pairs.jsonl", parted_rows())
    task = Task.parse(
        {"name": "t", "data": str(data), "text": "one", "text_pair": "two", "validation_fraction": 0.2},
        origin="the test",
    )
    backbone = loaded["gpt2"]
    adapter = tune(backbone, task=task, method=LORA, output=tmp_path / "a", **{**SETTINGS, "num_train_epochs": 8})
    assert adapter.task.pair_separator == "</s>"
    assert adapter.metrics["validation"]["accuracy"] >= 0.9
    read = Adapter.load(tmp_path / "a")
    assert read.task == adapter.task
    model = AdaptedModel(backbone, {"a": read})
    try:
        pairs = [("one two good", "three four"), ("one two", "good three four")]
        assert [one.label for one in model.predict(pairs)] == ["first", "second"]
    finally:
        model.detach()
    # Without what it was taught with it says the same of both.
    before = replace(read, task=read.task.model_copy(update={"pair_separator": None}))
    model = AdaptedModel(backbone, {"a": before})
    try:
        assert len({one.score for one in model.predict(pairs)}) == 1
    finally:
        model.detach()


# Token classification


def test_words_that_are_cut_count_as_tagged_o(make, caplog):
    backbone, task = make("tags")
    adapter = tune(backbone, task=task, method=LORA, **SETTINGS)
    short = tune(backbone, task=task, method=LORA, **{**SETTINGS, "max_length": 5})
    assert "words are cut off" in caplog.text
    assert "--train.max_length" in caplog.text
    model = AdaptedModel(backbone, {"long": adapter, "short": short})
    try:
        words = ["one", "two", "three", "good", "four"]
        cut, whole = model.predict([words, words], ["short", "long"])
        # [CLS] one two three [SEP]
        assert cut.tags[3:] == ("O", "O")
        ids = model(**backbone.tokenizer([" ".join(words)], return_tensors="pt"), adapters="long").logits.argmax(-1)[0]
        assert whole.tags == tuple(adapter.task.labels[i] for i in ids[1:-1])
        assert whole.spans == spans_of(words, whole.tags)
    finally:
        model.detach()
    # Every word that is tagged otherwise than O and lies behind the cut is wrong.
    rows = load_split(task_of(short), "validation")
    tags = [tag for row in rows["tags"] for tag in row[3:]]
    wrong = sum(tag != 0 for tag in tags)
    assert wrong > 0
    scores = evaluate(short, backbone=backbone)
    assert scores["token_accuracy"] <= 1 - wrong / sum(map(len, rows["tags"]))


def test_the_label_stands_at_the_first_piece(make):
    backbone, task = make("tags")
    adapter = tune(backbone, task=task, method=LORA, max_steps=1)
    model = AdaptedModel(backbone, {"a": adapter})
    try:
        encoder = model.encoder("a")
        (row,) = encoder.encode([["one", "good-two", "bad"]], [[0, 1, 2]])
    finally:
        model.detach()
    # [CLS] one good - two bad [SEP]: a word of three pieces
    assert row["places"] == [1, 2, 5]
    assert row["labels"] == [-100, 0, 1, -100, -100, 2, -100]
    assert set(encoder.collate([row])) == {*backbone.tokenizer.model_input_names, "labels"}


# Multiple choice


@pytest.mark.parametrize("case", ["choices", "likelihood", "likelihood-t5"])
def test_a_choice_that_is_none_has_no_logit(make, case):
    backbone, task = make(case)
    adapter = tune(backbone, task=task, method=LORA, **{**SETTINGS, "num_train_epochs": 1})
    assert all(torch.isfinite(tensor).all() for tensor in adapter.tensors.values())
    model = AdaptedModel(backbone, {"a": adapter})
    asked = [("mild", ["good", "bad"]), {"text": "one", "choices": ["bad one", "two", "good", "three four"]}]
    try:
        logits = model.logits(asked, "a")
        assert torch.isneginf(logits).tolist() == [[False, False, True, True], [False] * 4]
        alone = model.logits(asked[:1], "a")
        close(logits[:1, :2], alone, PASS)
        first, second = model.predict(asked)
        assert list(first.scores) == ["0", "1"]
        assert sum(first.scores.values()) == pytest.approx(1)
        assert second.choice == asked[1]["choices"][int(second.label)]
    finally:
        model.detach()


def test_choices_by_name(make, tmp_path):
    rows = [{"q": r["question"], "a": r["choices"][0], "b": r["choices"][1], "label": "AB"[r["label"]]}
            for r in choice_rows() if len(r["choices"]) == 2]  # fmt: skip
    backbone, _ = make("choices")
    data = str(write_jsonl(tmp_path / "named.jsonl", rows))
    task = Task(name="n", kind="multiple-choice", text="q", choices=("a", "b"), labels=("A", "B"), data=data)
    adapter = tune(backbone, task=task, method=LORA, max_steps=1, output=tmp_path / "a")
    assert Adapter.load(tmp_path / "a").task.labels == adapter.task.labels == ("A", "B")
    model = AdaptedModel(backbone, {"a": adapter})
    try:
        assert list(model.predict([("q", ["one", "two"])])[0].scores) == ["A", "B"]
    finally:
        model.detach()


# Generation


def test_prompts_are_what_training_saw(make):
    backbone, task = make("generation", separator="\n \n")
    adapter = tune(backbone, task=task, method=LORA, max_steps=1, max_length=4, max_target_length=3)
    model = AdaptedModel(backbone, {"a": adapter})
    try:
        encoder, ids = model.encoder("a"), backbone.tokenizer.convert_tokens_to_ids
        (taught,) = encoder.encode(["one two three"], ["good bad good"])
        (asked,) = encoder.encode(["one two three"])
        prompt = ids(["one", "two", "\n", "\n"])
        assert taught["input_ids"] == [*prompt, *ids(["good", "bad", "</s>"])]
        assert taught["labels"] == [-100] * 4 + ids(["good", "bad", "</s>"])
        assert asked["input_ids"] == prompt
        batch = encoder.collate(encoder.encode(["one", "one two"]))
        assert batch["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
        assert model.texts(["one two"] * 3, "a", batch_size=2) == model.texts(["one two"], "a") * 3
    finally:
        model.detach()


def test_a_prompt_is_continued_alike_in_any_company(make):
    backbone, task = make("generation")
    adapter = tune(backbone, task=task, method=LORA, **settings_of(task))
    model = AdaptedModel(backbone, {"a": adapter})
    texts = ["one good two three four five", "bad", "six good"]
    try:
        together = model.texts(texts, "a")
        assert together == [model.texts([text], "a")[0] for text in texts]
        assert [found.generated for found in model.predict(texts)] == together
    finally:
        model.detach()


def test_generation_settings_are_saved_and_can_be_replaced(make, caplog, tmp_path):
    backbone, task = make("generation")
    settings = {"max_new_tokens": 2, "num_beams": 2, "generation_examples": 3, "max_steps": 1}
    adapter = tune(backbone, task=task, method=LORA, output=tmp_path / "a", **settings)
    assert "the first 3 of 8 sources" in caplog.text
    read = Adapter.load(tmp_path / "a")
    assert (read.task.max_new_tokens, read.task.num_beams, read.task.max_target_length) == (2, 2, 32)
    assert evaluate(read, backbone=backbone, generation_examples=3) == {
        name: adapter.metrics["validation"][name] for name in task.metrics
    }
    model = AdaptedModel(backbone, {"a": read})
    try:
        assert all(len(text.split()) <= 2 for text in model.texts(["one", "good"], "a"))
        assert all(len(text.split()) <= 1 for text in model.texts(["one", "good"], "a", max_new_tokens=1))
        with pytest.raises(RecipeError, match=r"40 new tokens are too many(.|\n)*at most 32(.|\n)*--max-new-tokens"):
            model.texts(["one"], "a", max_new_tokens=40)
    finally:
        model.detach()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
@pytest.mark.parametrize("name", ["generation_examples", "max_new_tokens", "num_beams", "batch_size"])
def test_numbers_of_rows_tokens_and_beams_are_whole_and_at_least_1(make, name, value):
    backbone, task = make("generation", metrics=["loss"])
    adapter = Adapter.new(backbone, LORA, kind="generation", max_length=16)
    expected = rf"^{name.replace('batch_', 'batch ')} is {value!r}\n.*a whole number, 1 or more\n  change: --{name[:3]}"
    given, columns = {name: value}, {"text": "source", "label": "target"}
    with pytest.raises(RecipeError, match=expected):
        evaluate(adapter, backbone=backbone, data=task.data, columns=columns, **given)
    if not isinstance(value, int):
        return  # in tests, a type that is not as annotated is an error of its own
    model = AdaptedModel(backbone, {"a": adapter})
    rows = load_split(task, "validation", grouped=True)
    calls = {"generation_examples": lambda: Scorer(model, "a", task, rows, batch_size=2, **given)}
    call = calls.get(name, lambda: model.texts(["one good"], "a", **{"max_new_tokens": 2, **given}))
    try:
        with pytest.raises(RecipeError, match=expected):
            call()
    finally:
        model.detach()


@pytest.mark.parametrize("case", ["generation", "generation-t5", "likelihood", "likelihood-t5"])
def test_a_method_that_trains_nothing_is_refused_before_anything_is_read(make, case, tmp_path):
    """The head is the backbone's own."""
    backbone, task = make(case)
    unread = task.override(data=str(tmp_path / "nowhere.jsonl"))
    expected = rf"method 'head-only' has nothing to train for a task of kind {task.kind}(.|\n)*change: --method"
    with pytest.raises(MethodError, match=expected):
        tune(backbone, task=unread, method="head-only", output=tmp_path / "a", **FAST)
    joint = {"one": {"task": unread, "method": LORA}, "two": {"task": unread, "method": "head-only"}}
    with pytest.raises(MethodError, match="adapter 'two': " + expected):
        tune_many(backbone, joint, output=tmp_path / "many", **FAST)
    assert not (tmp_path / "a").exists()
    new = Adapter.new(backbone, "head-only", kind=task.kind)
    model = AdaptedModel(backbone, {"a": new})
    try:
        with pytest.raises(MethodError, match=expected):
            model.add("b", new, trainable=True)
        assert "b" not in model.residents
    finally:
        model.detach()


def test_a_method_that_trains_nothing_may_train_added_tokens(make):
    backbone, task = make("generation")
    adapter = tune(backbone, task=task, method="head-only", add_tokens=["dire"], **{**FAST, "max_steps": 1})
    assert adapter.num_parameters == 32


def test_generation_examples_may_be_more_than_there_are(make, caplog):
    backbone, task = make("generation")
    adapter = Adapter.new(backbone, LORA, kind="generation", max_length=16)
    adapter = replace(adapter, task=adapter.task.model_copy(update={"max_target_length": 4}))
    columns = {"text": "source", "label": "target"}
    scored = [
        evaluate(adapter, backbone=backbone, data=task.data, columns=columns, generation_examples=count)
        for count in (None, 40, 1000)
    ]
    assert scored[0] == scored[1] == scored[2]
    assert "texts are generated of the first" not in caplog.text


def test_texts_are_generated_while_training_only_where_they_choose_the_checkpoint(make, monkeypatch):
    made = []
    plain = Inference.texts  # called once a batch, and the split is one
    monkeypatch.setattr(Inference, "texts", lambda *a, **k: made.append(1) or plain(*a, **k))
    backbone, task = make("generation")
    tune(backbone, task=task, method=LORA, **{**FAST, "num_train_epochs": 2})
    assert len(made) == 1
    adapter = tune(backbone, task=task.override(metrics=("exact_match",)), method=LORA, **FAST)
    assert len(made) == 1 + 2 + 1
    assert adapter.metrics["validation"].keys() == {"loss", "exact_match"}


@pytest.mark.parametrize(
    ("case", "settings", "named"),
    [
        ("tags", {"num_beams": 2}, ["token-classification", "num_beams", "--train.num_beams"]),
        ("tags", {"max_target_length": 9}, ["--train.max_target_length"]),
        ("choices", {"max_target_length": 9}, ["--train.max_target_length"]),
        ("generation", {"max_length": 60}, ["60 tokens", "at most 32", "--train.max_length"]),
        ("generation", {"max_target_length": 64}, ["no position", "--train.max_target_length"]),
        ("images", {"max_new_tokens": 3}, ["image-classification", "--train.max_new_tokens"]),
    ],
)
def test_settings_that_cannot_be_are_refused(make, case, settings, named):
    backbone, task = make(case)
    with pytest.raises(RecipeError) as error:
        tune(backbone, task=task, method=LORA, max_steps=1, **settings)
    assert [part for part in named if part not in str(error.value)] == []


def test_generating_needs_a_language_model(make, loaded):
    from graftwork.errors import BackboneError

    _, task = make("generation")
    with pytest.raises(BackboneError, match="no language-model head"):
        tune(loaded["bert"], task=task, method=LORA, max_steps=1)


# Other data


def test_other_files_are_scored_whole(make, tmp_path):
    rows = {"tags": tag_rows(10, seed=5), "choices": choice_rows(10, seed=5), "generation": generation_rows(10, seed=5)}
    for case, found in rows.items():
        backbone, task = make(case)
        adapter = tune(backbone, task=task, method=LORA, max_steps=1)
        columns = {"tags": {"text": "w", "label": "t"}, "choices": {"choices": "c"}, "generation": {"text": "s"}}[case]
        names = {"words": "w", "tags": "t"} if case == "tags" else {"choices": "c", "source": "s"}
        renamed = [{names.get(name, name): value for name, value in row.items()} for row in found]
        data = str(write_jsonl(tmp_path / f"{case}.jsonl", renamed))
        scores = evaluate(adapter, backbone=backbone, data=data, columns=columns)
        assert scores.keys() == set(task.metrics)


def test_a_header_is_not_taken_to_other_data(make, tmp_path):
    backbone, _ = make("tags")
    lines = "\n".join(f"{word} x {TAGS.get(word, 'O')}\n" if word == "." else f"{word} x {TAGS.get(word, 'O')}"
                      for row in tag_rows(30) for word in [*row["words"], "."])  # fmt: skip
    (tmp_path / "a.conll").write_text(lines)
    fields = {"kind": "token-classification", "text": "word", "label": "tag", "layout": "conll"}
    task = Task(name="c", header=("word", "pos", "tag"), data=str(tmp_path / "a.conll"), **fields)
    adapter = tune(backbone, task=task, method=LORA, max_steps=1)
    other = str(write_jsonl(tmp_path / "b.jsonl", tag_rows(10)))
    scores = evaluate(adapter, backbone=backbone, data=other, columns={"text": "words", "label": "tags"})
    assert 0 <= scores["token_accuracy"] <= 1


def test_nothing_is_logged_of_what_is_whole(make, caplog):
    for case in ("tags", "generation", "choices"):
        backbone, task = make(case)
        with caplog.at_level(logging.WARNING):
            tune(backbone, task=task, method=LORA, max_steps=1)
    # The splits are small, and one step learns nothing, of which is told.
    own = [
        r for r in caplog.records if r.name.startswith("graftwork") and r.name != "graftwork.training.score_warnings"
    ]
    assert [r.message for r in own] == []
