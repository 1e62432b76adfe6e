"""`AdaptedModel`: a frozen backbone with adapters on it, as one `nn.Module` with Hugging Face's forward signature."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput

from graftwork.adapters import Adapter, Resident
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, DataError, RecipeError, nearest
from graftwork.ops import Graft, Route
from graftwork.ops.graft import check
from graftwork.prediction import Prediction, Text, encode, read_logits

DEFAULT_BATCH_SIZE = 32


class AdaptedModel(nn.Module):
    """A backbone and the adapters on it.

    Takes the place of a Hugging Face sequence-classification model: `forward` has its arguments and returns its
    ModelOutput (loss, logits), so that a Trainer takes it as it is. The backbone's parameters stay frozen. Only one
    AdaptedModel can be on a backbone at a time; `detach` frees it, and it is then bit for bit what it was.

    Args:
        backbone: the frozen model.
        adapters: adapters by the name under which they are called.
        allow_backbone_mismatch: accept adapters made for other weights of the same shape.
        backbone_dropout: whether the backbone's own dropout acts in training. Off by default: a frozen backbone needs
            none.

    Raises:
        AdapterError: an adapter was made for another backbone, or its tensors are not what its method declares.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapters: Mapping[str, Adapter] | None = None,
        *,
        allow_backbone_mismatch: bool = False,
        backbone_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.model = backbone.model
        self.allow_backbone_mismatch = allow_backbone_mismatch
        self.backbone_dropout = backbone_dropout
        self.graft = Graft(backbone)
        self.residents: dict[str, Resident] = {}
        self.trained = nn.ModuleList()
        self._checkpointing = False
        self._accepted = set(inspect.signature(backbone.model.forward).parameters)
        try:
            for name, adapter in (adapters or {}).items():
                self.add(name, adapter)
        except BaseException:
            self.graft.detach()
            raise
        self.eval()

    # -- adapters ----------------------------------------------------------------------------------------------------

    def add(self, name: str, adapter: Adapter, *, trainable: bool = False) -> None:
        """Put an adapter on the backbone.

        Args:
            trainable: its parameters become parameters of this module, and gradients reach them.

        Raises:
            AdapterError: the name is taken; or the adapter does not suit the backbone.
        """
        if name in self.residents:
            raise AdapterError(f"an adapter named {name!r} is here already", expected="another name, or remove() first")
        adapter.check(self.backbone, allow_mismatch=self.allow_backbone_mismatch)
        resident = Resident(adapter, self.backbone, trainable=trainable)
        ops = resident.ops()
        check(ops, self.backbone.sites)
        self.graft.attach(ops)
        self.residents[name] = resident
        if trainable:
            self.trained.append(resident)
        self.train(self.training)

    def remove(self, name: str) -> None:
        """Take an adapter off.

        Raises:
            AdapterError: there is none of that name.
        """
        resident = self._resident(name)
        del self.residents[name]
        self.trained = nn.ModuleList(r for r in self.trained if r is not resident)

    def adapter(self, name: str) -> Adapter:
        """The adapter of that name with its parameters as they are now.

        Raises:
            AdapterError: there is none of that name.
        """
        return self._resident(name).snapshot()

    def detach(self) -> Backbone:
        """Take everything off. The backbone has its very modules back, and its outputs and state dict are bit for bit
        what they were.
        """
        self.residents.clear()
        self.trained = nn.ModuleList()
        self.graft.detach()
        if self._checkpointing:
            self.gradient_checkpointing_disable()
        self.model.train(False)
        return self.backbone

    # -- running -----------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        adapters: str | Sequence[str] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """One pass of the backbone with an adapter, and its head.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: (B, T).
            inputs_embeds: (B, T, d), in the place of input_ids.
            labels: (B,) class ids, or numbers for regression; with them the output has a loss.
            adapters: name of the adapter, or one name a row (in this version all rows of one pass must use the same);
                may be left out when there is only one.

        Returns:
            loss (when labels are given), logits (B, C) in float32, hidden_states and attentions when asked for.

        Raises:
            AdapterError: no adapter of that name; several names in one pass; arguments that the backbone does not take.
        """
        rows = next((len(given) for given in (input_ids, inputs_embeds) if given is not None), 1)
        resident = self._resident(self._one_name(adapters, rows))
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        arguments = {name: value for name, value in given.items() if value is not None}
        refused = sorted(arguments.keys() - self._accepted - {"output_hidden_states", "output_attentions"})
        if refused:
            raise AdapterError(
                f"the backbone's forward does not take {', '.join(refused)}",
                expected=", ".join(sorted(self._accepted & given.keys())),
            )
        with self.graft.run(resident.ops(), Route()):
            output = self.model(**arguments)
        head, parameters = resident.adapter.head, resident.tensors()
        logits = head.logits(head.pool(output, attention_mask), parameters, training=self.training)
        result = SequenceClassifierOutput(
            loss=None if labels is None else head.loss(logits, labels),
            logits=logits,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )
        return result if return_dict is not False else result.to_tuple()

    def predict(
        self,
        texts: Sequence[Text],
        adapters: str | Sequence[str] | None = None,
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> list[Prediction]:
        """What adapters say of texts.

        Args:
            texts: strings, or pairs of strings for tasks over pairs.
            adapters: one name for all texts, or a name for each text; may be left out when there is only one adapter.
            batch_size: texts in one forward pass. Texts of one adapter share passes.

        Returns:
            One prediction a text, in the order of the texts.

        Raises:
            AdapterError: no adapter of that name; or not one name for each text.
            DataError: one string in the place of a list; or single texts where the task is over pairs.
        """
        if isinstance(texts, str):
            raise DataError("one string was given", expected="a list of texts")
        names = self._names(adapters, len(texts))
        found: dict[int, Prediction] = {}
        for name in dict.fromkeys(names):
            rows = [i for i, other in enumerate(names) if other == name]
            logits = self.logits([texts[i] for i in rows], name, batch_size=batch_size)
            found.update(zip(rows, read_logits(self._resident(name).adapter, logits), strict=True))
        return [found[i] for i in range(len(texts))]

    def logits(
        self, texts: Sequence[Text], adapter: str, *, batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Float[Tensor, "N C"]:
        """What an adapter's head says of N texts, in their order, on the CPU, without dropout.

        Texts of like length share a pass.

        Raises:
            AdapterError: no adapter of that name.
            DataError: a pair where the task is over single texts, or the other way round.
            BackboneError: the backbone has no tokenizer.
            RecipeError: a batch size below 1.
        """
        if batch_size < 1:
            raise RecipeError(f"the batch size is {batch_size}", expected="1 or more", change="--batch-size")
        head, task = self._resident(adapter).adapter.head, self._resident(adapter).adapter.task
        logits = torch.empty(len(texts), head.num_outputs)
        if not texts:
            return logits
        tokenizer = self.backbone.require_tokenizer()
        encoded = encode(tokenizer, texts, pairs=task.pairs, max_length=task.max_length)
        # The longest first, so that what does not fit into memory fails at once.
        by_length = sorted(range(len(texts)), key=lambda i: -len(encoded["input_ids"][i]))
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(texts), batch_size):
                    rows = by_length[start : start + batch_size]
                    batch = tokenizer.pad({k: [v[i] for i in rows] for k, v in encoded.items()}, return_tensors="pt")
                    logits[rows] = self(**batch.to(self.device), adapters=adapter).logits.cpu()
        finally:
            self.train(training)
        return logits

    # -- what nn.Module and Hugging Face expect ------------------------------------------------------------------------

    @property
    def config(self) -> PretrainedConfig:
        """The backbone's configuration."""
        return self.backbone.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def train(self, mode: bool = True) -> "AdaptedModel":
        """Training mode for adapters and heads; for the backbone's own dropout only when it was asked for."""
        super().train(mode)
        self.model.train(mode and self.backbone_dropout)
        for module in self.model.modules() if self._checkpointing else ():
            # transformers recomputes only layers in training mode; the dropouts in them keep the mode they have.
            if isinstance(module, GradientCheckpointingLayer):
                module.training = mode
        self.graft.train(mode)
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Recompute layers in the backward pass instead of keeping their activations; ops act in the recomputation too.

        Raises:
            AdapterError: reentrant checkpointing, which cannot carry what acts into the recomputation.
        """
        given = dict(activation_checkpointing_kwargs or {})
        if given.get("use_reentrant"):
            raise AdapterError("reentrant gradient checkpointing is not supported", expected="use_reentrant=False")
        given |= {"use_reentrant": False, "context_fn": lambda: (nullcontext(), self.graft.run_again())}
        # transformers named it anew
        name = "activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient"
        getattr(self.model, f"{name}_checkpointing_enable")(given, **options)
        self._checkpointing = True
        self.train(self.training)

    def activation_checkpointing_disable(self) -> None:
        """Keep activations again."""
        name = "activation" if hasattr(self.model, "activation_checkpointing_disable") else "gradient"
        getattr(self.model, f"{name}_checkpointing_disable")()
        self.model.disable_input_require_grads()  # type: ignore[no-untyped-call]
        self._checkpointing = False
        self.train(self.training)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """The older name of `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """The older name of `activation_checkpointing_disable`."""
        self.activation_checkpointing_disable()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdaptedModel":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for resident in self.residents.values():
            if not resident.trainable:
                resident._apply(fn)
        return self

    # -- names ---------------------------------------------------------------------------------------------------------

    def _resident(self, name: str) -> Resident:
        if name not in self.residents:
            raise AdapterError(f"no adapter is named {name!r}", expected=nearest(name, self.residents))
        return self.residents[name]

    def _names(self, adapters: str | Sequence[str] | None, rows: int) -> list[str]:
        """One name a row."""
        if adapters is None:
            if len(self.residents) != 1:
                raise AdapterError(
                    f"{len(self.residents)} adapters are here, and none was named",
                    expected=f"adapters={nearest('', self.residents)}",
                )
            return list(self.residents) * rows
        if isinstance(adapters, str):
            return [adapters] * rows
        if len(adapters) != rows:
            raise AdapterError(f"{len(adapters)} adapter names were given for {rows} rows", expected="one name a row")
        return list(adapters)

    def _one_name(self, adapters: str | Sequence[str] | None, rows: int) -> str:
        names = set(self._names(adapters, rows))
        if len(names) != 1:
            raise AdapterError(
                f"one forward pass was given {len(names)} different adapters",
                expected="the same adapter for all rows; predict() takes one a row",
            )
        return names.pop()
