"""The parts of compositions, read from the folders that they are in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftwork.adapters.folder import CONFIG, read_record
from graftwork.adapters.record import Record
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError, MethodError
from graftwork.methods import Method
from graftwork.methods.parts import Part, plain_name


def read_part(folder: str | Path, *, name: str | None = None) -> Part:
    """The adapter in a folder as a part.

    Args:
        folder: the adapter's folder.
        name: the part's name. None: the folder's.

    Raises:
        AdapterError: the folder is not an adapter's.
        MethodError: the adapter has embeddings of added tokens.
    """
    path = Path(folder).resolve()
    return Part.of(Record(**read_record(path)), name=name or plain_name(path.name), source=str(path))


def with_parts_read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A method's name and settings, with folders among its parts read.

    A text among the parts is a folder where there is an adapter's, or where it has a slash; otherwise it is the name of
    a method.

    Raises:
        AdapterError: a folder is not an adapter's.
    """
    found = dict(settings)
    given = found.get("parts")
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",")]
    if isinstance(given, Mapping):
        found["parts"] = {str(name): _read(own, str(name)) for name, own in given.items()}
    elif isinstance(given, list | tuple):
        found["parts"] = [_read(own, None) for own in given]
    if isinstance(found.get("methods"), list | tuple):  # of a union, whose members may be compositions
        found["methods"] = [with_parts_read(own) if isinstance(own, Mapping) else own for own in found["methods"]]
    return found


def _read(value: object, name: str | None) -> object:
    """One part: of a folder; of a method's settings; or of a part's, whose method may have parts itself."""
    if isinstance(value, Path) or (isinstance(value, str) and _is_folder(value)):
        return read_part(value, name=name)
    if not isinstance(value, Mapping) or value.get("digest") is not None:
        return value
    inner = value.get("method")
    return {**value, "method": with_parts_read(inner)} if isinstance(inner, Mapping) else with_parts_read(value)


def _is_folder(text: str) -> bool:
    return "/" in text or (Path(text) / CONFIG).is_file()


def bring_parts(method: Method, backbone: Backbone) -> None:
    """Have the tensors of a method's parts at hand, to make an adapter for a backbone.

    Raises:
        AdapterError: a part is of another backbone; or its folder is missing, damaged, or has another adapter by now.
        MethodError: the tensors of a part are not at hand, and it has no folder.
    """
    for part in method.every_part():
        if part.digest is None:
            continue
        if part.backbone is not None and part.backbone != backbone.fingerprint:
            raise AdapterError(
                f"part {part.name!r} was made for backbone {part.backbone_name!r} ({part.backbone[:12]}), not for "
                f"{backbone.name!r} ({backbone.fingerprint[:12]})",
                expected="parts of one backbone",
                change="--backbone, or the parts",
            )
        if part.tensors() is None:
            _fetch(part)


def _fetch(part: Part) -> None:
    """Read a part's tensors from its folder."""
    if part.source is None:
        raise MethodError(
            f"the tensors of part {part.name!r} are not at hand, and it names no folder",
            expected="the part's adapter, or its folder",
            change="the parts",
        )
    record = Record(**read_record(Path(part.source)))
    if record.digest != part.digest:
        raise AdapterError(
            f"{part.source} holds another adapter than the one that is part {part.name!r}",
            expected=f"the adapter with digest {part.digest}",
            change="the parts",
        )
    part.hold(record)
