"""`python -m graftwork`."""

from graftwork.cli import main

main()
