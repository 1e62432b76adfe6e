"""The `graftwork` program: its commands, how its errors look, and its exit status.

Exit status: 0 when the command did what it was asked; 2 for a command line that cannot be parsed and for a
`GraftworkError`; 130 when it was interrupted from the keyboard, and 143 by SIGTERM.
"""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from cyclopts import App

from graftwork import __version__
from graftwork.cli.ablate import ablate
from graftwork.cli.compare import compare
from graftwork.cli.consolidate import consolidate
from graftwork.cli.distill import distill
from graftwork.cli.env import env
from graftwork.cli.evaluate import evaluate
from graftwork.cli.extract import extract
from graftwork.cli.fuse import fuse
from graftwork.cli.generate import generate
from graftwork.cli.glue_submission import glue_submission
from graftwork.cli.inspect import inspect
from graftwork.cli.landscape import landscape
from graftwork.cli.list import list_adapters
from graftwork.cli.merge import merge
from graftwork.cli.methods import methods
from graftwork.cli.plan import plan
from graftwork.cli.predict import predict
from graftwork.cli.report import report
from graftwork.cli.runs import runs
from graftwork.cli.settings import gather_settings
from graftwork.cli.tasks import tasks
from graftwork.cli.tune import tune
from graftwork.cli.tune_many import tune_many
from graftwork.errors import GraftworkError, InterruptedRunError

app = App(
    name="graftwork",
    help="Graft many tasks onto one frozen transformer: tune small adapters, evaluate them, use them.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "tune": tune,
    "tune-many": tune_many,
    "compare": compare,
    "runs": runs,
    "report": report,
    "fuse": fuse,
    "distill": distill,
    "consolidate": consolidate,
    "merge": merge,
    "extract": extract,
    "landscape": landscape,
    "ablate": ablate,
    "glue-submission": glue_submission,
    "generate": generate,
    "evaluate": evaluate,
    "predict": predict,
    "inspect": inspect,
    "list": list_adapters,
    "plan": plan,
    "methods": methods,
    "tasks": tasks,
    "env": env,
}
for name, command in COMMANDS.items():
    app.command(command, name=name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with _interrupted_by_sigterm() as received:
        try:
            app(gather_settings(given))
        except GraftworkError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            print(_advice(stop, given), file=sys.stderr)
            sys.exit(128 + (signal.SIGTERM if received else signal.SIGINT))
        except BrokenPipeError:
            # The reader of our output has gone, as in `graftwork predict … | head`.
            sys.stderr.close()
            sys.exit(1)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[list[int]]:
    """Inside, SIGTERM ends a command as Ctrl-C does; gives the signals that came.

    A handler can be set in the main thread only: elsewhere the program is a library of somebody else's.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


def _advice(stop: KeyboardInterrupt, arguments: Sequence[str]) -> str:
    """What is said of an interrupt: what is kept, and the command that goes on with it."""
    if not isinstance(stop, InterruptedRunError):
        return "interrupted"
    if not stop.resumable:
        return stop.problem
    # `tune-many --resume` replaces what was to be replaced, and refuses the flag; `tune --resume` asks for it again.
    dropped = {"--resume", "--overwrite"} if arguments[0] == "tune-many" else {"--resume"}
    command = ["graftwork", *(argument for argument in arguments if argument not in dropped), "--resume"]
    return f"{stop.problem}. To go on:\n  {shlex.join(command)}"
