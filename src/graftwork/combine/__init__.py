"""What comes of several adapters: a student of teachers, and a pool of fixed size for tasks that arrive in turn."""

from graftwork.combine.distilling import distill

__all__ = ["distill"]
