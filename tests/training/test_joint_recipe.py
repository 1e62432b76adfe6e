"""A joint recipe: what it says, and what is refused."""

import re
from pathlib import Path

import pytest

import graftwork as gw
from graftwork import Houlsby, LoRA, Task
from graftwork.errors import RecipeError
from graftwork.training import JointRecipe, TrainingSettings
from graftwork.training.joint_recipe import plain

JOINT = """
backbone: tiny
dtype: float32
train: {learning_rate: 0.1, max_steps: 9}
adapters:
  reviews:
    task: sst2
    data: glue
    method: {name: lora, rank: 4}
    train: {max_steps: 5}
  tickets:
    task: {name: tickets, text: message, data: tickets.csv}
    pooling: mean
    seeds: [0, 7]
"""


def joint_recipe_in(folder, text):
    (folder / "joint.yaml").write_text(text)
    return JointRecipe.from_yaml(folder / "joint.yaml")


def test_a_joint_recipe_is_a_recipe_for_each_adapter(tmp_path):
    joint = joint_recipe_in(tmp_path, JOINT)
    assert list(joint.recipes) == ["reviews", "tickets-0", "tickets-7"]
    assert (joint.backbone, joint.dtype) == ("tiny", "float32")
    assert {(recipe.backbone, recipe.dtype) for recipe in joint.recipes.values()} == {("tiny", "float32")}
    reviews, _, tickets = joint.recipes.values()
    assert reviews.find_task().data == "glue"
    assert reviews.find_method() == LoRA(rank=4)
    assert reviews.train == TrainingSettings(learning_rate=0.1, max_steps=5)
    assert tickets.find_method() == Houlsby()
    assert tickets.pooling == "mean"
    assert tickets.train == TrainingSettings(learning_rate=0.1, max_steps=9, seed=7)


def test_tasks_and_methods_may_be_objects():
    given = {"task": Task(name="t", text="x", data="a.csv"), "method": LoRA(rank=3)}
    [recipe] = JointRecipe.parse({"adapters": {"a": plain(given)}}).recipes.values()
    assert recipe.find_task() == given["task"]
    assert recipe.find_method() == given["method"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("dtype:", "dtpye:", r"joint\.yaml has an unknown key 'dtpye'(.|\n)*dtype"),
        ("    data:", "    date:", r"adapter 'reviews' of .*joint\.yaml has an unknown key 'date'(.|\n)*data"),
        ("max_steps: 5", "max_step: 5", r"adapter 'reviews' of .* unknown key 'train\.max_step'"),
        ("max_steps: 9", "max_steps: many", r"adapter 'reviews' of |adapter 'tickets' of .*max_steps"),
        ("pooling: mean", "pooling: middle", r"adapter 'tickets' of .*pooling='middle'"),
        ("    task: sst2\n", "", "adapter 'reviews' of .* has no task"),
        ("seeds: [0, 7]", "seeds: 3", "adapter 'tickets' of .*: seeds is 3"),
        ("seeds: [0, 7]", "seeds: [0, 0]", "adapter 'tickets' of .* repeated"),
        ("seeds: [0, 7]", "seeds: [0]\n    train: {seed: 1}", "adapter 'tickets' of .* both seeds and train.seed"),
        ("  reviews:", "  tickets-7:", "two adapters named 'tickets-7'"),
        ("  reviews:", "  ../reviews:", r"adapter '\.\./reviews' of .*cannot be a folder's name"),
        (JOINT[JOINT.index("adapters:") :], "adapters: {}", "has no adapters"),
        (JOINT[JOINT.index("adapters:") :], "", "has no adapters"),
        (JOINT[JOINT.index("adapters:") :], "adapters: [a]", r"adapters is \['a'\]"),
        (JOINT[JOINT.index("adapters:") :], "adapters: {a: sst2}", "adapter 'a' of .* is 'sst2'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, said):
    assert old in JOINT
    with pytest.raises(RecipeError, match=said):
        joint_recipe_in(tmp_path, JOINT.replace(old, new))


def test_the_documented_joint_recipe_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```yaml\n(# joint\.yaml\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert list(joint_recipe_in(tmp_path, block).recipes) == ["reviews", "rte-0", "rte-1", "rte-2"]


def test_the_error_has_its_name_of_before():
    assert gw.StudyError is gw.TuneManyError
