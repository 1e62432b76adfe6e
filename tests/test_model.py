"""AdaptedModel: Hugging Face's forward signature, adapters by name, and modes; predictions from texts."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from closeness import HALF, PASS, close
from tiny import (
    ENCODERS,
    LAYERS,
    SAMPLES,
    WIDTH,
    batch_for,
    bits,
    make_adapter,
    make_backbone,
    make_model,
    make_tokenizer,
)
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, BackboneError, DataError, RecipeError
from graftwork.methods import METHODS, FullFineTuning, HeadOnly, Houlsby, LoRA
from graftwork.model import AdaptedModel
from graftwork.passes.call import AdaptedOutput

TEXTS = ["the good film", "a man", "the woman was not very good", "bad", "the book is dull"]


@pytest.fixture
def backbone():
    return make_backbone("bert", tokenizer=True)


@pytest.fixture
def batch(backbone):
    return batch_for(backbone, 7, 4)


def make_trainable(backbone, method=None, **options) -> AdaptedModel:
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, method or LoRA(rank=2), trained=True, **options), trainable=True)
    return model.train()


# -- forward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["pooler", "first", "mean"])
@pytest.mark.parametrize("method", ["lora", "houlsby-not-shared"])
def test_logits_are_the_head_over_the_pooled_output(backbone, batch, pooling, method):
    adapter = make_adapter(backbone, SAMPLES[method], trained=True, pooling=pooling)
    model = AdaptedModel(backbone, {"a": adapter})
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    last, mask = output.hidden_states[-1].double(), batch["attention_mask"].double()
    by_hand = {
        "first": last[:, 0],
        "mean": torch.stack([row[: int(n)].mean(0) for row, n in zip(last, mask.sum(1), strict=True)]),
        "pooler": torch.tanh(
            last[:, 0] @ backbone.model.pooler.dense.weight.double().T + backbone.model.pooler.dense.bias
        ),
    }
    tensors = {name: t.double() for name, t in adapter.tensors.items()}
    x = by_hand[pooling]
    if method == "houlsby-not-shared":
        x = torch.tanh(x @ tensors["head.dense.weight"].T + tensors["head.dense.bias"])
    expected = x @ tensors["head.classifier.weight"].T + tensors["head.classifier.bias"]
    # From the same float32 hidden states: one or two products of width 32 and a tanh.
    close(output.logits.double(), expected, precision=torch.float32)


def test_mean_pooling_without_a_mask_is_over_all_tokens(backbone):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True, pooling="mean")})
    batch = batch_for(backbone, 5, 5)
    with torch.no_grad():
        # The masked mean multiplies by 1.0 and adds the same numbers, at most in another order.
        close(model(batch["input_ids"]).logits, model(**batch).logits)


def test_classification_loss_is_cross_entropy(backbone, batch):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        output = model(**batch, labels=labels)
    z = output.logits.double()
    expected = (z.exp().sum(1).log() - z[torch.arange(2), labels]).mean()
    assert isinstance(output, AdaptedOutput)
    close(output.loss.double(), expected, precision=torch.float32)
    assert model(**batch).loss is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_regression_loss_is_squared_error(backbone, batch, dtype):
    adapter = make_adapter(backbone, LoRA(rank=2), trained=True, kind="regression")
    with torch.no_grad():
        output = AdaptedModel(backbone, {"a": adapter})(**batch, labels=torch.tensor([2.5, -1.0]).to(dtype))
    labels = torch.tensor([2.5, -1.0]).to(dtype).double()
    assert output.logits.shape == (2, 1)
    close(output.loss.double(), (output.logits.double()[:, 0] - labels).square().mean(), precision=torch.float32)


def test_it_has_hugging_faces_signature():
    theirs = inspect.signature(BertForSequenceClassification.forward).parameters
    ours = inspect.signature(AdaptedModel.forward).parameters
    assert {name for name in theirs if theirs[name].kind.name != "VAR_KEYWORD"} <= set(ours)
    assert list(ours)[:3] == list(theirs)[:3]


def test_a_tuple_when_asked_for(backbone, batch):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    labels = torch.tensor([2, 0])
    with torch.no_grad():
        output = model(**batch, labels=labels)
        loss, logits = model(**batch, labels=labels, return_dict=False)
        (alone,) = model(**batch, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert torch.equal(alone, output.logits)


def test_hidden_states_when_asked_for(backbone, batch):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    assert [state.shape for state in output.hidden_states] == [(2, 7, WIDTH)] * (LAYERS + 1)
    assert output.attentions is None
    assert model(**batch).hidden_states is None


def test_attentions_when_asked_for(backbone, batch):
    reference = make_model("bert")
    reference.set_attn_implementation("eager")
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    with torch.no_grad():
        expected = reference(**batch, output_attentions=True).attentions
        output = model(**batch, output_attentions=True)
    assert len(output.attentions) == len(expected) == LAYERS
    for found, weights in zip(output.attentions, expected, strict=True):
        close(found, weights, PASS)


def test_embeddings_in_the_place_of_ids(backbone, batch):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    with torch.no_grad():
        expected = model(**batch).logits
        embedded = backbone.model.embeddings.word_embeddings(batch["input_ids"])
        found = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits
    assert torch.equal(found, expected)


def test_gradients_reach_the_inputs_also_after_predictions(backbone):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    model.to("cpu")
    model.predict(TEXTS)
    embedded = torch.ones(1, 3, WIDTH, requires_grad=True)
    model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.abs().min() > 0


def test_token_types_and_positions_reach_the_backbone(backbone, batch):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    ones = torch.ones_like(batch["input_ids"])
    with torch.no_grad():
        plain = model(**batch).logits
        assert torch.equal(model(**batch, token_type_ids=0 * ones).logits, plain)
        assert torch.equal(model(**batch, position_ids=torch.arange(7)[None]).logits, plain)
        assert not torch.equal(model(**batch, token_type_ids=ones).logits, plain)
        assert not torch.equal(model(**batch, position_ids=torch.arange(7)[None] + 1).logits, plain)


def test_what_the_backbone_does_not_take_is_refused():
    backbone = make_backbone("distilbert")
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    batch = batch_for(backbone, 5)
    with pytest.raises(AdapterError, match=r"forward does not take token_type_ids\n  expected: .*input_ids"):
        model(**batch, token_type_ids=torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="labls"):
        model(**batch, labls=torch.zeros(1))


def test_a_head_for_a_pooler_needs_one():
    with pytest.raises(BackboneError, match="has no pooling layer"):
        make_adapter(make_backbone("distilbert"), LoRA(rank=2), pooling="pooler")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("method", ["lora", "houlsby-not-shared", "full-fine-tuning"])
def test_the_whole_model_can_be_cast(backbone, batch, dtype, trainable, method):
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, SAMPLES[method], trained=True), trainable=trainable)
    with torch.no_grad():
        before = model(**batch).logits
        after = model.to(dtype)(**batch).logits
    assert backbone.dtype == dtype
    assert after.dtype == torch.float32
    # Logits are in float32, as all before the cast was.
    half = dtype == torch.bfloat16
    close(after, before, HALF if half else PASS, precision=torch.bfloat16 if half else torch.float32)


# -- adapters by name ----------------------------------------------------------------------------------------------


def test_names(backbone, batch):
    adapters = {name: make_adapter(backbone, LoRA(rank=2), seed=i, trained=True) for i, name in enumerate("ab")}
    model = AdaptedModel(backbone, adapters)
    with torch.no_grad():
        a, b = (model(**batch, adapters=name).logits for name in "ab")
        assert not torch.equal(a, b)
        assert torch.equal(model(**batch, adapters=["b", "b"]).logits, b)
        both = model(**batch, adapters=["b", "a"])
    close(both.logits, torch.stack([b[0], a[1]]), PASS)
    with pytest.raises(AdapterError, match=r"no adapter is named 'c'\n  expected: one of a, b"):
        model(**batch, adapters="c")
    with pytest.raises(
        AdapterError, match=r"the model has 2 adapters, and none was named\n  expected: adapters=one of a, b"
    ):
        model(**batch)
    with pytest.raises(AdapterError, match="1 adapter names were given for 2 rows"):
        model(**batch, adapters=["a"])
    with pytest.raises(AdapterError, match="the model has 0 adapters"):
        AdaptedModel(make_backbone("bert"))(**batch)


def test_an_unknown_name_among_many_names_the_nearest(backbone, batch):
    adapter = make_adapter(backbone, HeadOnly())
    model = AdaptedModel(backbone, dict.fromkeys(("sst2", "rte", "cola", "mrpc", "qnli", "qqp", "stsb"), adapter))
    with pytest.raises(AdapterError, match=r"no adapter is named 'sst'\n  expected: for example sst2, .* \(of 7\)"):
        model(**batch, adapters="sst")


@pytest.mark.parametrize("kind", ENCODERS)
def test_several_adapters_live_together_and_each_says_what_it_says_alone(kind):
    backbone = Backbone(make_model(kind), make_tokenizer())
    if kind in ("distilbert", "roberta", "xlm-roberta"):
        backbone.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    methods = {"lora": LoRA(rank=2), "houlsby": Houlsby(bottleneck=3), "full": FullFineTuning(), "head": HeadOnly()}
    adapters = {name: make_adapter(backbone, m, seed=i, trained=True) for i, (name, m) in enumerate(methods.items())}
    alone = {}
    for name, adapter in adapters.items():
        model = AdaptedModel(backbone, {name: adapter})
        alone[name] = model.predict(TEXTS, batch_size=1)
        model.detach()
    model = AdaptedModel(backbone, adapters)
    names = ["full", "lora", "head", "lora", "houlsby"]
    assert model.predict(TEXTS, names, batch_size=1) == [alone[name][i] for i, name in enumerate(names)]
    assert len({tuple(p.scores.values()) for p in (alone[name][0] for name in adapters)}) == len(adapters)


def test_add_remove_and_add_again(backbone, batch):
    first, second = (make_adapter(backbone, LoRA(rank=2), seed=seed, trained=True) for seed in (1, 2))
    model = AdaptedModel(backbone, {"a": first})
    with torch.no_grad():
        expected = model(**batch).logits
        with pytest.raises(AdapterError, match="an adapter named 'a' is already on the model"):
            model.add("a", second)
        model.add("b", second, trainable=True)
        assert len(list(model.trained.parameters())) == len(second.tensors)
        model.remove("b")
        assert len(list(model.trained.parameters())) == 0
        assert not any(p.requires_grad for p in model.parameters())
        assert torch.equal(model(**batch).logits, expected)
        model.remove("a")
        with pytest.raises(AdapterError, match="no adapter is named 'a'\n  expected: nothing: there are none"):
            model.remove("a")
        model.add("a", second)
        assert not torch.equal(model(**batch).logits, expected)


def test_an_adapter_that_is_refused_leaves_the_model_as_it_was(backbone, batch):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, HeadOnly())})
    with pytest.raises(AdapterError, match="not for"):
        model.add("b", make_adapter(make_backbone("bert", seed=1), LoRA(rank=2)))
    assert list(model.residents) == ["a"]
    assert model(**batch).logits.shape == (2, 3)


def test_a_snapshot_is_what_is_trained_now_and_a_copy(backbone, batch):
    given = make_adapter(backbone, LoRA(rank=2), trained=True)
    untouched = {name: tensor.clone() for name, tensor in given.tensors.items()}
    model = AdaptedModel(backbone)
    model.add("a", given, trainable=True)
    before = model.adapter("a")
    assert all(torch.equal(tensor, given.tensors[name]) for name, tensor in before.tensors.items())
    model(**batch, labels=torch.tensor([0, 1])).loss.backward()
    torch.optim.SGD(model.trained.parameters(), lr=0.1).step()
    after = model.adapter("a")
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in given.tensors.items())
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in before.tensors.items())
    assert all(not torch.equal(tensor, untouched[name]) for name, tensor in after.tensors.items())
    assert (after.method, after.head, after.task, after.seed) == (given.method, given.head, given.task, given.seed)
    with pytest.raises(AdapterError, match="no adapter is named 'b'"):
        model.adapter("b")


def test_assigned_parameters_act_at_once(backbone, batch):
    one, other = (make_adapter(backbone, LoRA(rank=2), seed=seed, trained=True) for seed in (1, 2))
    model = AdaptedModel(backbone, {"one": one, "other": other})
    with torch.no_grad():
        expected = model(**batch, adapters="other").logits
        assert not torch.equal(model(**batch, adapters="one").logits, expected)
        model.remove("one")
        model.add("one", one, trainable=True)
        model.in_training("one").assign(other.tensors)
        assert torch.equal(model(**batch, adapters="one").logits, expected)
    with pytest.raises(AdapterError, match="the adapter's tensors do not match"):
        model.in_training("one").assign({"x": torch.ones(1)})
    with pytest.raises(AdapterError, match="adapter 'other' is not being trained"):
        model.in_training("other")


# -- modes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "bert") for name in METHODS if SAMPLES[name].passes == 1),
        *(("lora", kind) for kind in ENCODERS if kind != "bert"),
    ],
)
def test_the_backbones_dropout_acts_only_when_asked_for(name, kind):
    half = {"dropout": 0.5} if kind == "distilbert" else {"hidden_dropout_prob": 0.5}
    for dropout in (False, True):
        backbone = make_backbone(kind, **half)
        batch = batch_for(backbone, 7, 4)
        model = AdaptedModel(backbone, backbone_dropout=dropout)
        model.add("a", make_adapter(backbone, SAMPLES[name], trained=True), trainable=True)
        with torch.no_grad():
            resting = model.eval()(**batch).logits
            assert torch.equal(model(**batch).logits, resting)
            model.train()
            first, second = model(**batch).logits, model(**batch).logits
        assert torch.equal(first, second) == (not dropout)
        assert torch.equal(first, resting) == (not dropout)
        with torch.no_grad():
            assert torch.equal(model.eval()(**batch).logits, resting)


def test_loras_dropout_acts_only_in_training(backbone, batch):
    model = make_trainable(backbone, LoRA(rank=2, dropout=0.5))
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
        resting = model.eval()(**batch).logits
        assert torch.equal(model(**batch).logits, resting)
    without = AdaptedModel(make_backbone("bert"))
    without.add("a", make_adapter(without.backbone, LoRA(rank=2), trained=True))
    with torch.no_grad():
        assert torch.equal(without(**batch).logits, resting)


def test_no_gradient_is_computed_below_the_lowest_layer_that_is_trained(backbone, batch):
    model = make_trainable(backbone, LoRA(rank=2, targets="layers.1.attention.output"))
    states = model(**batch, output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, *[True] * (len(states) - 2)]


def test_the_heads_dropout_acts_only_in_training(backbone, batch):
    model = make_trainable(backbone, LoRA(rank=2), dropout=0.5)
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
        assert torch.equal(model.eval()(**batch).logits, model(**batch).logits)


def test_the_dropout_of_a_finished_adapter_never_acts(backbone, batch):
    model = make_trainable(backbone, LoRA(rank=2, dropout=0.5), dropout=0.5)
    model.add("finished", make_adapter(backbone, LoRA(rank=2, dropout=0.5), trained=True, dropout=0.5))
    resting = model.eval()(**batch, adapters="finished").logits
    assert torch.equal(model.train()(**batch, adapters="finished").logits, resting)


def test_an_adapter_that_comes_in_training_trains(backbone, batch):
    model = AdaptedModel(backbone).train()
    model.add("a", make_adapter(backbone, LoRA(rank=2, dropout=0.5), trained=True), trainable=True)
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, model(**batch).logits)


def test_predicting_keeps_the_mode(backbone):
    model = make_trainable(backbone, LoRA(rank=2, dropout=0.5), dropout=0.5)
    assert model.predict(TEXTS) == model.predict(TEXTS)
    assert model.training
    with pytest.raises(AdapterError, match="no adapter is named"):
        model.predict(TEXTS, "b")
    assert model.training
    model.eval().predict(TEXTS)
    assert not model.training


# -- predictions ---------------------------------------------------------------------------------------------------


def test_predictions_are_in_the_order_of_the_texts(backbone):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    one_by_one = [model.predict([text])[0] for text in TEXTS]
    for batch_size in (1, 2, 3, 32):
        for found, expected in zip(model.predict(TEXTS, batch_size=batch_size), one_by_one, strict=True):
            assert found.label == expected.label
            # Padding changes the order of sums only, of probabilities of at most 1.
            assert found.scores == pytest.approx(expected.scores, abs=PASS * torch.finfo(torch.float32).eps)
    assert model.predict(TEXTS[::-1], batch_size=2) == model.predict(TEXTS, batch_size=2)[::-1]
    assert model.predict([]) == []


def test_a_prediction_is_the_softmax_of_the_logits(backbone):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    with torch.no_grad():
        z = model(**backbone.tokenizer(["the good film"], return_tensors="pt")).logits[0].double()
    (found,) = model.predict(["the good film"])
    probabilities = dict(zip("abc", (z.exp() / z.exp().sum()).tolist(), strict=True))
    assert found.scores == pytest.approx(probabilities, rel=1e-5)
    assert found.label == max(probabilities, key=probabilities.get)
    assert found.score == found.scores[found.label]
    assert found.as_dict() == {"label": found.label, "score": found.score, "scores": found.scores}


def test_regression_predicts_a_number(backbone):
    adapter = make_adapter(backbone, LoRA(rank=2), trained=True, kind="regression")
    model = AdaptedModel(backbone, {"a": adapter})
    with torch.no_grad():
        expected = model(**backbone.tokenizer(["a man"], return_tensors="pt")).logits.item()
    (found,) = model.predict(["a man"])
    assert found.label == expected
    assert found.as_dict() == {"label": expected}


def test_classes_without_names_are_numbered(backbone):
    adapter = make_adapter(backbone, LoRA(rank=2))
    nameless = Adapter.create(backbone, adapter.method, adapter.head, TaskIdentity(name="t"))
    (found,) = AdaptedModel(backbone, {"a": nameless}).predict(["a man"])
    assert set(found.scores) == {"0", "1", "2"}


def test_pairs_are_read_as_pairs(backbone):
    adapter = make_adapter(backbone, LoRA(rank=2), trained=True)
    pairs = Adapter(**{**vars(adapter), "task": TaskIdentity(name="t", pairs=True, max_length=6)})
    model = AdaptedModel(backbone, {"single": adapter, "pairs": pairs})
    text = ("the man sleeps", "a woman rests")
    with torch.no_grad():
        encoded = backbone.tokenizer([text[0]], [text[1]], truncation=True, max_length=6, return_tensors="pt")
        expected = model(**encoded, adapters="pairs").logits.softmax(-1)[0].tolist()
    assert encoded["input_ids"].shape == (1, 6)
    assert encoded["token_type_ids"].sum() > 0
    (found,) = model.predict([text], "pairs")
    assert list(found.scores.values()) == expected
    with pytest.raises(DataError, match=r"text 2 is one text\n  expected: pairs of texts"):
        model.predict([text, "alone"], "pairs")
    with pytest.raises(DataError, match=r"text 1 is a pair\n  expected: single texts"):
        model.predict([text], "single")


def test_predicting_needs_a_name_for_each_text_and_a_tokenizer(backbone):
    adapter = make_adapter(backbone, LoRA(rank=2))
    model = AdaptedModel(backbone, {"a": adapter, "b": adapter})
    with pytest.raises(AdapterError, match="2 adapter names were given for 1 rows"):
        model.predict(["a man"], ["a", "b"])
    mute = make_backbone("bert")
    with pytest.raises(BackboneError, match="has no tokenizer"):
        AdaptedModel(mute, {"a": adapter}).predict(["a man"])


# -- inside others' code -------------------------------------------------------------------------------------------


def make_rows(backbone) -> list[dict]:
    batch = batch_for(backbone, 6, 6, 6, 6)
    return [{"input_ids": ids, "labels": i % 3} for i, ids in enumerate(batch["input_ids"])]


def train(model, rows, folder, **options) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return trainer


@pytest.mark.parametrize("method", ["lora", "houlsby", "full-fine-tuning"])
def test_transformers_trainer_takes_it_as_it_is(backbone, tmp_path, method):
    frozen = bits(backbone.model)
    model = make_trainable(backbone, SAMPLES[method])
    before = model.adapter("a")
    trainer = train(model, make_rows(backbone), tmp_path)
    assert trainer.state.global_step == 2
    after = model.adapter("a").tensors
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before.tensors[name])}
    assert {"head", "layers"} <= moved
    found = trainer.predict(make_rows(backbone))
    assert found.predictions.shape == (4, 3)
    expected = F.cross_entropy(torch.tensor(found.predictions), torch.tensor(found.label_ids))
    assert found.metrics["test_loss"] == pytest.approx(expected.item(), rel=1e-5)
    model.detach()
    assert bits(backbone.model) == frozen


def test_transformers_trainer_may_checkpoint_gradients(tmp_path):
    results = []
    fields = TrainingArguments.__dataclass_fields__
    setting = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    for checkpointing in (False, True):
        backbone = make_backbone("bert")
        model = make_trainable(backbone, SAMPLES["houlsby"])
        train(model, make_rows(backbone), tmp_path, **{setting: checkpointing})
        results.append(model.adapter("a").tensors)
        model.detach()
        with torch.no_grad():
            assert torch.equal(
                backbone.model(**batch_for(backbone, 5)).last_hidden_state,
                make_backbone("bert").model(**batch_for(backbone, 5)).last_hidden_state,
            )
        assert not backbone.model(**batch_for(backbone, 5)).last_hidden_state.requires_grad
    assert all(torch.equal(tensor, results[1][name]) for name, tensor in results[0].items())


def test_reentrant_checkpointing_is_refused(backbone):
    with pytest.raises(AdapterError, match="reentrant"):
        AdaptedModel(backbone).gradient_checkpointing_enable({"use_reentrant": True})


def test_texts_and_batches_of_the_wrong_form_are_refused():
    backbone = make_backbone("bert", tokenizer=True)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    with pytest.raises(DataError, match="one string was given"):
        model.predict("a film")
    for size in (0, -1):
        with pytest.raises(RecipeError, match=f"batch size is {size}"):
            model.predict(["a film"], batch_size=size)
    assert model.predict([]) == []


def test_distilbert_reads_texts():
    backbone = make_backbone("distilbert", tokenizer=True)
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    assert len(model.predict(["the good film", "dull"])) == 2


def test_logits_of_a_model_in_training_are_without_dropout():
    backbone = make_backbone("bert", tokenizer=True)
    adapter = make_adapter(backbone, LoRA(rank=2, dropout=0.5), trained=True)
    model = AdaptedModel(backbone, {"a": adapter}).train()
    assert torch.equal(model.logits(["a film"] * 9, "a"), model.logits(["a film"] * 9, "a"))
    assert model.training
