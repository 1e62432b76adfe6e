"""What identifies an adapter beside its tensors: its backbone, its task, and the library versions."""

import platform
from functools import cache
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from graftwork.backbones import Backbone
from graftwork.errors import AdapterError


class BackboneIdentity(BaseModel):
    """Which backbone an adapter was made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model_type: str
    hidden_size: int
    num_layers: int
    fingerprint: str

    @classmethod
    def of(cls, backbone: Backbone) -> "BackboneIdentity":
        return cls(
            name=backbone.name,
            model_type=backbone.config.model_type,
            hidden_size=backbone.hidden_size,
            num_layers=backbone.sites.num_layers,
            fingerprint=backbone.fingerprint,
        )

    def check(self, backbone: Backbone, *, allow_mismatch: bool = False) -> None:
        """Refuse another backbone.

        Raises:
            AdapterError: the fingerprints differ and it was not allowed; or the shapes differ, which nothing can allow.
        """
        given = BackboneIdentity.of(backbone)
        if given.fingerprint == self.fingerprint:
            return
        differing = [
            f"{name} {getattr(given, name)!r} instead of {getattr(self, name)!r}"
            for name in ("model_type", "hidden_size", "num_layers")
            if getattr(given, name) != getattr(self, name)
        ]
        if allow_mismatch and not differing:
            return
        what = ", ".join(differing) or "the same shape but other weights or settings"
        raise AdapterError(
            f"the adapter was made for backbone {self.name!r} ({self.fingerprint[:12]}), not for "
            f"{given.name!r} ({given.fingerprint[:12]}): {what}",
            expected=f"backbone {self.name!r} with its own weights and settings",
            change="--backbone" if differing else "--backbone, or --allow-backbone-mismatch to run it anyway",
        )


def library_versions() -> dict[str, str]:
    """The versions that an adapter's numbers were made with."""
    names = ("graftwork", "torch", "transformers", "safetensors")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


_version = cache(version)  # it reads a file
