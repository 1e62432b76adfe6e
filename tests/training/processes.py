"""What the tests of processes run in a process of their own: graftwork is imported once, and each run is a fork of it,
which begins at once and can be killed.

Run as `python processes.py WHAT RECIPE`, in the folder for the outputs. Prints one line of JSON.
"""

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from graftwork.cli import main
from graftwork.training import Recipe, tune_recipe


def fork(*arguments: str) -> int:
    """Begin a command; gives its process."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with Path(f"{os.getpid()}.log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            main(list(arguments))
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(process: int) -> tuple[int, str]:
    """The exit status of a process, and what it said."""
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status, Path(f"{process}.log").read_text() if Path(f"{process}.log").exists() else ""


def digest(folder: str) -> str | None:
    """Of all files of a folder; None when it is not there."""
    if not Path(folder).is_dir():
        return None
    files = sorted(Path(folder).rglob("*"))
    return sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def command(recipe: str, output: str, *flags: str) -> list[str]:
    return ["tune", recipe, "--output", output, "--quiet", *flags]


def pairs(recipe: str) -> Any:
    """Two runs begin at nearly the same time with one output, again and again."""
    whole = {}
    for seed in ("1", "2"):
        wait(fork(*command(recipe, f"whole-{seed}", "--train.seed", seed)))
        whole[digest(f"whole-{seed}")] = seed
    found = []
    for number in range(3):
        both = [fork(*command(recipe, f"a-{number}", "--train.seed", "1"))]
        time.sleep(random.choice((0.0, random.uniform(0.0, 0.2))))
        both.append(fork(*command(recipe, f"a-{number}", "--train.seed", "2")))
        ended = [wait(process) for process in both]
        names = sorted(path.name for path in Path().glob(f"*a-{number}*"))
        said = [text for status, text in ended if status == 2]
        statuses = sorted(status for status, _ in ended)
        found.append({"statuses": statuses, "by": whole.get(digest(f"a-{number}")), "names": names, "said": said})
    return found


def live(recipe: str) -> Any:
    """While a run goes on, others are begun with its output, in all ways."""
    long = ("--train.max_steps", "120", "--train.eval_steps", "60", "--train.seed", "1")
    wait(fork(*command(recipe, "whole", *long)))
    wait(fork(*command(recipe, "a", "--train.seed", "3")))
    running = fork(*command(recipe, "a", *long, "--overwrite"))
    while not Path(".a.tuning/recipe.yaml").exists():
        time.sleep(0.001)
    before = digest("a")
    found = []
    for flags in ([], ["--overwrite"], ["--resume"], ["--overwrite", "--resume"], ["--resume", "--train.max_steps=9"]):
        status, said = wait(fork(*command(recipe, "a", "--train.seed", "2", *flags)))
        told = f"in progress: process {running} on host " in said or (not flags and "exists already" in said)
        found.append([*flags, status, told, digest("a") == before])
    alive = os.waitpid(running, os.WNOHANG) == (0, 0)
    ended, _ = wait(running) if alive else (-1, "")
    return {"others": found, "alive": alive, "ended": ended, "as alone": digest("a") == digest("whole")}


def kills(recipe: str) -> Any:
    """Runs are killed at any moment, and gone on with, until one ends."""
    wait(fork(*command(recipe, "whole", "--train.seed", "1")))
    start = time.monotonic()
    wait(fork(*command(recipe, "old", "--train.seed", "2")))
    usual = time.monotonic() - start
    whole, old = digest("whole"), digest("old")
    found: dict[str, int] = {"killed": 0, "strange": 0, "resumed": 0}
    for number in range(2):
        Path("old").rename("a") if number == 1 else None
        before = old if number == 1 else None
        for _ in range(6):
            resume = ["--resume"] if Path(".a.tuning/recipe.yaml").exists() else []
            process = fork(*command(recipe, "a", "--train.seed", "1", "--overwrite", *resume))
            time.sleep(random.uniform(0.0, 1.2 * usual))
            os.kill(process, signal.SIGKILL)
            status, _ = wait(process)
            found["killed"] += status == -signal.SIGKILL
            found["strange"] += digest("a") not in (whole, before)
            found["resumed"] += bool(resume)
        resume = ["--resume"] if Path(".a.tuning/recipe.yaml").exists() else []
        status, said = wait(fork(*command(recipe, "a", "--train.seed", "1", "--overwrite", *resume)))
        names = sorted(path.name for path in Path().iterdir() if path.name.startswith((".", "a")))
        if status or digest("a") != whole or names != ["a"]:
            found.setdefault(f"{status} {names} {said}", 0)
        Path("a").rename(f"done-{number}")
    return found


def fork_together(count: int, *arguments: str) -> list[int]:
    """Begin a command as several processes, in the environment that torchrun makes; gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = []
    for rank in range(count):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in own.items()})
        found.append(fork(*arguments))
    for name in own:
        del os.environ[name]
    return found


SHARED = {
    # The last batch of an epoch has one row, so that a process has none.
    "odd": [
        *("--train.per_device_train_batch_size", "107", "--train.gradient_accumulation_steps", "2"),
        *("--train.num_train_epochs", "4", "--train.max_steps", "4", "--train.eval_steps", "2"),
    ],
    # Which of its modules a pass takes is drawn: gradients of the others are none.
    "drawn": ["--method", "adamix", "--train.max_steps", "8", "--train.eval_steps", "2"],
}


def cut_and_resumed(recipe: str, *flags: str, like: str) -> dict[str, Any]:
    """A run of two processes that are killed and gone on with: how these end, and whether the files are another's."""
    running = fork_together(2, *command(recipe, "cut", *flags))
    while not list(Path().glob(".cut.tuning/checkpoint-2/trainer_state.json")):
        time.sleep(0.001)
    for process in running:
        os.kill(process, signal.SIGKILL)
        wait(process)
    resumed = [wait(process) for process in fork_together(2, *command(recipe, "cut", *flags, "--resume"))]
    return {
        "statuses": [status for status, _ in resumed],
        "same": digest("cut") == digest(like),
        "said": resumed[0][1],
    }


def together(recipe: str) -> Any:
    """Runs of one process, and the same of two; one of two that are killed and gone on with; one that is refused."""
    # What is imported by the way is imported once.
    tune_recipe(Recipe.from_yaml(recipe, {"train.max_steps": 1, "train.eval_steps": 1}))
    found: dict[str, Any] = {}
    for name, flags in SHARED.items():
        one, said = wait(fork(*command(recipe, f"one-{name}", *flags, "--json")))
        two = [wait(process) for process in fork_together(2, *command(recipe, f"two-{name}", *flags, "--json"))]
        found[name] = {"statuses": [one, *(status for status, _ in two)], "said": [said, *(said for _, said in two)]}
    found["cut"] = cut_and_resumed(recipe, *SHARED["drawn"], like="two-drawn")
    refused = [wait(process) for process in fork_together(2, *command(recipe, "no", "--train.prefix_cache", "on"))]
    found["refused"] = {"statuses": [status for status, _ in refused], "said": refused[0][1]}
    found["names"] = sorted(path.name for path in Path().iterdir() if path.suffix != ".log")
    return found


PARTS = {
    # The last batch of an epoch has one row, so that a process has none; and the frozen backbone is compared with.
    "encoder": ["recipe.yml", "--method", "houlsby", "--train.baseline", "auto", *SHARED["odd"]],
    "decoder": ["texts.yml", "--train.max_steps", "4", "--train.eval_steps", "2"],
}


def sharded(recipe: str) -> Any:
    """Runs of one process, and the same of two that share out the backbone; one of these that is killed and gone on
    with; some that are refused."""
    tune_recipe(Recipe.from_yaml(recipe, {"train.max_steps": 1, "train.eval_steps": 1}))
    found: dict[str, Any] = {}
    for name, flags in PARTS.items():
        one, said = wait(fork(*command(*flags[:1], f"one-{name}", *flags[1:], "--json")))
        parts = [*flags[1:], "--train.fsdp", "true", "--json"]
        two = [wait(process) for process in fork_together(2, *command(*flags[:1], f"two-{name}", *parts))]
        found[name] = {"statuses": [one, *(status for status, _ in two)], "said": [said, *(said for _, said in two)]}
    found["cut"] = cut_and_resumed(recipe, *PARTS["encoder"][1:], "--train.fsdp", "true", like="two-encoder")
    full = ("--method", "full-fine-tuning", "--train.fsdp", "true")
    refused = [wait(process) for process in fork_together(2, *command(recipe, "no", *full))]
    found["refused"] = {"statuses": [status for status, _ in refused], "said": refused[0][1]}
    return found


def methods(recipe: str) -> Any:
    """What some methods make, as digests."""
    found = {}
    for name in ("lora", "adamix", "mam", "bitfit"):
        tune_recipe(Recipe.from_yaml(recipe, {"method": name, "train.max_steps": 4}), output=name)
        found[name] = digest(name)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen: dict[str, Callable[[str], Any]] = {
        "pairs": pairs,
        "live": live,
        "kills": kills,
        "methods": methods,
        "together": together,
        "sharded": sharded,
    }
    print(json.dumps(chosen[sys.argv[1]](sys.argv[2])))
