"""Weights: the tensors of a model, or of a difference of models, by name; values that people calculate with.

Nothing is read before a tensor is asked for. What is calculated is kept as a sum of what was opened, with a number
before each: `base + (a - base)` is `a`, exactly.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from types import NotImplementedType
from typing import Any

import torch
from torch import Tensor

from graftwork.arithmetic.values.checkpoint import Checkpoint
from graftwork.arithmetic.values.dtypes import TYPES
from graftwork.arithmetic.values.roles import Role, matching, refuse, roles_of, shape_problems
from graftwork.arithmetic.values.saving import save_model
from graftwork.arithmetic.values.sources import Coefficient, Held, Joined, Linear, Source, Stored, at, renamed
from graftwork.arithmetic.values.writing import write_file
from graftwork.errors import RecipeError, WeightsError, nearest
from graftwork.training.display import SILENT, shown_on_stderr


class Weights(Mapping[str, Tensor]):
    """Tensors by name: of a checkpoint (`Weights.open`), of a mapping (`Weights.of`), or calculated from others.

    `+`, `-`, `*` and `/` by numbers, and `-w` calculate with all floating-point tensors, in float32 (float64 where a
    tensor is float64); whole numbers are as in the left operand. Names that differ by the prefix of the bare model
    (`bert.`) are the same tensor; the result has those of the left operand. `a | b` has the tensors of both, and of b
    where both have one, as dictionaries do.

    Args:
        frame: has the names and shapes, and what are no floating-point numbers.
        terms: what is summed, with the number before each; None: the frame alone.
        origin: the checkpoint whose folder a saved model is like.
    """

    def __init__(
        self,
        frame: Source,
        terms: Sequence[tuple[Source, Coefficient]] | None = None,
        *,
        origin: Checkpoint | None = None,
    ) -> None:
        self._frame = frame
        self._terms: tuple[tuple[Source, Coefficient], ...] = ((frame, 1.0),) if terms is None else tuple(terms)
        self._origin = origin
        alone = len(self._terms) == 1 and self._terms[0] == (frame, 1.0)
        self._source = frame if alone else Linear(frame, self._terms)

    @classmethod
    def open(cls, path: str | Path) -> "Weights":
        """Open a checkpoint; only headers are read.

        Args:
            path: a Hugging Face model's folder, a `.safetensors` file, or the name of a backbone that a package carries
                (`minilm`).

        Raises:
            WeightsError: there is no checkpoint, or it is damaged or quantised.
        """
        checkpoint = Checkpoint.read(path)
        return cls(Stored(checkpoint), origin=checkpoint)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Weights":
        """Weights of tensors in memory; those that are `Weights` already are themselves.

        Raises:
            WeightsError: one is no dense tensor of real numbers.
        """
        return tensors if isinstance(tensors, Weights) else cls(Held(tensors))

    @property
    def source(self) -> Source:
        """Where the tensors come from."""
        return self._source

    @property
    def origin(self) -> Checkpoint | None:
        """The checkpoint whose folder a saved model is like; None if all tensors were in memory."""
        return self._origin

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return self._source.shapes

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The type of each tensor: as stored where nothing was calculated, else float32 (or float64)."""
        return self._source.dtypes

    @property
    def roles(self) -> dict[str, Role]:
        """Whether each tensor is of the body, the head or a buffer."""
        return roles_of({name: self._source.floating(name) for name in self.shapes})

    @property
    def body(self) -> "Weights":
        """All but the head."""
        return self.only([name for name, role in self.roles.items() if role != "head"])

    @property
    def head(self) -> "Weights":
        """The head alone; empty if there is none."""
        return self.only([name for name, role in self.roles.items() if role == "head"])

    @property
    def tied(self) -> list[frozenset[str]]:
        """Names that stand for one tensor, together. The tensors that may be are compared for it."""
        return self._source.tied

    def only(self, names: Sequence[str]) -> "Weights":
        """Some of the tensors.

        Raises:
            WeightsError: there is no such tensor.
        """
        for name in names:
            self._require(name)
        return self.under({name: name for name in names})

    def under(self, names: Mapping[str, str]) -> "Weights":
        """Some of the tensors under other names.

        Args:
            names: new name -> name here.
        """
        terms = [(renamed(source, names), _under(by, names)) for source, by in self._terms]
        return Weights(renamed(self._frame, names), terms, origin=self._origin)

    def scaled(self, by: Coefficient) -> "Weights":
        """All tensors times a number, or each times its own.

        Args:
            by: the number, or one for each name.
        """
        return Weights(self._frame, [(source, _times(own, by)) for source, own in self._terms], origin=self._origin)

    def save(
        self,
        path: str | Path,
        *,
        dtype: str | torch.dtype | None = None,
        overwrite: bool = False,
        progress: bool = False,
    ) -> None:
        """Write the tensors, piece by piece, completely or not at all.

        Args:
            path: a `.safetensors` file, for a difference; or a folder, for a model: it gets the configuration, the
                tokenizer and all else that lies in the left-most operand's folder.
            dtype: type of the floating-point numbers in the file, such as `bfloat16`. None: in a folder that of each
                tensor of the left-most operand; in a file as calculated.
            overwrite: replace what is there.
            progress: report progress on standard error.

        Raises:
            OutputError: it exists and `overwrite` is off, or it cannot be written.
            WeightsError: an operand cannot be read; or a number does not fit the type; or a folder is to be written of
                tensors that are of no model.
        """
        place, floats = Path(path), as_dtype(dtype)
        with shown_on_stderr(shown=progress) as display:
            if place.suffix == ".safetensors":
                dtypes = {name: own if floats is None else _in(own, floats) for name, own in self.dtypes.items()}
                write_file(self._source, dtypes, place, overwrite=overwrite, display=display)
            else:
                save_model(self._source, self._require_origin(), place, floats, overwrite=overwrite, display=display)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        self._source.prepare(SILENT)
        return self._source.whole(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    # Those of mappings would read and compare all tensors.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __add__(self, other: Mapping[str, Tensor]) -> "Weights":
        if not isinstance(other, Mapping):
            return NotImplemented
        return Weights(self._frame, _sum(self._terms, aligned(self, other)._terms), origin=self._origin)

    def __sub__(self, other: Mapping[str, Tensor]) -> "Weights":
        return self + -Weights.of(other) if isinstance(other, Mapping) else NotImplemented

    def __neg__(self) -> "Weights":
        return self * -1.0

    def __mul__(self, by: float) -> "Weights":
        if not isinstance(by, int | float):
            return NotImplemented
        if not isfinite(by):
            raise RecipeError(f"weights cannot be multiplied by {by}", expected="a finite number")
        return self.scaled(float(by))

    __rmul__ = __mul__

    def __truediv__(self, by: float) -> "Weights":
        return self * (1.0 / by) if isinstance(by, int | float) else NotImplemented

    def __or__(self, other: Mapping[str, Tensor]) -> "Weights | NotImplementedType":
        if not isinstance(other, Mapping):
            return NotImplemented
        theirs = Weights.of(other)
        own = dict.fromkeys(self.shapes, self._source)
        return Weights(Joined(own | dict.fromkeys(theirs.shapes, theirs._source)), origin=self._origin)

    def __repr__(self) -> str:
        count = sum(self._source.size(name) for name in self.shapes)
        where = "" if self._origin is None else f"{str(self._origin.path)!r}, "
        return f"Weights({where}{len(self):,} tensors, {count:,} numbers)"

    @property
    def called(self) -> str:
        """What errors call it."""
        return "an operand in memory" if self._origin is None else repr(str(self._origin.path))

    def _require(self, name: str) -> None:
        if name not in self.shapes:
            raise WeightsError(f"{self.called} has no tensor {name!r}", expected=nearest(name, self.shapes))

    def _require_origin(self) -> Checkpoint:
        if self._origin is None or not self._origin.config:
            raise WeightsError(
                "the weights are of no model's folder, so that there is no configuration to be saved with them",
                expected="a path that ends in .safetensors, or weights whose left-most operand is a model's folder",
                change="the path",
            )
        return self._origin


def aligned(first: Weights, other: Mapping[str, Tensor]) -> Weights:
    """Weights under the names of others, of the same tensors.

    Args:
        first: has the names.
        other: has the tensors; a tied tensor may be stored once in one of them and twice in the other.

    Raises:
        WeightsError: one of them lacks a tensor, or has it in another shape; all are named.
    """
    theirs = Weights.of(other)
    own, others = first.source, theirs.source
    if own.shapes.keys() == others.shapes.keys():
        match = {name: name for name in own.shapes}
    else:
        match = matching(own.shapes, others.shapes)
    missing = {name for name in own.shapes if name not in match and own.floating(name)}
    extra = {name for name in others.shapes.keys() - {*match.values()} if others.floating(name)}
    for group in own.tied if missing else ():
        known = [name for name in sorted(group) if name in match]
        if known:
            match |= dict.fromkeys(group & missing, match[known[0]])
    for group in others.tied if extra else ():
        extra -= group if group & {*match.values()} else frozenset()
    named = (first.called, theirs.called)
    lacking = [f"{named[1]} lacks {name}, which {named[0]} has" for name in sorted(missing - match.keys())]
    lacking += [f"{named[0]} lacks {name}, which {named[1]} has" for name in sorted(extra)]
    heads = any(role == "head" for name, role in roles_of(dict.fromkeys([*missing, *extra], True)).items())
    refuse(
        [*lacking, *shape_problems(own.shapes, named[0], others.shapes, named[1], match)],
        expected="models with the same tensors" + (", or their bodies: .body" if heads else ""),
        change="the operands, or --heads" if heads else "the operands",
    )
    same = all(name == own for name, own in match.items()) and len(match) == len(theirs)
    return theirs if same else theirs.under(match)


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A type of floating-point numbers by its name.

    Raises:
        RecipeError: there is no such type.
    """
    known = {str(own).removeprefix("torch."): own for own in TYPES.values() if own.is_floating_point}
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in known.values()):
        return dtype
    if str(dtype) not in known:
        raise RecipeError(f"unknown dtype {str(dtype)!r}", expected=nearest(str(dtype), known), change="--dtype")
    return known[str(dtype)]


def _in(dtype: torch.dtype, floats: torch.dtype) -> torch.dtype:
    return floats if dtype.is_floating_point else dtype


def _under(by: Coefficient, names: Mapping[str, str]) -> Coefficient:
    return {name: by[own] for name, own in names.items()} if isinstance(by, Mapping) else by


def _times(one: Coefficient, other: Coefficient) -> Coefficient:
    if isinstance(one, Mapping):
        return {name: own * at(other, name) for name, own in one.items()}
    if isinstance(other, Mapping):
        return {name: one * own for name, own in other.items()}
    return one * other


def _plus(one: Coefficient, other: Coefficient) -> Coefficient:
    names = one if isinstance(one, Mapping) else other
    if isinstance(names, Mapping):
        return {name: at(one, name) + at(other, name) for name in names}
    return at(one, "") + at(other, "")


def _sum(
    one: Sequence[tuple[Source, Coefficient]], other: Sequence[tuple[Source, Coefficient]]
) -> list[tuple[Source, Coefficient]]:
    """Terms added up: those of one source are one, and none where they cancel."""
    found: dict[Source, Any] = {}
    for source, by in [*one, *other]:
        found[source] = _plus(found[source], by) if source in found else by
    return [(source, by) for source, by in found.items() if isinstance(by, Mapping) or by != 0.0]
