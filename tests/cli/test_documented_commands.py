"""Every `graftwork` command in the documents and examples parses, and names what exists."""

import re
import shlex
from pathlib import Path

import pytest

from graftwork.cli.app import app
from graftwork.cli.settings import gather_settings, parse_settings
from graftwork.methods import make_method
from graftwork.tasks import BUILTIN
from graftwork.training import Recipe
from graftwork.training.recipe import override

ROOT = Path(__file__).parents[2]


def shell_lines(path):
    """The lines of a script, or of the fenced shell blocks of a document; continued lines are joined."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        # Every block is matched, so that the end of one in another language does not pass for the start of one.
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        text = "".join(block for language, block in blocks if language in ("", "sh", "bash", "shell", "console"))
    return [line.strip().removeprefix("$ ") for line in text.replace("\\\n", " ").splitlines()]


def commands(path):
    """The arguments of each `graftwork` command, without comments and what follows in a pipeline."""
    found = []
    for line in shell_lines(path):
        if line.startswith("graftwork "):
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
            lexer.whitespace_split = True
            words = list(lexer)
            end = next((i for i, word in enumerate(words) if set(word) <= set("|;&<>")), len(words))
            found.append(words[1:end])
    return found


DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.sh")])
COMMANDS = [
    pytest.param(command, id=f"{path.name}: {' '.join(command)}") for path in DOCUMENTS for command in commands(path)
]


def test_readme_shows_commands():
    assert len(commands(ROOT / "README.md")) >= 1


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command):
    function, bound, _ = app.parse_args(gather_settings(command), exit_on_error=False, print_error=False)
    given = bound.arguments
    if function.__name__ not in ("tune", "plan"):
        return
    settings = parse_settings(given.get("settings", []))
    name = given.get("method")
    chosen = {key.removeprefix("method."): value for key, value in settings.items() if key.startswith("method.")}
    if name is not None or chosen:
        assert make_method(name or "houlsby", chosen).name
    assert {task for task in given.get("task", ()) if not task.endswith(".yaml")} <= BUILTIN.keys()
    training = {key: value for key, value in settings.items() if key.startswith("train.")}
    assert Recipe.parse(override({"task": "cola"}, training)).train


def test_a_wrong_command_would_be_noticed(tmp_path):
    page = tmp_path / "page.md"
    python, shell = (
        "```python\ngraftwork tune\n```\n",
        "```sh\n$ graftwork tune --task x \\\n  --outptu y  # why\n```\n",
    )
    page.write_text(python + shell + python)
    assert commands(page) == [["tune", "--task", "x", "--outptu", "y"]]
    with pytest.raises(Exception, match="--outptu"):
        app.parse_args(commands(page)[0], exit_on_error=False, print_error=False)
