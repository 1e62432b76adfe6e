"""What is wrong with settings is told in one way, whatever the settings are, by the key and in plain words."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field, PositiveFloat

import graftwork
from graftwork import LoRA, Task, TrainingSettings
from graftwork.adapters.folder import AdapterFile
from graftwork.errors import GraftworkError
from graftwork.settings.problems import WORDS, describe
from graftwork.training import Recipe

PACKAGE = Path(graftwork.__file__).parent


def task(**fields):
    return Task(**{"name": "t", "text": "text", **fields})


def recipe(**fields):
    return Recipe.parse({"task": "sst2", **fields})


def train(**fields):
    return recipe(train=fields)


@pytest.mark.parametrize(
    ("make", "given", "told"),
    [
        (task, {"lable": "y"}, "unknown key 'lable' (expected for example label, "),
        (LoRA, {"rnak": 3}, "unknown key 'rnak' (expected for example rank, "),
        (TrainingSettings, {"sede": 3}, "unknown key 'sede' (expected for example seed, "),
        (recipe, {"metod": "lora"}, "unknown key 'metod' (expected for example method, "),
        (train, {"sede": 3}, "unknown key 'train.sede' (expected for example seed, "),
        (task, {"split_seed": "x"}, "split_seed='x': expected a whole number"),
        (LoRA, {"rank": "x"}, "rank='x': expected a whole number"),
        (TrainingSettings, {"seed": 1.5}, "seed=1.5: expected a whole number"),
        (train, {"seed": True}, "train.seed=True: expected a number"),
        (task, {"validation_fraction": 3}, "validation_fraction=3: expected a number below 1"),
        (LoRA, {"rank": 0}, "rank=0: expected a number above 0"),
        (TrainingSettings, {"learning_rate": "1_0"}, "learning_rate='1_0': expected a number, without _ in it"),
        (task, {"name": ""}, "name='': expected a text that is not empty"),
        (task, {"text": 3}, "text=3: expected a text (put it in quotes)"),
        (task, {"splits": {"dev": "a"}}, "splits.dev='dev': expected 'train', 'validation' or 'test'"),
        (task, {"metrics": 3}, "metrics=3: expected a list"),
        (recipe, {"pooling": "odd"}, "pooling='odd': expected 'auto', 'pooler', 'first', 'last' or 'mean'"),
        (recipe, {"train": [1]}, "train=[1]: expected keys and values"),
    ],
)
def test_a_problem_names_the_key_and_what_was_given(make, given, told):
    with pytest.raises(GraftworkError) as caught:
        make(**given)
    assert told in caught.value.problem
    assert caught.value.change


def test_all_problems_are_told_at_once():
    with pytest.raises(GraftworkError) as caught:
        LoRA(rank="x", dropout=2, rnak=1)
    assert caught.value.problem.count("; ") == 2
    assert caught.value.change == "--method.dropout, --method.rank, --method.rnak"


def test_keys_within_keys_are_told_apart():
    with pytest.raises(ValueError, match="validation errors") as caught:
        AdapterFile.model_validate({"task": {"name": "t", "lables": []}, "sedd": 1})
    told = describe(caught.value.errors(), AdapterFile)
    assert "unknown key 'task.lables' (expected for example labels" in told
    assert "unknown key 'sedd' (expected for example seed" in told


class Every(BaseModel, strict=True):
    whole: int = 1
    number: float = 1.0
    yes: bool = True
    text: str = Field(default="a", min_length=1)
    several: list[int] = []
    pair: tuple[int, int] = (1, 2)
    by_name: dict[str, int] = {}
    one_of: Literal["a", "b"] = "a"
    low: int = Field(default=5, ge=2, le=9)
    between: float = Field(default=5, gt=2, lt=9)
    number_or_word: PositiveFloat | Literal["learned"] = "learned"


@pytest.mark.parametrize("name", Every.model_fields)
@pytest.mark.parametrize(
    "value", [b"x", None, "x", "", 3.5, -1, 99, [], {}, True, float("inf"), float("nan")], ids=repr
)
def test_no_problem_is_told_in_pydantics_words(name, value):
    given = {name: value}
    try:
        Every(**given)
    except ValueError as error:
        told = describe(error.errors(), Every)
        assert told.startswith(tuple(given)), told
        assert "constrained" not in told, told
        assert not {"Input", "valid", "instance", "string", "integer", "parse"} & set(told.split()), told


def test_what_pydantic_finds_is_put_into_words_in_one_place():
    told = [file for file in PACKAGE.rglob("*.py") if '["msg"]' in file.read_text(encoding="utf-8")]
    assert [str(file.relative_to(PACKAGE)) for file in told] == ["settings/problems.py"]
    assert WORDS
