"""Kinds of task are declared in `kinds/` alone: no other room names one."""

import ast
from pathlib import Path
from typing import get_args

import pytest

import graftwork
from graftwork.errors import RecipeError
from graftwork.kinds import KINDS, default_kind
from graftwork.tasks import Task

PACKAGE = Path(graftwork.__file__).parent

OF_KINDS = ("kinds/", "heads/", "tasks/builtin.py")
"""The kinds; heads, whose names in files are like those of kinds; and tasks, each of which is of a kind."""


@pytest.mark.parametrize("file", sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")))
def test_no_other_room_names_a_kind(file):
    if file.startswith(OF_KINDS):
        return
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} & set(KINDS)
    # Hugging Face calls a configuration's problem type so.
    named -= {"regression"} if file == "model/saving.py" else set()
    assert not named, f"{file} names {', '.join(sorted(named))}"


def test_every_layout_is_of_some_kind():
    layouts = set(get_args(Task.model_fields["layout"].annotation))
    assert {layout for kind in KINDS.values() for layout in kind.layouts} == layouts - {"table"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layout_of_other_kinds_is_refused_with_those(kind):
    for layout in {layout for own in KINDS.values() for layout in own.layouts} - set(KINDS[kind].layouts):
        owners = " and ".join(name for name, own in KINDS.items() if layout in own.layouts)
        with pytest.raises(RecipeError, match=f"layout: {layout} is for {owners}"):
            Task.parse({"name": "t", "kind": kind, "text": "a", "choices": "b", "layout": layout}, origin="it")


def test_one_output_without_a_kind_is_a_number():
    assert (default_kind(1), default_kind(2), default_kind(7)) == ("regression", "classification", "classification")
