"""What tests of distillation have in common: what adapters say, and Hugging Face models that teach."""

import torch
from training.workbench import make_backbone
from transformers import BertConfig, BertModel

from graftwork import AdaptedModel


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
