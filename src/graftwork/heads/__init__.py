"""Heads: a task's output layer, one file each. `HEADS` is the table by the kind that files name."""

from graftwork.heads.choice import ChoiceHead
from graftwork.heads.features import FeatureHead
from graftwork.heads.head import HEADS, Head, States
from graftwork.heads.language import LanguageHead, LikelihoodHead
from graftwork.heads.losses import IGNORED, Counts, Items
from graftwork.heads.pooled import PooledHead
from graftwork.heads.tokens import TokenHead

__all__ = [
    "HEADS",
    "IGNORED",
    "ChoiceHead",
    "Counts",
    "FeatureHead",
    "Head",
    "Items",
    "LanguageHead",
    "LikelihoodHead",
    "PooledHead",
    "States",
    "TokenHead",
]
