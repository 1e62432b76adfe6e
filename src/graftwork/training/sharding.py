"""A run whose backbone is in parts: what such a run cannot do, and where the parts come from."""

from contextlib import AbstractContextManager, nullcontext

from graftwork.backbones import Backbone
from graftwork.backbones.devices import DTYPES, best_dtype, device_of
from graftwork.backbones.sharding import sharded
from graftwork.errors import RecipeError
from graftwork.training.processes import Processes
from graftwork.training.recipe import Recipe
from graftwork.training.settings import refuse_unsharded


def refuse_sharding(recipe: Recipe, processes: Processes) -> None:
    """Refuse a recipe that asks for a backbone in parts, where there can be none.

    Raises:
        RecipeError: there is one process, or the method trains the backbone's weights.
    """
    if not recipe.train.fsdp:
        return
    refuse_unsharded(recipe.train, several=processes.several)
    method = recipe.find_method()
    if not method.frozen_backbone:
        raise RecipeError(
            f"method {method.name} trains the backbone's weights, and what is sharded over processes stays frozen",
            expected="a method that leaves them as they are, or false",
            change="--train.fsdp, or --method",
        )


def load_backbone(recipe: Recipe) -> Backbone:
    """The backbone that a recipe names. One that will be in parts is read into the CPU's memory, in the precision of
    where it will run.

    Raises:
        BackboneError: as `Backbone.load`.
    """
    if not recipe.train.fsdp:
        return Backbone.load(recipe.backbone, dtype=recipe.dtype)
    best = best_dtype(device_of("auto"))
    precision = next(name for name, dtype in DTYPES.items() if dtype == best)
    return Backbone.load(recipe.backbone, dtype=precision if recipe.dtype == "auto" else recipe.dtype, device="cpu")


def parts_of(backbone: Backbone, recipe: Recipe, *, given: bool) -> AbstractContextManager[None]:
    """Inside, the backbone is in parts, where a recipe asks for it.

    Args:
        given: by the caller, who has chosen its device; else it is moved to the best one.

    Raises:
        BackboneError: as `sharded`.
    """
    if not recipe.train.fsdp:
        return nullcontext()
    return sharded(backbone, backbone.device if given else device_of("auto"))
