"""The trainer: transformers' own, with the rates and the unfreezing that methods declare. It saves adapters in
the place of models.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graftwork.adapters import Adapter
from graftwork.adapters.contents import not_finite
from graftwork.adapters.folder import TENSORS, write_files
from graftwork.errors import DivergedError
from graftwork.folders import writing
from graftwork.heads.projection import Projection
from graftwork.methods.parameters import Parameter
from graftwork.model import AdaptedModel
from graftwork.training.coroutine import ThreadCoroutine
from graftwork.training.distilling import Lesson
from graftwork.training.joint_passes import OneAdapter, Step
from graftwork.training.sampling import Batches
from graftwork.training.schedules import Schedule, scheduler
from graftwork.training.settings import TrainingSettings

STATE = "trainer_state.json"

AID = "aid.safetensors"
"""The file of a checkpoint with what is trained beside the adapter, and discarded at the end."""

CHECKPOINTS = "checkpoint-*"
"""The folders of a run's checkpoints."""

logger = logging.getLogger(__name__)


class AdapterTrainer(Trainer):
    """Trains the one trainable adapter of an `AdaptedModel`.

    Checkpoints hold the adapter, the optimizer's state and the random states; never the backbone.

    Attributes:
        lesson: what the adapter learns from besides its rows' labels; None: nothing.

    Args:
        adapter_name: the adapter's, on the model.
        batches: the places of the rows that share a batch, epoch by epoch.
        head_learning_rate: the head's; None: the run's.
        schedule: the learning rate's, in the place of transformers' own.
        scorer: gives the scores that choose among checkpoints.
        coroutine: of a run among several, what it runs in: its steps are then asked of the coroutine's caller, and so
            is what is scored. The model is a `OneAdapter`.
    """

    def __init__(
        self,
        *args: Any,
        adapter_name: str,
        batches: Batches,
        head_learning_rate: float | None = None,
        schedule: Schedule | None = None,
        scorer: Callable[[], dict[str, float]] | None = None,
        coroutine: ThreadCoroutine | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.adapter_name = adapter_name
        self.batches = batches
        self.head_learning_rate = head_learning_rate
        self.schedule = schedule
        self.scorer = scorer
        self.lesson: Lesson | None = None
        self.coroutine = coroutine
        self._moment = (-1, 0)
        self.add_callback(GradualUnfreezing(self))

    def create_accelerator_and_postprocess(self) -> None:
        """accelerate moves nothing: the model stays where it is, and batches are sent there by the trainer."""
        super().create_accelerator_and_postprocess()
        self.accelerator.device_placement = False

    @property
    def adapted(self) -> AdaptedModel:
        """The model, out of any wrapping for several devices."""
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, OneAdapter):
            return model.adapted
        assert isinstance(model, AdaptedModel)
        return model

    @property
    def adapter(self) -> Adapter:
        """The adapter as it is now."""
        return self.adapted.adapter(self.adapter_name)

    @property
    def steps(self) -> int:
        """Of the whole run, as transformers counts them."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        return ceil(self.args.num_train_epochs * ceil(len(self.batches) / self.args.gradient_accumulation_steps))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The rows in the batches and the order of the sampling that was asked for."""
        rows: Any = self.train_dataset
        collate: Any = self.data_collator
        lesson = self.lesson
        loader = DataLoader(
            rows if lesson is None else lesson.rows(rows),
            batch_sampler=self.batches,
            collate_fn=collate if lesson is None else partial(lesson.collate, collate),
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.prepared(loader)

    def prepared(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """The loader as accelerate has it."""
        found: DataLoader[Any] = self.accelerator.prepare(loader)
        return found

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The batches of a step, and what the terms of their loss are means over, all of them together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, self.step_counts(batches)

    def step_counts(self, batches: Sequence[Mapping[str, Any]]) -> Any:
        """What the terms of a step's loss are means over, of all its batches together."""
        return self.adapted.residents[self.adapter_name].adapter.head.step_counts(batches)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """What a batch adds to the loss of its step, whose gradients are then there.

        Raises:
            DivergedError: that is no finite number.
        """
        loss = self._step(model, inputs, num_items_in_batch)
        if not loss.isfinite():
            raise DivergedError.of(f"the training loss is {float(loss)} in step {self.state.global_step + 1}")
        return loss

    def _step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        if self.coroutine is None:
            return super().training_step(model, inputs, num_items_in_batch)
        step, times = self._moment
        self._moment = (self.state.global_step, times + 1 if step == self.state.global_step else 0)
        loss: Tensor = self._ask(
            Step(
                batch=self._prepare_inputs(inputs),
                counts=num_items_in_batch,
                moment=(self.args.seed, *self._moment),
            )
        )
        return loss

    def _ask(self, question: Any) -> Any:
        """Ask the coroutine's caller; other runs may go on before it answers."""
        assert self.coroutine is not None
        # accelerate keeps this for all trainers of a process in one place.
        shared = self.accelerator.gradient_state
        synced = shared.sync_gradients
        answer = self.coroutine.ask(question)
        shared._set_sync_gradients(synced)
        return answer

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The scorer's scores, logged."""
        assert self.scorer is not None
        scored = self.scorer() if self.coroutine is None else self._ask(self.scorer)
        scores = {f"{metric_key_prefix}_{name}": value for name, value in scored.items()}
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def resume_from(self, checkpoint: Path) -> None:
        """Stand where a run stood that was killed after its last step."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._load_best_model()

    def declared(self) -> list[tuple[Tensor, Parameter]]:
        """What is trained, each tensor with its declaration."""
        resident = self.adapted.in_training(self.adapter_name)
        declared = resident.adapter.declared(self.adapted.backbone)
        tensors = resident.tensors()
        own = [(tensors[name], parameter) for name, parameter in declared.items() if parameter.trained]
        projection = self.projection
        return own if projection is None else [*own, (projection.weight, projection.declared)]

    @property
    def projection(self) -> Projection | None:
        """Of the adapter's vectors into those of its teachers; None where there is none."""
        return None if self.lesson is None else self.lesson.loss.projection

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """What the method and head declare to decay; transformers would guess by name."""
        decaying = {id(tensor) for tensor, parameter in self.declared() if parameter.decay}
        return [name for name, tensor in model.named_parameters() if id(tensor) in decaying]

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer, with a group of parameters for each rate, and for what decays or not. The method's highest
        rate comes first: it is the one that is logged.
        """
        if self.optimizer is None:
            head_rate = self.head_learning_rate or self.args.learning_rate
            groups: dict[tuple[bool, float, bool], list[Tensor]] = {}
            for tensor, parameter in self.declared():
                of_head = self.head_learning_rate is not None and parameter.group == "head"
                groups.setdefault((not of_head, parameter.rate, parameter.decay), []).append(tensor)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(
                [
                    {
                        "params": groups[own, rate, decay],
                        "lr": rate * (self.args.learning_rate if own else head_rate),
                        "weight_decay": self.args.weight_decay if decay else 0.0,
                    }
                    for own, rate, decay in sorted(groups, reverse=True)
                ],
                **options,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The run's own schedule, or transformers'."""
        if self.schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            rise = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = scheduler(self.schedule, optimizer or self.create_optimizer(), rise, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with writing(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.write_tensors(folder)

    def write_tensors(self, folder: Path) -> None:
        """Write what is trained to a checkpoint's folder.

        Raises:
            DivergedError: it is not finite.
        """
        adapter, beside = self.adapter, {} if self.projection is None else self.projection.tensors()
        self.require_finite({**adapter.tensors, **beside})
        write_files(adapter, folder)
        if beside:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in beside.items()}, folder / AID)

    def require_finite(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse to save what diverged.

        Raises:
            DivergedError: names a tensor that is not finite.
        """
        broken = not_finite(tensors)
        if broken:
            raise DivergedError.of(f"{broken[0]} holds NaN or infinity after step {self.state.global_step}")

    def read_tensors(self, folder: Path) -> None:
        """Have what is trained be what a checkpoint's folder has."""
        self.adapted.in_training(self.adapter_name).assign(load_file(folder / TENSORS))
        if self.projection is not None:
            saved = load_file(folder / AID)
            with torch.no_grad():
                for name, tensor in self.projection.tensors().items():
                    tensor.copy_(saved[name])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.read_tensors(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        # By its step and not by the path that the state notes: the folder may have been moved since.
        self.read_tensors(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.best_global_step}")


class GradualUnfreezing(TrainerCallback):
    """Keeps what is unfrozen later out of the gradients until its epoch comes (Howard & Ruder 2018, section 3.3).

    An optimizer leaves a parameter without a gradient as it is, weight decay included, and holds no state for it; so a
    run that is resumed in a later epoch goes on as it would have.
    """

    def __init__(self, trainer: AdapterTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        epoch = int(state.epoch or 0)
        for tensor, parameter in self.trainer.declared():
            tensor.requires_grad_(epoch >= parameter.unfreezes)


def tell_of_late_thawing(trainer: AdapterTrainer, settings: TrainingSettings) -> None:
    """Say so when a run ends before everything in it is trained."""
    last = max((parameter.unfreezes for _, parameter in trainer.declared()), default=0)
    epochs = 1 + last
    if last and settings.max_steps == -1 and (settings.num_train_epochs or epochs) < epochs:
        logger.warning(
            "a run of %g epochs ends before all layers are unfrozen, one an epoch: the last of them are trained from "
            "epoch %d (--train.num_train_epochs)",
            settings.num_train_epochs,
            epochs,
        )


def step_of(checkpoint: Path) -> int:
    """How many steps had been done when the checkpoint was saved."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end; None when there is none.

    A process killed while saving leaves a checkpoint without its state file, which is written last, or with half of
    one.
    """
    for checkpoint in sorted(folder.glob(CHECKPOINTS), key=step_of, reverse=True):
        if _state(checkpoint).get("global_step") == step_of(checkpoint):
            return checkpoint
    return None


def best_checkpoint(folder: Path) -> tuple[Path, float] | None:
    """The checkpoint with the best score, and the score; None when there is none. What is not finite is not saved."""
    last = last_checkpoint(folder)
    if last is None:
        return None
    state = _state(last)
    return folder / f"checkpoint-{state['best_global_step']}", float(state["best_metric"])


def has_ended(checkpoint: Path) -> bool:
    """Whether training ended with that checkpoint: at its last step, or because it was stopped early."""
    return bool(_state(checkpoint)["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"])


def _state(checkpoint: Path) -> Mapping[str, Any]:
    """The trainer's saved state; empty when it was not written, or not to its end."""
    try:
        state: Mapping[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state
