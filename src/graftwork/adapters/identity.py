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
        return cls.of_outline(backbone).model_copy(update={"fingerprint": backbone.fingerprint})

    @classmethod
    def of_outline(cls, backbone: Backbone) -> "BackboneIdentity":
        """Of one that may have no weights, and so no fingerprint."""
        return cls(
            name=backbone.name,
            model_type=backbone.config.model_type,
            hidden_size=backbone.hidden_size,
            num_layers=backbone.sites.num_layers,
            fingerprint="",
        )

    def check(self, backbone: Backbone, *, allow_mismatch: bool = False) -> None:
        """Check that a backbone is this one.

        Args:
            backbone: the backbone.
            allow_mismatch: accept other weights of the same shape.

        Raises:
            AdapterError: the fingerprints differ and `allow_mismatch` is off; or the shapes differ.
        """
        if backbone.fingerprint == self.fingerprint:
            return
        self.check_shape(backbone)
        if not allow_mismatch:
            raise self._refusal(
                f"{backbone.name!r} ({backbone.fingerprint[:12]}): the same shape but other weights or settings",
                "--backbone, or --allow-backbone-mismatch to run it anyway",
            )

    def check_shape(self, backbone: Backbone) -> None:
        """Check that a backbone, which may have no weights (`Backbone.outline`), has this one's shape.

        Raises:
            AdapterError: names what differs.
        """
        given = {
            "model_type": backbone.config.model_type,
            "hidden_size": backbone.hidden_size,
            "num_layers": backbone.sites.num_layers,
        }
        own = self.model_dump()
        differing = [
            f"{name} {value!r} instead of {own[name]!r}" for name, value in given.items() if value != own[name]
        ]
        if differing:
            raise self._refusal(f"{backbone.name!r}: {', '.join(differing)}", "--backbone")

    def _refusal(self, given: str, change: str) -> AdapterError:
        return AdapterError(
            f"the adapter was made for backbone {self.name!r} ({self.fingerprint[:12]}), not for {given}",
            expected=f"backbone {self.name!r} with its own weights and settings",
            change=change,
        )


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that determine an adapter's numbers."""
    names = ("graftwork", "torch", "transformers", "safetensors")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


_version = cache(version)  # it reads a file
