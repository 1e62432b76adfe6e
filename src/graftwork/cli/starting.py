"""What a command says before anything else, while Python still imports the large libraries."""

import sys


def say_start(*, quiet: bool) -> None:
    """Say on standard error that the libraries are imported, which takes seconds; not where they are already."""
    if not quiet and "torch" not in sys.modules:
        print("loading torch and transformers", file=sys.stderr, flush=True)
