"""What torch and Hugging Face's libraries expect of a model: modes, configuration, state dict, saving and copies."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys
from transformers import GenerationConfig, PretrainedConfig

from graftwork.heads import LanguageHead
from graftwork.model.adapters import BackboneWithAdapters
from graftwork.model.saving import labelled, load_state, rebuilt, save_only_one, state_in_training, trained_of


class HuggingFaceModel(BackboneWithAdapters):
    """A backbone with adapters, as Trainer, pipelines and accelerate take a model. See `AdaptedModel`."""

    accepts_loss_kwargs = True

    @property
    def config(self) -> PretrainedConfig:
        """The backbone's configuration. If the model has exactly one adapter, it includes its labels."""
        with self._refreshing:
            if self._config is None:
                self._config = labelled(self.backbone.config, [r.adapter for r in self.residents.values()])
            return self._config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The backbone's generation configuration; None if it has no language-model head."""
        return getattr(self.backbone.model, "generation_config", None)

    @generation_config.setter
    def generation_config(self, config: GenerationConfig | None) -> None:
        self.backbone.model.generation_config = config  # type: ignore[assignment] # as transformers has it

    def can_generate(self) -> bool:
        """Whether the backbone has a language-model head and can generate text."""
        return self.backbone.generates

    @property
    def loss_type(self) -> str | None:
        """Tells `transformers.Trainer` to leave the first token of each row out when it counts labels: where all that
        is trained is generation by a causal model, which says nothing of that token.
        """
        heads = [
            trained.adapter.head for trained in trained_of(self.residents.lease(self.residents).residents).values()
        ]
        shifted = [isinstance(head, LanguageHead) and head.shifted for head in heads]
        return "ForCausalLM" if shifted and all(shifted) else None

    def train(self, mode: bool = True) -> Self:
        """Set training mode for `forward`: dropout of adapters and heads is on, and the backbone's own dropout if the
        model was made with `backbone_dropout`. Predictions and generation never use dropout.
        """
        # The backbone's modules are in this mode for the length of a pass.
        self.training = mode
        self.trained.train(mode)
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute layers, with their adapters, in the backward pass instead of storing their activations.

        Raises:
            AdapterError: reentrant checkpointing was requested, which does not support adapters.
            BackboneError: the backbone cannot recompute its layers.
        """
        self._recomputing.enable(activation_checkpointing_kwargs, **options)

    def activation_checkpointing_disable(self) -> None:
        """Store activations again."""
        self._recomputing.disable()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """The older name of `activation_checkpointing_disable`."""
        self.activation_checkpointing_disable()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves all, and casts the backbone; adapters stay float32, and are rounded for it anew."""
        with self.graft.lock:
            merged = self.merged
            self.unmerge()
            try:
                super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            finally:
                self.residents.unload()
                if merged is not None:
                    self.merge(merged)
        return self

    def state_dict(  # type: ignore[override] # of torch's overloads, the one that there is
        self, *, destination: dict[str, Any] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """The tensors of the adapters that are being trained, as `NAME.TENSOR`, without the backbone: a checkpoint of
        `transformers.Trainer` then holds just the adapters. The backbone's tensors are in
        `backbone.model.state_dict()`.

        Raises:
            AdapterError: the model has adapters, but none of them is being trained.
        """
        found = {} if destination is None else destination
        for name, tensor in state_in_training(self.residents.lease(self.residents).residents).items():
            found[prefix + name] = tensor if keep_vars else tensor.detach()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the tensors of the adapters that are being trained, as `state_dict` returned them.

        Raises:
            AdapterError: with `strict`, names are missing or unknown, or no adapter is being trained; or a shape
                differs.
        """
        residents = self.residents.lease(self.residents).residents
        return _IncompatibleKeys(*load_state(residents, state_dict, strict=strict))

    def save_pretrained(self, save_directory: str | Path, *, overwrite: bool = False) -> None:
        """Save the only adapter of the model, as `Adapter.save` does. The backbone is not saved.

        Raises:
            AdapterError: the model has no adapter, or several.
            OutputError: the folder exists already.
        """
        save_only_one({name: self.adapter(name) for name in self.residents}, Path(save_directory), overwrite=overwrite)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy, and what is pickled, is made anew of a copy of the backbone and the adapters as they are now."""
        with self.graft.lock:
            lease = self.residents.lease(self.residents)
            recomputed = self._recomputing.on
            try:
                self.graft.run_outside_passes()
                with self._recomputing.paused():
                    backbone = deepcopy(self.backbone)
            finally:
                self.graft.run_outside_passes(None if lease.merged is None else lease.merged.modules)
        adapters = {
            name: (resident.snapshot(), resident.trainable, self.residents.pinned(name))
            for name, resident in lease.residents.items()
        }
        options = {
            "allow_backbone_mismatch": self.allow_backbone_mismatch,
            "backbone_dropout": self.backbone_dropout,
            "budget": self.residents.budget,
        }
        merged = None if lease.merged is None else lease.merged.name
        return rebuilt, (type(self), backbone, adapters, options, merged, recomputed, self.training)

    def __deepcopy__(self, memo: Any) -> Self:
        make, parts = self.__reduce_ex__(4)
        return make(*parts)  # type: ignore[no-any-return]
