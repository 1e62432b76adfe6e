"""Activation checkpointing: a backbone's layers are recomputed together with the ops that act on them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from graftwork.errors import AdapterError, BackboneError
from graftwork.grafting.graft import Graft
from graftwork.grafting.wrapper import unwrapped_modules


class _Recomputed:
    """What a layer is checkpointed with. A copy of the layer is checkpointed as transformers does it."""

    def __init__(self, recomputing: "Recomputing", checkpointing: Callable[..., Any]) -> None:
        self.recomputing, self.checkpointing = recomputing, checkpointing

    def __call__(self, forward: "partial[Any]", *args: Any) -> Any:
        return self.recomputing.run(self.checkpointing, forward, *args)

    def __reduce__(self) -> Any:
        return _plain_checkpoint, ()


def _plain_checkpoint() -> Callable[..., Any]:
    return partial(checkpoint, use_reentrant=False)


class Recomputing:
    """Layers that are recomputed in the backward pass instead of keeping their activations.

    transformers recomputes layers in training mode only; a layer is run in the mode of the backbone's own dropout.

    Args:
        graft: what acts on the backbone, in the recomputation too.
    """

    def __init__(self, graft: Graft) -> None:
        self.graft = graft
        self.model = graft.backbone.model
        self.on = False
        self._given: tuple[dict[str, Any] | None, dict[str, Any]] = None, {}
        # As the backbone was found: what acts on its layers has to act in their recomputation too.
        self._found_on = self._is_on()
        if self._found_on:
            self.enable(None)

    def enable(self, checkpointing: dict[str, Any] | None, **options: Any) -> None:
        """Recompute layers from now on.

        Args:
            checkpointing: keyword arguments of `torch.utils.checkpoint.checkpoint`.
            options: of the model's own method.

        Raises:
            AdapterError: reentrant checkpointing, which cannot carry what acts into the recomputation.
            BackboneError: the backbone cannot recompute its layers.
        """
        if not self.model.supports_gradient_checkpointing:
            raise BackboneError(
                f"backbone {self.graft.backbone.name!r}, of type {self.model.config.model_type}, cannot recompute "
                "its layers",
                change="--train.gradient_checkpointing",
            )
        self._given = checkpointing, options
        given = dict(checkpointing or {})
        if given.get("use_reentrant"):
            raise AdapterError("reentrant gradient checkpointing is not supported", expected="use_reentrant=False")
        given |= {"use_reentrant": False, "context_fn": lambda: (nullcontext(), self.graft.run_again())}
        with self.graft.lock:
            self._switch("enable")(given, **options)
            self.on = True
            self.graft.recomputed = layers = self._layers()
            for layer in layers:
                inner: Any = layer._gradient_checkpointing_func
                layer._gradient_checkpointing_func = _Recomputed(self, inner)  # type: ignore[assignment]

    def disable(self) -> None:
        """Keep activations again."""
        with self.graft.lock:
            self._switch("disable")()
            self.model.disable_input_require_grads()  # type: ignore[no-untyped-call]
            self.graft.recomputed = ()
            self.on = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is recomputed: what transformers puts into a model for that cannot be pickled."""
        was, given = self.on, self._given
        if was:
            self.disable()
        try:
            yield
        finally:
            if was:
                self.enable(given[0], **given[1])

    def let_go(self) -> None:
        """Leave the backbone as it was found."""
        if self.on:
            self.disable()
        if self._found_on:
            self._switch("enable")({"use_reentrant": False})

    def _is_on(self) -> bool:
        # transformers named it anew, too
        new = hasattr(type(self.model), "is_activation_checkpointing")
        return bool(self.model.is_activation_checkpointing if new else self.model.is_gradient_checkpointing)

    def _switch(self, what: str) -> Any:
        # transformers named it anew
        name = f"activation_checkpointing_{what}"
        return getattr(self.model, name if hasattr(self.model, name) else f"gradient_checkpointing_{what}")

    def _layers(self) -> list[GradientCheckpointingLayer]:
        return [module for module in unwrapped_modules(self.model) if isinstance(module, GradientCheckpointingLayer)]

    def run(self, checkpointing: Callable[..., Any], forward: partial[Any], *args: Any) -> Any:
        """A layer run by a checkpointing function, with the backbone's own dropout as it was asked for."""
        layer = forward.args[0]

        def run(*inputs: Any) -> Any:
            mode, layer.training = layer.training, self.graft.dropout
            try:
                return forward(*inputs)
            finally:
                layer.training = mode

        return checkpointing(run, *args)
