"""The adapter that a run begins with, instead of random tensors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from graftwork.adapters import Adapter
from graftwork.adapters.contents import first_few, misfits
from graftwork.errors import RecipeError
from graftwork.folders import resolved_path


class Start(BaseModel):
    """An adapter to go on from.

    Attributes:
        folder: its folder.
        digest: of its contents; written by `resolved`. An adapter that has changed since is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    digest: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _folder_alone(cls, value: Any) -> Any:
        return {"folder": str(value)} if isinstance(value, str | Path) else value

    def adapter(self) -> Adapter:
        """The adapter.

        Raises:
            AdapterError: there is none, or it is damaged.
            RecipeError: it has changed.
        """
        found = Adapter.load(Path(self.folder).expanduser())
        if self.digest not in (None, found.digest):
            raise RecipeError(
                f"the adapter {self.folder!r}, with which the run begins, has changed",
                expected="the adapter that the run began with",
                change="start",
            )
        return found

    def resolved(self) -> "Start":
        """With a path that is valid from any folder, and the digest."""
        folder = Path(self.folder).expanduser()
        return Start(folder=resolved_path(folder), digest=self.adapter().digest)

    def begin(self, new: Adapter) -> Adapter:
        """A new adapter with the tensors of this one: all of its method's; those of the head only where head and labels
        are the same.

        Raises:
            RecipeError: a tensor of the new adapter's method is not in this one, or has another shape there; or they
                are for different backbones.
        """
        old = self.adapter()
        if old.backbone.fingerprint != new.backbone.fingerprint:
            raise RecipeError(
                f"the adapter {self.folder!r} was made for another backbone, {old.backbone.name!r}",
                expected=f"an adapter of backbone {new.backbone.name!r}",
                change="start, or --backbone",
            )
        own = {name: tensor.shape for name, tensor in new.tensors.items() if not name.startswith("head.")}
        wrong = misfits(own, {name: tensor.shape for name, tensor in old.tensors.items() if name in own})
        if wrong:
            raise RecipeError(
                f"a run of method {new.method.name!r} cannot begin with the adapter {self.folder!r} of method "
                f"{old.method.name!r}: it {first_few(wrong)}",
                expected="an adapter of the same method, with the same settings",
                change="start, or --method",
            )
        same_head = (old.head, old.task.labels) == (new.head, new.task.labels)
        taken = {
            name: old.tensors[name].clone()
            for name, tensor in new.tensors.items()
            if name in own or (same_head and name in old.tensors and old.tensors[name].shape == tensor.shape)
        }
        return replace(new, tensors={**new.tensors, **taken})
