"""Named methods: methods of papers that are another method with other settings, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Named:
    """A method with other default settings, under its own name.

    Attributes:
        method: name of the method.
        paper: the paper that it comes from.
        when: when to use it, as for `Method.when`.
        settings: the settings that differ from the method's defaults.
    """

    method: str
    paper: str
    when: str
    settings: Mapping[str, Any] = field(default_factory=dict)


_UNIPELT = (
    {"name": "lora", "targets": ["query", "value"]},
    {"name": "prefix-tuning", "num_virtual_tokens": 10},
    {"name": "pfeiffer"},
)
_MAM = ({"name": "prefix-tuning", "num_virtual_tokens": 30}, {"name": "parallel", "bottleneck": 512, "scale": 4.0})

NAMED: dict[str, Named] = {
    "adapterdrop": Named(
        "pfeiffer",
        "Rücklé et al. 2021, arXiv:2010.11918",
        "Pfeiffer, when layers are to be left out later",
        {"robust_drop": True},
    ),
    "scaled-parallel": Named(
        "parallel",
        "He et al. 2022, arXiv:2110.04366",
        "parallel with larger steps: generation, translation",
        {"scale": 4.0},
    ),
    "compacter++": Named(
        "compacter",
        "Karimi Mahabadi et al. 2021, arXiv:2106.04647",
        "Compacter with two thirds of the parameters",
        {"sublayers": ("ffn",)},
    ),
    "phm": Named(
        "compacter",
        "Zhang et al. 2021, arXiv:2102.08597",
        "a size between Compacter and Houlsby",
        {"phm_rank": None, "share_rule": False},
    ),
    "hyperformer++": Named(
        "hyperformer",
        "Karimi Mahabadi et al. 2021, arXiv:2106.04489",
        "HyperFormer with one small hypernetwork a stack",
        {"generators": "stack"},
    ),
    "rslora": Named("lora", "Kalajdzievski 2023, arXiv:2312.03732", "LoRA at large ranks", {"rank_stabilised": True}),
    "lora+": Named("lora", "Hayou et al. 2024, arXiv:2402.12354", "LoRA that learns faster", {"b_rate": 16.0}),
    "pissa": Named(
        "lora",
        "Meng et al. 2024, arXiv:2404.02948",
        "LoRA that starts from the weights' principal directions",
        {"init": "pissa"},
    ),
    "p-tuning-v2": Named(
        "prefix-tuning",
        "Liu et al. 2022, arXiv:2110.07602",
        "prefixes for classification and tagging",
        {"reparametrise": False, "num_virtual_tokens": 40},
    ),
    "mam": Named(
        "union",
        "He et al. 2022, arXiv:2110.04366",
        "a prefix and parallel bottlenecks: quality first",
        {"methods": _MAM},
    ),
    "unipelt": Named(
        "union",
        "Mao et al. 2022, arXiv:2110.07577",
        "an unknown task: gates choose between three methods",
        {"methods": _UNIPELT, "gated": True},
    ),
    "top-layers": Named(
        "full-fine-tuning",
        "Houlsby et al. 2019, arXiv:1902.00751",
        "a size between head-only and full fine-tuning",
        {"top_layers": 1},
    ),
    "random-subset": Named(
        "full-fine-tuning",
        "Ben Zaken et al. 2022, arXiv:2106.10199",
        "a control: does it matter which parameters are trained?",
        {"random_subset": 0.01},
    ),
    "discriminative": Named(
        "full-fine-tuning",
        "Howard & Ruder 2018, arXiv:1801.06146",
        "full fine-tuning with smaller rates in lower layers",
        {"layer_decay": 2.6},
    ),
    "gradual-unfreezing": Named(
        "full-fine-tuning",
        "Howard & Ruder 2018, arXiv:1801.06146",
        "full fine-tuning, one more layer an epoch",
        {"gradual_unfreezing": True},
    ),
}
"""Named methods by name. Their settings can be overridden."""
