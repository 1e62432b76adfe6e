"""What a run says first: the backbone as it runs, the task, the number of steps, and which settings are defaults."""

from collections.abc import Mapping

from graftwork.backbones import Backbone
from graftwork.backbones.pooling import Pooling, PoolingSource, describe_pooling
from graftwork.kinds import KINDS
from graftwork.tasks import Task
from graftwork.training.settings import TrainingSettings

DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "epochs": ("num_train_epochs", "max_steps"),
    "batch size": ("per_device_train_batch_size", "tokens_per_batch"),
    "learning rate": ("learning_rate",),
    "head's learning rate": ("head_learning_rate",),
}
"""What is said to be a default, where none of these settings was given."""


def of_backbone(backbone: Backbone, *, parts: int = 1) -> str:
    """Its name, layout, size, device and precision.

    Args:
        parts: over how many processes its layers are sharded.
    """
    size = f"{backbone.num_parameters / 1e6:.1f}M"
    precision = str(backbone.dtype).removeprefix("torch.")
    sharded = f", layers sharded over {parts} processes" if parts > 1 else ""
    return f"backbone {backbone.name} ({backbone.family.name}, {size}) on {backbone.device}, {precision}{sharded}"


def of_task(task: Task, rows: Mapping[str, int]) -> str:
    """Its name and kind, the rows of each split, and its classes.

    Args:
        rows: by split.
    """
    counts = ", ".join(f"{count:,} {split}" for split, count in rows.items())
    classes = "" if task.labels is None or not KINDS[task.kind].named else f", {len(task.labels)} classes"
    pairs = " of pairs" if task.text_pair is not None else ""
    return f"task {task.name} ({task.kind}{pairs}; {counts} rows{classes})"


def of_pooling(pooling: Pooling | None, source: PoolingSource | None) -> str:
    """How inputs are pooled, and who chose it; empty where nothing is."""
    return "" if pooling is None else f"pooling {describe_pooling(pooling, source)}"


def of_loading(backbone: str) -> str:
    """That a backbone is loaded, which takes a while."""
    return f"loading backbone {backbone}"


def of_training(settings: TrainingSettings, given: TrainingSettings, steps: int) -> str:
    """How many steps are trained, at which rates, and which of that are defaults.

    Args:
        settings: resolved.
        given: the same before defaults were filled in.
        steps: of the whole run.
    """
    batch = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    batches = f"batches of {batch}" if settings.tokens_per_batch is None else f"{settings.tokens_per_batch} tokens each"
    length = f"{settings.num_train_epochs:g} epochs of {batches}" if settings.max_steps < 1 else f"{batches}"
    rates = f"learning rate {settings.learning_rate:g}, head {settings.head_learning_rate:g}"
    own = given.model_fields_set - {name for name in given.model_fields_set if getattr(given, name) is None}
    defaults = [name for name, fields in DEFAULTS.items() if not own.intersection(fields)]
    source = f"defaults (docs/defaults.md): {', '.join(defaults)}" if defaults else ""
    return joined(f"{steps:,} step{'' if steps == 1 else 's'}: {length}", rates, source)


def joined(*parts: str) -> str:
    """Parts as one line, less those that are empty."""
    return "; ".join(part for part in parts if part)
