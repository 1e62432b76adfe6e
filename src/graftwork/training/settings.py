"""Training settings, with Hugging Face's names. Rates, epochs and schedules default to those of the method."""

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
from transformers.training_args import ParallelMode

from graftwork.backbones import Backbone
from graftwork.backbones.devices import on
from graftwork.backbones.quiet import quiet_transformers
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
"""Schedules that need settings beyond their names."""


class TrainingSettings(Checked):
    """How an adapter is trained.

    By default AdamW trains at the method's own learning rate, with epsilon 1e-6 and weight decay 0.01 (not on biases
    and norms). The rate rises linearly over the first tenth of the steps and then falls linearly to 0. Gradients are
    clipped at norm 1. A batch has 32 texts of similar length, each of at most 128 tokens. The checkpoint with the best
    validation score is kept.

    Attributes:
        seed: seed of initialisation, dropout and the order of the data.
        learning_rate: learning rate of the method's parameters. None: the method's default.
        head_learning_rate: learning rate of the head's parameters, which are random at first and need larger steps than
            those of most methods. None: the larger of `learning_rate` and the method's default for heads.
        num_train_epochs: number of epochs. None: the method's default.
        max_steps: stop after this many steps, whatever the number of epochs; -1: no limit.
        per_device_train_batch_size: number of texts in a training batch.
        per_device_eval_batch_size: number of texts in a batch when scores are measured.
        gradient_accumulation_steps: number of batches in one step of the optimiser.
        train_sampling_strategy: `group_by_length` puts texts of similar length into one batch, so that there is little
            padding; `random` does not.
        tokens_per_batch: fill a batch with texts of similar length up to this number of tokens, padding included,
            instead of taking `per_device_train_batch_size` texts. For multiple choice, the tokens of one choice count.
            None: off.
        gradient_checkpointing: recompute the layers in the backward pass instead of storing their activations.
        optim: the optimiser. `adafactor` takes its rate from the schedule and does not scale it by the parameters.
            None: the method's default.
        lr_scheduler_type: the learning rate schedule: one of transformers', or `slanted_triangular`, which rises from
            1/32 of the rate over the `warmup_ratio` share of the steps and falls back to 1/32. None: the method's
            default.
        warmup_ratio: share of the steps over which the learning rate rises.
        weight_decay: weight decay, which does not apply to biases and norms.
        adam_beta1: decay rate of AdamW's first moment.
        adam_beta2: decay rate of AdamW's second moment.
        adam_epsilon: epsilon of AdamW.
        max_grad_norm: norm at which gradients are clipped; 0: no clipping.
        max_length: maximum number of tokens of a text (or pair); longer ones are truncated. None: 128, or the number of
            positions of the backbone less those of a prompt, if that is smaller.
        max_target_length: for generation, and for multiple choice scored by a language model: maximum number of tokens
            of a target or choice. None: 128, or half of the backbone's positions, if that is smaller.
        max_new_tokens: for generation: maximum number of generated tokens. None: `max_target_length`.
        num_beams: for generation: number of beams; 1 is greedy search.
        generation_examples: for generation: generate texts for the first so many sources of a split only. None: for
            all. The loss is always over the whole split.
        eval_strategy: measure validation scores and save a checkpoint after each `epoch`, or every `eval_steps`
            `steps`.
        eval_steps: number of steps between two measurements, with `eval_strategy` `steps`. None: 500.
        logging_steps: number of steps between two entries of the log.
        early_stopping_patience: stop after this many measurements in a row without a better score. None: never.
        backbone_dropout: `keep` the backbone's own dropout in training, turn it `off`, or `auto`: off if the backbone
            is frozen, kept if its weights are trained.
        prefix_cache: compute the frozen part below everything that is trained once per text, and store its output in
            graftwork's cache folder: `auto` (if that is possible and there are at least two epochs), `on` (an error if
            it is not possible), or `off`.
        prefix_cache_gb: maximum size of that cache, in gigabytes (10⁹ bytes).
        fsdp: for several processes, on which the backbone does not fit as a whole: each holds a part of the weights of
            each frozen layer, which are gathered when the layer runs.
        torch_compile: compile the backbone's layers with `torch.compile` for training steps.
        baseline: `auto` also fits a linear model on the frozen backbone's output, for comparison, if the task is
            classification or regression of texts; `off` does not.
        report_to: experiment trackers, by transformers' names, separated by commas.
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
    fsdp: bool = False
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
            raise ValueError("this schedule needs further settings, which are not supported")
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

    @model_validator(mode="after")
    def _compiled_layers_are_whole(self) -> "TrainingSettings":
        if self.torch_compile and self.fsdp:
            raise ValueError("torch_compile and fsdp cannot be combined: expected one of the two")
        return self

    def resolved(self, method: Method, backbone: Backbone, kind: str = DEFAULT_KIND) -> "TrainingSettings":
        """The settings with the defaults of the method and the backbone filled in.

        Args:
            method: the method that is trained.
            backbone: the frozen model.
            kind: the kind of task.

        Raises:
            RecipeError: a maximum length exceeds the backbone's positions, less those that the method takes; or a
                setting does not apply to the kind of task.
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
        """The schedule, if it is one of graftwork's own; None for transformers' schedules."""
        return SCHEDULES.get(self.lr_scheduler_type or "")

    def arguments(
        self, folder: Path, *, metric: str, greater_is_better: bool, device: torch.device, shared: bool = False
    ) -> TrainingArguments:
        """The `transformers.TrainingArguments` of resolved settings.

        Args:
            folder: folder for checkpoints.
            metric: the validation metric that selects the best checkpoint.
            greater_is_better: whether a higher value of the metric is better.
            device: the device of the backbone.
            shared: whether several processes train the adapter together.

        Raises:
            RecipeError: the run was started as several processes, and is not shared; or it is not shared, and the
                backbone is to be.
        """
        # transformers makes the machine's first device the current one.
        refuse_unsharded(self, several=shared)
        with on(device), quiet_transformers():
            arguments = self._arguments(folder, metric, greater_is_better, device)
        if arguments.processes > 1 and not shared:
            raise RecipeError(
                f"the run was started as {arguments.processes} processes",
                expected="one process: several can only tune one adapter on one task, without teachers",
                change="torchrun or accelerate launch",
            )
        # The ops are on one device, so a model cannot be copied to several.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments

    def _arguments(self, folder: Path, metric: str, greater_is_better: bool, device: torch.device) -> "PlacedArguments":
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
            # Losses are divided by the counts of all processes together.
            average_tokens_across_devices=False,
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type != "cpu",
        )


def refuse_unsharded(settings: TrainingSettings, *, several: bool) -> None:
    """Refuse to shard a backbone over one process.

    Args:
        several: whether there are others that train the same adapter.

    Raises:
        RecipeError: it is asked for, and there are none.
    """
    if settings.fsdp and not several:
        raise RecipeError(
            "fsdp shards the backbone over several processes that tune one adapter, and here one process does",
            expected="a run started by torchrun or accelerate launch, with one task and one adapter; or false",
            change="--train.fsdp",
        )


@dataclass
class PlacedArguments(TrainingArguments):
    """`TrainingArguments` for a model that stays on its device. By default, transformers would move the model to the
    first device of the machine.

    What several processes share out is no matter of transformers': to it each is a process of its own, of which the
    first one saves and reports.

    Attributes:
        placed_on: the device.
    """

    placed_on: str = "cpu"

    @property
    def device(self) -> torch.device:
        """The device of the model and of the batches."""
        # What it finds on the machine is remembered by others.
        _ = super().device
        return torch.device(self.placed_on)

    @property
    def processes(self) -> int:
        """How many processes the run was started as."""
        started: int = super().world_size
        return started

    @property
    def world_size(self) -> int:
        return 1

    @property
    def parallel_mode(self) -> ParallelMode:
        return ParallelMode.NOT_PARALLEL

    @property
    def place_model_on_device(self) -> bool:
        """The model is not moved."""
        return False
