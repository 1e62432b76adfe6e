"""A step over several micro-batches has the gradient, and the loss, of their joined batch: of every kind of task and of
every head, alone, in passes that several adapters share, and under a user's own `Trainer`.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from tiny import make_adapter, make_backbone
from training.kinds import choice_rows, generation_rows, tag_rows, write_jsonl
from training.workbench import make_rows, write_csv
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from graftwork import AdaptedModel, Backbone, LoRA, Task, tune, tune_many
from graftwork.errors import AdapterError
from graftwork.heads import FeatureHead, LanguageHead, LikelihoodHead, PooledHead, TokenHead
from graftwork.methods import AdaMix, FeatureExtraction
from graftwork.training.trainer import AdapterTrainer

IGNORED = -100

ROWS = 46
"""Of 46 rows some are held out; batches of 3 rows in steps of 5 leave a last step and a last batch that are smaller."""

SETTINGS = {
    **{"per_device_train_batch_size": 3, "gradient_accumulation_steps": 5, "num_train_epochs": 1},
    **{"learning_rate": 1e-3, "max_grad_norm": 0.0, "logging_steps": 1, "prefix_cache": "off"},
    "train_sampling_strategy": "random",
}

LORA = LoRA(rank=2)
ADAMIX = AdaMix(bottleneck=4, experts=2, init_std=0.5)

CASES = {
    "classes": ("bert", "classes", {"text": "text"}, LORA),
    "numbers": ("bert", "numbers", {"kind": "regression", "text": "text"}, LORA),
    "tags": ("bert", "tags", {"kind": "token-classification", "text": "words", "label": "tags"}, LORA),
    "choices": ("bert", "choices", {"kind": "multiple-choice", "text": "question", "choices": "choices"}, LORA),
    "likelihood": ("gpt2", "choices", {"kind": "multiple-choice", "text": "question", "choices": "choices"}, LORA),
    "likelihood-t5": ("t5", "choices", {"kind": "multiple-choice", "text": "question", "choices": "choices"}, LORA),
    "generation": ("gpt2", "generation", {"kind": "generation", "text": "source", "label": "target"}, LORA),
    "generation-t5": ("t5", "generation", {"kind": "generation", "text": "source", "label": "target"}, LORA),
    "images": ("vit", "images", {"kind": "image-classification", "validation_fraction": 0.05}, LORA),
    "mixed-numbers": ("bert", "numbers", {"kind": "regression", "text": "text"}, FeatureExtraction()),
    "mixed-tags": (
        *("bert", "tags", {"kind": "token-classification", "text": "words", "label": "tags"}),
        FeatureExtraction(),
    ),
    "crf": (
        *("bert", "tags", {"kind": "token-classification", "text": "words", "label": "tags"}),
        FeatureExtraction(model="bilstm-crf", hidden_size=4),
    ),
    "adamix-classes": ("bert", "classes", {"text": "text"}, ADAMIX),
    "adamix-numbers": ("bert", "numbers", {"kind": "regression", "text": "text"}, ADAMIX),
    "adamix-tags": ("bert", "tags", {"kind": "token-classification", "text": "words", "label": "tags"}, ADAMIX),
    "adamix-generation": ("gpt2", "generation", {"kind": "generation", "text": "source", "label": "target"}, ADAMIX),
}


def lengthened(rows):
    """Targets of 1 to 40 words, the long ones together."""
    return [{**row, "target": " ".join([row["target"]] * (1 if i % 5 else 12))} for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def files(tmp_path_factory, kinds_data):
    folder = tmp_path_factory.mktemp("uneven")
    return {
        "classes": write_csv(folder / "classes.csv", make_rows("classes", ROWS)),
        "numbers": write_csv(folder / "numbers.csv", make_rows("numbers", ROWS)),
        "tags": write_jsonl(folder / "tags.jsonl", tag_rows(ROWS)),
        "choices": write_jsonl(folder / "choices.jsonl", choice_rows(ROWS)),
        "generation": write_jsonl(folder / "generation.jsonl", lengthened(generation_rows(ROWS))),
        "images": kinds_data["images"],
    }


@pytest.fixture(scope="module")
def loaded(backbones):
    return {name: Backbone.load(str(folder), dtype="float64", device="cpu") for name, folder in backbones.items()}


@pytest.fixture(autouse=True)
def nothing_random(monkeypatch):
    """No dropout, and experts that follow one another: the joined batch is then drawn as its parts are."""
    monkeypatch.setattr(F, "dropout", lambda x, *_, **__: x)
    plain, passes = AdaMix.draw, {}

    def draw(self, parameters, sites, *, training):
        with monkeypatch.context() as patch:
            if training:
                passes[id(self)] = done = passes.get(id(self), 0) + 1
                patch.setattr(torch, "randint", lambda high, size: torch.full(size, done % high))
            return plain(self, parameters, sites, training=training)

    monkeypatch.setattr(AdaMix, "draw", draw)


def joined(batches):
    """Collated batches as one, padded behind what they have."""
    found = {}
    for name in batches[0]:
        tensors = [batch[name] for batch in batches]
        sizes = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
        value = IGNORED if name in ("labels", "targets") else 0
        padded = [
            F.pad(t, [part for own, most in zip(t.shape[:0:-1], sizes[::-1], strict=True) for part in (0, most - own)],
                  value=value)
            for t in tensors
        ]  # fmt: skip
        found[name] = torch.cat(padded)
    return found


class Comparing(TrainerCallback):
    """Compares each step's gradients with those of its joined batch."""

    def __init__(self, trainer):
        self.trainer, self.steps, self.worst, self.losses = trainer, [], {}, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        model, name = self.trainer.adapted, self.trainer.adapter_name
        resident = model.residents[name]
        batches = self.trainer.taken
        self.steps.append(len(batches))
        accumulated = {n: p.grad.clone() for n, p in resident.named_parameters() if p.grad is not None}
        resident.zero_grad()
        loss = model(**joined(batches), adapters=name).loss
        loss.backward()
        self.losses.append(loss.item())
        whole = {n: p.grad for n, p in resident.named_parameters() if p.grad is not None}
        assert whole.keys() == accumulated.keys()
        scale = max(float(own.abs().max()) for own in whole.values())
        for n, own in whole.items():
            off = float((accumulated[n] - own).abs().max()) / scale
            self.worst[n] = max(self.worst.get(n, 0.0), off)


@pytest.fixture
def comparing(monkeypatch):
    """By name of the adapter, what was compared."""
    found = {}
    plain, get = AdapterTrainer.__init__, AdapterTrainer.get_batch_samples

    def made(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.add_callback(found.setdefault(self.adapter_name, Comparing(self)))

    def taken(self, *args):
        batches, counts = get(self, *args)
        self.taken = batches
        return batches, counts

    monkeypatch.setattr(AdapterTrainer, "__init__", made)
    monkeypatch.setattr(AdapterTrainer, "get_batch_samples", taken)
    return found


BOUND = 5e-6
"""Of the largest gradient: float32 sums of gradients, of passes in float64, in another order. Batches that weigh alike
are off by 2 % or more."""


def check(compared, folder, task):
    assert max(compared.worst.values()) < BOUND, compared.worst
    assert min(compared.steps) < max(compared.steps) == 5, "the last step is to be smaller"
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    logged = [row["loss"] for row in rows if "loss" in row]
    # Two passes of AdaMix add what is drawn together, which the joined batch's loss has as well.
    assert logged == pytest.approx(compared.losses, rel=1e-4), task.kind


def task_of(case, files):
    backbone, file, fields, method = CASES[case]
    task = Task.parse({"name": case, "data": str(files[file]), **fields}, origin="the test")
    return backbone, task, method


@pytest.mark.parametrize("case", CASES)
def test_alone(case, files, loaded, comparing, tmp_path):
    backbone, task, method = task_of(case, files)
    tune(loaded[backbone], task=task, method=method, output=tmp_path / "a", **SETTINGS)
    check(comparing[case], tmp_path / "a", task)


@pytest.mark.parametrize(
    "cases",
    [
        ("classes", "numbers", "tags", "choices", "adamix-numbers", "adamix-tags", "crf", "mixed-numbers"),
        ("generation", "likelihood", "adamix-generation"),
        ("generation-t5", "likelihood-t5"),
    ],
    ids=str,
)
def test_in_shared_passes(cases, files, loaded, comparing, tmp_path):
    found = {case: task_of(case, files) for case in cases}
    [backbone] = {backbone for backbone, *_ in found.values()}
    adapters = {case: {"task": task, "method": method} for case, (_, task, method) in found.items()}
    settings = {name: value for name, value in SETTINGS.items() if name != "prefix_cache"}
    tune_many(loaded[backbone], adapters, output=tmp_path, **settings)
    for case in cases:
        check(comparing[case], tmp_path / case, found[case][1])


def test_batches_of_unequal_numbers_of_rows(files, loaded, comparing, tmp_path):
    _, task, method = task_of("classes", files)
    settings = {**SETTINGS, "train_sampling_strategy": "group_by_length", "tokens_per_batch": 40, "max_length": 40}
    tune(loaded["bert"], task=task, method=method, output=tmp_path / "a", **settings)
    check(comparing["classes"], tmp_path / "a", task)


# A Trainer of one's own


class Plain(TrainerCallback):
    """The gradients of the first step."""

    gradients = None

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def collate(rows):
    return joined([{name: torch.tensor([value]) for name, value in row.items()} for row in rows])


def step_of_ones_own(model, rows, folder, kind=Trainer):
    """The gradients of a step over the rows in micro-batches of two."""
    arguments = TrainingArguments(
        **{"output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 2, "max_grad_norm": 0.0},
        **{"learning_rate": 0.0, "weight_decay": 0.0},
        **{"gradient_accumulation_steps": -(-len(rows) // 2), "save_strategy": "no", "report_to": "none"},
        **{"use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False, "label_names": ["labels"]},
        train_sampling_strategy="sequential",
    )
    plain = Plain()
    trainer = kind(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[plain])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return plain.gradients


def check_own(model, rows, folder, kind=Trainer):
    accumulated = step_of_ones_own(model, rows, folder, kind)
    model.zero_grad()
    model.train()
    model(**collate(rows)).loss.backward()
    whole = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    scale = max(float(own.abs().max()) for own in whole.values())
    assert whole.keys() == accumulated.keys()
    # Heads compute in float32, the rest in float64.
    assert max(float((accumulated[n] - own).abs().max()) for n, own in whole.items()) < 1e-6 * scale


LENGTHS = (3, 9, 2, 4, 12, 5, 7)


def texts(kind):
    """Rows of such lengths, labelled as the kind is."""
    source = torch.Generator().manual_seed(0)
    rows = []
    for i, length in enumerate(LENGTHS):
        ids = torch.randint(5, 100, (length,), generator=source).tolist()
        labels = {"classes": i % 3, "tags": [IGNORED, *[j % 3 for j in range(length - 1)]], "tokens": ids}[kind]
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": labels})
    return rows


OWN = {
    "classes": ("bert", PooledHead(kind="classification", num_outputs=3, pooling="first")),
    "tags": ("bert", TokenHead(num_outputs=3)),
    # Of a causal model the first token has a label, and nothing is said of it.
    "causal": ("gpt2", LanguageHead(shifted=True)),
    "decoder": ("t5", LanguageHead(shifted=False)),
}


@pytest.mark.parametrize("case", OWN)
def test_ones_own_trainer(case, tmp_path):
    kind, head = OWN[case]
    backbone = make_backbone(kind, dtype=torch.float64, head=case in ("causal", "decoder"))
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, LORA, head=head, trained=True), trainable=True)
    check_own(model, texts({"causal": "tokens", "decoder": "tokens"}.get(case, case)), tmp_path)


class Counting(Trainer):
    """As the documents have it."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, self.model.adapter("a").head.step_counts(batches)


def test_ones_own_trainer_of_losses_with_other_counts(tmp_path):
    """What is not known is refused; a Trainer that counts for the head is right."""
    crf = FeatureHead(task="token-classification", num_outputs=3, model="bilstm-crf", hidden_size=4)
    backbone = make_backbone("bert", dtype=torch.float64)
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, FeatureExtraction(), head=crf, trained=True), trainable=True)
    rows = texts("tags")
    with pytest.raises(AdapterError, match=r"mean over rows(.|\n)*adapter.head.step_counts\(batches\)"):
        step_of_ones_own(model, rows, tmp_path)
    assert step_of_ones_own(model, rows[:2], tmp_path), "a step of one batch needs no counts"
    check_own(model, rows, tmp_path, Counting)

    backbone = make_backbone("gpt2", dtype=torch.float64, head=True)
    model = AdaptedModel(backbone)
    model.add("a", make_adapter(backbone, LORA, head=LikelihoodHead(shifted=True), trained=True), trainable=True)
    rows = []
    for i, row in enumerate(texts("classes")):
        ids = [row["input_ids"], row["input_ids"][::-1]]
        targets = [[IGNORED, *own[1:]] for own in ids]
        rows.append(
            {"input_ids": ids, "attention_mask": [row["attention_mask"]] * 2, "targets": targets, "labels": i % 2}
        )
    with pytest.raises(AdapterError, match="labels and tokens of wrong choices"):
        step_of_ones_own(model, rows, tmp_path)
    check_own(model, rows, tmp_path, Counting)


def test_counts_of_several_adapters_are_by_name():
    backbone = make_backbone("bert", dtype=torch.float64)
    model = AdaptedModel(backbone)
    for name in "ab":
        model.add(name, make_adapter(backbone, LORA, trained=True), trainable=True)
    batch = collate(texts("classes")[:4])
    own = model(**batch, adapters=["a", "a", "b", "b"])
    # A Trainer counts the batch's labels, which is no more than the batch itself.
    assert model(**batch, adapters=["a", "a", "b", "b"], num_items_in_batch=torch.tensor(4)).loss == own.loss
    with pytest.raises(AdapterError, match=r"several adapters(.|\n)*a mapping from each adapter's name"):
        model(**batch, adapters=["a", "a", "b", "b"], num_items_in_batch=8)
    with pytest.raises(AdapterError, match="no count of labels"):
        model(**batch, adapters="a", num_items_in_batch={"rows": torch.tensor(8)})
    halved = model(**batch, adapters=["a", "a", "b", "b"], num_items_in_batch={"a": 4})
    torch.testing.assert_close(halved.losses["a"], own.losses["a"] / 2)
    torch.testing.assert_close(halved.losses["b"], own.losses["b"])
