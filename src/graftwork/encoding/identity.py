"""What has to be known of a task to read its inputs and to name its answers."""

from pydantic import BaseModel, ConfigDict


class TaskIdentity(BaseModel):
    """What an adapter must know of its task to be used: its labels and how its inputs are read.

    Attributes:
        name: the task's.
        kind: the task's; None in adapters saved before it was kept here, whose head tells it.
        pairs: whether it is over pairs of texts.
        labels: the classes or tags in the order of their ids; of a multiple choice, the choices' names.
        max_length: tokens a text (or pair, or source with its separator) is cut to.
        max_target_length: tokens a target, or a choice judged by its likelihood, is cut to.
        separator: what stands between source and target in a causal model.
        pair_separator: what stands between the two texts of a pair, or a question and its choice, where the tokenizer
            puts nothing there. None: what the tokenizer puts there, also where that is nothing, as it was once in all.
        added_tokens: those that the adapter has beside the backbone's; their embeddings are among its tensors.
        max_new_tokens: tokens that are generated at most; None: as many as a target may have.
        num_beams: of the beam search that generates; 1 takes the likeliest token each time.
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
