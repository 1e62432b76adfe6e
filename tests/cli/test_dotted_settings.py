"""Dotted flags become `--set KEY=VALUE`, values are read as a file has them, and nothing else is touched."""

import pytest

from graftwork import LoRA, TrainingSettings
from graftwork.cli.settings import gather_settings, parse_settings
from graftwork.errors import MethodError, RecipeError
from graftwork.tasks import Task
from graftwork.training import Recipe
from graftwork.training.recipe import override


@pytest.mark.parametrize(
    ("given", "gathered"),
    [
        (["--method.bottleneck", "64"], ["--set", "method.bottleneck=64"]),
        (["--method.bottleneck=64"], ["--set", "method.bottleneck=64"]),
        (["--train.gradient-checkpointing"], ["--set", "train.gradient_checkpointing"]),
        (["--train.gradient-checkpointing", "--json"], ["--set", "train.gradient_checkpointing", "--json"]),
        (["--train.max_steps", "-1"], ["--set", "train.max_steps=-1"]),
        (["--train.max_steps=-1", "x"], ["--set", "train.max_steps=-1", "x"]),
        (["--train.max-steps", "5"], ["--set", "train.max_steps=5"]),
        (["--train.report-to=a-b"], ["--set", "train.report_to=a-b"]),
        (["--task.splits.train", "a=b.csv"], ["--set", "task.splits.train=a=b.csv"]),
        (["--method.targets="], ["--set", "method.targets="]),
        (["--task.text", ""], ["--set", "task.text="]),
        (["--task.data=two\nlines"], ["--set", "task.data=two\nlines"]),
        (["--train.seed", "--", "3"], ["--set", "train.seed", "--", "3"]),
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
        ("True", True),
        ("007", 7),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("0x1F", 31),
        (".5", 0.5),
        ("~", None),
        ("NaN", "NaN"),
        ("[0-3]", "[0-3]"),
        ("{", "{"),
        ("a=b", "a=b"),
        ('"3"', "3"),
        ("", ""),
    ],
)
def test_values(text, value):
    parsed = parse_settings([f"train.key={text}"])
    assert parsed == {"train.key": value}
    assert type(parsed["train.key"]) is type(value)


@pytest.mark.parametrize("setting", ["=3", ""])
def test_setting_without_key(setting):
    with pytest.raises(RecipeError, match=r"has no key(.|\n)*KEY=VALUE(.|\n)*--set"):
        parse_settings([setting])


# A flag without a value


def parsed(*arguments):
    """What a recipe says under these flags."""
    task = {"task.name": "it", "task.text": "text", "task.data": "x.csv"}
    given = {"method": "lora", **task, **parse_settings(gather_settings(arguments)[1::2])}
    return Recipe.parse(override({}, given), given=given)


@pytest.mark.parametrize(
    "flag", ["--train.max_steps", "--train.seed", "--train.learning_rate", "--train.report_to", "--train.prefix_cache"]
)
def test_a_training_flag_without_a_value_is_refused(flag):
    with pytest.raises(RecipeError) as refusal:
        parsed(flag)
    assert f"{flag} has no value" in refusal.value.problem
    assert flag in refusal.value.change


@pytest.mark.parametrize("flag", ["--method.rank", "--method.alpha", "--method.targets"])
def test_a_methods_flag_without_a_value_is_refused(flag):
    with pytest.raises(MethodError) as refusal:
        parsed(flag).find_method()
    assert f"{flag} has no value" in refusal.value.problem
    assert refusal.value.change == flag


@pytest.mark.parametrize("flag", ["--task.text", "--task.split_seed", "--task.labels", "--task.splits"])
def test_a_tasks_flag_without_a_value_is_refused(flag):
    with pytest.raises(RecipeError, match=f"{flag} has no value"):
        parsed(flag).find_task()


def test_a_split_without_a_value_is_refused():
    with pytest.raises(RecipeError, match=r"--task\.splits\.test without a value"):
        parsed("--task.splits.test").find_task()


def test_a_flag_without_a_value_is_true_where_it_can_be():
    recipe = parsed(
        "--train.gradient_checkpointing", "--method.rank_stabilised", "--task.label_ids", "--task.labels=a,b"
    )
    assert recipe.train.gradient_checkpointing is True
    assert recipe.find_method() == LoRA(rank_stabilised=True)
    assert recipe.find_task().label_ids is True


@pytest.mark.parametrize("value", ["true", "false"])
def test_true_and_false_are_no_numbers(value):
    """From a flag and from Python alike."""
    with pytest.raises(RecipeError, match=r"train\.max_steps=.*expected a number"):
        parsed("--train.max_steps", value)
    with pytest.raises(RecipeError, match=r"seed=.*expected a number"):
        TrainingSettings(seed=value == "true")
    with pytest.raises(MethodError, match=r"rank=.*expected a number"):
        LoRA(rank=value == "true")
    assert parsed("--train.torch_compile", value).train.torch_compile is (value == "true")


def test_a_number_written_as_a_time_is_refused():
    with pytest.raises(RecipeError, match=r"train\.max_steps='1:30'"):
        parsed("--train.max_steps", "1:30")
    assert parsed("--train.max_steps", "010").train.max_steps == 10


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
    with pytest.raises(RecipeError, match=r"split_seed=.1_0.: (.|\n)*without _ in it"):
        Task.parse({"name": "a_1", "text": "1_0", "split_seed": "1_0"}, origin="it")
    assert Task.parse({"name": "a_1", "text": "1_0"}, origin="it").text == "1_0"
