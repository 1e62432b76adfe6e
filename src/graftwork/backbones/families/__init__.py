"""Families: one table each, from canonical site names to module paths of Hugging Face models. `FAMILIES` lists them."""

from transformers import PreTrainedModel

from graftwork.backbones.families.albert import ALBERT
from graftwork.backbones.families.bart import BART, MBART
from graftwork.backbones.families.bert import BERT, DISTILBERT
from graftwork.backbones.families.deberta import DEBERTA
from graftwork.backbones.families.family import Entry, Family, Stack, base_path, has_module, hidden_size
from graftwork.backbones.families.gemma import GEMMA
from graftwork.backbones.families.gpt2 import GPT2
from graftwork.backbones.families.llama import LLAMA
from graftwork.backbones.families.modernbert import MODERNBERT
from graftwork.backbones.families.mpnet import MPNET
from graftwork.backbones.families.phi3 import PHI3
from graftwork.backbones.families.proof import disprove
from graftwork.backbones.families.resnet import RESNET
from graftwork.backbones.families.t5 import T5
from graftwork.backbones.families.vit import DINOV2, VIT
from graftwork.errors import BackboneError

TABLES = {
    "albert.py": (ALBERT,),
    "bart.py": (BART, MBART),
    "bert.py": (BERT, DISTILBERT),
    "deberta.py": (DEBERTA,),
    "gemma.py": (GEMMA,),
    "gpt2.py": (GPT2,),
    "llama.py": (LLAMA,),
    "modernbert.py": (MODERNBERT,),
    "mpnet.py": (MPNET,),
    "phi3.py": (PHI3,),
    "resnet.py": (RESNET,),
    "t5.py": (T5,),
    "vit.py": (VIT, DINOV2),
}
"""The tables by the file where they stand."""

FAMILIES = tuple(family for families in TABLES.values() for family in families)

__all__ = [
    "FAMILIES",
    "TABLES",
    "Entry",
    "Family",
    "Stack",
    "base_path",
    "disprove",
    "family_of",
    "has_module",
    "hidden_size",
]


def family_of(model: PreTrainedModel) -> Family:
    """The family that the model's type belongs to; of an unknown type, the first whose layout the model is proven to
    have.

    Raises:
        BackboneError: no layout fits; says what is wrong with the nearest one and how to add a table.
    """
    model_type = model.config.model_type
    lacks = {family.name: family.missing(model) for family in FAMILIES}
    known = [family for family in FAMILIES if model_type in family.model_types and not lacks[family.name]]
    if known:
        return known[0]
    why = {name: f"it has no {paths[0]!r}" for name, paths in lacks.items() if paths}
    for family in FAMILIES:
        if not lacks[family.name]:
            try:
                why[family.name] = disprove(model, family, family.sites(model))
            except BackboneError as error:
                why[family.name] = error.problem
            if not why[family.name]:
                return family
    nearest = min(FAMILIES, key=lambda family: len(lacks[family.name]) / family.num_required)
    file = next(file for file, families in TABLES.items() if nearest in families)
    raise BackboneError(
        f"model type {model_type!r} has the layout of no known family (nearest: {nearest.name}, but"
        f" {why[nearest.name]})",
        expected="a model of the families " + ", ".join(lacks),
        change=f"add a Family table for it to graftwork/backbones/families, like those in {file}",
    )
