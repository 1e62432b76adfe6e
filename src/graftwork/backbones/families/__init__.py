"""Families: one table each, from canonical site names to module paths of Hugging Face models. `FAMILIES` lists them."""

from transformers import PreTrainedModel

from graftwork.backbones.families.agreement import disagreement
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
from graftwork.backbones.families.proof import FAILURES, disprove
from graftwork.backbones.families.resnet import RESNET
from graftwork.backbones.families.t5 import T5
from graftwork.backbones.families.vit import DINOV2, VIT
from graftwork.errors import BackboneError

SEEING = {"is_causal": None, "use_bidirectional_attention": False}
"""Keys of a configuration that change which tokens see which, of a type that is known otherwise; and what each is where
it changes nothing."""

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
    "disagreement",
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
    lacks = {family.name: _missing(family, model) for family in FAMILIES}
    known = [family for family in FAMILIES if model_type in family.model_types and not lacks[family.name]]
    if known and not _says_who_sees_whom(model):
        return known[0]
    why = {name: f"it has no {paths[0]!r}" for name, paths in lacks.items() if paths}
    for family in known or FAMILIES:
        if not lacks[family.name]:
            why[family.name] = _doubt(family, model, layout=not known)
            if not why[family.name]:
                return family
    if known:
        raise BackboneError(
            f"{type(model).__name__} with this configuration cannot be a backbone: {why[known[0].name]}",
            expected=f"a configuration that can be one ({' and '.join(map(repr, SEEING))} left out)",
            change="the model",
        )
    nearest = min(FAMILIES, key=lambda family: len(lacks[family.name]) / family.num_required)
    file = next(file for file, families in TABLES.items() if nearest in families)
    raise BackboneError(
        f"model type {model_type!r} does not match the layout of any known family (nearest: {nearest.name}, but"
        f" {why[nearest.name]})",
        expected="a model of the families " + ", ".join(lacks),
        change=f"add a Family table for it to graftwork/backbones/families, like those in {file}",
    )


def _missing(family: Family, model: PreTrainedModel) -> list[str]:
    """What of a layout a model lacks. The code of some models raises what it likes where it is asked."""
    try:
        return family.missing(model)
    except FAILURES:
        return [stack.layers for stack in family.stacks]


def _doubt(family: Family, model: PreTrainedModel, *, layout: bool) -> str:
    """Why a model is not of a family, in a clause; empty when it is.

    Args:
        layout: whether its layout is to be proven, too, and not only its attention.
    """
    try:
        sites = family.sites(model)
        why = disprove(model, family, sites) if layout else ""
        return why or (disagreement(model) if sites.of_kind("attention") else "")
    except BackboneError as error:
        return error.problem
    except FAILURES as error:
        return f"its configuration cannot be read ({type(error).__name__}: {error})"


def _says_who_sees_whom(model: PreTrainedModel) -> bool:
    return any(getattr(model.config, key, usual) not in (None, usual) for key, usual in SEEING.items())
