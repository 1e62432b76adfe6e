"""The `graftwork` program: its commands, how its errors look, and its exit status.

Exit status: 0 when the command did what it was asked; 2 for a command line that cannot be parsed and for a
`GraftworkError`.
"""

import sys
from collections.abc import Sequence

from cyclopts import App

from graftwork import __version__
from graftwork.cli.env import env
from graftwork.cli.evaluate import evaluate
from graftwork.cli.inspect import inspect
from graftwork.cli.methods import methods
from graftwork.cli.plan import plan
from graftwork.cli.predict import predict
from graftwork.cli.settings import gather_settings
from graftwork.cli.tune import tune
from graftwork.cli.tune_many import tune_many
from graftwork.errors import GraftworkError

app = App(
    name="graftwork",
    help="Graft many tasks onto one frozen transformer: tune small adapters, evaluate them, use them.",
    version=__version__,
    help_format="plaintext",
)
for command in (tune, tune_many, evaluate, predict, inspect, plan, methods, env):
    app.command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit."""
    try:
        app(gather_settings(sys.argv[1:] if arguments is None else arguments))
    except GraftworkError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; a run that had saved a checkpoint goes on with --resume", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone, as in `graftwork predict … | head`.
        sys.stderr.close()
        sys.exit(1)
