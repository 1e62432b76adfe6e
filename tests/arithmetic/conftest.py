"""Fixtures of the tests of arithmetic: the program in this process."""

from cli.conftest import graftwork

__all__ = ["graftwork"]
