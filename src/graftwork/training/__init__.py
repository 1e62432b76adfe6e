"""Training and evaluation: recipes, the trainer, and `tune`, `tune_tasks` and `tune_many`, which make adapters out of
data."""

from graftwork.training.evaluation import evaluate
from graftwork.training.joint_recipe import JointRecipe
from graftwork.training.many import tune_joint_recipe, tune_many
from graftwork.training.multi_task import tune_multi_task_recipe, tune_tasks
from graftwork.training.multi_task_recipe import MultiTaskRecipe
from graftwork.training.recipe import Recipe
from graftwork.training.settings import TrainingSettings
from graftwork.training.tuning import tune, tune_recipe

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
