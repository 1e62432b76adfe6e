"""One finished run, as tables and figures read it."""

from pathlib import Path

from graftwork.studies.results import Result


def test_what_was_set_is_read_from_the_text_of_the_setting():
    made = Result(
        task="rte",
        method="houlsby",
        setting="bottleneck=64, targets=query,value",
        learning_rate=1e-3,
        seed=0,
        main_metric="accuracy",
        validation={"loss": 0.5, "accuracy": 0.75},
        test={"loss": 0.6, "accuracy": 0.5},
        trained_parameters=100,
        backbone_parameters=1000,
        nbytes=400,
        seconds=1.5,
        folder=Path("run"),
    )
    assert made.settings == {"bottleneck": "64", "targets": "query,value"}
    assert made.label == "houlsby (bottleneck=64, targets=query,value)"
    assert (made.validation_score, made.test_score) == (0.75, 0.5)
