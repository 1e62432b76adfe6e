"""The trainer of a run: the rows as they are encoded, their batches, and transformers' trainer with our settings."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from graftwork.kinds import KINDS
from graftwork.model import AdaptedModel
from graftwork.tasks import TaskData
from graftwork.training.callbacks import with_scores_kept
from graftwork.training.coroutine import ThreadCoroutine
from graftwork.training.examples import examples, lengths_of
from graftwork.training.joint_passes import OneAdapter
from graftwork.training.outputs import LOG
from graftwork.training.processes import Processes
from graftwork.training.progress import Log
from graftwork.training.sampling import Batches, LengthGrouped, Shuffled, TokenBudget
from graftwork.training.scoring import Scorer
from graftwork.training.settings import TrainingSettings
from graftwork.training.shared_trainer import SharedTrainer
from graftwork.training.trainer import AdapterTrainer


def trainer_for(
    model: AdaptedModel,
    name: str,
    data: TaskData,
    settings: TrainingSettings,
    working: Path,
    scorer: Scorer,
    *,
    callbacks: Sequence[TrainerCallback],
    coroutine: ThreadCoroutine | None,
    processes: Processes,
) -> AdapterTrainer:
    """Make the trainer of an adapter that is trained on a model.

    Args:
        model: what the adapter is on.
        name: the adapter's name there.
        data: of its task.
        settings: resolved.
        working: the folder of checkpoints and of the log.
        scorer: scores the validation split.
        callbacks: what is told of its steps.
        coroutine: what the run is in, where it is one of several.
        processes: those that train the adapter together.
    """
    task, encoder = data.task, model.inference(name).encoder(name)
    arguments = settings.arguments(
        working,
        metric=task.main_metric,
        greater_is_better=KINDS[task.kind].metrics[task.main_metric].greater_is_better,
        device=model.device,
        shared=processes.several,
    )
    rows = examples(encoder, task.kind, data.train)
    # Generating is slow: unless it chooses the checkpoint, it is done once, at the end.
    apart = settings.backbone_dropout == "keep"
    shared = partial(SharedTrainer, processes=processes, apart=apart, sharded=settings.fsdp)
    kind = shared if processes.several else AdapterTrainer
    trainer = kind(
        model=model if coroutine is None else OneAdapter(model, name),
        args=arguments,
        adapter_name=name,
        batches=_batches(lengths_of(encoder, rows), settings),
        head_learning_rate=settings.head_learning_rate,
        schedule=settings.schedule,
        scorer=partial(scorer, generate=task.main_metric != "loss"),
        coroutine=coroutine,
        train_dataset=rows,
        eval_dataset=scorer.encoded,
        data_collator=encoder.collate,
        # The log notes what others ask for.
        callbacks=[*with_scores_kept(callbacks), Log(working / LOG)],
    )
    trainer.remove_callback(PrinterCallback)
    if settings.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
    return trainer


def _batches(lengths: Sequence[int], settings: TrainingSettings) -> Batches:
    """The batches of rows of such lengths."""
    if settings.train_sampling_strategy == "random":
        return Shuffled(len(lengths), settings.per_device_train_batch_size, seed=settings.seed)
    if settings.tokens_per_batch is not None:
        return TokenBudget(lengths, settings.tokens_per_batch, seed=settings.seed)
    return LengthGrouped(lengths, settings.per_device_train_batch_size, seed=settings.seed)
