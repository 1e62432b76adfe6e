"""Compiled layers: in the passes of a training step, torch.compile runs each of the backbone's layers.

What is compiled is one layer and not the whole backbone. Layers of one structure, with ops of one kind and size on
them, share its code, so that compiling takes as long for thirty layers as for three. Lengths and numbers of rows are
left open; sizes of weights and of ops are not. There are two variants as a rule: of the lowest layer, whose input may
need no gradient, and of the others.

The layers stay the modules that they are: each is only told what to run when it is called, as `nn.Module.compile` does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.nn as nn

from graftwork.errors import RecipeError
from graftwork.model import AdaptedModel

VARIANTS = 64
"""So many variants of layers are compiled at most: more would mean that there is no end of compiling."""

FLAG = "--train.torch_compile, or leave out --compile"


@contextmanager
def compiled(model: AdaptedModel) -> Iterator[None]:
    """Inside, the backbone's layers run compiled where gradients are wanted; afterwards, also after an exception, none.

    Scores are measured in passes without gradients, and so as they are ever after: uncompiled.

    Raises:
        RecipeError: there is no compiler; or, from inside, a layer cannot be compiled as a whole.
    """
    from torch._C._dynamo.eval_frame import reset_code
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    refuse_without_compiler(model.device)
    # A function of this run's own: all that is compiled hangs on its code, and goes with it.
    one = FunctionType(_one.__code__.replace(), _one.__globals__)
    # What is drawn is what would be drawn without it.
    run = torch.compile(one, fullgraph=True, dynamic=True, options={"fallback_random": True})
    layers = _layers(model)
    model.graft.compiled = True
    try:
        for layer in layers:
            layer._compiled_call_impl = _call_of(layer, run)
        with config.patch(recompile_limit=VARIANTS):
            yield
    except FailOnRecompileLimitHit as error:
        raise _refusal(model, f"{VARIANTS} variants of them were made, and there would be more") from error
    except TorchDynamoException as error:
        raise _refusal(model, _said(error)) from error
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        model.graft.compiled = False
        reset_code(one.__code__)


def refuse_without_compiler(device: torch.device) -> None:
    """Refuse to compile where this machine lacks what makes code for the device.

    Raises:
        RecipeError: it says what is missing.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils._triton import has_triton

    if device.type == "cuda" and not has_triton():
        raise RecipeError("nothing can be compiled for the GPU: torch finds no Triton that suits it", change=FLAG)
    if device.type == "cpu":
        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise RecipeError(
                "nothing can be compiled for the CPU: there is no C++ compiler",
                expected="g++ or clang++ on the path, or its name in $CXX",
                change=FLAG,
            ) from error


def _refusal(model: AdaptedModel, problem: str) -> RecipeError:
    return RecipeError(
        f"the layers of backbone {model.backbone.name!r}, with what is tuned on them, cannot be compiled: {problem}",
        expected="another method, or layers that are not compiled",
        change=FLAG,
    )


def _one(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """One layer's call."""
    return layer._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]


def _call_of(layer: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
    """What a layer runs when it is called."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return (run if torch.is_grad_enabled() else _one)(layer, *args, **kwargs)

    return call


def _layers(model: AdaptedModel) -> list[nn.Module]:
    """The backbone's layers, of all its stacks."""
    return [model.backbone.model.get_submodule(path) for path in model.backbone.layer_paths()]


def _said(error: BaseException) -> str:
    """What a compiler says in the first line, and its explanation of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    explained = (line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: "))
    return ": ".join([lines[0], *explained])
