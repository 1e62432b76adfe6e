"""transformers' callbacks in runs of one adapter, of several at once, and of several tasks."""

import pytest
from training.workbench import FAST
from transformers import TrainerCallback

from graftwork import LoRA, RecipeError, Task, TuneManyError, distill, tune, tune_many, tune_tasks
from graftwork.training import Recipe
from graftwork.training.joint_recipe import JointRecipe

SHORT = {**FAST, "num_train_epochs": 2, "per_device_train_batch_size": 36}
"""Three steps an epoch."""


class Heard(TrainerCallback):
    """Notes what it is told, and does what it was made for."""

    def __init__(self, **actions):
        self.events, self.actions = [], actions

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(("step", state.global_step))
        for name, step in self.actions.items():
            if state.global_step == step:
                setattr(control, name, True)
        return control

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        assert {"eval_loss", "eval_accuracy"} <= metrics.keys()
        self.events.append(("evaluate", state.global_step))


class PrunedError(Exception):
    """What a search raises."""


class Pruning(TrainerCallback):
    def on_evaluate(self, args, state, control, **kwargs):
        raise PrunedError


@pytest.fixture
def task(data):
    return Task(name="classes", text="text", data=str(data["classes"]), metrics=("accuracy", "f1_macro"))


def run(backbone, task, **options):
    return tune(backbone, task=task, method=LoRA(rank=2), **{**SHORT, **options})


def test_a_callback_is_told_and_changes_nothing(backbone, task):
    heard = Heard()
    adapter = run(backbone, task, callbacks=[heard])
    assert heard.events == [
        *(("step", 1), ("step", 2), ("step", 3), ("evaluate", 3)),
        *(("step", 4), ("step", 5), ("step", 6), ("evaluate", 6)),
    ]
    assert adapter.digest == run(backbone, task).digest


def test_a_class_is_made_for_each_run(backbone, task):
    made = []

    class Made(Heard):
        def __init__(self):
            super().__init__()
            made.append(self)

    for _ in range(2):
        run(backbone, task, callbacks=(Made,), num_train_epochs=1)
    assert [len(own.events) for own in made] == [4, 4]


@pytest.mark.parametrize("by", ["epoch", "steps"])
def test_a_run_that_is_stopped_is_scored_where_it_stops(backbone, task, tmp_path, by):
    """By steps, nothing would be scored before the tenth."""
    heard = Heard(should_training_stop=2)
    every = {"eval_strategy": "steps", "eval_steps": 10} if by == "steps" else {}
    stopped = run(backbone, task, callbacks=[heard], output=tmp_path / "out", **every)
    assert heard.events == [("step", 1), ("step", 2), ("evaluate", 2)]
    assert stopped.metrics["validation"].keys() == {"loss", "accuracy", "f1_macro"}
    # It is finished, and nothing is left to be resumed.
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


class Saves(Heard):
    def on_save(self, args, state, control, **kwargs):
        self.events.append(("save", state.global_step))


@pytest.mark.parametrize("asked", ["should_evaluate", "should_save"])
def test_what_is_scored_is_saved(backbone, task, asked):
    """The best score may be the one that was asked for: without its checkpoint there would be nothing to keep."""
    heard = Saves(**{asked: 1})
    run(backbone, task, callbacks=[heard])
    for event in ("evaluate", "save"):
        assert [step for own, step in heard.events if own == event] == [1, 3, 6]


def test_what_a_callback_raises_ends_the_run(backbone, task, tmp_path):
    with pytest.raises(PrunedError):
        run(backbone, task, callbacks=[Pruning()], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(backbone, task, num_train_epochs=1)


def test_optuna_prunes(backbone, task):
    optuna = pytest.importorskip("optuna")
    optuna.logging.disable_default_handler()

    class Report(TrainerCallback):
        def __init__(self, trial):
            self.trial = trial

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            self.trial.report(metrics["eval_loss"], state.global_step)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    def objective(trial):
        rate = trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True)
        rates = {"learning_rate": rate, "head_learning_rate": rate, "per_device_train_batch_size": 8}
        made = run(backbone, task, **rates, callbacks=[Report(trial)])
        return made.metrics["validation"]["loss"]

    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0.6))
    study.enqueue_trial({"learning_rate": 0.03})
    study.enqueue_trial({"learning_rate": 1e-5})
    study.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    assert list(study.trials[1].intermediate_values) == [14]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([3], "3 is no callback of transformers"),
        ([Heard(), "early"], "'early' is no callback of transformers"),
        ([dict], "<class 'dict'> is no callback of transformers"),
        ("early", "'early' is no list of callbacks"),
        (Heard, "is no list of callbacks"),
        (None, "None is no list of callbacks"),
    ],
)
def test_other_things_are_refused_before_anything_is_read(backbone, task, tmp_path, given, said):
    nowhere = task.override(data="nowhere.csv")
    with pytest.raises(RecipeError, match=said):
        tune(backbone, task=nowhere, callbacks=given)
    with pytest.raises(RecipeError, match=said):
        tune_tasks(backbone, [nowhere, nowhere.override(name="other")], callbacks=given)
    with pytest.raises(RecipeError, match=said):
        distill(backbone, teachers="nowhere", task=nowhere, callbacks=given)
    with pytest.raises(RecipeError, match=said):
        tune_many(backbone, {"a": {"task": nowhere}}, callbacks={"a": given})


def test_each_of_several_adapters_has_its_own(backbone, task):
    with pytest.raises(RecipeError, match="'b', and no adapter has that name"):
        tune_many(backbone, {"a": {"task": task}}, callbacks={"b": []})
    with pytest.raises(RecipeError, match="is no mapping of callbacks"):
        tune_many(backbone, {"a": {"task": task}}, callbacks=[Heard()])
    stopped, going = Heard(should_training_stop=2), Heard()
    own = {"task": task, "method": LoRA(rank=2)}
    given = {"stopped": own, "going": own, "raising": own, "none": own}
    told = {"stopped": [stopped], "going": [going], "raising": [Pruning]}
    with pytest.raises(TuneManyError, match=r"1 of 4 runs failed(.|\n)*raising: PrunedError") as caught:
        tune_many(backbone, given, callbacks=told, **SHORT)
    assert caught.value.finished.keys() == {"stopped", "going", "none"}
    assert stopped.events == [("step", 1), ("step", 2), ("evaluate", 2)]
    assert [step for event, step in going.events if event == "evaluate"] == [3, 6]


def test_tasks_that_share_an_adapter_have_callbacks(backbone, task):
    events = []

    class Mean(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            events.append((state.global_step, {"eval_classes_accuracy", "eval_other_accuracy"} <= metrics.keys()))

    tune_tasks(backbone, [task, task.override(name="other")], method=LoRA(rank=2), callbacks=[Mean], **SHORT)
    assert events == [(6, True), (12, True)]


def test_files_have_no_callbacks():
    with pytest.raises(RecipeError, match="callbacks"):
        Recipe.parse({"task": "cola", "callbacks": ["early"]})
    with pytest.raises(RecipeError, match="callbacks"):
        JointRecipe.parse({"adapters": {"a": {"task": "cola"}}, "callbacks": {}})
