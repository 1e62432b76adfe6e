"""What an adapter stores about its task: how inputs are read, and the names of the labels."""

from pydantic import BaseModel, ConfigDict


class TaskIdentity(BaseModel):
    """What an adapter stores about its task: its labels, and how inputs are read.

    Attributes:
        name: name of the task.
        kind: kind of task. None in older adapters, where the head determines it.
        pairs: whether inputs are pairs of texts.
        labels: the classes or tags, in the order of their ids; for multiple choice, the names of the choices.
        max_length: maximum number of tokens of a text (or pair, or source with its separator).
        max_target_length: maximum number of tokens of a target, or of a choice that is scored by its likelihood.
        separator: the text between source and target in a causal model.
        pair_separator: the text between the two texts of a pair, or between a question and a choice, for tokenizers
            that put nothing there. None: what the tokenizer puts there, if anything.
        added_tokens: the tokens added to those of the backbone; their embeddings are among the adapter's tensors.
        max_new_tokens: maximum number of generated tokens. None: `max_target_length`.
        num_beams: number of beams for generation; 1 is greedy search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str | None = None
    pairs: bool = False
    labels: tuple[str, ...] | None = None
    max_length: int = 128
    max_target_length: int = 128
    separator: str = "\n"
    pair_separator: str | None = None
    added_tokens: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    num_beams: int = 1
