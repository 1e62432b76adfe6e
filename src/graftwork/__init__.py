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
        FullFineTuning,
        HeadOnly,
        Houlsby,
        LoRA,
        Method,
        PrefixTuning,
        PromptTuning,
        PTuning,
        Union,
    )
    from graftwork.model import AdaptedModel
    from graftwork.prediction import Prediction
    from graftwork.tasks import Task
    from graftwork.training import TrainingSettings, evaluate, tune

__version__ = "0.1.0"

_HOMES = {
    "AdaptedModel": "model",
    "Adapter": "adapters",
    "Backbone": "backbones",
    "FullFineTuning": "methods",
    "GraftworkError": "errors",
    "HeadOnly": "methods",
    "Houlsby": "methods",
    "LoRA": "methods",
    "Method": "methods",
    "PTuning": "methods",
    "Prediction": "prediction",
    "PrefixTuning": "methods",
    "PromptTuning": "methods",
    "Task": "tasks",
    "TrainingSettings": "training",
    "Union": "methods",
    "evaluate": "training",
    "tune": "training",
}

__all__ = [
    "AdaptedModel",
    "Adapter",
    "Backbone",
    "FullFineTuning",
    "GraftworkError",
    "HeadOnly",
    "Houlsby",
    "LoRA",
    "Method",
    "PTuning",
    "Prediction",
    "PrefixTuning",
    "PromptTuning",
    "Task",
    "TrainingSettings",
    "Union",
    "evaluate",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graftwork' has no attribute {name!r}")
    return getattr(import_module(f"graftwork.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
