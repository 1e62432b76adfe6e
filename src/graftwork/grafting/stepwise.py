"""A model whose forward passes, those of its encoder among them, each run in a context of their own.

transformers' `generate` calls a model once a token. Other threads' passes may run in between.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import torch.nn as nn
from transformers import PreTrainedModel

Context = Callable[[], AbstractContextManager[None]]


def stepwise(model: PreTrainedModel, context: Context) -> PreTrainedModel:
    """A view of a model that differs in one point: each of its forward passes runs in a new context."""
    view: PreTrainedModel = _view(model, context)
    if model.config.is_encoder_decoder:
        encoder = _view(model.get_encoder(), context)
        view.__dict__["get_encoder"] = lambda *args, **kwargs: encoder
    return view


def _view(module: Any, context: Context) -> Any:
    view: nn.Module = object.__new__(type(module))
    view.__dict__.update(vars(module))
    inner = module.forward

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with context():
            return inner(*args, **kwargs)

    # `generate` reads from it what the model takes.
    forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    view.__dict__["forward"] = forward
    return view
