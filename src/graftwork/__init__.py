"""graftwork: graft many tasks onto one frozen transformer.

Parameter-efficient transfer learning: tune one pretrained backbone for many tasks with small adapters, and run them
from it. The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.adapters import Adapter
    from graftwork.backbones import Backbone
    from graftwork.errors import GraftworkError
    from graftwork.methods import (
        IA3,
        AdaMix,
        BitFit,
        Compacter,
        DoRA,
        FullFineTuning,
        HeadOnly,
        Houlsby,
        LayerNormTuning,
        LoRA,
        Method,
        Parallel,
        Pfeiffer,
        VeRA,
    )
    from graftwork.model import AdaptedModel
    from graftwork.prediction import Prediction
    from graftwork.tasks import Task
    from graftwork.training import TrainingSettings, evaluate, tune

__version__ = "0.1.0"

_HOMES = {
    "AdaMix": "methods",
    "VeRA": "methods",
    "LayerNormTuning": "methods",
    "IA3": "methods",
    "DoRA": "methods",
    "BitFit": "methods",
    "AdaptedModel": "model",
    "Adapter": "adapters",
    "Backbone": "backbones",
    "Compacter": "methods",
    "FullFineTuning": "methods",
    "GraftworkError": "errors",
    "HeadOnly": "methods",
    "Houlsby": "methods",
    "LoRA": "methods",
    "Method": "methods",
    "Parallel": "methods",
    "Pfeiffer": "methods",
    "Prediction": "prediction",
    "Task": "tasks",
    "TrainingSettings": "training",
    "evaluate": "training",
    "tune": "training",
}

__all__ = [
    "IA3",
    "AdaMix",
    "AdaptedModel",
    "Adapter",
    "Backbone",
    "BitFit",
    "Compacter",
    "DoRA",
    "FullFineTuning",
    "GraftworkError",
    "HeadOnly",
    "Houlsby",
    "LayerNormTuning",
    "LoRA",
    "Method",
    "Parallel",
    "Pfeiffer",
    "Prediction",
    "Task",
    "TrainingSettings",
    "VeRA",
    "evaluate",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graftwork' has no attribute {name!r}")
    return getattr(import_module(f"graftwork.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
