"""Merges of fully fine-tuned models by methods that read data: at bounded memory, and resumed where they were."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli.conftest import graftwork
from closeness import close
from safetensors.torch import load_file
from tiny import make_adapter, make_backbone, make_config, make_tokenizer
from training.workbench import names_in, one_thread, write_csv
from transformers import AutoModel, AutoModelForSequenceClassification

from graftwork import FullFineTuning
from graftwork.arithmetic.adapters.differences import weights_of
from graftwork.arithmetic.adapters.vectors import changes_of
from graftwork.arithmetic.data import squares
from graftwork.arithmetic.data.reading import Rows
from graftwork.arithmetic.merging import folders

__all__ = ["graftwork", "one_thread"]

MOST = 3


def make_models(where: Path, **fields: int) -> Path:
    """A base, models that were tuned from it, and a task for all."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(make_config("bert", **fields))
    tokenizer = make_tokenizer()
    AutoModel.from_config(model.config).save_pretrained(where / "base")
    tokenizer.save_pretrained(where / "base")
    base = AutoModel.from_pretrained(where / "base")
    for seed in range(MOST):
        torch.manual_seed(seed)
        model.base_model.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        model.config.id2label = {0: "bad", 1: "good"}
        model.save_pretrained(where / f"m{seed}")
        tokenizer.save_pretrained(where / f"m{seed}")
    texts = ["the film is good", "a book was bad", "very gripping", "not very dull"] * 5
    rows = [{"text": f"{text} {i % 7}", "label": ("bad", "good")[i % 2]} for i, text in enumerate(texts)]
    data = write_csv(where / "rows.csv", rows)
    task = ["name: films", "text: text", f"data: {data}", "labels: [bad, good]", "metrics: accuracy"]
    (where / "films.yaml").write_text("\n".join(task) + "\n")
    return where


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("small"))


PROGRAM = """
import sys, threading, time
from pathlib import Path
from graftwork.arithmetic import MergeRecipe, merge
from graftwork.arithmetic.data.reading import Rows
from graftwork.arithmetic.merging import folders

folders.LARGE = 2**20
warm, where = map(Path, sys.argv[1:])

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000

def peak(method, where):
    recipe = MergeRecipe(method=method, models=[str(where / f"m{i}") for i in range(3)],
                         base=str(where / "base"), tasks=[str(where / "films.yaml")])
    most, going = [0.0], [True]
    def watch():
        while going:
            most[0] = max(most[0], anonymous())
            time.sleep(0.01)
    before = anonymous()
    thread = threading.Thread(target=watch)
    thread.start()
    merge(recipe, where / "out", overwrite=True)
    going.clear()
    thread.join()
    return most[0] - before

peak({"name": "fisher", "examples": 4}, warm)  # what is imported late
for method in ({"name": "fisher", "examples": 4}, {"name": "adamerging", "steps": 1}):
    print(method["name"], peak(method, where))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by Linux alone")
def test_memory_does_not_grow_with_the_number_of_models(small, tmp_path):
    """Of three models. What is mapped from files is not the process's own, and is not counted."""
    make_models(tmp_path, hidden_size=512, intermediate_size=2048, num_hidden_layers=2)
    size = (tmp_path / "m0" / "model.safetensors").stat().st_size / 1e6
    ran = subprocess.run([sys.executable, "-c", PROGRAM, small, tmp_path], capture_output=True, text=True, check=True)
    for line in ran.stdout.splitlines():
        name, most = line.split()
        # The backbone, a model, what is found of it, what is made of it for a pass, and one more; and for Fisher
        # information the gradients of a few examples.
        assert float(most) < 5 * size + (2 * squares.CHUNK / 1e6 if name == "fisher" else 0), name


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "resnet"])
def test_what_a_full_fine_tuning_changes_is_read_off_its_tensors(kind):
    """As it is found by putting it into the weights, but for rounding."""
    backbone = make_backbone(kind, head=kind == "t5")
    adapter = make_adapter(backbone, FullFineTuning(), trained=True)
    expected, found = weights_of(adapter, backbone), changes_of(adapter, backbone)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        close(tensor, expected[name], 8, what=name)


@pytest.mark.parametrize(
    ("method", "computes"), [({"name": "fisher", "batch_size": 4}, 3), ({"name": "regmean", "batch_size": 4}, 3)]
)
def test_statistics_of_models_that_are_done_are_not_computed_again(
    graftwork, small, tmp_path, monkeypatch, method, computes
):
    """A merge that was killed while the second model was read, of 12 rows in 3 batches."""
    own = [small / f"m{i}" for i in range(2)]
    settings = [part for key, value in method.items() if key != "name" for part in (f"--method.{key}", value)]
    command = ["merge", method["name"], *own, "--base", small / "base", "--task", small / "films.yaml", *settings]
    command += ["--method.examples", 12, "--quiet", "--output"]
    whole = graftwork(*command, tmp_path / "whole")
    assert (whole.status, whole.err) == (0, "")
    plain, count = Rows.batch, []

    def counted(self, places):
        count.append(1)
        if len(count) == computes + 2:
            raise KeyboardInterrupt
        return plain(self, places)

    monkeypatch.setattr(Rows, "batch", counted)
    killed = graftwork(*command, tmp_path / "out")
    assert (killed.status, "--resume" in killed.err) == (130, True)
    before = len(count)
    again = graftwork(*command, tmp_path / "out", "--resume")
    assert (again.status, again.err) == (0, "")
    assert len(count) - before == computes  # of the second model alone
    assert names_in(tmp_path) == ["out", "whole"]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


HOWS = {
    "fisher": [],
    "regmean": [],
    "adamerging": ["--method.steps", 2],
    "donor": ["--method.points", 2, "--method.examples", 6],
}


@pytest.mark.parametrize("method", HOWS)
def test_models_on_disk_are_merged_as_those_in_memory(graftwork, small, tmp_path, monkeypatch, method):
    own = [small / f"m{i}" for i in range(2)]
    command = [
        "merge",
        method,
        *HOWS[method],
        *own,
        "--base",
        small / "base",
        "--task",
        small / "films.yaml",
        "--quiet",
        "--output",
    ]
    assert graftwork(*command, tmp_path / "memory").status == 0
    monkeypatch.setattr(folders, "LARGE", 0)
    assert graftwork(*command, tmp_path / "disk").status == 0
    found = [sorted((tmp_path / name).rglob("model.safetensors")) for name in ("memory", "disk")]
    assert found[0]
    for one, other in zip(*found, strict=True):
        a, b = load_file(one), load_file(other)
        assert all(torch.equal(a[name], b[name]) for name in a | b)
