"""Fully fine-tuned Hugging Face models as adapters: what they change in a backbone, with their head.

So a model that was tuned elsewhere is calculated with as any adapter is. Its head is one that graftwork has: the table
says for each class of model how it makes one vector of a text, and where the head's tensors are.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig

from graftwork.adapters import Adapter
from graftwork.adapters.contents import misfits
from graftwork.adapters.identity import BackboneIdentity
from graftwork.adapters.new import identity_of
from graftwork.arithmetic.adapters.differences import as_full
from graftwork.arithmetic.adapters.vectors import changes_of
from graftwork.arithmetic.values.roles import STATISTICS as RUNNING
from graftwork.arithmetic.values.saving import refuse_existing
from graftwork.backbones import Backbone, Pooling
from graftwork.backbones.checkpoints import UNREADABLE
from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import AdapterError, BackboneError, first_line
from graftwork.folders import replacing_folder
from graftwork.heads import Head
from graftwork.kinds import KINDS, default_kind
from graftwork.kinds.heads import head_for
from graftwork.kinds.kind import Kind
from graftwork.settings.yamlfile import dump_yaml
from graftwork.tasks import Task


@dataclass(frozen=True)
class HeadLayout:
    """How a class of models with a task head computes it.

    Attributes:
        pooling: how it makes one vector of a text or image; None of a head over every token.
        classifier: the module of the last linear map.
        dense: the module of a linear map with tanh before it.
    """

    pooling: Pooling | None
    classifier: str
    dense: str | None = None


LAYOUTS: Mapping[str, HeadLayout] = {
    "BertForSequenceClassification": HeadLayout("pooler", "classifier"),
    **{
        f"{name}ForSequenceClassification": HeadLayout("first", "classifier.out_proj", "classifier.dense")
        for name in ("Roberta", "XLMRoberta", "Camembert", "MPNet")
    },
    **{
        f"{name}ForSequenceClassification": HeadLayout("last", "score")
        for name in ("GPT2", "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma2", "Phi3")
    },
    **{
        f"{name}ForTokenClassification": HeadLayout(None, "classifier")
        for name in ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra", "DistilBert", "MPNet")
    },
    "ViTForImageClassification": HeadLayout("first", "classifier"),
    "ResNetForImageClassification": HeadLayout("pooler", "classifier.1"),
}
"""Models with a task head, by class."""

STATISTICS = (*RUNNING, "num_batches_tracked")
"""Of batch norms."""

BESIDE = (".json", ".txt", ".model", ".jinja")
"""Ends of the names of files that make a tokenizer."""

OF_ENDS: Mapping[str, Callable[[Kind], bool]] = {
    "ForTokenClassification": lambda kind: kind.by_token and not kind.generates,
    "ForImageClassification": lambda kind: "image" in kind.inputs,
}
"""How the name of a class ends -> whether a kind of task is its. Other heads over a text say it by their number of
outputs."""


def finetuned_adapter(
    folder: str | Path,
    backbone: Backbone,
    *,
    task: Task | None = None,
    name: str | None = None,
    pairs: bool = False,
    max_length: int = 128,
    statistics: Literal["refuse", "drop"] = "refuse",
) -> Adapter:
    """A fine-tuned model as an adapter of full fine-tuning, whose differences are those to the backbone.

    Args:
        folder: a Hugging Face model's folder, with a head for classification, regression, tags or images, or with a
            language-model head.
        backbone: the model that it was tuned from, best in float32.
        task: what it was tuned for, so that it can be scored and merged by the task's data. Its labels stand for those
            of a model that names none. None: not known.
        name: of the task. None: that of `task`, or the folder's.
        pairs: whether inputs are pairs of texts; those of `task` are as it says.
        max_length: maximum number of tokens of a text or pair.
        statistics: of batch norms, where they are not the backbone's: refuse the model, or leave them out, for who
            computes them anew.

    Raises:
        AdapterError: the model has a head that graftwork has not, lacks weights, or has other tensors than the
            backbone; names them.
        BackboneError: the folder cannot be read.
    """
    folder = Path(folder)
    model, architecture = _loaded(folder)
    layout = LAYOUTS.get(architecture)
    with quiet_transformers():
        own = Backbone(model if layout is None else model.base_model, name=str(folder))
    differences = _differences(own, backbone, folder, drop=statistics == "drop")
    return _as_adapter(
        folder, model, architecture, backbone, differences, task=task, name=name, pairs=pairs, max_length=max_length
    )


def finetuned_outline(folder: str | Path, backbone: Backbone, *, task: Task | None = None) -> Adapter:
    """`finetuned_adapter` from the model's configuration alone: its tensors have shapes and no numbers (torch's device
    `meta`).

    Args:
        folder: the model's.
        backbone: the model that it was tuned from; its weights are not read.
        task: what it was tuned for.

    Raises:
        AdapterError, BackboneError: as there.
    """
    folder = Path(folder)
    config, architecture = _configured(folder)
    with quiet_transformers(), torch.device("meta"):
        model = getattr(transformers, architecture)(config)
        own = Backbone(model if architecture not in LAYOUTS else model.base_model, name=str(folder))
    _refuse_other_shapes(own, backbone, folder)
    found = _as_adapter(
        folder, model, architecture, backbone, {}, task=task, identity=BackboneIdentity.of_outline(backbone)
    )
    return replace(found, tensors={name: t.to("meta") for name, t in found.tensors.items()})


def _as_adapter(
    folder: Path,
    model: Any,
    architecture: str,
    backbone: Backbone,
    differences: Mapping[str, Tensor],
    *,
    task: Task | None,
    name: str | None = None,
    pairs: bool = False,
    max_length: int = 128,
    identity: BackboneIdentity | None = None,
) -> Adapter:
    """A model's differences and its head as an adapter."""
    layout = LAYOUTS.get(architecture)
    head, kind, labels = _head(model, architecture, layout, backbone, folder)
    if task is not None:
        labels = _labels_for(task, kind, labels, folder)
        name, pairs = name or task.name, task.text_pair is not None
    method, tensors = as_full(differences, backbone, [head])
    return Adapter(
        method=method,
        head=head,
        task=identity_of(
            backbone,
            kind=kind,
            labels=labels,
            pairs=pairs,
            separator=None,
            max_length=max_length,
            name=name or folder.name,
        ),
        backbone=identity or BackboneIdentity.of(backbone),
        sites=tuple(site.name for site in method.sites(backbone.sites.without(head.unused_sites(backbone)))),
        tensors={**tensors, **({} if layout is None else _head_tensors(model, layout))},
        recipe={} if task is None else {"task": task.resolved().model_dump(mode="json", exclude_none=True)},
    )


def save_finetuned(
    adapter: Adapter, backbone: Backbone, like: str | Path, folder: str | Path, *, overwrite: bool = False
) -> None:
    """Write an adapter that changes weights as a fully fine-tuned model, completely or not at all.

    Args:
        adapter: of full fine-tuning, or another method that can be merged into weights.
        backbone: that it was made for.
        like: the folder of a fine-tuned model with the same head, whose configuration and tokenizer it has.
        folder: where it is written.
        overwrite: replace an existing model.

    Raises:
        OutputError: the folder exists and `overwrite` is off, or it cannot be written.
        AdapterError: the model that it is to be like has another head.
    """
    refuse_existing(Path(folder), overwrite=overwrite)
    model, architecture = _loaded(Path(like))
    layout = LAYOUTS.get(architecture)
    with quiet_transformers():
        own = Backbone(model if layout is None else model.base_model, name=str(like))
    head = {} if layout is None else _head_tensors(model, layout)
    mine = {name: tensor for name, tensor in adapter.tensors.items() if name.startswith("head.")}
    wrong = misfits({n: t.shape for n, t in mine.items()}, {n: t.shape for n, t in head.items()})
    if wrong:
        raise AdapterError(f"{str(like)!r} has another head than the adapter: it {wrong[0]}", expected="the same head")
    differences = changes_of(adapter, backbone)
    with torch.no_grad():
        for name, tensor in own.weights.items():
            tied = backbone.weights.where(name).tied
            difference = next((differences[n] for n in (name, *tied) if n in differences), None)
            value = backbone.weights[name].to("cpu", torch.float64)
            tensor.copy_(value if difference is None else value + difference)
        for name, held in _head_modules(model, layout):
            held.copy_(adapter.tensors[name])
    with replacing_folder(Path(folder), overwrite=overwrite) as new, quiet_transformers():
        model.save_pretrained(new)
        for path in Path(like).iterdir():
            if path.is_file() and not (new / path.name).exists() and path.suffix in BESIDE:
                copyfile(path, new / path.name)
        (new / "README.md").write_text(_card(adapter, Path(folder).name), encoding="utf-8")
        (new / "recipe.yaml").write_text(dump_yaml(dict(adapter.recipe)), encoding="utf-8")


def is_model_folder(folder: str | Path) -> bool:
    """Whether there is a Hugging Face model in a folder."""
    return (Path(folder) / "config.json").is_file()


def _configured(folder: Path) -> tuple[Any, str]:
    """A model's configuration, and the name of its class."""
    with _readable(folder), quiet_transformers():
        config = AutoConfig.from_pretrained(folder)
    architecture = (config.architectures or [""])[0]
    generates = architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
    if architecture not in LAYOUTS and not generates:
        raise AdapterError(
            f"{str(folder)!r} is a {architecture or 'model without a head'}, whose head no adapter can have",
            expected=f"a model with a language-model head, or one of {', '.join(sorted(LAYOUTS))}",
        )
    return config, architecture


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Inside, what transformers cannot read is told as an error of ours."""
    try:
        yield
    except UNREADABLE as error:
        raise BackboneError(
            f"{str(folder)!r} cannot be loaded: {first_line(error)}",
            expected="a Hugging Face model's folder with config.json and weights",
        ) from error


def _loaded(folder: Path) -> tuple[Any, str]:
    """A model with its head in float32, and the name of its class."""
    _, architecture = _configured(folder)
    with _readable(folder), quiet_transformers():
        model, report = getattr(transformers, architecture).from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise AdapterError(
            f"{str(folder)!r} lacks {', '.join(lacking[:3])} ({len(lacking)} tensors)",
            expected="all weights of its class",
        )
    return model, architecture


def _refuse_other_shapes(own: Backbone, backbone: Backbone, folder: Path) -> None:
    """Refuse a model that has other tensors than the backbone."""
    shapes, theirs = ({n: tuple(b.weights[n].shape) for n in b.weights} for b in (own, backbone))
    wrong = [
        f"{n} is {shapes[n]} instead of {theirs[n]}" for n in shapes.keys() & theirs.keys() if shapes[n] != theirs[n]
    ]
    wrong += [f"{n} is not in the backbone" for n in shapes.keys() - theirs.keys()]
    wrong += [f"{n} is missing" for n in theirs.keys() - shapes.keys()]
    if wrong:
        raise AdapterError(
            f"{str(folder)!r} is no fine-tuned {backbone.name!r}: {sorted(wrong)[0]} ({len(wrong)} such tensors)",
            expected="a model that was tuned from this backbone",
            change="--backbone",
        )


def _differences(own: Backbone, backbone: Backbone, folder: Path, *, drop: bool) -> dict[str, Tensor]:
    """What the model's tensors are more than the backbone's, by canonical name. Each of tied ones is counted once."""
    _refuse_other_shapes(own, backbone, folder)
    found: dict[str, Tensor] = {}
    for name, tensor in own.weights.items():
        location = backbone.weights.where(name)
        kept = location.buffer and not (drop and name.rpartition(".")[2] in STATISTICS)
        if kept and not torch.equal(tensor.cpu(), backbone.weights[name].to("cpu", tensor.dtype)):
            raise AdapterError(
                f"{str(folder)!r} has a buffer of its own, {name}, which no adapter can have",
                expected="a model whose statistics of batch norms were not changed in training",
                change="the model",
            )
        if location.buffer or any(tied in found for tied in location.tied):
            continue
        difference = (tensor.double() - backbone.weights[name].to("cpu", torch.float64)).float()
        if bool(difference.any()):
            found[name] = difference
    return found


def _head(
    model: Any, architecture: str, layout: HeadLayout | None, backbone: Backbone, folder: Path
) -> tuple[Head, str, tuple[str, ...] | None]:
    """The head, the kind of its task, and its labels."""
    if layout is None:
        if not backbone.generates:
            raise AdapterError(
                f"{str(folder)!r} has a language-model head, and backbone {backbone.name!r} has none",
                expected="a backbone with its language-model head",
                change="--backbone",
            )
        text = next(name for name, own in KINDS.items() if own.generates)
        return head_for(text, backbone, num_labels=0, pooling=backbone.pooling), text, None
    config = model.config
    told = next((of_kind for end, of_kind in OF_ENDS.items() if architecture.endswith(end)), None)
    kind = next((name for name, own in KINDS.items() if told is not None and told(own)), None) or next(
        (name for name, own in KINDS.items() if own.problem_type == config.problem_type and config.problem_type),
        default_kind(config.num_labels),
    )
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels)) if KINDS[kind].named else None
    fields: dict[str, Any] = {"extra_layer": True} if layout.dense else {}
    pooling = layout.pooling or backbone.pooling
    return head_for(kind, backbone, num_labels=config.num_labels, pooling=pooling, **fields), kind, labels


def _labels_for(task: Task, kind: str, labels: tuple[str, ...] | None, folder: Path) -> tuple[str, ...] | None:
    """The labels of a model that was tuned for a task.

    Raises:
        AdapterError: it was tuned for another kind of task, or for another number of labels.
    """
    if task.kind != kind:
        raise AdapterError(
            f"{str(folder)!r} has a head for {kind}, and task {task.name!r} is {task.kind}",
            expected=f"a task of {kind}",
            change="--task",
        )
    if labels is None or task.labels is None or {*labels} == {*task.labels}:
        return labels
    if len(labels) != len(task.labels) or not all(label.startswith("LABEL_") for label in labels):
        raise AdapterError(
            f"{str(folder)!r} has the labels {', '.join(labels[:4])}, and task {task.name!r} has "
            f"{', '.join(task.labels[:4])}",
            expected="the same labels",
            change="--task",
        )
    return task.labels


def _head_modules(model: Any, layout: HeadLayout | None) -> Iterator[tuple[str, Tensor]]:
    """The model's own tensors of its head, by their names in an adapter."""
    for name, path in _modules(layout):
        module = model.get_submodule(path)
        yield f"{name}.weight", module.weight
        if module.bias is not None:
            yield f"{name}.bias", module.bias


def _head_tensors(model: Any, layout: HeadLayout) -> dict[str, Tensor]:
    """The head's tensors as an adapter has them: a bias that the model lacks is zero."""
    found = {name: tensor.detach().clone() for name, tensor in _head_modules(model, layout)}
    for name, _ in _modules(layout):
        found.setdefault(f"{name}.bias", torch.zeros(len(found[f"{name}.weight"])))
    return found


def _modules(layout: HeadLayout | None) -> list[tuple[str, str]]:
    """The names of a head's maps in an adapter, and their modules."""
    pairs = [] if layout is None else [("head.classifier", layout.classifier), ("head.dense", layout.dense)]
    return [(name, path) for name, path in pairs if path is not None]


def _card(adapter: Adapter, name: str) -> str:
    merged = adapter.recipe.get("merged", {})
    of = ", ".join(merged.get("adapters", {})) or adapter.task.name
    return (
        f"---\nlibrary_name: transformers\nbase_model: {adapter.backbone.name}\ntags:\n- graftwork\n- merge\n---\n\n"
        f"# {name}\n\nMade with graftwork of {of}, on {adapter.backbone.name}. How is in recipe.yaml.\n"
    )
