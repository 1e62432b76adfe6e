"""A new kind of task is one file and one line of the registry: a copy of the package with both tunes and predicts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training.workbench import write_csv

import graftwork

FILE = '''
"""Whether two texts agree, disagree, or neither: classes of pairs, with a metric of its own."""

from typing import ClassVar

from graftwork.data.columns import TEXT
from graftwork.kinds.classification import Classification
from graftwork.kinds.metrics import Metric, accuracy


class Stance(Classification):
    name = "stance"
    inputs: ClassVar = {"text": TEXT, "text_pair": TEXT}
    needed = ("text",)
    metrics: ClassVar = {"share_right": Metric(accuracy)}
    usual_metrics = 1
    layouts = ("glue",)
'''


END = "=== end of a command ==="

RUN = f"""
import json, sys
from graftwork.cli.app import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as end:
        if end.code:
            raise
    print({END!r})
"""
"""Commands in one process, which imports the copy once."""


@pytest.fixture
def run(tmp_path, backbone_folder):
    """Runs commands of the copy; gives what each prints."""
    shutil.copytree(Path(graftwork.__file__).parent, tmp_path / "graftwork")
    kinds = tmp_path / "graftwork" / "kinds"
    (kinds / "stance.py").write_text(FILE)
    registry = kinds / "__init__.py"
    line = '    "regression": "regression.Regression",\n'
    assert line in registry.read_text()
    registry.write_text(registry.read_text().replace(line, line + '    "stance": "stance.Stance",\n'))

    def run(*commands):
        arguments = [[str(word) for word in command] for command in commands]
        ran = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(arguments)],
            env={**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.split(END)[:-1]

    return run


def test_a_kind_is_a_file_and_a_line(run, backbone_folder, tmp_path):
    rows = [{"text": f"a word {i}", "label": "agree" if i % 2 else "disagree"} for i in range(60)]
    write_csv(tmp_path / "rows.csv", rows)
    given = ["--backbone", backbone_folder, "--dtype", "float32"]
    task = ["--data", "rows.csv", "--text", "text", "--kind", "stance"]
    brief = ["--method", "lora", "--train.max_steps", 2, "--train.baseline", "off"]
    _, scored, predicted, planned = run(
        ["tune", *task, *given, *brief, "--output", "a", "--quiet"],
        ["evaluate", "a", "--data", "rows.csv", "--quiet"],
        ["predict", "a", "a word 3"],
        ["plan", *given[:2], "--method", "lora", "--kind", "stance", "--json"],
    )
    saved = json.loads((tmp_path / "a" / "adapter.json").read_text())
    assert saved["task"]["kind"] == "stance"
    assert saved["metrics"]["validation"].keys() == {"share_right", "loss"}
    assert "share_right" in scored
    assert predicted.split()[0] in ("agree", "disagree")
    assert json.loads(planned)["trained"]["head"] > 0
