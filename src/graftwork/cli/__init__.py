"""The command line: one file per command. Nothing heavy is imported before a command runs."""

from graftwork.cli.app import main

__all__ = ["main"]
