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
        FeatureExtraction,
        FullFineTuning,
        HeadOnly,
        Houlsby,
        LayerNormTuning,
        LoRA,
        Method,
        Parallel,
        Pfeiffer,
        PrefixTuning,
        PromptTuning,
        PTuning,
        ULMFiT,
        Union,
        VeRA,
    )
    from graftwork.model import AdaptedModel
    from graftwork.prediction import Prediction
    from graftwork.tasks import Task
    from graftwork.training import TrainingSettings, evaluate, tune, tune_many

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
    "FeatureExtraction": "methods",
    "FullFineTuning": "methods",
    "GraftworkError": "errors",
    "HeadOnly": "methods",
    "Houlsby": "methods",
    "LoRA": "methods",
    "Method": "methods",
    "Parallel": "methods",
    "Pfeiffer": "methods",
    "PTuning": "methods",
    "Prediction": "prediction",
    "PrefixTuning": "methods",
    "PromptTuning": "methods",
    "Task": "tasks",
    "TrainingSettings": "training",
    "ULMFiT": "methods",
    "Union": "methods",
    "evaluate": "training",
    "tune": "training",
    "tune_many": "training",
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
    "FeatureExtraction",
    "FullFineTuning",
    "GraftworkError",
    "HeadOnly",
    "Houlsby",
    "LayerNormTuning",
    "LoRA",
    "Method",
    "PTuning",
    "Parallel",
    "Pfeiffer",
    "Prediction",
    "PrefixTuning",
    "PromptTuning",
    "Task",
    "TrainingSettings",
    "ULMFiT",
    "Union",
    "VeRA",
    "evaluate",
    "tune",
    "tune_many",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graftwork' has no attribute {name!r}")
    return getattr(import_module(f"graftwork.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
