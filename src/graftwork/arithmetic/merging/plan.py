"""What a merge does with each tensor: merged, averaged, kept or left out, decided and checked from headers alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from graftwork.arithmetic.merging.method import ChosenMethod
from graftwork.arithmetic.values.checkpoint import SIZES, Checkpoint
from graftwork.arithmetic.values.roles import Role, matching, refuse, roles_of, shape_problems
from graftwork.errors import RecipeError

Heads = Literal["average", "keep", "base"]
Action = Literal["merged", "averaged", "kept", "unchanged"]

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""Types of an output by torch's name -> as safetensors calls them."""


@dataclass(frozen=True)
class PlannedTensor:
    """What is done with a tensor.

    Attributes:
        name: its name in the output.
        role: body, head or buffer.
        action: merged, averaged or kept; of adapters also unchanged, where nothing is changed in the backbone.
        source: whose it is, where it is kept, or made of some operands only.
        shape: its shape.
        dtype: its type in the output, as safetensors calls it.
        nbytes: its size in the output.
    """

    name: str
    role: Role
    action: Action
    source: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """What a merge does.

    Attributes:
        models: the models that are merged.
        base: what they come from, if it is given.
        like: the one whose names, configuration and tokenizer the output has.
        tensors: the output's, in order.
        left_out: for each operand, names of tensors that are not used.
    """

    models: tuple[Checkpoint, ...]
    base: Checkpoint | None
    like: Checkpoint
    tensors: tuple[PlannedTensor, ...]
    left_out: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def named(self, action: str) -> list[str]:
        """Names of the tensors with which that is done."""
        return [tensor.name for tensor in self.tensors if tensor.action == action]

    @property
    def operands(self) -> tuple[Checkpoint, ...]:
        """The base, if there is one, and the models."""
        return (*(() if self.base is None else (self.base,)), *self.models)

    @property
    def nbytes(self) -> int:
        """Size of the output's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bytes_read(self) -> int:
        """Size of the operands' tensors."""
        return sum(operand.nbytes for operand in self.operands)


def planned(
    models: Sequence[Checkpoint],
    base: Checkpoint | None,
    *,
    heads: Heads,
    dtype: str | None,
    chosen: ChosenMethod,
) -> Plan:
    """Decide what is done with each tensor.

    Args:
        models: the models.
        base: what they come from.
        heads: what becomes of heads: `average` merges them with the body, or averages them where the base has none;
            `keep` takes the first model's, or that of the model for whose task the result is, `base` the base's.
        dtype: type of the output's floating-point numbers; None: as in the operands, which must then agree.
        chosen: the method.

    Raises:
        WeightsError: the operands differ in tensors, shapes, vocabularies, heads, labels or types; names the tensors.
        RecipeError: `heads` is base, and there is none; it is average, and the result is for one task; or there is no
            such dtype.
    """
    if heads == "base" and base is None:
        raise RecipeError("--heads base takes the head of the base, and none is given", change="--base, or --heads")
    if dtype is not None and dtype not in DTYPES:
        raise RecipeError(f"unknown dtype {dtype!r}", expected=", ".join(DTYPES), change="--dtype")
    if heads == "average" and chosen.result_of is not None:
        raise RecipeError(
            f"--heads average does not suit {chosen.name}, whose result is for the task of one model",
            expected="keep, which takes the head of that model, or base",
            change="--heads",
        )
    like = base if heads == "base" and base is not None else models[chosen.result_of or 0]
    operands = (*(() if base is None else (base,)), *models)
    names = [[*operand.entries] for operand in operands]
    roles = _roles(like, names)
    has_head = [name for name, role in roles.items() if role == "head"]
    headless = chosen.method.over == "vectors" and base is not None and not _has(base, has_head, like)
    merged_heads = heads == "average" and not headless
    problems: list[str] = []
    left_out: dict[int, tuple[str, ...]] = {}
    for number, operand in enumerate(operands):
        if operand is like:
            continue
        with_head = heads == "average" and (merged_heads or operand is not base)
        floats = [name for name in roles if like.entries[name].floating]
        used = [name for name in floats if roles[name] != "head" or with_head]
        found, unused = _compared(like, used, operand, names, heads)
        problems += found
        if unused:
            left_out[number] = unused
        if with_head:
            problems += _label_problems(like, operand, bool(has_head))
        if dtype is None:
            problems += _type_problems(like, operand, used)
    other_heads = heads == "average" and any("(head)" in own or "the head of" in own for own in problems)
    refuse(
        problems,
        expected="models with the same tensors, labels and types of numbers",
        change="the operands" + (", or --heads keep or base" if other_heads else "") + _or_dtype(problems),
    )
    tensors = []
    for name, entry in like.entries.items():
        role = roles[name]
        merged = role == "body" or (merged_heads if role == "head" else chosen.method.buffers)
        action: Action = "merged" if merged else "averaged"
        if not entry.floating or (role == "head" and heads != "average"):
            action = "kept"
        kind = DTYPES[dtype] if dtype is not None and entry.floating else entry.dtype
        source = like.name if action == "kept" else ""
        tensors.append(PlannedTensor(name, role, action, source, entry.shape, kind, entry.numel * SIZES[kind]))
    return Plan(tuple(models), base, like, tuple(tensors), left_out)


def _roles(checkpoint: Checkpoint, others: Sequence[Sequence[str]]) -> dict[str, Role]:
    return roles_of({name: entry.floating for name, entry in checkpoint.entries.items()}, others)


def _has(base: Checkpoint, names: Sequence[str], like: Checkpoint) -> bool:
    """Whether a base has all of a head's tensors."""
    match = matching(like.entries.keys(), base.entries.keys())
    return all(name in match for name in names)


def _compared(
    like: Checkpoint, used: Sequence[str], operand: Checkpoint, names: Sequence[Sequence[str]], heads: Heads
) -> tuple[list[str], tuple[str, ...]]:
    """What is wrong with an operand, and which of its tensors are not used."""
    match = matching(like.entries.keys(), operand.entries.keys())
    roles = _roles(operand, names)
    whose, other = repr(like.name), repr(operand.name)
    twins = {name: {*group} for group in like.alike for name in group}
    missing = [name for name in used if name not in match and not twins.get(name, set()) & match.keys()]
    heads_of_like = _roles(like, names)
    mark = {name: " (head)" if heads_of_like[name] == "head" else "" for name in missing}
    problems = [f"{other} lacks {name}, which {whose} has{mark[name]}" for name in missing]
    known = {match[name] for name in used if name in match}
    others = {name: {*group} for group in operand.alike for name in group}
    extra, unused = [], []
    for name in operand.entries.keys() - known:
        role, twin = roles[name], bool(others.get(name, set()) & known)
        if twin:
            continue
        if not operand.entries[name].floating or (role == "head" and heads != "average"):
            unused.append(name)
        else:
            extra.append(f"{whose} lacks {name}, which {other} has" + (" (head)" if role == "head" else ""))
    shapes = {name: entry.shape for name, entry in like.entries.items()}
    theirs = {name: entry.shape for name, entry in operand.entries.items()}
    compared = {name: match[name] for name in used if name in match}
    return [*problems, *sorted(extra), *shape_problems(shapes, whose, theirs, other, compared)], tuple(sorted(unused))


def _label_problems(like: Checkpoint, operand: Checkpoint, has_head: bool) -> list[str]:
    if not has_head or like.labels is None or operand.labels is None or like.labels == operand.labels:
        return []
    return [
        f"the head of {like.name!r} has the labels {', '.join(like.labels[:5])}, and that of {operand.name!r} "
        f"{', '.join(operand.labels[:5])}"
    ]


def _type_problems(like: Checkpoint, operand: Checkpoint, used: Sequence[str]) -> list[str]:
    match = matching(like.entries.keys(), operand.entries.keys())
    for name in used:
        mine, theirs = like.entries[name].dtype, operand.entries[match[name]].dtype if name in match else ""
        if theirs and mine != theirs:
            return [f"{name} is {mine} in {like.name!r} and {theirs} in {operand.name!r} (types of numbers)"]
    return []


def _or_dtype(problems: Sequence[str]) -> str:
    return ", or --dtype for the output" if any("types of numbers" in problem for problem in problems) else ""
