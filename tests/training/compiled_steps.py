"""Takes training steps with layers compiled and not, and prints how far apart they are, as JSON by method.

It is a program of its own, because the checks of shapes that all tests have around functions cannot be compiled.
"""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import inputs_for, make_adapter, make_backbone

from graftwork import AdaptedModel
from graftwork.methods import make_method
from graftwork.training.compiling import compiled

BATCHES = [(7, 5, 6), (9, 4, 4, 2), (12, 3)]
"""The lengths of the texts of some batches. Three are as many as the linear maps with one input that LoRA joins."""


def step(model: AdaptedModel, lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """The loss on a batch, and the gradients."""
    model.zero_grad()
    torch.manual_seed(0)
    loss = model(**inputs_for(model.model, *lengths), labels=torch.arange(len(lengths)) % 3).require("loss")
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest, as a share of a tensor's largest number."""
    assert one.keys() == other.keys()
    shares = torch.stack([(one[name] - other[name]).abs().max() / one[name].abs().max() for name in one])
    assert shares.isfinite().all()
    return shares.max().item()


def compare(name: str, **settings: float) -> dict[str, object]:
    """How far apart steps are, and how many layers were compiled after each."""
    backbone = make_backbone("bert", num_hidden_layers=3, dtype=torch.float64)
    model = AdaptedModel(backbone)
    model.add("t", make_adapter(backbone, make_method(name, settings), trained=True), trainable=True)
    model.train()
    plain = [step(model, lengths) for lengths in BATCHES]
    counter, compiler = CompileCounter(), torch.compile
    apart, layers = [], []
    # What is compiled is run as it was found: code for a machine would only take its time to be made.
    with patch("torch.compile", lambda call, *, options, **given: compiler(call, backend=counter, **given)):
        with compiled(model):
            for lengths, before in zip(BATCHES, plain, strict=True):
                apart.append(difference(before, step(model, lengths)))
                layers.append(counter.frame_count)
            model.inference("t").output(inputs_for(model.model, 5), "t")
            resting = counter.frame_count - layers[-1]
        step(model, BATCHES[0])
    left = counter.frame_count - layers[-1] - resting
    left += sum(module._compiled_call_impl is not None for module in model.modules())
    return {"apart": max(apart), "layers": layers, "resting": resting, "left": left}


print(json.dumps({name: compare(name) for name in sys.argv[1:]}))
