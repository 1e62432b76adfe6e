"""The model that users hold: adapters on a backbone, called as one Hugging Face model."""

from graftwork.model.adapted import AdaptedModel

__all__ = ["AdaptedModel"]
