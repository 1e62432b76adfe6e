"""Training and evaluation: recipes, the trainer, and `tune`, the function that makes an adapter out of data."""

from graftwork.training.evaluation import evaluate
from graftwork.training.recipe import Recipe
from graftwork.training.settings import TrainingSettings
from graftwork.training.tuning import tune, tune_recipe

__all__ = ["Recipe", "TrainingSettings", "evaluate", "tune", "tune_recipe"]
