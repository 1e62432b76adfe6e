"""What adapters that are tuned at once cannot ask for, since they share the passes of one backbone."""

from collections.abc import Mapping

from graftwork.errors import RecipeError
from graftwork.training.recipe import Recipe
from graftwork.training.settings import refuse_unsharded

OF_THE_BACKBONE = ("backbone_dropout", "gradient_checkpointing")
"""Training settings that all rows of a pass have in common."""


def refuse_unlike(recipes: Mapping[str, Recipe]) -> None:
    """Refuse recipes that cannot be tuned at once.

    Args:
        recipes: resolved, by the adapters' names.

    Raises:
        RecipeError: names the adapter and the setting.
    """
    _refuse_different_backbones(recipes)
    _refuse_caches(recipes)
    _refuse_compiling(recipes)
    for recipe in recipes.values():
        refuse_unsharded(recipe.train, several=False)


def _refuse_different_backbones(recipes: Mapping[str, Recipe]) -> None:
    """Refuse recipes that ask different things of the backbone in training, which is one."""
    [(first, one), *others] = recipes.items()
    for name, recipe in others:
        for setting in OF_THE_BACKBONE:
            here, there = getattr(one.train, setting), getattr(recipe.train, setting)
            if here != there:
                raise RecipeError(
                    f"adapters {first!r} and {name!r} cannot be tuned at once: train.{setting} is {here!r} of "
                    f"{first!r} and {there!r} of {name!r}, and they share one backbone",
                    expected="the same of all adapters (fine-tuning of the backbone's own weights keeps its dropout "
                    "by default)",
                    change=f"train.{setting} of one of them",
                )


def _refuse_caches(recipes: Mapping[str, Recipe]) -> None:
    """Refuse recipes that ask for a prefix cache: passes that several share begin at the input."""
    asking = [name for name, recipe in recipes.items() if recipe.train.prefix_cache == "on"]
    if asking:
        raise RecipeError(
            f"adapter {asking[0]!r} cannot have a prefix cache: passes that several adapters share begin at the input",
            expected="auto or off",
            change="train.prefix_cache, or tune it alone",
        )


def _refuse_compiling(recipes: Mapping[str, Recipe]) -> None:
    """Refuse recipes that ask for compiled layers: which adapters share a pass changes from step to step, and with it
    what would be compiled."""
    asking = [name for name, recipe in recipes.items() if recipe.train.torch_compile]
    if asking:
        raise RecipeError(
            f"adapter {asking[0]!r} cannot be tuned with torch_compile: which adapters share a pass changes from step "
            "to step, and each time another pass would be compiled",
            expected="false",
            change="train.torch_compile, or tune it alone",
        )
