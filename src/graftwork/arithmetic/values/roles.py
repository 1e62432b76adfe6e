"""Which tensors are a model's body, which its head, which buffers; and which tensor of one model is which of another.

A head is what the bare model has not: `classifier`, `lm_head`, all that stands beside the bare model's own prefix where
another operand is a bare model. Buffers are not trained: whole numbers, and statistics such as a batch norm's.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from graftwork.errors import WeightsError

Role = Literal["body", "head", "buffer"]
Shapes = Mapping[str, tuple[int, ...]]

HEADS = frozenset(
    {
        *("classifier", "pre_classifier", "cls_classifier", "distillation_classifier", "sop_classifier", "score"),
        *("lm_head", "qa_outputs", "cls", "classification_head", "predictions", "lm_predictions", "mc_head"),
        *("discriminator_predictions", "generator_predictions", "generator_lm_head", "vocab_transform"),
        *("vocab_layer_norm", "vocab_projector", "logits_proj", "sequence_summary", "seq_relationship", "embed_out"),
        *("answer_head", "ctc_head", "decode_head", "segmentation_head", "mask_head", "head", "final_logits_bias"),
    }
)
"""The modules of transformers' models that stand beside the bare model."""

STATISTICS = ("running_mean", "running_var")
"""Last parts of the names of a batch norm's statistics."""

BUFFERS = frozenset({*STATISTICS, "num_batches_tracked", "position_ids", "inv_freq", "masked_bias"})
"""Last parts of the names of tensors that are not trained."""

FEW = 5
"""So many problems are named."""


def role_of(name: str, *, floating: bool) -> Role:
    """The role of a tensor by its name."""
    if not floating or name.rpartition(".")[2] in BUFFERS:
        return "buffer"
    return "head" if name.partition(".")[0] in HEADS else "body"


def prefixes(names: Iterable[str], others: Collection[str]) -> tuple[str, str]:
    """What stands before the names of one model, and what before those of another, that are alike without it: of
    `bert.encoder.…` and `encoder.…`, `bert.` and nothing."""
    names, others = {*names}, {*others}
    tops = [(f"{top}.", "") for top in _tops(names)] + [("", f"{top}.") for top in _tops(others)]
    return max([("", ""), *tops], key=lambda pair: len(_without(pair[0], names) & _without(pair[1], others)))


def matching(names: Collection[str], others: Collection[str]) -> dict[str, str]:
    """Names of one model -> those of the same tensors in another one; those that it has not are left out."""
    own, other = prefixes(names, others)
    found = {}
    for name in names:
        bare = name.removeprefix(own)
        # Beside the prefix stand heads, which a bare model's own modules may be called like.
        if name.startswith(own) and f"{other}{bare}" in others:
            found[name] = f"{other}{bare}"
        elif not other and name in others:
            found[name] = name
    return found


def roles_of(floating: Mapping[str, bool], others: Sequence[Collection[str]] = ()) -> dict[str, Role]:
    """The role of each tensor of a model.

    Args:
        floating: its tensors, and which of them are floating-point numbers.
        others: the names of other models; one of them may be a bare model, from which heads are known.
    """
    roles = {name: role_of(name, floating=own) for name, own in floating.items()}
    for names in others:
        own, _ = prefixes(floating, names)
        roles |= {name: "head" for name, role in roles.items() if role == "body" and not name.startswith(own)}
    return roles


def shape_problems(shapes: Shapes, whose: str, others: Shapes, other: str, match: Mapping[str, str]) -> list[str]:
    """How the shapes of tensors of two models differ, as sentences.

    Args:
        shapes: of one model's tensors.
        whose: its name.
        others, other: the same of another one.
        match: names of the first -> those of the second.
    """
    found = []
    for name, own in match.items():
        mine, theirs = shapes[name], others[own]
        if mine == theirs:
            continue
        words = len(mine) == len(theirs) == 2 and mine[1:] == theirs[1:] and "embed" in name
        what = f" (vocabularies of {mine[0]:,} and {theirs[0]:,} tokens)" if words else ""
        found.append(f"{name} is {mine} in {whose} and {theirs} in {other}{what}")
    return found


def refuse(problems: Sequence[str], *, expected: str, change: str = "") -> None:
    """Refuse models for all that is wrong with them at once.

    Raises:
        WeightsError: there is a problem.
    """
    if not problems:
        return
    more = f"; and {len(problems) - FEW} more" if len(problems) > FEW else ""
    raise WeightsError("; ".join(problems[:FEW]) + more, expected=expected, change=change)


def layers_of(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """The layer of each tensor that is in one, and the number of layers there: of `encoder.layer.3.output.weight`,
    (3, 6)."""
    places: dict[str, tuple[str, int]] = {}
    for name in names:
        parts = name.split(".")
        for i, part in enumerate(parts[:-1]):
            if part.isdigit() and i > 0:
                places[name] = (".".join(parts[:i]), int(part))
                break
    depth: dict[str, int] = {}
    for stack, layer in places.values():
        depth[stack] = max(depth.get(stack, 0), layer + 1)
    return {name: (layer, depth[stack]) for name, (stack, layer) in places.items()}


def _tops(names: Iterable[str]) -> list[str]:
    return sorted({name.partition(".")[0] for name in names if "." in name} - HEADS)


def _without(prefix: str, names: Iterable[str]) -> set[str]:
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
