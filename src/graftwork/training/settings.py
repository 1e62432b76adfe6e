"""Training settings, under Hugging Face's names; rates, epochs and schedules are the method's where none are given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from transformers import SchedulerType, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from graftwork.backbones import Backbone
from graftwork.backbones.devices import on
from graftwork.errors import RecipeError
from graftwork.kinds import DEFAULT_KIND, KINDS
from graftwork.methods import Method
from graftwork.settings.checked import Checked
from graftwork.settings.problems import describe, flags
from graftwork.training.lengths import lengths
from graftwork.training.schedules import SCHEDULES, Schedule

EVAL_STEPS = 500
INCOMPLETE = {
    *(SchedulerType.COSINE_WITH_MIN_LR, SchedulerType.COSINE_WARMUP_WITH_MIN_LR, SchedulerType.WARMUP_STABLE_DECAY),
}
"""Schedules that nothing can be done with by name alone."""


class TrainingSettings(Checked):
    """How an adapter is trained.

    Defaults: AdamW at the method's own rate, with eps 1e-6 and weight decay 0.01 that spares biases and norms; the rate
    rises linearly over the first tenth of the steps and then falls linearly to 0; gradients clipped at norm 1; batches
    of 32 texts of like length, of at most 128 tokens; the checkpoint with the best validation score is kept.

    Attributes:
        learning_rate, head_learning_rate, num_train_epochs, optim, lr_scheduler_type: None takes the method's default.
        head_learning_rate: of the head's parameters, which start from nothing and need larger steps than most methods.
        optim: `adafactor` takes its rate from the schedule and does not scale it by the parameters.
        lr_scheduler_type: one of transformers' schedules, or `slanted_triangular`, which rises over the steps of
            `warmup_ratio` from 1/32 of the rate and falls back to it.
        max_steps: ends training after this many steps, whatever the epochs; -1 for no such end.
        train_sampling_strategy: `group_by_length` puts texts of like length into one batch, so that little of it is
            padding; `random` takes any.
        tokens_per_batch: puts as many texts of like length into a batch as have so many tokens with padding, in the
            place of `per_device_train_batch_size` texts; of questions, the tokens of one choice. None does not.
        warmup_ratio: share of the steps over which the rate rises.
        max_length: tokens a text (or pair) is cut to. None: 128, or what the backbone has positions for, less those
            of a prompt.
        max_target_length: of generation, and of a multiple choice judged by a language model: tokens a target or choice
            is cut to. None: 128, or half of what the backbone has positions for.
        max_new_tokens: of generation, tokens that are generated at most. None: max_target_length.
        num_beams: of generation, the beams of the search; 1 takes the likeliest token each time.
        generation_examples: of generation, how many sources of a split texts are generated of to be scored, the first
            ones of it; None: all. The loss is over all of them in any case.
        eval_strategy: score and save after each `epoch`, or every `eval_steps` (500) `steps`.
        early_stopping_patience: stop after this many scorings without a better one; None never stops early.
        backbone_dropout: `keep` the backbone's own dropout in training, turn it `off`, or `auto`: off while the
            backbone is frozen, kept when its own weights are trained.
        prefix_cache: whether what comes before everything that is trained is computed once a text and kept in
            graftwork's cache folder: `auto` where it can be and two epochs or more are trained, `on` (an error where it
            cannot), or `off`.
        prefix_cache_gb: gigabytes that all that is kept there may take.
        torch_compile: whether the backbone's layers run compiled by torch.compile in the passes of a training step.
        baseline: `auto` fits a linear model on the frozen backbone's states, to compare the adapter with (see
            `graftwork.training.baseline`), where the task is classification or regression of texts; `off` does not.
        report_to: experiment trackers, as transformers names them, separated by commas.
    """

    seed: int = Field(default=0, ge=0, lt=2**32)
    learning_rate: PositiveFloat | None = None
    head_learning_rate: PositiveFloat | None = None
    num_train_epochs: PositiveFloat | None = None
    max_steps: int = -1
    per_device_train_batch_size: PositiveInt = 32
    per_device_eval_batch_size: PositiveInt = 64
    gradient_accumulation_steps: PositiveInt = 1
    train_sampling_strategy: Literal["group_by_length", "random"] = "group_by_length"
    tokens_per_batch: PositiveInt | None = None
    gradient_checkpointing: bool = False
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"] | None = None
    lr_scheduler_type: str | None = None
    warmup_ratio: NonNegativeFloat = Field(default=0.1, lt=1.0)
    weight_decay: NonNegativeFloat = 0.01
    adam_beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    adam_beta2: float = Field(default=0.999, ge=0.0, lt=1.0)
    adam_epsilon: PositiveFloat = 1e-6
    max_grad_norm: NonNegativeFloat = 1.0
    max_length: PositiveInt | None = None
    max_target_length: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None
    num_beams: PositiveInt = 1
    generation_examples: PositiveInt | None = None
    eval_strategy: Literal["epoch", "steps"] = "epoch"
    eval_steps: PositiveInt | None = None
    logging_steps: PositiveInt = 10
    early_stopping_patience: PositiveInt | None = None
    backbone_dropout: Literal["auto", "keep", "off"] = "auto"
    prefix_cache: Literal["auto", "on", "off"] = "auto"
    prefix_cache_gb: PositiveFloat = 4.0
    torch_compile: bool = False
    baseline: Literal["auto", "off"] = "auto"
    report_to: str = "none"

    @classmethod
    def refusal(cls, details: Sequence[Any]) -> RecipeError:
        return RecipeError(f"invalid training settings: {describe(details, cls)}", change=flags(details, "train"))

    @field_validator("max_steps")
    @classmethod
    def _some_steps(cls, steps: int) -> int:
        if steps < 1 and steps != -1:
            raise ValueError("expected 1 or more, or -1 for no limit")
        return steps

    @field_validator("report_to")
    @classmethod
    def _known_trackers(cls, names: str) -> str:
        wanted = {name.strip() for name in names.split(",")}
        unknown = sorted(wanted - {"none", "all", *INTEGRATION_TO_CALLBACK})
        if unknown:
            raise ValueError(f"unknown trackers {', '.join(unknown)}; known are {', '.join(INTEGRATION_TO_CALLBACK)}")
        absent = sorted(wanted - {"none", "all", *get_available_reporting_integrations()})  # type: ignore[no-untyped-call]
        if absent:
            raise ValueError(f"{', '.join(absent)} cannot be used: the package is not installed")
        return names

    @field_validator("lr_scheduler_type")
    @classmethod
    def _complete_schedule(cls, schedule: str | None) -> str | None:
        if schedule in INCOMPLETE:
            raise ValueError("this schedule needs settings of its own, which cannot be given")
        known = [*(kind.value for kind in SchedulerType if kind not in INCOMPLETE), *SCHEDULES]
        if schedule is not None and schedule not in known:
            raise ValueError(f"unknown schedule; known are {', '.join(known)}")
        return schedule

    @model_validator(mode="after")
    def _eval_steps_belong_to_steps(self) -> "TrainingSettings":
        if self.eval_strategy == "epoch" and self.eval_steps is not None:
            raise ValueError("eval_steps needs eval_strategy=steps")
        return self

    @model_validator(mode="after")
    def _tokens_are_of_like_lengths(self) -> "TrainingSettings":
        if self.tokens_per_batch is not None and self.train_sampling_strategy == "random":
            raise ValueError("tokens_per_batch needs train_sampling_strategy=group_by_length")
        return self

    @model_validator(mode="after")
    def _compiled_layers_keep_activations(self) -> "TrainingSettings":
        if self.torch_compile and self.gradient_checkpointing:
            raise ValueError("torch_compile and gradient_checkpointing cannot be combined: expected one of the two")
        return self

    def resolved(self, method: Method, backbone: Backbone, kind: str = DEFAULT_KIND) -> "TrainingSettings":
        """The same with the method's and the backbone's defaults in the place of what was left open.

        Args:
            kind: the task's.

        Raises:
            RecipeError: texts are longer than the backbone has positions for, less those that the method takes; or a
                setting is not for the kind.
        """
        longest = lengths(self, backbone, kind, method.num_prompt_tokens)
        self._check_budget(kind, (longest["max_length"] or 0) + (longest.get("max_target_length") or 0))
        dropout = self.backbone_dropout
        if dropout == "auto":
            dropout = "off" if method.frozen_backbone else "keep"
        rate = self.learning_rate or method.learning_rate
        return self.model_copy(
            update={
                "learning_rate": rate,
                "head_learning_rate": self.head_learning_rate or max(rate, method.head_learning_rate),
                "num_train_epochs": self.num_train_epochs or float(method.num_train_epochs),
                "optim": self.optim or method.optim,
                "lr_scheduler_type": self.lr_scheduler_type or method.lr_scheduler_type,
                **longest,
                "eval_steps": self.eval_steps or (EVAL_STEPS if self.eval_strategy == "steps" else None),
                "backbone_dropout": dropout,
            }
        )

    def _check_budget(self, kind: str, longest: int) -> None:
        if self.tokens_per_batch is None:
            return
        if "image" in KINDS[kind].inputs:
            raise RecipeError("images have no tokens to fill a batch with", change="--train.tokens_per_batch")
        if self.tokens_per_batch < longest:
            raise RecipeError(
                f"a batch of {self.tokens_per_batch} tokens has no room for a text of {longest}",
                expected=f"{longest} or more",
                change="--train.tokens_per_batch, or --train.max_length",
            )

    @property
    def schedule(self) -> Schedule | None:
        """The schedule, where it is none of transformers'."""
        return SCHEDULES.get(self.lr_scheduler_type or "")

    def arguments(
        self, folder: Path, *, metric: str, greater_is_better: bool, device: torch.device
    ) -> TrainingArguments:
        """transformers' arguments for resolved settings.

        Args:
            folder: where checkpoints go.
            metric: the validation metric that chooses the best checkpoint.
            device: the backbone's.

        Raises:
            RecipeError: the run was started as several processes.
        """
        # transformers makes the machine's first device the current one.
        with on(device):
            arguments = self._arguments(folder, metric, greater_is_better, device)
        if arguments.world_size > 1:
            raise RecipeError(
                f"the run was started as {arguments.world_size} processes",
                expected="one process: train one adapter in each",
            )
        # The ops are on one device, so a model cannot be copied to several.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments

    def _arguments(self, folder: Path, metric: str, greater_is_better: bool, device: torch.device) -> TrainingArguments:
        same = (
            *("seed", "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
            *("per_device_eval_batch_size", "gradient_accumulation_steps", "optim"),
            *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
            *("eval_strategy", "logging_steps"),
        )
        return PlacedArguments(
            placed_on=str(device),
            output_dir=str(folder),
            **{name: getattr(self, name) for name in same},
            # The trainer is given a schedule of our own by itself.
            lr_scheduler_type="constant" if self.schedule else self.lr_scheduler_type or SchedulerType.LINEAR,
            warmup_steps=self.warmup_ratio,
            eval_steps=self.eval_steps,
            save_strategy=self.eval_strategy,
            save_steps=self.eval_steps or 1,
            save_total_limit=2,
            restore_callback_states_from_checkpoint=True,
            load_best_model_at_end=True,
            metric_for_best_model=metric,
            # The trainer ends a run that diverges: it need not make its losses look finite.
            logging_nan_inf_filter=False,
            greater_is_better=greater_is_better,
            report_to=[name.strip() for name in self.report_to.split(",")],
            label_names=["labels"],
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type != "cpu",
        )


@dataclass
class PlacedArguments(TrainingArguments):
    """transformers' arguments for a model that is on some device and stays there. Of themselves they are for the
    machine's first one, to which they would have the model moved.

    Attributes:
        placed_on: the device.
    """

    placed_on: str = "cpu"

    @property
    def device(self) -> torch.device:
        """Where the model is and batches go to."""
        # What it finds on the machine is remembered by others.
        _ = super().device
        return torch.device(self.placed_on)

    @property
    def place_model_on_device(self) -> bool:
        """The model is not moved."""
        return False
