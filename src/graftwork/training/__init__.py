"""Training and evaluation: recipes, the trainer, and `tune` and `tune_many`, which make adapters out of data."""

from graftwork.training.evaluation import evaluate
from graftwork.training.joint_recipe import JointRecipe
from graftwork.training.many import tune_joint_recipe, tune_many
from graftwork.training.recipe import Recipe
from graftwork.training.settings import TrainingSettings
from graftwork.training.tuning import tune, tune_recipe

__all__ = [
    "JointRecipe",
    "Recipe",
    "TrainingSettings",
    "evaluate",
    "tune",
    "tune_joint_recipe",
    "tune_many",
    "tune_recipe",
]
