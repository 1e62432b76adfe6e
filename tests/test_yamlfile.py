"""Files of settings are read as YAML 1.2 has them, as flags are, and what is written is read back by anybody."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from graftwork.errors import RecipeError
from graftwork.settings.yamlfile import dump_yaml, read_value, read_yaml

CORE = {
    "010": 10,
    "-007": -7,
    "+5": 5,
    "0o17": 15,
    "0x1F": 31,
    "1_000": "1_000",
    "0b11": "0b11",
    "1:30": "1:30",
    "1:30.5": "1:30.5",
    "3e-4": 3e-4,
    "1e3": 1000.0,
    ".5": 0.5,
    "1.": 1.0,
    ".inf": math.inf,
    "-.INF": -math.inf,
    "true": True,
    "False": False,
    "yes": "yes",
    "no": "no",
    "on": "on",
    "Off": "Off",
    "y": "y",
    "~": None,
    "Null": None,
    "2024-01-01": "2024-01-01",
    "=": "=",
    "01e": "01e",
    "0x": "0x",
    "1.2.3": "1.2.3",
}
"""What is written without quotes, and what it is by the core schema of YAML 1.2.2."""


@pytest.mark.parametrize("text", CORE)
def test_a_file_and_a_flag_are_read_alike(tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"a: {text}\nb: [{text}]\nc: '{text}'\n")
    values = read_yaml(tmp_path / "a.yaml")
    assert values == {"a": CORE[text], "b": [CORE[text]], "c": text}
    for found in (values["a"], read_value(text)):
        assert (found, type(found)) == (CORE[text], type(CORE[text]))


def test_nothing_is_null_in_a_file_and_an_empty_text_as_a_flag(tmp_path):
    (tmp_path / "a.yaml").write_text("a:\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": None}
    assert read_value("") == ""


def test_a_block_can_be_taken_over(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &one {x: 1, y: 2}\nb: {<<: *one, y: 3}\n")
    assert read_yaml(tmp_path / "a.yaml")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("text", ["!!int 1:30", "!!int ''", "!!float x", "!!bool yes", "!!null x"])
def test_a_tag_asks_for_a_value_of_its_type(tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"a: {text}\n")
    with pytest.raises(RecipeError, match=r"line 1: .* is not of type "):
        read_yaml(tmp_path / "a.yaml")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(list(CORE))


@given(st.dictionaries(st.text() | st.sampled_from(list(CORE)), PLAIN | st.lists(PLAIN), max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory, values):
    file = tmp_path_factory.mktemp("yaml") / "a.yaml"
    text = dump_yaml(values)
    file.write_text(text, encoding="utf-8", newline="")
    assert read_yaml(file) == values
    assert yaml.safe_load(text) == values, "by a reader of YAML 1.1, too"
