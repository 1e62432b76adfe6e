"""What tests of distillation have in common: what adapters say, and Hugging Face models that teach."""

from contextlib import contextmanager

import pytest
import torch
from training.workbench import make_backbone
from transformers import BertConfig, BertModel

from graftwork import AdaptedModel
from graftwork.training.trainer import AdapterTrainer


def say(backbone, adapter, inputs, name="a"):
    model = AdaptedModel(backbone, {name: adapter})
    try:
        return model.logits(inputs, name)
    finally:
        model.detach()


def save_teacher(folder, kind, labels, *, width=32, seed=3, **fields):
    """A Hugging Face model with a task head on a backbone of its own."""
    make_backbone(folder, seed=seed, hidden_size=width)
    config = BertConfig.from_pretrained(folder, id2label=dict(enumerate(labels)), num_labels=len(labels), **fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    model.bert.load_state_dict(BertModel.from_pretrained(folder).state_dict(), strict=False)
    with torch.no_grad():
        model.classifier.weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    return model.eval()


@contextmanager
def steps_noted():
    """The steps of runs inside, each with its batch, its loss, and the trainer's adapter before it. Without dropout."""
    plain, seen = AdapterTrainer.training_step, []

    def step(self, model, batch, items=None):
        before = self.adapter
        loss = plain(self, model, batch, items)
        seen.append((batch, loss.item(), before, self))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)
        patch.setattr(AdapterTrainer, "training_step", step)
        yield seen
