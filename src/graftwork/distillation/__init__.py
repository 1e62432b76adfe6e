"""Teachers of a student adapter: which models can teach, what they say of texts, and where that is kept."""

from graftwork.distillation.outputs import Teaching
from graftwork.distillation.settings import Distillation

__all__ = ["Distillation", "Teaching"]
