"""What papers call by a name of its own and is another method with other settings, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Named:
    """A method under another name.

    Attributes:
        method: the name of the method that it is.
        paper: where it is from.
        settings: what differs from that method's defaults.
    """

    method: str
    paper: str
    settings: Mapping[str, Any] = field(default_factory=dict)


_UNIPELT = (
    {"name": "lora", "targets": ["query", "value"]},
    {"name": "prefix-tuning", "num_virtual_tokens": 10},
    {"name": "pfeiffer"},
)
_MAM = ({"name": "prefix-tuning", "num_virtual_tokens": 30}, {"name": "parallel", "bottleneck": 512, "scale": 4.0})

NAMED: dict[str, Named] = {
    "adapterdrop": Named("pfeiffer", "Rücklé et al. 2021, arXiv:2010.11918", {"robust_drop": True}),
    "scaled-parallel": Named("parallel", "He et al. 2022, arXiv:2110.04366", {"scale": 4.0}),
    "compacter++": Named("compacter", "Karimi Mahabadi et al. 2021, arXiv:2106.04647", {"sublayers": ("ffn",)}),
    "phm": Named("compacter", "Zhang et al. 2021, arXiv:2102.08597", {"phm_rank": None, "share_rule": False}),
    "rslora": Named("lora", "Kalajdzievski 2023, arXiv:2312.03732", {"rank_stabilised": True}),
    "lora+": Named("lora", "Hayou et al. 2024, arXiv:2402.12354", {"b_rate": 16.0}),
    "pissa": Named("lora", "Meng et al. 2024, arXiv:2404.02948", {"init": "pissa"}),
    "p-tuning-v2": Named(
        "prefix-tuning", "Liu et al. 2022, arXiv:2110.07602", {"reparametrise": False, "num_virtual_tokens": 40}
    ),
    "mam": Named("union", "He et al. 2022, arXiv:2110.04366", {"methods": _MAM}),
    "unipelt": Named("union", "Mao et al. 2022, arXiv:2110.07577", {"methods": _UNIPELT, "gated": True}),
    "top-layers": Named("full-fine-tuning", "Houlsby et al. 2019, arXiv:1902.00751", {"top_layers": 1}),
    "random-subset": Named("full-fine-tuning", "Ben Zaken et al. 2022, arXiv:2106.10199", {"random_subset": 0.01}),
    "discriminative": Named("full-fine-tuning", "Howard & Ruder 2018, arXiv:1801.06146", {"layer_decay": 2.6}),
    "gradual-unfreezing": Named(
        "full-fine-tuning", "Howard & Ruder 2018, arXiv:1801.06146", {"gradual_unfreezing": True}
    ),
}
"""Methods by the name that papers call them by. The settings can be set anew."""
