"""Dotted flags become `--set KEY=VALUE`, values are read as JSON where they are, and nothing else is touched."""

import pytest

from graftwork.cli.settings import gather_settings, parse_settings
from graftwork.errors import MethodError, RecipeError
from graftwork.methods import LoRA
from graftwork.tasks import Task
from graftwork.training import TrainingSettings


@pytest.mark.parametrize(
    ("given", "gathered"),
    [
        (["--method.bottleneck", "64"], ["--set", "method.bottleneck=64"]),
        (["--method.bottleneck=64"], ["--set", "method.bottleneck=64"]),
        (["--train.gradient-checkpointing"], ["--set", "train.gradient_checkpointing=true"]),
        (["--train.gradient-checkpointing", "--json"], ["--set", "train.gradient_checkpointing=true", "--json"]),
        (["--train.max_steps", "-1"], ["--set", "train.max_steps=-1"]),
        (["--train.max_steps=-1", "x"], ["--set", "train.max_steps=-1", "x"]),
        (["--train.max-steps", "5"], ["--set", "train.max_steps=5"]),
        (["--train.report-to=a-b"], ["--set", "train.report_to=a-b"]),
        (["--task.splits.train", "a=b.csv"], ["--set", "task.splits.train=a=b.csv"]),
        (["--method.targets="], ["--set", "method.targets="]),
        (["--task.text", ""], ["--set", "task.text="]),
        (["--task.data=two\nlines"], ["--set", "task.data=two\nlines"]),
        (["--train.seed", "--", "3"], ["--set", "train.seed=true", "--", "3"]),
        (["--set", "train.seed=3"], ["--set", "train.seed=3"]),
    ],
)
def test_dotted_flags(given, gathered):
    assert gather_settings(given) == gathered


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tune", "recipe.yaml", "--output", "out.d", "--method", "lora", "--task", "sst2", "--text-pair", "b"],
        ["predict", "a", "--", "--train.seed", "--method.x=1"],
        ["--other.key", "3", "--trained.x=1", "-method.x", "method.x=3", "--method", "--method."],
        ["predict", "a", "a text about --train.seed 3", "--train.seed is a flag"],
    ],
)
def test_other_arguments_are_left_alone(arguments):
    assert gather_settings(arguments) == arguments


def test_given_arguments_are_not_changed():
    given = ["--train.seed", "3"]
    gather_settings(given)
    assert given == ["--train.seed", "3"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-1", -1),
        ("3e-4", 3e-4),
        ("true", True),
        ("null", None),
        ('["a", "b"]', ["a", "b"]),
        ("query,value", "query,value"),
        ("layers.[0-3].*", "layers.[0-3].*"),
        ("True", "True"),
        ("007", "007"),
        ("a=b", "a=b"),
        ('"3"', "3"),
        ("", ""),
    ],
)
def test_values(text, value):
    parsed = parse_settings([f"train.key={text}"])
    assert parsed == {"train.key": value}
    assert type(parsed["train.key"]) is type(value)


@pytest.mark.parametrize("setting", ["train.seed", "=3", ""])
def test_setting_without_key_or_value(setting):
    with pytest.raises(RecipeError, match=r"has no value(.|\n)*KEY=VALUE(.|\n)*--set"):
        parse_settings([setting])


def test_setting_given_twice():
    with pytest.raises(RecipeError, match=r"'train\.seed' is given twice(.|\n)*--train\.seed"):
        parse_settings(["train.seed=3", "method.rank=4", "train.seed=3"])


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"seed": "1_0"}, "seed"), ({"learning_rate": "1_0e-3"}, "learning_rate"), ({"max_length": "1_2"}, "max_length")],
)
def test_python_may_write_numbers_with_underscores_and_settings_may_not(settings, key):
    with pytest.raises(RecipeError, match=rf"{key}(.|\n)*without _ in it"):
        TrainingSettings(**settings)


def test_other_settings_may_have_underscores():
    settings = TrainingSettings(train_sampling_strategy="group_by_length", optim="adamw_torch", seed="10")
    assert (settings.seed, settings.optim) == (10, "adamw_torch")
    with pytest.raises(MethodError, match="without _ in it"):
        LoRA(rank="1_6")
    assert LoRA(targets="layers.0_1.*", rank="16").rank == 16
    with pytest.raises(RecipeError, match=r"split_seed: (.|\n)*without _ in it"):
        Task.parse({"name": "a_1", "text": "1_0", "split_seed": "1_0"}, origin="it")
    assert Task.parse({"name": "a_1", "text": "1_0"}, origin="it").text == "1_0"
