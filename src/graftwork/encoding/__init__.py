"""From a task's inputs to what a backbone takes: one `Encoder` per kind of task.

Training, scoring and prediction all encode here, so that an adapter is asked in the very way in which it was taught.
"""

from graftwork.backbones.tokenizers import pair_separator
from graftwork.encoding.choices import ChoiceEncoder, question_of
from graftwork.encoding.encoder import Encoder, Input, Picture, Question, Rows, Text, Words
from graftwork.encoding.identity import TaskIdentity
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
    "TaskIdentity",
    "Text",
    "TextEncoder",
    "Words",
    "pair_separator",
    "question_of",
    "words_of",
]
