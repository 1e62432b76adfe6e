"""The teacher in a folder: an adapter, or a Hugging Face model with a task head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.distillation.contents import kind_of_teacher
from graftwork.distillation.pretrained import PretrainedTeacher
from graftwork.distillation.teacher import BATCH, Advance, Teacher, of_words
from graftwork.errors import BackboneError, DataError, GraftworkError, RecipeError
from graftwork.heads import Head
from graftwork.kinds import KINDS
from graftwork.model import AdaptedModel
from graftwork.passes.starts import HeadStart

NAME = "teacher"
"""Of an adapter, on the model that it is asked on."""


class AdapterTeacher(Teacher):
    """An adapter of any method. While it is asked, it is on its backbone, which no other model may hold then.

    Args:
        folder: its own.
        adapter: the adapter.
        backbone: that it was made for.
    """

    def __init__(self, folder: str, adapter: Adapter, backbone: Backbone) -> None:
        super().__init__(folder, adapter.task.labels, backbone.hidden_size)
        self.adapter, self.backbone = adapter, backbone

    def logits(self, inputs: Sequence[Any], advance: Advance) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        with self._on_backbone() as model:
            inference = model.inference(NAME)
            encoder, by_token = inference.encoder(NAME), self.adapter.head.by_token
            rows = encoder.encode(inputs)
            for places, batch in encoder.batches(rows, BATCH):
                said = inference.output(batch, NAME).require("logits").float().cpu()
                for place, own in zip(places, said, strict=True):
                    found[place] = of_words(own, rows[place]["places"]) if by_token else own[None]
                advance(len(places))
        return [found[place] for place in range(len(inputs))]

    def vectors(self, inputs: Sequence[Any], head: Head, advance: Advance) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        with self._on_backbone() as model, model.beginning(HeadStart(self.backbone, head)):
            encoder, by_token = model.encoder(NAME), head.by_token
            rows = encoder.encode(inputs)
            for places, batch in encoder.batches(rows, BATCH):
                said = model.states_to_cache(NAME, **batch).float().cpu()
                for place, own in zip(places, said, strict=True):
                    found[place] = of_words(own, rows[place]["places"]) if by_token else own[None]
                advance(len(places))
        return [found[place] for place in range(len(inputs))]

    def check_vectors(self, head: Head) -> None:
        head.check(self.backbone)

    @contextmanager
    def _on_backbone(self) -> Iterator[AdaptedModel]:
        model = AdaptedModel(self.backbone, {NAME: self.adapter})
        try:
            yield model
        finally:
            model.detach()


def open_teacher(folder: str, backbone: Backbone, *, kind: str, pairs: bool, max_length: int) -> Teacher:
    """The teacher in a folder.

    Args:
        folder: its own.
        backbone: the student's, on which teachers of the same one are put.
        kind: of the task that it is to teach.
        pairs: whether the task's inputs are pairs of texts.
        max_length: at how many tokens a Hugging Face model cuts a text; an adapter knows that.

    Raises:
        RecipeError: it is no teacher, or one for another kind of task; or the backbone of an adapter cannot be had.
        AdapterError: an adapter is damaged.
    """
    if kind_of_teacher(Path(folder)) == "model":
        return PretrainedTeacher(folder, kind=kind, pairs=pairs, max_length=max_length, device=backbone.device)
    adapter = Adapter.load(folder)
    if (adapter.kind, adapter.task.pairs) != (kind, pairs):
        inputs = ("single texts", "pairs of texts")
        both = ((adapter.kind, adapter.task.pairs), (kind, pairs))
        was, wanted = (f"{own} over {inputs[paired]}" for own, paired in both)
        raise RecipeError(
            f"teacher {folder!r} is for {was}, and the task is {wanted}",
            expected="one kind of task",
            change="--teacher",
        )
    if KINDS[kind].named and adapter.task.labels is None:
        raise RecipeError(
            f"teacher {folder!r} does not name its labels",
            expected="an adapter whose task has labels",
            change="--teacher",
        )
    own = backbone if adapter.backbone.fingerprint == backbone.fingerprint else _backbone_of(folder, adapter)
    return AdapterTeacher(folder, adapter, own)


def _backbone_of(folder: str, adapter: Adapter) -> Backbone:
    """The backbone that an adapter was made for.

    Raises:
        RecipeError: it cannot be loaded, or is another one by now.
    """
    try:
        backbone = Backbone.load(adapter.backbone.name)
        adapter.backbone.check(backbone)
    except GraftworkError as error:
        raise RecipeError(
            f"teacher {folder!r} needs its own backbone {adapter.backbone.name!r}, not the student's, and it cannot be "
            f"used: {error.problem}",
            expected=error.expected if isinstance(error, BackboneError | DataError) else "the backbone as it was",
            change="--teacher, or put the backbone where the adapter says it is",
        ) from error
    return backbone
