"""A hypernetwork over several tasks, and the ordinary adapters that come of it."""

import json
import logging
import random
import shutil

import pytest
import torch
from closeness import close
from safetensors.torch import load_file, save_file
from training.workbench import FAST, at_step, contents, killed, make_backbone, make_rows, names_in, sentence, write_csv

from graftwork import (
    AdaptedModel,
    Adapter,
    Backbone,
    BiHNet,
    HyperFormer,
    HyperGrid,
    LoRA,
    Stack,
    Task,
    Union,
    evaluate,
    generate_adapter,
    tune,
    tune_tasks,
)
from graftwork.combine import Generated
from graftwork.errors import AdapterError, DataError, MethodError, OutputError, RecipeError
from graftwork.training.baseline import embeddings
from graftwork.training.multi_task_folder import read_tasks_file, read_tasks_folder

SIZES = {"bottleneck": 6, "code_size": 8, "hidden_size": 16}
PLUS = HyperFormer(**SIZES, generators="stack")
METHODS = {
    "hyperformer": HyperFormer(**SIZES),
    "hyperformer++": PLUS,
    "bihnet": BiHNet(**SIZES),
    "hypergrid": HyperGrid(grid_rows=8, grid_columns=4, code_size=8),
}
WRITTEN_AS = {name: "hypergrid" if name == "hypergrid" else "houlsby" for name in METHODS}
LONGER = {**FAST, "num_train_epochs": 3, "learning_rate": 0.003}


@pytest.fixture(scope="module")
def tasks(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    twin = write_csv(folder / "twin.csv", make_rows("classes", 60, seed=5))
    return [
        Task(name="words", text="text", data=str(data["classes"])),
        Task(name="twin", text="text", data=str(twin)),
        Task(name="pairs", text="first", text_pair="second", data=str(data["pairs"])),
    ]


@pytest.fixture(scope="module")
def trained(backbone, tasks, tmp_path_factory):
    """A folder of the tasks for each method."""
    folder = tmp_path_factory.mktemp("hypernetworks")
    for name, method in METHODS.items():
        tune_tasks(backbone, tasks, method=method, output=folder / name, **LONGER)
    return folder


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """16 examples of a task that no hypernetwork has seen, in which `mild` is what is good."""
    source = random.Random(9)
    rows = [{"sentence": sentence(source, ("mild", "bad")[i % 2]), "class": ("fine", "poor")[i % 2]} for i in range(16)]
    return write_csv(tmp_path_factory.mktemp("few") / "few.csv", rows)


@pytest.fixture(scope="module")
def unseen(examples):
    return Task(name="unseen", text="sentence", label="class", data=str(examples))


# One hypernetwork for several tasks


@pytest.mark.parametrize("name", METHODS)
def test_tasks_share_all_but_what_is_of_each(trained, name):
    adapters = {task: Adapter.load(trained / name / task) for task in ("words", "twin", "pairs")}
    first = adapters["words"]
    own = {"task.embedding"} if name != "bihnet" else {"task.long", "task.short"}
    for task, adapter in adapters.items():
        for key, tensor in adapter.tensors.items():
            if key in own:
                assert task == "words" or not torch.equal(tensor, first.tensors[key]), key
            elif not key.startswith("head."):
                assert torch.equal(tensor, first.tensors[key]), key
    assert all(adapter.metrics["validation"]["accuracy"] > 0.6 for adapter in adapters.values())
    about = read_tasks_file(trained / name)
    head = sum(tensor.numel() for key, tensor in first.tensors.items() if key.startswith("head."))
    assert about.tasks["words"].parameters == head + (0 if name == "bihnet" else 8)


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_of_a_hypernetwork_resumes_to_the_same_bytes(backbone, tasks, name, tmp_path):
    settings = {**FAST, "eval_strategy": "steps", "eval_steps": 4, "max_steps": 10}
    tune_tasks(backbone, tasks, method=METHODS[name], output=tmp_path / "whole", **settings)
    with killed(at_step(6)):
        tune_tasks(backbone, tasks, method=METHODS[name], output=tmp_path / "a", **settings)
    tune_tasks(backbone, tasks, method=METHODS[name], output=tmp_path / "a", resume=True, **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_the_vectors_of_bihnet_are_means_over_the_training_rows(trained, backbone, tasks):
    adapter = Adapter.load(trained / "bihnet" / "twin")
    model = AdaptedModel(backbone, {"a": adapter})
    encoder = model.encoder("a")
    model.detach()
    from graftwork.tasks import load

    features = torch.from_numpy(embeddings(backbone, encoder, load(tasks[1]).train["text"])).double()
    close(adapter.tensors["task.long"].double(), features.mean(dim=0), precision=torch.float32)
    close(adapter.tensors["task.short"].double(), features[-64:].mean(dim=0), precision=torch.float32)
    assert adapter.fixed == ("task.long", "task.short")


@pytest.mark.parametrize(
    ("method", "start"),
    [
        (Union(methods=["lora", METHODS["bihnet"]]), "bihnet."),
        (Stack(parts=["lora", METHODS["bihnet"]]), "parts.bihnet."),
    ],
)
def test_within_other_methods_too_the_vectors_are_read_off_the_rows(trained, backbone, tasks, method, start):
    adapter = tune(backbone, task=tasks[1], method=method, **{**FAST, "max_steps": 1})
    alone = Adapter.load(trained / "bihnet" / "twin")
    for name in ("task.long", "task.short"):
        assert torch.equal(adapter.tensors[f"{start}{name}"], alone.tensors[name])


def test_bihnet_for_a_task_without_texts_is_refused(backbone, tmp_path):
    rows = [{"words": ["one"] * i + ["good"], "tags": ["O"] * i + ["B-X"]} for i in range(20)]
    file = tmp_path / "tags.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(name="tags", kind="token-classification", text="words", label="tags", data=str(file))
    with pytest.raises(MethodError, match=r"features of examples(.|\n)*classification"):
        tune(backbone, task=task, method=METHODS["bihnet"], **FAST)


# Written out


@pytest.mark.parametrize("name", METHODS)
def test_a_generated_adapter_says_what_the_hypernetwork_does(trained, backbone, name, tmp_path):
    found = generate_adapter(trained / name, "pairs")
    assert isinstance(found, Generated)
    assert found.adapter.method.name == WRITTEN_AS[name]
    found.adapter.save(tmp_path / "a")
    model = AdaptedModel(backbone, {"fly": trained / name / "pairs", "out": tmp_path / "a"})
    assert len(model.sharing(["fly", "out"])) == 1
    texts = [("one good two", "mild three"), ("bad four", "five mild"), ("six", "seven mild")]
    one, other = (model.logits(texts, own) for own in ("fly", "out"))
    close(other, one)
    mixed = [row.score for row in model.predict(texts * 2, adapters=["fly", "out", "fly", "out", "fly", "out"])]
    assert mixed == pytest.approx([row.score for row in model.predict(texts * 2, adapters="fly")], rel=1e-5)
    scores = Adapter.load(trained / name / "pairs").metrics["validation"]
    model.detach()
    assert found.adapter.metrics["validation"] == scores
    with pytest.raises(AdapterError, match="which generates nothing"):
        generate_adapter(found.adapter)
    assert evaluate(Adapter.load(tmp_path / "a"), backbone=backbone)["accuracy"] == scores["accuracy"]


def test_what_a_task_takes_is_its_embedding_and_head(trained):
    found = generate_adapter(trained / "hyperformer++", "words")
    head = sum(tensor.numel() for key, tensor in found.source.tensors.items() if key.startswith("head."))
    assert found.own_parameters == head + 8
    assert 4 * found.own_parameters < found.own_bytes < 4 * found.own_parameters + 400
    # The whole of it, with the hypernetwork, is much more.
    assert found.own_bytes < found.source.num_bytes / 20
    vectors = generate_adapter(trained / "bihnet", "words")
    assert vectors.own_parameters == head + 2 * 32


@pytest.mark.parametrize("name", METHODS)
def test_the_hypernetwork_lies_on_the_disk_once(graftwork, trained, name, tmp_path):
    folder = shutil.copytree(trained / name, tmp_path / "o")
    assert names_in(folder) == [
        "log.jsonl",
        "pairs",
        "recipe.yaml",
        "shared.safetensors",
        "tasks.json",
        "twin",
        "words",
    ]
    shared, own = load_file(folder / "shared.safetensors"), load_file(folder / "twin" / "adapter.safetensors")
    assert not shared.keys() & own.keys()
    vectors = {"task.embedding"} if name != "bihnet" else {"task.long", "task.short"}
    assert {key for key in own if not key.startswith("head.")} == vectors
    # What a task takes of the disk is what `generate` says that it does.
    size = (folder / "twin" / "adapter.safetensors").stat().st_size
    assert size == generate_adapter(folder, "twin").own_bytes
    # Whoever reads a task's folder has the whole adapter; where it is saved, it stands alone.
    adapter = Adapter.load(folder / "twin")
    assert adapter.tensors.keys() == shared.keys() | own.keys()
    assert adapter.digest == read_tasks_file(folder).tasks["twin"].digest
    assert graftwork("evaluate", folder / "twin").status == 0
    assert graftwork("predict", folder / "twin", "one good two").status == 0
    assert graftwork("inspect", folder / "twin").status == 0
    assert "twin" in graftwork("list", folder).out
    adapter.save(tmp_path / "alone")
    assert names_in(tmp_path / "alone") == ["README.md", "adapter.json", "adapter.safetensors", "recipe.yaml"]
    content = json.loads((tmp_path / "alone" / "adapter.json").read_text())
    assert (content["schema_version"], "shared" in content) == (2, False)
    assert load_file(tmp_path / "alone" / "adapter.safetensors").keys() == adapter.tensors.keys()
    # A whole adapter among them, as all of them once were, is one as well.
    shutil.rmtree(folder / "twin")
    shutil.copytree(tmp_path / "alone", folder / "twin")
    assert {name: own.digest for name, own in read_tasks_folder(folder).items()} == {
        name: entry.digest for name, entry in read_tasks_file(folder).tasks.items()
    }
    shutil.rmtree(folder)
    assert Adapter.load(tmp_path / "alone").digest == adapter.digest


def test_a_task_without_its_shared_tensors_is_one_clear_error(trained, tmp_path):
    shutil.copytree(trained / "bihnet" / "twin", tmp_path / "twin")
    with pytest.raises(AdapterError, match=r"shared\.safetensors(.|\n)*Adapter\.load(.|\n)*save"):
        Adapter.load(tmp_path / "twin")
    folder = shutil.copytree(trained / "bihnet", tmp_path / "o")
    tensors = load_file(folder / "shared.safetensors")
    first = next(iter(tensors))
    save_file({**tensors, first: tensors[first] + 1}, folder / "shared.safetensors")
    with pytest.raises(AdapterError, match=r"shared\.safetensors changed after graftwork wrote it"):
        Adapter.load(folder / "twin")
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, folder / "shared.safetensors")
    with pytest.raises(AdapterError, match=rf"does not belong to adapter\.json: it lacks {first}"):
        Adapter.load(folder / "twin")
    (folder / "shared.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(AdapterError, match=r"shared\.safetensors is damaged"):
        Adapter.load(folder / "twin")
    edited = json.loads((folder / "twin" / "adapter.json").read_text())
    (folder / "twin" / "adapter.json").write_text(json.dumps({**edited, "shared": "../../elsewhere.safetensors"}))
    with pytest.raises(AdapterError, match=r"shared='\.\./\.\./elsewhere"):
        Adapter.load(folder / "twin")


def test_an_adapter_by_itself_is_a_hypernetwork_too(backbone, tasks):
    adapter = tune(backbone, task=tasks[0], method=PLUS, **{**FAST, "max_steps": 2})
    found = generate_adapter(adapter, backbone=backbone)
    assert found.adapter.task == adapter.task
    assert found.source is adapter


# From examples


@pytest.mark.parametrize("name", METHODS)
def test_an_unseen_task_from_16_examples(trained, backbone, examples, unseen, name):
    found = generate_adapter(trained / name, unseen, examples=examples, backbone=backbone, max_steps=60, seed=1)
    known = Adapter.load(trained / name / "words")
    own = {"task.embedding"} if name != "bihnet" else {"task.long", "task.short"}
    for key, tensor in found.source.tensors.items():
        if key in own:
            assert not torch.equal(tensor, known.tensors[key])
        elif not key.startswith("head."):
            assert torch.equal(tensor, known.tensors[key]), key
    assert found.adapter.task.labels == ("fine", "poor")
    assert found.adapter.method.name == WRITTEN_AS[name]
    assert found.adapter.rows == {"train": 16}
    assert found.adapter.metrics["train"]["accuracy"] > 0.8
    assert evaluate(found.adapter, backbone=backbone)["accuracy"] == found.adapter.metrics["train"]["accuracy"]
    again = generate_adapter(trained / name, unseen, examples=examples, backbone=backbone, max_steps=60, seed=1)
    assert again.adapter.digest == found.adapter.digest
    other = generate_adapter(trained / name, unseen, examples=examples, backbone=backbone, max_steps=60, seed=2)
    assert other.adapter.digest != found.adapter.digest


def test_the_embedding_begins_as_the_mean_of_those_that_are_known(trained, backbone, examples, unseen):
    found = generate_adapter(
        trained / "hyperformer++", unseen, examples=examples, backbone=backbone, max_steps=1, learning_rate=1e-12
    )
    known = [
        Adapter.load(trained / "hyperformer++" / name).tensors["task.embedding"] for name in ("words", "twin", "pairs")
    ]
    close(found.source.tensors["task.embedding"], sum(known) / 3)


def test_the_recipe_of_a_generated_adapter_cannot_be_run_alone(trained, backbone, examples, unseen, tmp_path):
    from graftwork.training import Recipe, tune_recipe

    found = generate_adapter(trained / "hyperformer++", unseen, examples=examples, backbone=backbone, max_steps=1)
    found.adapter.save(tmp_path / "a")
    with pytest.raises(
        RecipeError, match=r"hypernetwork generated, which was trained by words, twin, pairs(.|\n)*graftwork generate"
    ):
        tune_recipe(Recipe.from_yaml(tmp_path / "a" / "recipe.yaml"), backbone=backbone)


FEW = {"max_steps": 12, "eval_steps": 4}


@pytest.mark.parametrize(("name", "step"), [("hyperformer++", 6), ("bihnet", 12)])
def test_a_killed_run_from_examples_resumes_to_the_same_bytes(
    trained, backbone, examples, unseen, name, step, tmp_path
):
    def generate(output, hypernetwork=name, **more):
        own = {"examples": examples, "backbone": backbone, "output": tmp_path / output, **FEW, **more}
        return generate_adapter(trained / hypernetwork, unseen, **own)

    whole = generate("whole")
    assert Adapter.load(tmp_path / "whole").digest == whole.adapter.digest
    with killed(at_step(step)):
        generate("a")
    assert names_in(tmp_path) == [".a.tuning", "whole"]
    with pytest.raises(OutputError, match=r"an interrupted run(.|\n)*--resume"):
        generate("a")
    with pytest.raises(RecipeError, match="seed was 0, is 1"):
        generate("a", resume=True, seed=1)
    with pytest.raises(RecipeError, match=r"generated_by\.pairs was"):
        generate("a", {"bihnet": "hyperformer++", "hyperformer++": "hyperformer"}[name], resume=True)
    resumed = generate("a", resume=True)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")
    assert names_in(tmp_path) == ["a", "whole"]
    assert resumed.source.digest == whole.source.digest
    # What had ended before is not trained again.
    again = generate("a", resume=True)
    assert again.adapter.digest == whole.adapter.digest
    assert (again.source, again.own_parameters, again.own_bytes) == (None, whole.own_parameters, whole.own_bytes)
    with pytest.raises(OutputError, match="no interrupted run"):
        generate("b", resume=True)


def test_scores_on_the_examples_are_said_to_be_so(trained, backbone, examples, unseen, caplog, tmp_path):
    with caplog.at_level(logging.WARNING, "graftwork.training.score_warnings"):
        found = generate_adapter(trained / "bihnet", unseen, examples=examples, backbone=backbone, max_steps=1)
        evaluate(found.adapter, backbone=backbone)
    told = [record.message for record in caplog.records if " in validation the adapter " not in record.message]
    assert len(told) == 2
    assert all("training examples themselves" in message for message in told)
    assert "fraction" not in caplog.text


# What is refused


def test_what_cannot_be_generated(trained, backbone, tasks, examples, unseen, tmp_path):
    with pytest.raises(AdapterError, match=r"no task 'wrds' trained it(.|\n)*words"):
        generate_adapter(trained / "bihnet", "wrds")
    with pytest.raises(AdapterError, match="no task is given, and there are several"):
        generate_adapter(trained / "bihnet")
    plain = tune(backbone, task=tasks[0], method=LoRA(rank=2), **{**FAST, "max_steps": 1})
    with pytest.raises(AdapterError, match=r"'lora', which generates nothing(.|\n)*hyperformer, bihnet, hypergrid"):
        generate_adapter(plain)
    with pytest.raises(RecipeError, match="max_steps would do nothing"):
        generate_adapter(trained / "bihnet", "words", max_steps=3)
    with pytest.raises(RecipeError, match="resume would do nothing"):
        generate_adapter(trained / "bihnet", "words", output=tmp_path / "a", resume=True)
    with pytest.raises(DataError, match="there is no file"):
        generate_adapter(trained / "bihnet", unseen, examples=tmp_path / "none.csv", backbone=backbone)
    with pytest.raises(RecipeError, match="examples are given, and no task"):
        generate_adapter(trained / "bihnet", examples=examples, backbone=backbone)
    with pytest.raises(DataError, match="column"):
        generate_adapter(
            trained / "bihnet", unseen.override(text="nothing"), examples=examples, backbone=backbone, max_steps=1
        )
    with pytest.raises(AdapterError, match="does not exist"):
        generate_adapter(tmp_path / "nowhere", "words")


# As a user types it


def test_the_command(graftwork, trained, backbone_folder, examples, tmp_path):
    ran = graftwork("generate", trained / "hyperformer++", "--task", "twin", "--output", tmp_path / "a", "--quiet")
    assert ran.status == 0, ran.err
    assert names_in(tmp_path) == ["a"]
    assert Adapter.load(tmp_path / "a").method.name == "houlsby"
    assert "of the task alone" in ran.out
    assert graftwork("evaluate", tmp_path / "a").status == 0
    assert graftwork("inspect", tmp_path / "a").status == 0
    few = graftwork(
        *("generate", trained / "hyperformer++", "--examples", examples, "--text", "sentence", "--label", "class"),
        *("--task", "unseen", "--train.max_steps", "5", "--output", tmp_path / "b", "--quiet", "--json"),
    )
    assert few.status == 0, few.err
    said = json.loads(few.out)
    assert (said["task"], said["hypernetwork"], said["rows"]) == ("unseen", "hyperformer", {"train": 16})
    assert said["bytes"] == Adapter.load(tmp_path / "b").num_bytes
    assert graftwork("predict", tmp_path / "b", "one mild two").status == 0
    for wrong, part in (
        ([trained / "hyperformer++", "--task", "other"], "change: --task"),
        ([trained / "hyperformer++", "--task", "twin", "--text", "x"], "--text would do nothing"),
        ([trained / "hyperformer++", "--task", "twin", "--train.seed", "1"], "change: --examples"),
        ([trained / "hyperformer++", "--task", "twin", "--method.bottleneck", "1"], "no setting of generate"),
        ([trained / "hyperformer++", "--examples", examples], "text"),
    ):
        refused = graftwork(
            "generate", *wrong, *([] if "--output" in wrong else ["--output", tmp_path / "c"]), "--quiet"
        )
        assert refused.status == 2, wrong
        assert part in refused.err
    again = graftwork("generate", trained / "hyperformer++", "--task", "twin", "--output", tmp_path / "a", "--quiet")
    assert "exists already" in again.err
    assert not (tmp_path / "c").exists()


def test_generated_adapters_are_parts(graftwork, trained, tasks, tmp_path):
    def fuse(name, output, *more):
        for task in ("twin", "words"):
            generate_adapter(trained / name, task, output=tmp_path / name / task, overwrite=True)
        return graftwork(
            *("fuse", tmp_path / name / "twin", tmp_path / name / "words", "--data", tasks[0].data, "--text", "text"),
            *("--train.max_steps", "2", "--output", tmp_path / output, "--quiet", *more),
        )

    for name, kind in (("bihnet", "attention"), ("bihnet", "gate"), *((name, "average") for name in METHODS)):
        ran = fuse(name, f"{name}-{kind}", "--kind", kind)
        assert ran.status == 0, (name, kind, ran.err)
        assert graftwork("evaluate", tmp_path / f"{name}-{kind}").status == 0
    for name in ("hyperformer", "hyperformer++", "hypergrid"):
        ran = fuse(name, "none")
        assert ran.status == 2
        assert "change: --kind average" in ran.err, ran.err
    assert not (tmp_path / "none").exists()


def test_what_the_command_refuses_by_its_flag(graftwork, trained, examples, tmp_path):
    few = ("--examples", examples, "--text", "sentence", "--label", "class", "--task", "unseen")
    for wrong, part in (
        ((*few, "--train.backbone", "x"), "unknown key 'train.backbone'"),
        ((*few, "--train.hypernetwork", "x"), "change: --train.hypernetwork"),
        ((*few, "--train.self", "x"), "change: --train.self"),
        ((*few, "--train.max_steps", "no"), "change: --train.max_steps"),
        ((*few, "--train.seed", "-1", "--train.warmup_ratio", "x"), "change: --train.seed, --train.warmup_ratio"),
        ((*few, "--task.text", "x"), "task.text is given both as a flag and as a setting"),
        ((*few, "--task.data", "x", "--task.splits", "x"), "--task.data, --task.splits would do nothing"),
        ((*few, "--task.self", "x"), "unknown key 'self'"),
        (("--examples", examples, "--task", "rte", "--task.self", "x"), "unknown key 'self'"),
        (("--task", "twin", "--dtype", "float64"), "change: --examples"),
        (("--task", "twin", "--resume"), "--resume would do nothing without examples"),
        ((*few, "--resume"), "there is no interrupted run"),
        (("--task", "twin", "--task.text", "x"), "--task.text would do nothing"),
    ):
        ran = graftwork("generate", trained / "bihnet", *wrong, "--output", tmp_path / "c", "--quiet")
        assert ran.status == 2, (wrong, ran.err)
        assert part in ran.err, (wrong, ran.err)
    assert not (tmp_path / "c").exists()


def test_the_precision_is_that_which_is_asked_for(graftwork, trained, backbone, examples, unseen, tmp_path):
    few = ("--examples", examples, "--text", "sentence", "--label", "class", "--task", "unseen", "--quiet")
    ran = graftwork(
        "generate", trained / "bihnet", *few, "--dtype", "float64", "--train.max_steps", "1", "--output", tmp_path / "a"
    )
    assert ran.status == 0, ran.err
    assert Adapter.load(tmp_path / "a").recipe["dtype"] == "float64"
    found = generate_adapter(trained / "bihnet", unseen, examples=examples, dtype="bfloat16", max_steps=1)
    assert found.adapter.recipe["dtype"] == "bfloat16"
    with pytest.raises(RecipeError, match=r"dtype='bfloat16' would do nothing(.|\n)*backbone"):
        generate_adapter(trained / "bihnet", unseen, examples=examples, backbone=backbone, dtype="bfloat16")


def test_another_backbone_is_refused(
    graftwork, trained, backbone_folder, other_backbone_folder, tmp_path, examples, unseen
):
    wider = make_backbone(tmp_path / "wider", hidden_size=64)
    for folder in (other_backbone_folder, wider):
        ran = graftwork(
            *("generate", trained / "hyperformer", "--task", "twin", "--backbone", folder),
            *("--output", tmp_path / "a", "--quiet"),
        )
        assert ran.status == 2, ran.err
        assert "was made for backbone" in ran.err
        other = Backbone.load(str(folder))
        for more in ({}, {"examples": examples}):
            task = unseen if more else "twin"
            with pytest.raises(AdapterError, match="was made for backbone"):
                generate_adapter(trained / "bihnet", task, backbone=other, **more)
    assert not (tmp_path / "a").exists()
    moved = shutil.copytree(backbone_folder, tmp_path / "moved")
    found = generate_adapter(trained / "hyperformer", "twin", backbone=Backbone.load(str(moved)))
    assert found.adapter.digest == generate_adapter(trained / "hyperformer", "twin").adapter.digest


def test_a_backbone_that_was_replaced_in_its_folder_is_refused(tasks, tmp_path):
    folder = make_backbone(tmp_path / "here")
    adapter = tune(Backbone.load(str(folder)), task=tasks[0], method=PLUS, **{**FAST, "max_steps": 1})
    shutil.rmtree(folder)
    make_backbone(folder, hidden_size=64)
    with pytest.raises(AdapterError, match=r"was made for backbone(.|\n)*hidden_size 64 instead of 32"):
        generate_adapter(adapter)
