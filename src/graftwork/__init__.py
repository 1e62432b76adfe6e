"""graftwork: graft many tasks onto one frozen transformer.

Parameter-efficient transfer learning: tune one pretrained backbone for many tasks with small adapters, and run them
from it. The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.adapters import Adapter
    from graftwork.backbones import Backbone
    from graftwork.combine import Pool, distill, generate_adapter
    from graftwork.errors import (
        AdapterError,
        BackboneError,
        DataError,
        DivergedError,
        FailedRunsError,
        GraftworkError,
        InProgressError,
        InterruptedRunError,
        MethodError,
        OutputError,
        RecipeError,
        SiteError,
        TuneManyError,
        WeightsError,
    )
    from graftwork.kinds.prediction import Prediction
    from graftwork.methods import (
        IA3,
        AdaMix,
        Average,
        BiHNet,
        BitFit,
        Compacter,
        DoRA,
        FeatureExtraction,
        FullFineTuning,
        Fuse,
        Gate,
        HeadOnly,
        Houlsby,
        HyperFormer,
        HyperGrid,
        LayerNormTuning,
        LoRA,
        Method,
        Parallel,
        Part,
        Pfeiffer,
        PrefixTuning,
        PromptTuning,
        PTuning,
        Stack,
        ULMFiT,
        Union,
        VeRA,
        make_method,
    )
    from graftwork.model import AdaptedModel
    from graftwork.studies import Comparison, Study, compare
    from graftwork.studies.ablation import ablate
    from graftwork.studies.submitting import glue_submission
    from graftwork.tasks import Task
    from graftwork.training import TrainingSettings, evaluate, tune, tune_many, tune_tasks

__version__ = "0.1.0"

_HOMES = {
    "AdaMix": "methods",
    "AdaptedModel": "model",
    "Adapter": "adapters",
    "AdapterError": "errors",
    "Average": "methods",
    "Backbone": "backbones",
    "BackboneError": "errors",
    "BiHNet": "methods",
    "BitFit": "methods",
    "Compacter": "methods",
    "Comparison": "studies",
    "DataError": "errors",
    "DivergedError": "errors",
    "DoRA": "methods",
    "FailedRunsError": "errors",
    "FeatureExtraction": "methods",
    "FullFineTuning": "methods",
    "Fuse": "methods",
    "Gate": "methods",
    "GraftworkError": "errors",
    "HeadOnly": "methods",
    "Houlsby": "methods",
    "HyperFormer": "methods",
    "HyperGrid": "methods",
    "IA3": "methods",
    "InProgressError": "errors",
    "InterruptedRunError": "errors",
    "LayerNormTuning": "methods",
    "LoRA": "methods",
    "Method": "methods",
    "MethodError": "errors",
    "OutputError": "errors",
    "PTuning": "methods",
    "Parallel": "methods",
    "Part": "methods",
    "Pfeiffer": "methods",
    "Pool": "combine",
    "Prediction": "kinds.prediction",
    "PrefixTuning": "methods",
    "PromptTuning": "methods",
    "RecipeError": "errors",
    "SiteError": "errors",
    "Stack": "methods",
    "Study": "studies",
    "Task": "tasks",
    "TrainingSettings": "training",
    "TuneManyError": "errors",
    "ULMFiT": "methods",
    "Union": "methods",
    "VeRA": "methods",
    "WeightsError": "errors",
    "ablate": "studies.ablation",
    "compare": "studies",
    "distill": "combine",
    "evaluate": "training",
    "generate_adapter": "combine",
    "glue_submission": "studies.submitting",
    "make_method": "methods",
    "tune": "training",
    "tune_many": "training",
    "tune_tasks": "training",
}

_RENAMED = {"StudyError": "TuneManyError"}
"""A public name of before -> today's."""

__all__ = [
    "IA3",
    "AdaMix",
    "AdaptedModel",
    "Adapter",
    "AdapterError",
    "Average",
    "Backbone",
    "BackboneError",
    "BiHNet",
    "BitFit",
    "Compacter",
    "Comparison",
    "DataError",
    "DivergedError",
    "DoRA",
    "FailedRunsError",
    "FeatureExtraction",
    "FullFineTuning",
    "Fuse",
    "Gate",
    "GraftworkError",
    "HeadOnly",
    "Houlsby",
    "HyperFormer",
    "HyperGrid",
    "InProgressError",
    "InterruptedRunError",
    "LayerNormTuning",
    "LoRA",
    "Method",
    "MethodError",
    "OutputError",
    "PTuning",
    "Parallel",
    "Part",
    "Pfeiffer",
    "Pool",
    "Prediction",
    "PrefixTuning",
    "PromptTuning",
    "RecipeError",
    "SiteError",
    "Stack",
    "Study",
    "Task",
    "TrainingSettings",
    "TuneManyError",
    "ULMFiT",
    "Union",
    "VeRA",
    "WeightsError",
    "ablate",
    "compare",
    "distill",
    "evaluate",
    "generate_adapter",
    "glue_submission",
    "make_method",
    "tune",
    "tune_many",
    "tune_tasks",
]


def __getattr__(name: str) -> Any:
    name = _RENAMED.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module 'graftwork' has no attribute {name!r}")
    return getattr(import_module(f"graftwork.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
