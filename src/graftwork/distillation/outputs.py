"""What teachers say of a run's inputs: computed once, kept in the run's folder, and given to batches of the student.

Notation: N inputs, W words of an input, C outputs, d width, B rows of a batch, T tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from graftwork.backbones import Backbone
from graftwork.distillation.settings import Distillation
from graftwork.distillation.teacher import Advance
from graftwork.distillation.teachers import open_teacher
from graftwork.encoding import ABSENT
from graftwork.encoding.tokens import Row
from graftwork.errors import DataError, MethodError, RecipeError
from graftwork.folders import write_whole, writing
from graftwork.heads import Head
from graftwork.heads.distilling import (
    TEACHER_LOGITS,
    TEACHER_VECTORS,
    DistillationLoss,
    require_distillable,
)
from graftwork.heads.head import OutputType
from graftwork.heads.projection import Projection
from graftwork.kinds import KINDS

Quantity = Literal["logits", "vectors"]

PIECE = 1024
"""Inputs that teachers are asked for before what they said is written."""

KEPT = "teacher-*.safetensors"
"""The files in a run's folder with what teachers said."""

OUTSIDE = "O"
"""The tag of a word that no teacher was given."""


class Teaching:
    """The teachers of a run, and what they say.

    Args:
        settings: resolved ones.
        backbone: the student's, which no model may hold while teachers of the same one are asked.
        kind: of the task.
        pairs: whether its inputs are pairs of texts.
        max_length: at how many tokens texts are cut.
        folder: where what they say is kept, and is read from where it was kept before.

    Raises:
        RecipeError: a teacher cannot be had, or is for another kind of task; or a setting would do nothing.
        MethodError: there is no distillation for this kind of task.
    """

    def __init__(
        self, settings: Distillation, backbone: Backbone, *, kind: str, pairs: bool, max_length: int, folder: Path
    ) -> None:
        own = KINDS[kind]
        if "text" not in own.inputs or not (own.pooled or own.by_token):
            raise MethodError(
                f"an adapter for {kind} cannot learn from teachers: its outputs are no classes, labels or numbers of "
                "one text or word each",
                expected=" or ".join(n for n, k in KINDS.items() if "text" in k.inputs and (k.pooled or k.by_token)),
                change="--task, or --kind",
            )
        settings.refuse_idle(kind)
        self.settings, self.folder, self.by_token = settings, folder, own.by_token
        self.teachers = [
            open_teacher(source.folder, backbone, kind=kind, pairs=pairs, max_length=max_length)
            for source in settings.teachers
        ]
        self._stores = {name: _Store(folder, f"teacher-{name}") for name in ("logits", "vectors")}
        self._labels: tuple[str, ...] | None = self.teachers[0].labels
        self._width = backbone.hidden_size
        self._said: list[Tensor] = []
        self._vectors: list[Tensor] | None = None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The task's labels, in whose order logits are: the first teacher's, until `use_labels` is given others."""
        return self._labels

    def use_labels(self, labels: tuple[str, ...] | None) -> None:
        """Give logits in the order of these labels.

        Raises:
            RecipeError: a teacher has others.
        """
        for teacher in self.teachers:
            teacher.order(labels)
        self._labels = labels

    def decide(self, inputs: Sequence[Any], output_type: OutputType, advance: Advance) -> list[Any]:
        """What the teachers take for the labels of inputs, as a table has them: a name, a list of names, a number."""
        names = self._labels or ()
        found: list[Any] = []
        for said in self.logits(inputs, output_type, advance):
            if self.by_token:
                absent = said.isnan().any(dim=-1).tolist()
                best = said.nan_to_num().argmax(dim=-1).tolist()
                outside = OUTSIDE if OUTSIDE in names else names[0]
                found.append([outside if gone else names[i] for gone, i in zip(absent, best, strict=True)])
            elif output_type == "numbers":
                found.append(float(said))
            elif output_type == "labels":
                found.append([name for name, own in zip(names, said[0].tolist(), strict=True) if own >= 0])
            else:
                found.append(names[int(said[0].argmax())])
        return found

    def logits(self, inputs: Sequence[Any], output_type: OutputType, advance: Advance) -> list[Tensor]:
        """Of each input (1, C), or (W, C) of its words; of several teachers, the logits of their mean probabilities."""

        def ask(new: Sequence[Any]) -> list[Tensor]:
            each = []
            for teacher in self.teachers:
                order = teacher.order(self._labels)
                said = teacher.logits(new, advance)
                each.append(said if order is None else [own[:, order] for own in said])
            return [averaged(list(own), output_type) for own in zip(*each, strict=True)]

        return self._stores["logits"].of(inputs, ask, asked=self._labels or ())

    def vectors(self, inputs: Sequence[Any], head: Head, advance: Advance) -> list[Tensor]:
        """Of each input (1, d), or (W, d) of its words; of several teachers, the mean."""

        def ask(new: Sequence[Any]) -> list[Tensor]:
            each = [teacher.vectors(new, head, advance) for teacher in self.teachers]
            # What one was not given, the others decide.
            return [torch.stack(list(own)).nanmean(dim=0) for own in zip(*each, strict=True)]

        return self._stores["vectors"].of(inputs, ask)

    def loss(self, *, labelled: bool, generator: torch.Generator) -> DistillationLoss:
        """What the student minimises.

        Args:
            labelled: whether rows have labels.
            generator: the source of randomness of a projection, where the teachers' vectors have another width.

        Raises:
            RecipeError: labels have a share of it, and there are none.
        """
        own, width = self.settings, self.teachers[0].width
        wanted = own.hidden > 0 and width != self._width
        projection = Projection(self._width, width, generator) if wanted else None
        return DistillationLoss(own.share(labelled=labelled), own.temperature, own.loss, own.hidden, projection)

    def check(self, head: Head) -> None:
        """Refuse a student that could not learn, before teachers are asked.

        Args:
            head: the student's.

        Raises:
            RecipeError: vectors are to be compared and cannot be: the student's head reads none, or a teacher pools in
                another way; or the vectors of several teachers have several widths.
            MethodError: the head cannot learn from teachers.
        """
        require_distillable(head)
        if not self.settings.hidden:
            return
        if head.reads != "tokens" and (head.reads != "text" or head.pooled_by is None):
            raise RecipeError(
                f"the student's head of kind {head.kind!r} reads no one vector of a text, or of a word, to compare "
                "with a teacher's",
                expected="hidden 0, or a head over the last layer's states",
                change="--hidden, or --method",
            )
        first = self.teachers[0]
        for teacher in self.teachers:
            if teacher.width != first.width:
                raise RecipeError(
                    f"the vectors of teacher {teacher.folder!r} have {teacher.width} numbers, and those of "
                    f"{first.folder!r} {first.width}: they have no mean",
                    expected="hidden 0, or teachers of one width",
                    change="--hidden, or --teacher",
                )
            teacher.check_vectors(head)

    def prepare(self, inputs: Sequence[Any], head: Head, advance: Advance) -> None:
        """Have the teachers say what they do of the inputs that are trained on.

        Args:
            inputs: of all rows.
            head: the student's.

        Raises:
            DataError: an input is empty.
            RecipeError, MethodError: as `check`.
        """
        self.check(head)
        refuse_empty(inputs)
        self._said = self.logits(inputs, require_distillable(head), advance)
        self._vectors = self.vectors(inputs, head, advance) if self.settings.hidden else None

    def collate(self, rows: Sequence[Row], numbers: Sequence[int], length: int) -> dict[str, Tensor]:
        """What teachers say of the rows of a batch.

        Args:
            rows: as the student's encoder gives them.
            numbers: their places among the inputs that were prepared.
            length: T of the batch.
        """
        said = [self._said[number] for number in numbers]
        found = {TEACHER_LOGITS: _at_words(said, rows, length) if self.by_token else torch.cat(said)}
        if self._vectors is not None:
            vectors = [self._vectors[number] for number in numbers]
            found[TEACHER_VECTORS] = _at_words(vectors, rows, length) if self.by_token else torch.cat(vectors)
        return found


def averaged(each: Sequence[Tensor], output_type: OutputType) -> Tensor:
    """The logits of the mean of several teachers' probabilities, log mean softmax or the logit of the mean sigmoid; of
    numbers, their mean; of one teacher, its own. What one was not given, the others decide.

    Args:
        each: (W, C) of each teacher.
    """
    if len(each) == 1:
        return each[0]
    stacked = torch.stack(list(each)).double()
    if output_type == "numbers":
        return stacked.nanmean(dim=0).float()
    if output_type == "labels":
        return stacked.sigmoid().nanmean(dim=0).clamp(min=1e-12, max=1 - 1e-12).logit().float()
    return stacked.softmax(dim=-1).nanmean(dim=0).log().clamp(min=-1e4).float()


def _at_words(said: Sequence[Tensor], rows: Sequence[Row], length: int) -> Tensor:
    """(B, T, n), of (W, n) of each row: what is said of words, at their first pieces; NaN elsewhere."""
    found = said[0].new_full((len(said), length, said[0].shape[-1]), torch.nan)
    for own, row, into in zip(said, rows, found, strict=True):
        for word, place in zip(own, row["places"], strict=True):
            if place != ABSENT:
                into[place] = word
    return found


class _Store:
    """What is known of inputs, by their contents, in memory and in files. It is written as it comes to be known.

    Args:
        folder: of the files.
        name: with which they begin.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._known: dict[bytes, Tensor] = {}
        self._files: int | None = None

    def of(
        self, inputs: Sequence[Any], ask: Callable[[Sequence[Any]], list[Tensor]], *, asked: Sequence[str] = ()
    ) -> list[Tensor]:
        """What is known of each input; what is not is asked for, each input once.

        Args:
            asked: what decides the answers besides the input.
        """
        if self._files is None:
            self._files = self._read()
        keys = [_key(given, asked) for given in inputs]
        new = [*{key: given for key, given in zip(keys, inputs, strict=True) if key not in self._known}.items()]
        # Of the same pieces, whenever a run was killed: rounding depends on what shares a batch.
        for start in range(0, len(new), PIECE):
            piece = dict(new[start : start + PIECE])
            found = dict(zip(piece, ask(list(piece.values())), strict=True))
            self._write(found)
            self._known |= found
        return [self._known[key] for key in keys]

    def _write(self, found: Mapping[bytes, Tensor]) -> None:
        assert self._files is not None
        tensors = {
            "keys": torch.tensor([list(key) for key in found], dtype=torch.uint8),
            "sizes": torch.tensor([len(own) for own in found.values()]),
            "values": torch.cat([*found.values()]).contiguous(),
        }
        file = self.folder / f"{self.name}-{self._files:06}.safetensors"
        with writing(file):
            write_whole(file, save(tensors))
        self._files += 1

    def _read(self) -> int:
        """Know what a run before has kept; gives the number of the next file. What cannot be read is asked again."""
        number = 0
        for file in sorted(self.folder.glob(f"{self.name}-*.safetensors")):
            number = int(file.stem.rpartition("-")[2]) + 1
            with suppress(OSError, SafetensorError, KeyError):
                tensors = load_file(file)
                values = torch.split(tensors["values"], tensors["sizes"].tolist())
                self._known |= {bytes(key): own for key, own in zip(tensors["keys"].tolist(), values, strict=True)}
        return number


def _key(given: Any, asked: Sequence[str]) -> bytes:
    parts = [given] if isinstance(given, str) else list(given)
    text = "\0".join(map(str, (*asked, *parts)))
    return blake2b(f"{len(asked)} {len(parts)}\0{text}".encode(), digest_size=16).digest()


def refuse_empty(inputs: Sequence[Any]) -> None:
    """Refuse inputs of which there is nothing to be said.

    Raises:
        DataError: some texts are empty.
    """
    empty = [
        i for i, given in enumerate(inputs) if not any(map(str.strip, [given] if isinstance(given, str) else given))
    ]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise DataError(
            f"text {empty[0] + 1}{more} is empty: a teacher has nothing to say of it",
            expected="a text in every row",
            change="those rows, or --text",
        )
