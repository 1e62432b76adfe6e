"""The README's table for users of peft: its names are peft's, and ours."""

import inspect
import re
from pathlib import Path

import peft
import pytest
from peft.tuners.lora import LoraModel

import graftwork as gw

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in README.split("| peft | graftwork |")[1].split("\n\n")[0].splitlines()[2:]
]


def calls(cell):
    """The names in a cell that are called or stand alone, with their keywords."""
    for code in re.findall(r"`([^`]+)`", cell):
        for name, arguments in re.findall(r"([A-Za-z_][\w.]*)(?:\(([^()]*)\))?", code)[:1]:
            yield name, re.findall(r"(\w+)=", arguments)


def test_the_table_is_there():
    assert len(ROWS) > 15


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_names_of_peft_are_in_peft(row):
    for name, keywords in calls(row[0]):
        if name == "model":  # adapter_names is taken by every forward pass, among the others' arguments
            assert keywords == ["adapter_names"]
            assert "adapter_names" in inspect.getsource(peft.PeftModel)
            continue
        *owner, last = name.split(".")
        places = [getattr(peft, owner[0])] if owner else [peft, peft.PeftModel, LoraModel]
        found = next((getattr(place, last) for place in places if hasattr(place, last)), None)
        assert found is not None, name
        assert set(keywords) <= inspect.signature(found).parameters.keys(), (name, keywords)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_names_of_ours_are_there(row):
    for code in re.findall(r"`([^`]+)`", row[1]):
        for name, arguments in re.findall(r"gw\.([\w.]+)(?:\(([^()]*)\))?", code):
            found = gw
            for part in name.split("."):
                found = getattr(found, part)
            for keyword in re.findall(r"(\w+)=", arguments):
                assert keyword in (getattr(found, "model_fields", None) or inspect.signature(found).parameters)
        for name in re.findall(r"\bmodel\.(\w+)\(", code):
            assert hasattr(gw.AdaptedModel, name), name
