"""Fusions made, resumed, used and shown: by command and in Python."""

import csv
import json
import shutil

import pytest
import torch
from training.workbench import FAST, at_step, contents, flags, killed, names_in

from graftwork import AdaptedModel, Adapter, Backbone, Fuse, tune
from graftwork.combine import part_weights
from graftwork.errors import AdapterError, GraftworkError, MethodError
from graftwork.training import Recipe

SHORT = {**FAST, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 6}


@pytest.fixture
def fuse(graftwork, backbone_folder, data, parts, tmp_path):
    """Run `graftwork fuse` on the parts, into a folder of that name."""

    def fuse(name="fused", *arguments, folders=None):
        own = [parts / "classes", parts / "numbers"] if folders is None else folders
        usual = ["--data", data["classes"], "--text", "text", "--dtype", "float32", "--quiet", *flags(SHORT)]
        return graftwork("fuse", *own, *usual, "--output", tmp_path / name, *arguments)

    return fuse


@pytest.mark.parametrize("kind", ["attention", "gate", "average", "stack"])
def test_adapters_are_combined_by_command_and_need_their_folders_no_more(graftwork, fuse, parts, data, tmp_path, kind):
    kept = tmp_path / "kept"
    shutil.copytree(parts, kept)
    ran = fuse("fused", "--kind", kind, folders=[kept / "classes", kept / "numbers"])
    assert (ran.status, ran.err) == (0, "")
    shutil.rmtree(kept)
    made = Adapter.load(tmp_path / "fused")
    assert made.method.name == {"attention": "fuse"}.get(kind, kind)
    assert [part.name for part in made.method.parts] == ["classes", "numbers"]
    assert {name.split(".")[1] for name in made.fixed} == {"classes", "numbers"}
    assert str(tmp_path) not in (tmp_path / "fused" / "adapter.json").read_text().replace(str(data["classes"]), "")
    assert graftwork("evaluate", tmp_path / "fused", "--quiet").status == 0
    assert graftwork("predict", tmp_path / "fused", "a good film").status == 0
    shown = graftwork("inspect", tmp_path / "fused")
    assert "parts classes (pfeiffer), numbers (pfeiffer)" in shown.out


def test_command_and_python_give_the_same_bytes(fuse, backbone_folder, data, parts, classes, tmp_path):
    fuse()
    backbone = Backbone.load(str(backbone_folder), dtype="float32")
    method = {"name": "fuse", "parts": [str(parts / "classes"), str(parts / "numbers")]}
    tune(backbone, task=classes, method=method, output=tmp_path / "again", **SHORT)
    held = Fuse(parts={name: Adapter.load(parts / name) for name in ("classes", "numbers")})
    tune(backbone, task=classes, method=held, output=tmp_path / "held", **SHORT)
    first, *others = (contents(tmp_path / name) for name in ("fused", "again", "held"))
    for other in others:
        assert other["adapter.safetensors"] == first["adapter.safetensors"]
    assert Adapter.load(tmp_path / "again").digest == Adapter.load(tmp_path / "held").digest


@pytest.mark.parametrize("more", [(), ("--train-parts",)])
def test_a_killed_fusion_resumes_to_the_same_bytes(fuse, tmp_path, more):
    assert fuse("whole", *more).status == 0
    with killed(at_step(5)):
        fuse("fused", *more)
    assert names_in(tmp_path) == [".fused.tuning", "whole"]
    assert fuse("fused", *more, "--resume").status == 0
    assert contents(tmp_path / "fused") == contents(tmp_path / "whole")


def test_a_changed_part_is_not_resumed(fuse, parts, tmp_path):
    kept = tmp_path / "kept"
    shutil.copytree(parts, kept)
    folders = [kept / "classes", kept / "numbers"]
    with killed(at_step(3)):
        fuse(folders=folders)
    shutil.rmtree(kept / "numbers")
    shutil.copytree(kept / "classes", kept / "numbers")
    ran = fuse("fused", "--resume", folders=folders)
    assert ran.status == 2
    assert "recipe" in ran.err


def test_the_regulariser_is_counted_once_a_step_of_several_batches(backbone, parts, classes):
    own = [Adapter.load(parts / name) for name in ("classes", "numbers")]
    gradients = []
    for sizes in ([8], [3, 5], [1, 1, 6]):
        method = Fuse(parts=own, regularization=1.0, attention_dropout=0.0)
        model = AdaptedModel(backbone)
        adapter = Adapter.new(backbone, method, labels=["a", "b"])
        adapter.tensors["fusion.layers.0.ffn.norm.value"].add_(0.3)
        model.add("a", adapter, trainable=True)
        model.train()
        labels = torch.arange(8) % 2
        ids = torch.arange(8 * 5).reshape(8, 5) % 11 + 5
        for rows in torch.arange(8).split(sizes):
            loss = model(input_ids=ids[rows], labels=labels[rows], num_items_in_batch=torch.tensor(8)).loss
            loss.backward()
        tensors = model.in_training("a").tensors()
        gradients.append(tensors["fusion.layers.0.ffn.norm.value"].grad.clone())
        model.detach()
    assert gradients[0].abs().max() > 0.1
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-3)


def test_folders_are_read_at_any_depth(parts, backbone, classes):
    folder = str(parts / "classes")
    average = {"name": "average", "parts": [folder]}
    recipes = {
        "in a part": {"name": "fuse", "parts": [average, folder]},
        "in a named part": {"name": "fuse", "parts": [{"name": "mine", "method": average}, folder]},
        "in a union": {"name": "union", "methods": [average, {"name": "lora", "rank": 2}]},
    }
    for what, method in recipes.items():
        found = Recipe.parse({"task": {"name": "t"}, "method": method}).find_method()
        assert "classes" in {part.name for part in found.every_part()}, what
    with pytest.raises(MethodError, match="unknown method"):
        tune(backbone, task=classes, method={"name": "union", "methods": [folder]}, **SHORT)


def test_a_part_is_left_out_at_prediction_time(graftwork, fuse, backbone, tmp_path):
    assert fuse().status == 0
    made = Adapter.load(tmp_path / "fused")
    texts = ["a good film", "a dull book"]
    said = []
    for adapter in (made, made.without_parts(["numbers"])):
        model = AdaptedModel(backbone, {"a": adapter})
        said.append(model.logits(texts, "a"))
        model.detach()
    assert not torch.equal(*said)
    assert not made.without_parts(["numbers"]).metrics
    shown = graftwork("evaluate", tmp_path / "fused", "--without-parts", "numbers", "--quiet", "--json")
    assert shown.status == 0
    assert graftwork("predict", tmp_path / "fused", "a film", "--without-parts", "none").status == 2
    with pytest.raises(MethodError, match="'none', which is no part"):
        made.without_parts(["none"])


def test_what_a_fusion_attends_to_is_shown(graftwork, fuse, backbone, tmp_path):
    assert fuse().status == 0
    ran = graftwork("fuse", tmp_path / "fused", "--show", "--output", tmp_path / "shown", "--quiet")
    assert (ran.status, ran.err) == (0, "")
    assert names_in(tmp_path / "shown") == ["gates.csv", "gates.png", "gates.svg"]
    with (tmp_path / "shown" / "gates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["site"], row["part"]) for row in rows[:2]] == [
        ("layers.0.ffn.norm", "classes"),
        ("layers.0.ffn.norm", "numbers"),
    ]
    assert rows[0]["layer"] == "0"
    assert rows[0]["position"] == "ffn.norm"
    assert float(rows[0]["weight"]) + float(rows[1]["weight"]) == pytest.approx(1.0, abs=0.01)
    made = Adapter.load(tmp_path / "fused")
    alone = part_weights(made.without_parts(["numbers"]), backbone=backbone)
    assert alone.means[:, 0] == pytest.approx([1.0] * len(alone.sites))
    again = graftwork("fuse", tmp_path / "fused", "--show", "--output", tmp_path / "shown", "--quiet", "--json")
    assert again.status == 2
    assert "exists" in again.err
    over = ["--output", tmp_path / "shown", "--quiet", "--overwrite"]
    assert graftwork("fuse", tmp_path / "fused", "--show", *over).status == 0
    (tmp_path / "shown" / "mine.txt").write_text("mine")
    assert "mine.txt" in graftwork("fuse", tmp_path / "fused", "--show", *over).err


def test_padding_is_no_part_of_the_mean(backbone, fuse, tmp_path):
    assert fuse().status == 0
    made = Adapter.load(tmp_path / "fused")
    one, together = (part_weights(made, backbone=backbone, batch_size=size) for size in (1, 64))
    assert one.tokens == together.tokens
    assert together.means == pytest.approx(one.means, abs=1e-5)


def test_a_mixed_batch_of_many_fusions_says_what_each_says(backbone, parts):
    own = [Adapter.load(parts / name) for name in ("classes", "numbers")]
    methods = [
        *(Fuse(parts=own), Fuse(parts=own[:1]), Fuse(parts=[*own, *own]), Fuse(parts=[*own, "pfeiffer"])),
        *(Fuse(parts=own, masked_parts=["numbers"]) for _ in range(4)),
    ]
    adapters = {f"{i}": Adapter.new(backbone, method, labels=["a", "b"], seed=i) for i, method in enumerate(methods)}
    model = AdaptedModel(backbone, adapters)
    texts = ["a good film", "the man sleeps", "a very dull book was not good"] * 8
    names = [f"{i % 8}" for i in range(24)]
    together = model.predict(texts, adapters=names)
    for i, name in enumerate(names):
        [alone] = model.predict([texts[i]], adapters=[name])
        assert together[i].scores == pytest.approx(alone.scores, abs=1e-4)
    model.detach()


def test_mistakes_are_named(graftwork, fuse, parts, data, other_backbone_folder, tmp_path):
    out = ["--output", tmp_path / "x"]
    mistakes = {
        "no adapters are given": graftwork("fuse", *out, "--task", "sst2"),
        "no task and no data": graftwork("fuse", parts / "classes", *out),
        "does not exist": graftwork("fuse", tmp_path / "none", *out, "--task", "sst2"),
        "nothing without --show": graftwork("fuse", parts / "classes", *out, "--task", "sst2", "--split", "test"),
        "--task cannot be used with --show": graftwork("fuse", parts / "classes", *out, "--task", "sst2", "--show"),
        "method.parts cannot": fuse("y", "--method.parts", "pfeiffer"),
        "task.data cannot": fuse("y", "--task.data", "other.csv"),
        "--kind cannot be": graftwork("fuse", parts / "classes", *out, "--show", "--kind", "gate"),
        "has no gates": graftwork("fuse", parts / "classes", *out, "--show", "--quiet"),
        "was made for backbone": fuse("y", "--backbone", other_backbone_folder),
    }
    for said, ran in mistakes.items():
        assert ran.status == 2, said
        assert said in ran.err
    assert names_in(tmp_path) == []
    with pytest.raises(AdapterError, match="has no parts to leave out"):
        Adapter.load(parts / "classes").without_parts(["a"])
    with pytest.raises(GraftworkError, match="does not exist"):
        tune(Backbone.load(str(other_backbone_folder)), task="sst2", method={"name": "fuse", "parts": ["no/folder"]})


def test_results_as_json(fuse):
    ran = fuse("fused", "--json")
    found = json.loads(ran.out)
    assert found["method"] == "fuse"
    assert found["trained"] > 6000
