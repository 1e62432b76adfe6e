"""Adapters to measure with, and the same ones in peft."""

import copy
from typing import Any

import torch

from graftwork import Adapter, Backbone, LoRA
from graftwork.adapters import TaskIdentity
from graftwork.kinds.heads import head_for
from graftwork.methods import Method

RANK = 8
"""Of every low-rank adapter that is measured."""


def trained(backbone: Backbone, method: Method, seed: int) -> Adapter:
    """Return an adapter of which nothing is as initialised."""
    head = head_for("classification", backbone, num_labels=2, pooling="mean")
    adapter = Adapter.create(backbone, method, head, TaskIdentity(name="t", labels=("a", "b")), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in adapter.tensors.items():
        if name not in adapter.fixed:
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.02)
    return adapter


def with_peft(backbone: Backbone, plain: Any, adapters: list[Adapter]) -> Any:
    """Return peft's model with the same low-rank weights, cast to the backbone's precision, as a skilled user would.

    `plain` is the backbone's model without anything of ours on it.
    """
    from peft import LoraConfig, get_peft_model

    names = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names, lora_dropout=0.0)
    model = get_peft_model(copy.deepcopy(plain), config, adapter_name="0")
    for i in range(1, len(adapters)):
        model.add_adapter(f"{i}", config)
    sites = {site.path: site.name for site in backbone.sites.of_kind("linear") if site.layer is not None}
    for path, module in model.base_model.model.named_modules():
        if path in sites:
            for i, adapter in enumerate(adapters):
                scale = scale_of(adapter)
                with torch.no_grad():
                    module.lora_A[f"{i}"].weight.copy_(adapter.tensors[f"{sites[path]}.A"])
                    module.lora_B[f"{i}"].weight.copy_(scale * adapter.tensors[f"{sites[path]}.B"])
    return model.to(backbone.dtype).eval()


def scale_of(adapter: Adapter) -> float:
    """Return the number that a LoRA adapter's difference is multiplied by."""
    assert isinstance(adapter.method, LoRA)
    return adapter.method.scale
