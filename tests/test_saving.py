"""A grafted backbone and an adapted model in others' hands: saved, copied, pickled, cast, and given to a Trainer."""

import copy
import io
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file
from tiny import batch_for, bits, make_adapter, make_backbone, make_batch, make_model, make_tokenizer
from transformers import (
    AutoModel,
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    pipeline,
)

from graftwork import Adapter, evaluate
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, DataError, OutputError
from graftwork.heads import LanguageHead
from graftwork.methods import FullFineTuning, HeadOnly, Houlsby, LayerNormTuning, LoRA, Parallel, PromptTuning
from graftwork.model import AdaptedModel

TEXTS = ["the good film", "a man", "bad"]


@pytest.fixture
def backbone():
    return make_backbone("bert", tokenizer=True)


def states(model, batch):
    with torch.no_grad():
        return model(**batch).last_hidden_state


def adapters_of(backbone):
    methods = {
        "lora": LoRA(rank=2),
        "houlsby": Houlsby(bottleneck=2),
        "norms": LayerNormTuning(),
        "full": FullFineTuning(),
    }
    return {
        name: make_adapter(backbone, method, trained=True, seed=i) for i, (name, method) in enumerate(methods.items())
    }


# A grafted backbone


@pytest.mark.parametrize("merged", [None, "lora", "full"])
def test_a_grafted_backbone_is_saved_under_its_own_names_with_the_values_that_act(backbone, tmp_path, merged):
    batch, names = batch_for(backbone, 5, 4), list(backbone.model.state_dict())
    frozen = bits(backbone.model)
    model = AdaptedModel(backbone, adapters_of(backbone))
    model.predict(TEXTS, "houlsby")
    if merged:
        model.merge(merged)
    expected = states(backbone.model, batch)
    assert list(backbone.model.state_dict()) == names
    assert (bits(backbone.model) == frozen) == (merged is None)
    backbone.model.save_pretrained(tmp_path / "saved")
    torch.save(backbone.model, tmp_path / "whole.pt")
    found = [
        AutoModel.from_pretrained(tmp_path / "saved"),
        torch.load(tmp_path / "whole.pt", weights_only=False),
        copy.deepcopy(backbone.model),
        pickle.loads(pickle.dumps(backbone.model)),
    ]
    for other in found:
        assert list(other.state_dict()) == names
        assert torch.equal(states(Backbone(other).model, batch), expected)
    fresh = make_model("bert", seed=1)
    fresh.load_state_dict(backbone.model.state_dict())
    assert torch.equal(states(Backbone(fresh).model, batch), expected)
    model.detach()
    assert bits(backbone.model) == frozen


def test_a_state_dict_loads_into_a_grafted_backbone():
    backbone, other = make_backbone("bert"), make_model("bert", seed=1)
    model = AdaptedModel(backbone, adapters_of(backbone))
    report = backbone.model.load_state_dict(other.state_dict())
    assert not report.missing_keys
    assert not report.unexpected_keys
    model.detach()
    assert bits(backbone.model) == bits(other)


def test_names_of_parameters_and_modules_are_those_of_the_plain_model(backbone):
    plain = make_backbone("bert")
    model = AdaptedModel(backbone, adapters_of(backbone))
    for listed in ("named_parameters", "named_buffers", "named_modules", "named_children"):
        assert [n for n, _ in getattr(backbone.model, listed)()] == [n for n, _ in getattr(plain.model, listed)()]
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.model.parameters())


def test_attributes_that_are_set_on_what_stands_in_a_modules_place_are_the_modules(backbone):
    AdaptedModel(backbone).detach()
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    query = backbone.model.encoder.layer[0].attention.self.query
    query.note = "kept"
    query.bias = None
    model.detach()
    assert backbone.model.encoder.layer[0].attention.self.query.note == "kept"
    assert backbone.model.encoder.layer[0].attention.self.query.bias is None


# An adapted model


@pytest.mark.parametrize("merged", [None, "lora"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch"])
def test_a_copy_of_an_adapted_model_says_the_same_and_is_independent(backbone, how, merged):
    model = AdaptedModel(backbone, adapters_of(backbone), budget=10**8)
    model.add("t", make_adapter(backbone, LoRA(rank=3), trained=True, seed=7), trainable=True)
    if merged:
        model.merge(merged)
    model.train()
    if how == "deepcopy":
        other = copy.deepcopy(model)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    assert other.training
    assert other.merged == merged
    assert list(other.residents) == list(model.residents)
    for name in model.residents:
        assert other.predict(TEXTS, name) == model.predict(TEXTS, name)
    with torch.no_grad():
        next(other.in_training("t").parameters()).add_(1)
    assert not any(a is b for a in other.parameters() for b in model.parameters())
    frozen = bits(make_backbone("bert").model)
    other.detach()
    model.detach()
    assert bits(backbone.model) == frozen
    assert bits(other.backbone.model) == frozen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_rounds_no_tensor_of_an_adapter(backbone, dtype):
    given = adapters_of(backbone)
    model = AdaptedModel(backbone, given)
    model.add("t", given["lora"], trainable=True)
    batch = batch_for(backbone, 5, 4)
    with torch.no_grad():
        expected = {name: model(**batch, adapters=name).logits for name in model.residents}
    total = model.memory().total
    model.to(dtype)
    for name in ("lora", "houlsby", "norms", "full"):
        with torch.no_grad():
            model(**batch, adapters=name)
    # Rounded rows in the place of exact ones, and no second copy.
    assert model.memory().total < total
    assert {p.dtype for p in model.in_training("t").parameters()} == {torch.float32}
    for name, adapter in {**given, "t": given["lora"]}.items():
        assert all(torch.equal(t, adapter.tensors[key]) for key, t in model.adapter(name).tensors.items())
    model.to(torch.float32)
    # The backbone's weights were rounded; put back, all is as it was.
    backbone.model.load_state_dict(make_model("bert").state_dict())
    with torch.no_grad():
        for name, logits in expected.items():
            if name != "norms":  # lowered from the rounded norms
                assert torch.equal(model(**batch, adapters=name).logits, logits), name


def test_the_model_gives_back_what_is_cast(backbone):
    """Unloading frees the only copy that there is on the device."""
    adapters = [make_adapter(backbone, LoRA(rank=2), trained=True, seed=seed) for seed in (1, 2)]
    size = AdaptedModel(backbone, {"a": adapters[0]}).memory().total
    model = AdaptedModel(backbone, dict(zip("ab", adapters, strict=True)), budget=size)
    batch = batch_for(backbone, 5)
    model.to(torch.bfloat16)
    for name in "abab":
        model(**batch, adapters=name)
        assert model.memory().total <= size
    assert model.memory().unloaded == ("a",)


# Others' tools


def rows_of(backbone, count=8, length=6):
    if backbone.generates:
        rows = torch.randint(5, 100, (count, length), generator=torch.Generator().manual_seed(0))
        return [{"input_ids": row, "labels": row} for row in rows]
    return [{"input_ids": row, "labels": i % 3} for i, row in enumerate(make_batch(*[length] * count)["input_ids"])]


def trainer_of(model, rows, folder, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        learning_rate=0.01,
        report_to=[],
        save_strategy="steps",
        save_steps=2,
        disable_tqdm=True,
        use_cpu=True,
        lr_scheduler_type="constant",
        **options,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows)


def trainable(kind):
    backbone = make_backbone(kind, head=kind != "bert")
    head = {} if kind == "bert" else {"head": LanguageHead(shifted=not backbone.is_encoder_decoder)}
    model = AdaptedModel(backbone)
    model.add("my.task", make_adapter(backbone, LoRA(rank=2), trained=True, **head), trainable=True)
    return model


@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2", "t5"])
def test_a_checkpoint_of_transformers_trainer_is_the_adapter_and_resumes(kind, tmp_path):
    whole = trainable(kind)
    trainer_of(whole, rows_of(whole.backbone), tmp_path / "whole", max_steps=4).train()
    cut = trainable(kind)
    trainer_of(cut, rows_of(cut.backbone), tmp_path / "cut", max_steps=2).train()
    file = tmp_path / "cut" / "checkpoint-2" / "model.safetensors"
    saved = load_file(file)
    assert saved.keys() == {f"my.task.{name}" for name in cut.adapter("my.task").tensors}
    assert file.stat().st_size < 4 * sum(t.numel() for t in saved.values()) + 8_000
    again = trainable(kind)
    trainer = trainer_of(again, rows_of(again.backbone), tmp_path / "cut", max_steps=4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert trainer.state.global_step == 4
    expected = whole.adapter("my.task").tensors
    assert all(torch.equal(t, expected[name]) for name, t in again.adapter("my.task").tensors.items())


def test_a_state_dict_of_other_adapters_is_refused(backbone):
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, LoRA(rank=2)), trainable=True)
    state = model.state_dict()
    assert model.load_state_dict(state) == ([], [])
    with pytest.raises(AdapterError, match=r"it lacks a\.head\.classifier\.bias; has unknown b"):
        model.load_state_dict({n: t for n, t in state.items() if not n.endswith("bias")} | {"b": torch.ones(1)})
    with pytest.raises(AdapterError, match="is \\(2,\\) instead of"):
        model.load_state_dict({**state, "a.head.classifier.bias": torch.ones(2)})


def test_a_state_dict_without_trained_adapters_is_refused(backbone):
    model = AdaptedModel(backbone)
    assert model.state_dict() == {}
    assert model.load_state_dict({}) == ([], [])
    model.add("a", make_adapter(backbone, LoRA(rank=2)))
    for call in (model.state_dict, lambda: model.load_state_dict({}), torch.nn.ModuleList([model]).state_dict):
        with pytest.raises(AdapterError, match=r"(?s)none of the adapters a is .*adapter\('a'\)\.save\(FOLDER\)"):
            call()
    model.add("b", make_adapter(backbone, LoRA(rank=2)), trainable=True)
    assert {name.partition(".")[0] for name in model.state_dict()} == {"b"}
    model.load_state_dict(model.state_dict())


def test_save_pretrained_writes_the_only_adapter(backbone, tmp_path):
    adapter = make_adapter(backbone, LoRA(rank=2), trained=True)
    model = AdaptedModel(backbone)
    with pytest.raises(AdapterError, match=r"(?s)no adapter is on the model.*backbone\.model\.save_pretrained"):
        model.save_pretrained(tmp_path / "a")
    model.add("a", adapter, trainable=True)
    model.save_pretrained(tmp_path / "a")
    assert Adapter.load(tmp_path / "a").digest == adapter.digest
    with pytest.raises(OutputError, match="exists"):
        model.save_pretrained(str(tmp_path / "a"))
    model.save_pretrained(str(tmp_path / "a"), overwrite=True)
    model.add("b", adapter)
    with pytest.raises(AdapterError, match=r"(?s)2 adapters are on the model \(a, b\).*adapter\(NAME\)\.save"):
        model.save_pretrained(tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_accelerate_trains_and_saves_an_adapter(tmp_path):
    from accelerate import Accelerator

    model = trainable("bert")
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    loss = prepared(**make_batch(5, 5), labels=torch.tensor([0, 1])).loss
    accelerator.backward(loss)
    optimizer.step()
    accelerator.save_state(str(tmp_path / "state"))
    expected = model.adapter("my.task")
    with torch.no_grad():
        for parameter in model.in_training("my.task").parameters():
            parameter.add_(1)
    accelerator.load_state(str(tmp_path / "state"))
    assert model.adapter("my.task").digest == expected.digest


def test_seq2seq_trainer_generates_when_it_evaluates(tmp_path):
    model = trainable("t5")
    rows = rows_of(model.backbone)
    own = model.backbone.model.generation_config
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        predict_with_generate=True,
        generation_max_length=6,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:4])
    trainer.train()
    made = torch.as_tensor(trainer.predict(rows[:4]).predictions)
    ids = torch.stack([row["input_ids"] for row in rows[:4]])
    expected = model.generate(ids, max_length=6)
    assert torch.equal(made[:, : expected.shape[1]], expected)
    assert model.generation_config is model.backbone.model.generation_config is own
    arguments.eval_strategy = "no"
    arguments.generation_config = GenerationConfig(max_length=7, decoder_start_token_id=0)
    Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows)
    assert model.generation_config.max_length == 7


def test_a_pipeline_generates(backbone):
    base = Backbone(make_model("gpt2", head=True), make_tokenizer(), name="tiny-gpt2")
    head = LanguageHead(shifted=True)
    model = AdaptedModel(base, {"a": make_adapter(base, LoRA(rank=2), trained=True, head=head)})
    assert model.can_generate()
    say = pipeline("text-generation", model=model, tokenizer=base.tokenizer)
    [found] = say("the film", max_new_tokens=3, do_sample=False, return_tensors=True)
    ids = base.tokenizer("the film", return_tensors="pt")["input_ids"]
    assert found["generated_token_ids"] == model.generate(ids, max_new_tokens=3, do_sample=False)[0].tolist()
    assert not AdaptedModel(backbone).can_generate()
    assert AdaptedModel(make_backbone("roberta")).generation_config is None


def test_a_pipeline_names_the_adapters_classes(backbone):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    expected = model.predict(TEXTS)
    classify = pipeline("text-classification", model=model, tokenizer=backbone.tokenizer, top_k=None)
    for found, prediction in zip(classify(TEXTS), expected, strict=True):
        assert {row["label"]: pytest.approx(row["score"], abs=1e-5) for row in found} == prediction.scores
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}
    model.replace("a", make_adapter(backbone, HeadOnly(), num_labels=2))
    assert model.config.id2label == {0: "a", 1: "b"}
    assert backbone.config.id2label == make_backbone("bert").config.id2label


def test_a_hook_on_a_module_acts_also_where_an_adapter_does(backbone):
    """accelerate replaces the forward of modules, to move what comes in and what goes out."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Doubling(ModelHook):
        def post_forward(self, module, output):
            return 2 * output

    batch = batch_for(backbone, 5, 4)
    methods = {"lora": LoRA(rank=2), "full": FullFineTuning(), "norms": LayerNormTuning(targets="attention.norm")}
    for path in ("encoder.layer.0.attention.self.query", "encoder.layer.0.attention.output.LayerNorm"):
        module = backbone.model.get_submodule(path)
        add_hook_to_module(module, Doubling())
        doubled = states(backbone.model, batch)
        for name, method in methods.items():
            model = AdaptedModel(backbone, {name: make_adapter(backbone, method)})
            with torch.no_grad():
                found = model(**batch, output_hidden_states=True).hidden_states[-1]
            torch.testing.assert_close(found, doubled, rtol=0, atol=1e-5)
            model.detach()
        remove_hook_from_module(module)
        assert not torch.equal(states(backbone.model, batch), doubled)


def test_a_hook_that_comes_after_the_adapter_acts_too(backbone):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Doubling(ModelHook):
        def post_forward(self, module, output):
            return 2 * output

    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))})
    batch = batch_for(backbone, 5, 4)
    with torch.no_grad():
        before = model(**batch).logits
        module = backbone.model.encoder.layer[0].attention.self.query
        add_hook_to_module(module, Doubling())
        assert not torch.equal(model(**batch).logits, before)
        remove_hook_from_module(module)
        assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("names", ["a", ["a", "c", "b"]])
@pytest.mark.parametrize(
    ("kind", "argument"),
    [
        *[(kind, name) for kind in ("bert", "gpt2") for name in ("position_ids", "token_type_ids")],
        *[(kind, "attention_mask") for kind in ("bert", "gpt2", "t5")],
        ("t5", "decoder_input_ids"),
    ],
)
def test_what_is_the_same_of_all_rows_may_be_given_once(kind, argument, names):
    backbone = make_backbone(kind)
    adapters = {n: make_adapter(backbone, LoRA(rank=2), trained=True, seed=i) for i, n in enumerate("ab")}
    adapters["c"] = make_adapter(backbone, FullFineTuning(), trained=True)
    model = AdaptedModel(backbone, adapters)
    given = {
        "position_ids": torch.arange(5)[None] + 2,
        "token_type_ids": torch.tensor([[0, 0, 1, 1, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0]]),
        "decoder_input_ids": torch.tensor([[0, 7]]),
    }[argument]
    batch = make_batch(5, 5, 5)
    with torch.no_grad():
        found = model(**{**batch, argument: given}, adapters=names).logits
        assert torch.equal(model(**{**batch, argument: given.expand(3, -1)}, adapters=names).logits, found)
        rest = {name: tensor[1:2] for name, tensor in batch.items()}
        alone = model(**{**rest, argument: given}, adapters=names if names == "a" else "c").logits
    torch.testing.assert_close(found[1], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("names", ["a", ["a", "b", "b"], ["a", "c", "b"]])
def test_a_mask_of_all_rows_may_be_given_once_to_generate(names):
    backbone, head = make_backbone("gpt2", head=True), LanguageHead(shifted=True)
    adapters = {n: make_adapter(backbone, LoRA(rank=2), trained=True, head=head, seed=i) for i, n in enumerate("ab")}
    adapters["c"] = make_adapter(backbone, FullFineTuning(), trained=True, head=head)
    model = AdaptedModel(backbone, adapters)
    ids, mask = make_batch(5, 5, 5)["input_ids"], torch.tensor([[0, 1, 1, 1, 1]])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "adapters": names}
    found = model.generate(ids, attention_mask=mask, **options)
    assert torch.equal(model.generate(ids, attention_mask=mask.expand(3, -1), **options), found)


BESIDE = [
    Parallel(bottleneck=4),
    Parallel(bottleneck=4, sublayers="attention,cross_attention,ffn", interaction="multiply", layer_norm="output"),
]


@pytest.mark.parametrize("method", [LoRA(rank=2), Houlsby(bottleneck=2), LayerNormTuning(), FullFineTuning(), *BESIDE])
def test_ops_follow_the_precision_that_arrives_at_their_site(method):
    """transformers keeps the output of T5's feed-forwards in float32 when the rest is float16."""
    outputs = {}
    for dtype in (torch.float32, torch.float16):
        model = make_model("t5", head=True).to(dtype)
        if dtype == torch.float16:
            for name, module in model.named_modules():
                if name.endswith(".wo"):
                    module.float()
        backbone = Backbone(model, name="tiny-t5")
        head = LanguageHead(shifted=False)
        adapters = {n: make_adapter(backbone, method, head=head, trained=True, seed=i) for i, n in enumerate("ab")}
        adapted = AdaptedModel(backbone, adapters)
        batch = {**make_batch(5, 4), "decoder_input_ids": make_batch(3, 3)["input_ids"]}
        with torch.no_grad():
            outputs[dtype] = [
                adapted(**batch, adapters=names).rows
                if isinstance(names, list)
                else adapted(**batch, adapters=names).logits
                for names in ("a", ["a", "b"])
            ]
        adapted.detach()
    for found, expected in zip(outputs[torch.float16], outputs[torch.float32], strict=True):
        for one, other in zip(found, expected, strict=True):
            # float16 has 11 bits; T5 does not scale its scores, so that rounding grows.
            torch.testing.assert_close(one, other, rtol=0, atol=0.05 * float(other.abs().max()))


# An adapter for one's own loop


def test_a_new_adapter_for_ones_own_loop(backbone, tmp_path):
    adapter = Adapter.new(backbone, LoRA(rank=2), kind="classification", labels=["bad", "good"], name="films", seed=1)
    assert adapter.task.labels == ("bad", "good")
    assert adapter.kind == "classification"
    model = AdaptedModel(backbone)
    model.add("films", adapter, trainable=True)
    optimizer = torch.optim.AdamW(model.in_training("films").parameters(), lr=0.01)
    batch = backbone.tokenizer(["the good film", "bad"], padding=True, return_tensors="pt")
    model.train()
    losses = []
    for _ in range(40):
        loss = model(**batch, labels=torch.tensor([1, 0])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    finished = model.adapter("films")
    finished.save(tmp_path / "films")
    model.detach()
    loaded = Adapter.load(tmp_path / "films")
    rows = [{"text": "the good film", "label": "good"}, {"text": "bad", "label": "bad"}] * 3
    (tmp_path / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate(loaded, backbone=backbone, data=str(tmp_path / "films.jsonl"))["accuracy"] == 1.0
    with pytest.raises(DataError, match="does not say on which data"):
        evaluate(loaded, backbone=backbone)


@pytest.mark.parametrize(
    ("kind", "labels", "outputs"),
    [("regression", None, 1), ("token-classification", ["O", "B-PER", "I-PER"], 3), ("multiple-choice", None, None)],
)
def test_new_adapters_of_other_kinds(backbone, kind, labels, outputs):
    adapter = Adapter.new(backbone, "lora", kind=kind, labels=labels)
    assert adapter.kind == kind
    assert adapter.head.num_labels == (outputs if kind == "token-classification" else None)
    adapter.check(backbone)


def test_a_new_adapter_needs_labels_where_its_kind_has_them(backbone):
    with pytest.raises(AdapterError, match="labels"):
        Adapter.new(backbone, LoRA(rank=2), kind="classification")
    with pytest.raises(AdapterError, match="labels"):
        Adapter.new(backbone, LoRA(rank=2), kind="regression", labels=["a", "b"])
    with pytest.raises(AdapterError, match=r"unknown kind 'clasification'\n  expected: .*classification"):
        Adapter.new(backbone, LoRA(rank=2), kind="clasification", labels=["a", "b"])
    prompt = Adapter.new(backbone, PromptTuning(num_virtual_tokens=2), kind="classification", labels=["a", "b"])
    assert prompt.tensors["input.prompt"].shape[0] == 2
