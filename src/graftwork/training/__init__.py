"""Training and evaluation: recipes, the trainer, and `tune` and `tune_many`, which make adapters out of data."""

from graftwork.training.evaluation import evaluate
from graftwork.training.many import tune_many, tune_study
from graftwork.training.recipe import Recipe
from graftwork.training.settings import TrainingSettings
from graftwork.training.study import Study
from graftwork.training.tuning import tune, tune_recipe

__all__ = ["Recipe", "Study", "TrainingSettings", "evaluate", "tune", "tune_many", "tune_recipe", "tune_study"]
