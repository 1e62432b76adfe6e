"""Fully fine-tuned Hugging Face models as adapters: what they change in a backbone, with their head.

So a model that was tuned elsewhere is calculated with as any adapter is. Its head is one that graftwork has: the table
says for each class of model how it makes one vector of a text, and where the head's tensors are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig

from graftwork.adapters import Adapter
from graftwork.adapters.identity import BackboneIdentity
from graftwork.adapters.new import identity_of
from graftwork.arithmetic.differences import as_full
from graftwork.backbones import Backbone, Pooling
from graftwork.backbones.checkpoints import UNREADABLE
from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import AdapterError, BackboneError, first_line
from graftwork.heads import Head
from graftwork.kinds import KINDS, default_kind
from graftwork.kinds.heads import head_for


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

TASKS = {"ForTokenClassification": "token-classification", "ForImageClassification": "image-classification"}
"""How the name of a class ends -> the kind of task. Other heads over a text say it by their number of outputs."""


def finetuned_adapter(
    folder: str | Path, backbone: Backbone, *, name: str | None = None, pairs: bool = False, max_length: int = 128
) -> Adapter:
    """A fine-tuned model as an adapter of full fine-tuning, whose differences are those to the backbone.

    Args:
        folder: a Hugging Face model's folder, with a head for classification, regression, tags or images, or with a
            language-model head.
        backbone: the model that it was tuned from, best in float32.
        name: of the task. None: the folder's.
        pairs: whether inputs are pairs of texts.
        max_length: maximum number of tokens of a text or pair.

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
    differences = _differences(own, backbone, folder)
    head, kind, labels = _head(model, architecture, layout, backbone, folder)
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
        backbone=BackboneIdentity.of(backbone),
        sites=tuple(site.name for site in method.sites(backbone.sites.without(head.unused_sites(backbone)))),
        tensors={**tensors, **({} if layout is None else _head_tensors(model, layout))},
    )


def is_model_folder(folder: str | Path) -> bool:
    """Whether there is a Hugging Face model in a folder."""
    return (Path(folder) / "config.json").is_file()


def _loaded(folder: Path) -> tuple[Any, str]:
    """A model with its head in float32, and the name of its class."""
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder)
            architecture = (config.architectures or [""])[0]
            generates = architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))
            if architecture not in LAYOUTS and not generates:
                raise AdapterError(
                    f"{str(folder)!r} is a {architecture or 'model without a head'}, whose head no adapter can have",
                    expected=f"a model with a language-model head, or one of {', '.join(sorted(LAYOUTS))}",
                )
            model, report = getattr(transformers, architecture).from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
    except UNREADABLE as error:
        raise BackboneError(
            f"{str(folder)!r} cannot be loaded: {first_line(error)}",
            expected="a Hugging Face model's folder with config.json and weights",
        ) from error
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise AdapterError(
            f"{str(folder)!r} lacks {', '.join(lacking[:3])} ({len(lacking)} tensors)",
            expected="all weights of its class",
        )
    return model, architecture


def _differences(own: Backbone, backbone: Backbone, folder: Path) -> dict[str, Tensor]:
    """What the model's tensors are more than the backbone's, by canonical name. Each of tied ones is counted once."""
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
    found: dict[str, Tensor] = {}
    for name, tensor in own.weights.items():
        location = backbone.weights.where(name)
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
        return head_for("generation", backbone, num_labels=0, pooling=backbone.pooling), "generation", None
    config = model.config
    kind = next((kind for end, kind in TASKS.items() if architecture.endswith(end)), None) or next(
        (name for name, own in KINDS.items() if own.problem_type == config.problem_type and config.problem_type),
        default_kind(config.num_labels),
    )
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels)) if KINDS[kind].named else None
    fields: dict[str, Any] = {"extra_layer": True} if layout.dense else {}
    pooling = layout.pooling or backbone.pooling
    return head_for(kind, backbone, num_labels=config.num_labels, pooling=pooling, **fields), kind, labels


def _head_tensors(model: Any, layout: HeadLayout) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, path in (("head.classifier", layout.classifier), ("head.dense", layout.dense)):
        if path is None:
            continue
        module = model.get_submodule(path)
        found[f"{name}.weight"] = module.weight.detach().clone()
        bias = module.bias
        found[f"{name}.bias"] = torch.zeros(len(module.weight)) if bias is None else bias.detach().clone()
    return found
