"""Landscapes: lines, planes and surfaces against hand computations, and the command."""

import csv
import json
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from closeness import close
from safetensors.torch import load_file
from tiny import make_config, randomised, save_model
from training.kinds import make_images
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTImageProcessor,
)

from graftwork import Adapter, Backbone, Task, evaluate
from graftwork.arithmetic import landscape, recompute_batch_norm
from graftwork.arithmetic.landscapes.landscape import around, direction, interpolate, line, plane
from graftwork.arithmetic.landscapes.points import Points
from graftwork.arithmetic.landscapes.surveying import measuring, read_operands, rows_of
from graftwork.errors import WeightsError
from graftwork.tasks import find_task, load_split

FILES = {"landscape.csv", "landscape.json", "landscape.png", "landscape.svg"}


def point(*numbers):
    return {"w": torch.tensor(numbers, dtype=torch.float64)}


def bowl(weights):
    """A loss with its minimum at (1, 2)."""
    x, y = weights["w"].tolist()
    return {"loss": (x - 1) ** 2 + (y - 2) ** 2, "score": x}


def test_a_line_and_its_barrier():
    made = line(point(0, 2), point(2, 2), lambda own: {"loss": 3 - bowl(own)["loss"]}, points=5)
    assert made.alphas == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert [values["loss"] for values in made.curves["as they are"]] == [2.0, 2.75, 3.0, 2.75, 2.0]
    assert made.barrier("as they are") == 1.0
    uneven = line(point(0, 2), point(1, 2), bowl, others={"aligned": point(0, 2)}, points=3)
    assert uneven.barrier("as they are") == 1.0 - 0.5
    assert uneven.barrier("aligned") == 0.0


def test_a_plane_has_the_three_results_where_they_are_marked():
    a, b, c = point(0, 0), point(3, 0), point(1, 2)
    made = plane(a, b, c, bowl, points=7, names=("a", "b", "c"))
    assert made.marks == {"a": (0.0, 0.0), "b": (3.0, 0.0), "c": (1.0, 2.0)}
    # The axes are those of the two numbers here.
    for row in made.rows():
        expected = bowl(point(row["x"], row["y"]))
        assert (row["loss"], row["score"]) == pytest.approx((expected["loss"], expected["score"]), rel=1e-12, abs=1e-12)
    assert (made.x[0], made.x[-1], made.y[0], made.y[-1]) == pytest.approx((-0.6, 3.6, -0.4, 2.4))
    with pytest.raises(WeightsError, match="a, b, c are on one line"):
        plane(a, b, point(1.5, 0), bowl, names=("a", "b", "c"))
    with pytest.raises(WeightsError, match="on one line"):
        plane(a, a, c, bowl)


def test_directions_have_filters_of_the_same_length():
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (5, 4), "convolution": (3, 2, 2, 2), "bias": (5,), "turned": (4, 5)}
    own = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    own["count"] = torch.tensor(3)
    drawn = direction(own, seed=1, which="x", columns=["turned"])
    assert drawn.keys() == shapes.keys()
    assert not drawn["bias"].any()
    close(drawn["weight"].norm(dim=1), own["weight"].norm(dim=1))
    close(drawn["convolution"].flatten(1).norm(dim=1), own["convolution"].flatten(1).norm(dim=1))
    close(drawn["turned"].norm(dim=0), own["turned"].norm(dim=0))
    again, other, second = (direction(own, seed=seed, which=axis) for seed, axis in ((1, "x"), (2, "x"), (1, "y")))
    assert torch.equal(again["weight"], drawn["weight"])
    assert not torch.equal(other["weight"], drawn["weight"])
    assert not torch.equal(second["weight"], drawn["weight"])


def test_around_a_result_the_middle_is_the_result():
    own = {"w": torch.ones(2, 2, dtype=torch.float64)}
    made = around(own, lambda weights: {"loss": float(weights["w"].sum())}, points=3, span=0.5, seed=3)
    assert (made.x, made.y) == ((-0.5, 0.0, 0.5), (-0.5, 0.0, 0.5))
    assert made.values[1][1]["loss"] == 4.0
    x, y = made.directions["x.w"].sum(), made.directions["y.w"].sum()
    assert made.values[0][2]["loss"] == pytest.approx(float(4 + 0.5 * x - 0.5 * y))


def test_interpolation():
    a = {"w": torch.tensor([1.0, 2.0]).bfloat16(), "n": torch.tensor(7)}
    b = {"w": torch.tensor([3.0, 6.0]).bfloat16(), "n": torch.tensor(9)}
    assert torch.equal(interpolate(a, b, 0.0)["w"], a["w"])
    assert torch.equal(interpolate(a, b, 1.0)["w"], b["w"])
    middle = interpolate(a, b, 0.25)
    assert (middle["w"].tolist(), middle["w"].dtype, int(middle["n"])) == ([1.5, 3.0], torch.bfloat16, 7)
    with pytest.raises(WeightsError, match="'v' is missing in one result and of shape"):
        interpolate(a, {**b, "v": torch.ones(2)}, 0.5)
    with pytest.raises(WeightsError, match="2 or more"):
        line(a, b, bowl, points=1)


@pytest.fixture
def draw(graftwork, tuned, tmp_path):
    """Run `graftwork landscape` on adapters by name, into the folder `out`."""

    def draw(names, *arguments, output="out"):
        folders = [tuned / name for name in names]
        usual = ["--output", tmp_path / output, "--dtype", "float32", "--rows", 16, "--quiet"]
        return graftwork("landscape", *folders, *usual, *arguments)

    return draw


def test_a_line_by_command(draw, tuned, tmp_path):
    ran = draw("ab", "--points", 3, "--align")
    assert (ran.status, ran.err) == (0, "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    with (tmp_path / "out" / "landscape.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [(row["curve"], row["alpha"]) for row in rows] == [
        (curve, alpha) for curve in ("as they are", "aligned") for alpha in ("0.0", "0.5", "1.0")
    ]
    first, last = rows[0], rows[2]
    assert float(first["accuracy"]) == evaluate_on(tuned / "a")
    assert float(last["accuracy"]) == evaluate_on(tuned / "b")
    # At its end the aligned curve is the same function.
    assert float(rows[5]["loss"]) == pytest.approx(float(last["loss"]), rel=1e-4)
    record = json.loads((tmp_path / "out" / "landscape.json").read_text())
    assert record["barriers"].keys() == {"as they are", "aligned"}
    assert (record["task"], record["rows"], record["aligned"]) == ("classes", 12, True)
    assert "barrier" in ran.out


def evaluate_on(folder):
    """The accuracy on the first 16 rows of validation."""
    backbone = Backbone.load(Adapter.load(folder).backbone.name, dtype="float32")
    made = landscape({"one": Adapter.load(folder)}, backbone=backbone, rows=16, points=3, span=1e-6)
    return made.values[1][1]["accuracy"]


def test_a_measure_is_what_evaluate_says(tuned):
    adapter = Adapter.load(tuned / "a")
    backbone = Backbone.load(adapter.backbone.name, dtype="float32")
    made = landscape({"a": adapter, "b": Adapter.load(tuned / "b")}, backbone=backbone, points=2)
    for name, values in zip("ab", made.curves["as they are"], strict=True):
        scores = evaluate(Adapter.load(tuned / name), backbone=backbone)
        assert {metric: values[metric] for metric in scores} == scores


def test_a_plane_and_a_surface_by_command(draw, tmp_path):
    assert draw("abc", "--points", 3, "--align", output="plane").status == 0
    record = json.loads((tmp_path / "plane" / "landscape.json").read_text())
    assert record["results"].keys() == {"a", "b", "c"}
    ran = draw("a", "--points", 3, "--span", 0.5, "--seed", 4, "--json", output="around")
    assert json.loads(ran.out)["seed"] == 4
    assert {path.name for path in (tmp_path / "around").iterdir()} == {*FILES, "directions.safetensors"}
    stored = load_file(tmp_path / "around" / "directions.safetensors")
    assert "x.encoder.layer.0.attention.self.query.weight" in stored
    assert not stored["y.encoder.layer.0.attention.self.query.bias"].any()
    before = (tmp_path / "around" / "landscape.svg").read_bytes()
    assert draw("a", "--points", 3, "--span", 0.5, "--seed", 4, "--overwrite", output="around").status == 0
    assert (tmp_path / "around" / "landscape.svg").read_bytes() == before


def test_adapters_of_any_method_have_lines(draw):
    assert draw(["lora", "more"], "--points", 2).status == 0


@pytest.mark.parametrize(
    ("names", "arguments", "said"),
    [
        ("", [], "0 adapters are given"),
        ("abca", [], "4 adapters are given"),
        ("a", ["--align"], "--align does nothing here"),
        ("ab", ["--fixed", "residual"], "--fixed does nothing here"),
        ("ab", ["--span", "2"], "--span does nothing here"),
        ("ab", ["--margin", "2"], "--margin does nothing here"),
        ("ab", ["--seed", "2"], "--seed does nothing here"),
        ("ab", ["--points", "1"], "--points 1 makes no landscape"),
        ("ab", ["--align", "--fixed", "layers"], "'layers' is no group of units"),
        ("ab", ["--task", "nothing"], "unknown task 'nothing'"),
        ("ab", ["--task", "conll2003"], "is of kind token-classification"),
        (["a", "lora"], [], "lora has method lora (rank 2), and a full-fine-tuning"),
        (["lora", "more"], ["--align"], "adapters of method 'lora' cannot be aligned"),
        ("aa", [], "a result is given twice"),
    ],
)
def test_what_has_no_landscape_is_refused(draw, tmp_path, names, arguments, said):
    ran = draw(names, *arguments)
    assert ran.status == 2
    assert said in ran.err
    assert not (tmp_path / "out").exists()


def test_numbers_that_make_no_landscape_are_not_taken_for_none(tuned):
    adapter = Adapter.load(tuned / "a")
    with pytest.raises(WeightsError, match="0 points make no landscape"):
        landscape({"a": adapter}, points=0)
    with pytest.raises(WeightsError, match="a span of 0 makes no landscape"):
        landscape({"a": adapter}, points=3, span=0.0)


def test_an_output_that_is_there_is_refused_before_anything_is_read(draw, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other").touch()
    assert "exists already" in draw("ab").err
    assert "holds other" in draw("ab", "--overwrite").err


def fine_tuned(folder, seed, num_labels=2):
    """A model with a head, as transformers saves it."""
    config = make_config("bert", num_labels=num_labels)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = randomised(AutoModelForSequenceClassification.from_config(config), seed=seed)
    return save_model(folder, model)


def test_fine_tuned_models_have_landscapes(graftwork, data, tmp_path):
    folders = [fine_tuned(tmp_path / name, seed) for seed, name in enumerate("xy")]
    task = tmp_path / "task.yaml"
    task.write_text(f"name: classes\ntext: text\ndata: {data['classes']}\n")
    usual = ["--task", task, "--rows", 8, "--points", 3, "--dtype", "float32", "--quiet", "--output", tmp_path / "out"]
    ran = graftwork("landscape", *folders, *usual, "--align")
    assert (ran.status, ran.err) == (0, "")
    with (tmp_path / "out" / "landscape.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    texts = load_split(Task.from_yaml(str(task)), "validation").select(range(8))
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    batch = tokenizer(list(texts["text"]), padding=True, return_tensors="pt")
    for folder, row in ((folders[0], rows[0]), (folders[1], rows[2]), (folders[1], rows[5])):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            loss = F.cross_entropy(model(**batch).logits, torch.tensor(texts["label"]))
        assert float(row["loss"]) == pytest.approx(float(loss), rel=1e-3)
    assert "--task" in graftwork("landscape", *folders, "--output", tmp_path / "no", "--quiet").err
    three = fine_tuned(tmp_path / "three", 3, num_labels=3)
    wrong = graftwork("landscape", three, *usual[:-1], tmp_path / "no")
    assert "has 2 labels, and the model 3 outputs" in wrong.err


def test_statistics_of_batch_norms_are_those_of_each_point(tmp_path):
    """Against transformers alone: models between two, whose statistics are those on the training images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = AutoModelForImageClassification.from_config(make_config("resnet", num_labels=2))
    models = {}
    for seed, name in enumerate(("base", "a", "b")):
        own = models[name] = deepcopy(base)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            for parameter in own.parameters() if name != "base" else ():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for buffer in own.buffers():
            if buffer.is_floating_point() and name != "base":
                buffer.add_(1.0)  # statistics of its own
        own.save_pretrained(tmp_path / name)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
    images = make_images(tmp_path / "images", count=24)
    lines = ["name: light", "kind: image-classification", f"data: {images}", "labels: [bright, dark]"]
    task = tmp_path / "light.yaml"
    task.write_text("\n".join(lines) + "\n")
    folders = [tmp_path / "a", tmp_path / "b"]
    adapters, frozen = read_operands(folders, task=str(task), backbone=str(tmp_path / "base"), dtype="float32")
    before = {name: own.clone() for name, own in frozen.model.named_buffers()}
    made = landscape(adapters, backbone=frozen, task=str(task), points=3, batch_size=100)
    assert "batch norms" in made.about["statistics"]
    assert all(torch.equal(own, before[name]) for name, own in frozen.model.named_buffers())
    data = {split: load_split(find_task(str(task)), split, grouped=True) for split in ("train", "validation")}
    processor = ViTImageProcessor.from_pretrained(tmp_path / "a")
    pixels = {
        split: processor([image.convert("RGB") for image in own["image"]], return_tensors="pt")["pixel_values"]
        for split, own in data.items()
    }
    # Units in another order compute the same, with their own statistics.
    space = Points([*adapters.values()], frozen, [*adapters])
    weights = space.weights(adapters["b"])
    found, rows = rows_of(adapters["b"], task=str(task))
    with measuring(space, found, rows, batch_size=100) as measure:
        moved = space.specification().random(seed=2).apply(weights)
        assert measure(moved)["loss"] == pytest.approx(measure(weights)["loss"], rel=1e-4)
        assert measure(weights)["loss"] == pytest.approx(made.curves["as they are"][-1]["loss"], rel=1e-6)
    for alpha, found in zip(made.alphas, made.curves["as they are"], strict=True):
        model, ends = deepcopy(models["a"]), [dict(models[name].named_parameters()) for name in "ab"]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_((1 - alpha) * ends[0][name] + alpha * ends[1][name])
            recompute_batch_norm(model, [{"pixel_values": pixels["train"]}])
            logits = model.eval()(pixels["validation"]).logits
        loss = F.cross_entropy(logits, torch.tensor(data["validation"]["label"]))
        assert found["loss"] == pytest.approx(float(loss), rel=1e-4)
