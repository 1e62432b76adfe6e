"""What identifies an adapter beside its tensors: its backbone, its task, and the library versions."""

import platform
from functools import cache
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from graftwork.backbones import Backbone
from graftwork.errors import AdapterError


class BackboneIdentity(BaseModel):
    """The backbone that an adapter was made for.

    Attributes:
        name: name, folder or hub id.
        model_type: transformers' name of the architecture.
        hidden_size: width of the residual stream.
        num_layers: number of layers.
        fingerprint: hash of the configuration and the weights.
    """

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
        """Check that a backbone is this one.

        Args:
            backbone: the backbone.
            allow_mismatch: accept other weights of the same shape.

        Raises:
            AdapterError: the fingerprints differ and `allow_mismatch` is off; or the shapes differ.
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
    """The versions of Python and of the libraries that determine an adapter's numbers."""
    names = ("graftwork", "torch", "transformers", "safetensors")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


_version = cache(version)  # it reads a file
