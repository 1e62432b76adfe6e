"""Families: one table each, from canonical site names to module paths of Hugging Face models. `FAMILIES` lists them."""

from transformers import PreTrainedModel

from graftwork.backbones.families.albert import ALBERT
from graftwork.backbones.families.bart import BART, MBART, PEGASUS
from graftwork.backbones.families.bert import BERT, DISTILBERT
from graftwork.backbones.families.deberta import DEBERTA
from graftwork.backbones.families.family import Entry, Family, Stack, base_path, has_module, hidden_size
from graftwork.backbones.families.gemma import GEMMA
from graftwork.backbones.families.gpt2 import GPT2
from graftwork.backbones.families.llama import LLAMA
from graftwork.backbones.families.modernbert import MODERNBERT
from graftwork.backbones.families.mpnet import MPNET
from graftwork.backbones.families.phi3 import PHI3
from graftwork.backbones.families.resnet import RESNET
from graftwork.backbones.families.t5 import T5
from graftwork.backbones.families.vit import DINOV2, VIT
from graftwork.errors import BackboneError

FAMILIES = (
    *(BERT, DISTILBERT, ALBERT, MPNET, DEBERTA, MODERNBERT),
    *(GPT2, LLAMA, GEMMA, PHI3),
    *(T5, BART, MBART, PEGASUS),
    *(VIT, DINOV2, RESNET),
)

__all__ = ["FAMILIES", "Entry", "Family", "Stack", "base_path", "family_of", "has_module", "hidden_size"]


def family_of(model: PreTrainedModel) -> Family:
    """The family that the model's type belongs to; of an unknown type, the first whose layout the model has.

    Raises:
        BackboneError: no layout fits; says what the nearest one lacks and how to add a table.
    """
    model_type = model.config.model_type
    lacks = {family.name: family.missing(model) for family in FAMILIES}
    for family in sorted(FAMILIES, key=lambda family: model_type not in family.model_types):
        if not lacks[family.name]:
            return family
    name, paths = min(lacks.items(), key=lambda item: len(item[1]))
    raise BackboneError(
        f"model type {model_type!r} has the layout of no known family (nearest: {name}, which needs {paths[0]!r})",
        expected="a model of the families " + ", ".join(lacks),
        change="add a Family table for it to graftwork/backbones/families",
    )
