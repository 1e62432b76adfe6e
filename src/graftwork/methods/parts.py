"""Parts: the adapters that a composition is made of, inside its settings.

A part is a finished adapter or a new method. Of an adapter, the settings hold its name, method and digest. Its tensors
are known by that digest while somebody holds them, so that settings can be written as text and read again.
"""

import re
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Annotated, Any, Protocol, runtime_checkable
from weakref import WeakValueDictionary

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator
from torch import Tensor

from graftwork.errors import MethodError
from graftwork.methods.lookup import as_method
from graftwork.methods.members import Member
from graftwork.methods.method import Method
from graftwork.settings.checked import split_commas


@runtime_checkable
class Finished(Protocol):
    """What a part can be made of: an adapter."""

    @property
    def method(self) -> Method: ...

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...

    @property
    def task(self) -> Any: ...

    @property
    def backbone(self) -> Any: ...

    @property
    def digest(self) -> str: ...


class PartTensors:
    """The tensors of an adapter that is a part, by canonical name, without those of its head."""

    def __init__(self, adapter: Finished) -> None:
        self.tensors = {name: t for name, t in adapter.tensors.items() if not name.startswith("head.")}


_AT_HAND: WeakValueDictionary[str, PartTensors] = WeakValueDictionary()
"""By digest, as long as a part holds them."""

_ONE_AT_A_TIME = Lock()


class Part(BaseModel):
    """An adapter or a new method that is a part of a composition.

    Attributes:
        name: its name in the composition, which the names of its tensors begin with.
        method: its method.
        digest: of the adapter whose tensors it has (`Adapter.digest`); None: its tensors are new, or were trained with
            the composition.
        backbone: the fingerprint of that adapter's backbone.
        backbone_name: name of that backbone.
        source: the folder that it was read from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    method: Member
    digest: str | None = None
    backbone: str | None = None
    backbone_name: str | None = None
    source: str | None = None
    _held: PartTensors | None = None

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError("expected a name of letters, digits, _ and -")
        return name

    @classmethod
    def of(cls, adapter: Finished, *, name: str | None = None, source: str | None = None) -> "Part":
        """The part that an adapter is.

        Raises:
            MethodError: the adapter has embeddings of added tokens, which parts cannot have.
        """
        if adapter.task.added_tokens:
            raise MethodError(
                f"the adapter of task {adapter.task.name!r} has embeddings of added tokens",
                expected="parts without added tokens",
                change="the parts",
            )
        part = cls(
            name=name or plain_name(adapter.task.name),
            method=adapter.method,
            digest=adapter.digest,
            backbone=adapter.backbone.fingerprint,
            backbone_name=adapter.backbone.name,
            source=source,
        )
        part.hold(adapter)
        return part

    def hold(self, adapter: Finished) -> None:
        """Have the tensors of the part's adapter at hand."""
        assert self.digest is not None
        with _ONE_AT_A_TIME:
            self._held = _AT_HAND.get(self.digest)
            if self._held is None:
                self._held = _AT_HAND[self.digest] = PartTensors(adapter)

    @property
    def new(self) -> bool:
        """Whether its tensors are not those of an adapter."""
        return self.digest is None

    def tensors(self) -> Mapping[str, Tensor] | None:
        """Those of its adapter; None when they are not at hand."""
        return None if self._held is None else self._held.tensors

    def model_post_init(self, context: Any, /) -> None:
        if self.digest is not None:
            with _ONE_AT_A_TIME:
                self._held = _AT_HAND.get(self.digest)

    def __eq__(self, other: object) -> bool:
        # Whether tensors are at hand makes no other part.
        return isinstance(other, Part) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash((self.name, self.digest))


def plain_name(text: str) -> str:
    """A text as the name of a part."""
    return re.sub(r"[^\w-]+", "-", text).strip("-") or "part"


def _as_parts(value: object) -> object:
    """Parts, adapters and methods, by name or in a list, as a list of parts with different names."""
    given = split_commas(value)
    named: list[tuple[str | None, object]]
    if isinstance(given, Mapping):
        named = [(str(name), own) for name, own in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, str):
        named = [(None, own) for own in given]
    else:
        return value
    found: list[object] = []
    taken: set[str] = set()
    for name, own in named:
        part = _as_part(own, name)
        if isinstance(part, Part):
            if part.name in taken and name is None:
                part = _renamed(part, next(n for i in range(2, 10**6) if (n := f"{part.name}-{i}") not in taken))
            if part.name in taken:
                raise ValueError(f"two parts are named {part.name!r}")
            taken.add(part.name)
        found.append(part)
    return tuple(found)


def _as_part(value: object, name: str | None) -> object:
    if isinstance(value, Part):
        return value if name is None else _renamed(value, name)
    if isinstance(value, Mapping) and "method" in value:
        return Part(**{**value, **({} if name is None else {"name": name})})
    if isinstance(value, Finished) and not isinstance(value, Method):
        return Part.of(value, name=name)
    method = as_method(value)
    return Part(name=name or method.name, method=method)


def _renamed(part: Part, name: str) -> Part:
    found = Part.model_validate({**dict(part), "name": name})
    found._held = part._held
    return found


Parts = Annotated[tuple[Part, ...], BeforeValidator(_as_parts)]
"""Parts as settings have them: adapters, methods, names of methods, mappings; in a list or by name."""
