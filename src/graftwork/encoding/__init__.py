"""From a task's inputs to what a backbone takes: one `Encoder` a kind of task.

Training, scoring and prediction all encode here, so that an adapter is asked in the very way in which it was taught.
"""

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.backbones.tokenizers import pair_separator
from graftwork.encoding.choices import ChoiceEncoder, question_of
from graftwork.encoding.encoder import Encoder, Input, Picture, Question, Rows, Text, Words
from graftwork.encoding.images import ImageEncoder
from graftwork.encoding.prompts import GenerationEncoder, LikelihoodEncoder
from graftwork.encoding.tags import ABSENT, TagEncoder, words_of
from graftwork.encoding.texts import TextEncoder
from graftwork.encoding.tokens import Row

__all__ = [
    "ABSENT",
    "ChoiceEncoder",
    "Encoder",
    "GenerationEncoder",
    "ImageEncoder",
    "Input",
    "LikelihoodEncoder",
    "Picture",
    "Question",
    "Row",
    "Rows",
    "TagEncoder",
    "Text",
    "TextEncoder",
    "Words",
    "encoder_for",
    "pair_separator",
    "question_of",
    "words_of",
]

_ENCODERS: dict[str, type[Encoder]] = {
    "classification": TextEncoder,
    "regression": TextEncoder,
    "token-classification": TagEncoder,
    "multiple-choice": ChoiceEncoder,
    "generation": GenerationEncoder,
    "image-classification": ImageEncoder,
}


def encoder_for(backbone: Backbone, adapter: Adapter) -> Encoder:
    """How the inputs of an adapter's task are read."""
    by_likelihood = adapter.kind == "multiple-choice" and adapter.head.reads == "vocabulary"
    kind = LikelihoodEncoder if by_likelihood else _ENCODERS[adapter.kind]
    return kind(backbone, adapter.task, prompt_tokens=adapter.method.num_prompt_tokens)
