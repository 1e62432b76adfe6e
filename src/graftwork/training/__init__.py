"""Training and evaluation: recipes, the trainer, and `tune`, `tune_tasks` and `tune_many`, which make adapters out of
data."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.training.evaluation import evaluate
    from graftwork.training.joint_recipe import JointRecipe
    from graftwork.training.many import tune_joint_recipe, tune_many
    from graftwork.training.multi_task import tune_multi_task_recipe, tune_tasks
    from graftwork.training.multi_task_recipe import MultiTaskRecipe
    from graftwork.training.recipe import Recipe
    from graftwork.training.settings import TrainingSettings
    from graftwork.training.tuning import tune, tune_recipe

_HOMES = {
    "JointRecipe": "joint_recipe",
    "MultiTaskRecipe": "multi_task_recipe",
    "Recipe": "recipe",
    "TrainingSettings": "settings",
    "evaluate": "evaluation",
    "tune": "tuning",
    "tune_joint_recipe": "many",
    "tune_many": "many",
    "tune_multi_task_recipe": "multi_task",
    "tune_recipe": "tuning",
    "tune_tasks": "multi_task",
}
"""Loaded when they are first used: what shows how far a merge is needs none of what trains."""

__all__ = [
    "JointRecipe",
    "MultiTaskRecipe",
    "Recipe",
    "TrainingSettings",
    "evaluate",
    "tune",
    "tune_joint_recipe",
    "tune_many",
    "tune_multi_task_recipe",
    "tune_recipe",
    "tune_tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graftwork.training' has no attribute {name!r}")
    return getattr(import_module(f"graftwork.training.{_HOMES[name]}"), name)
