"""From texts to tokens: cut to a length, pairs with something between them, and none empty.

Some tokenizers (GPT-2's, Qwen's) add nothing to a text: a pair would be one text to the model, wherever it was parted,
and an empty text no input.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from graftwork.backbones.tokenizers import ends, locked, pieces
from graftwork.errors import RecipeError

Row = dict[str, Any]
"""One input as the backbone takes it, unpadded; in training with its `labels`."""

EMPTY = ("bos", "eos", "cls", "sep", "pad", "unk")
"""What stands for a text without tokens: the first of these tokens that the tokenizer has."""


def tokenized(
    tokenizer: PreTrainedTokenizerBase,
    first: Sequence[str],
    second: Sequence[str] | None,
    max_length: int,
    *,
    separator: str | None = None,
) -> list[Row]:
    """Rows of texts, or of pairs of them, each with the tokens that begin and end it, cut to `max_length`.

    Args:
        separator: what stands between the texts of a pair; None: what the tokenizer puts there.

    Raises:
        RecipeError: the tokens that the tokenizer adds are more than that.
    """
    if not first:
        return []
    if second is not None and separator is not None:
        rows = _parted(tokenizer, first, second, max_length, separator)
    else:
        with locked(tokenizer):
            _check_room(max_length - tokenizer.num_special_tokens_to_add(pair=second is not None), max_length)
            others = None if second is None else list(second)
            encoded = tokenizer(list(first), others, truncation=True, max_length=max_length)
        rows = [{name: values[i] for name, values in encoded.items()} for i in range(len(first))]
    return [not_empty(row, tokenizer) for row in rows]


def not_empty(row: Row, tokenizer: PreTrainedTokenizerBase) -> Row:
    """The row, or one of a single token, which is attended to, where it has none: no model says anything of nothing."""
    if row["input_ids"]:
        return row
    known = (getattr(tokenizer, f"{name}_token_id") for name in EMPTY)
    token = next((token for token in known if token is not None), 0)
    blank: Mapping[str, int] = {"input_ids": int(token), "attention_mask": 1}
    return {name: [blank.get(name, 0)] for name in row}


def _parted(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str], max_length: int, separator: str
) -> list[Row]:
    """Pairs with the separator between them, which is never cut; the texts are, as transformers cuts pairs."""
    before, after = ends(tokenizer)
    [between] = pieces(tokenizer, [separator])
    room = max_length - len(before) - len(between) - len(after)
    _check_room(room, max_length)
    rows = []
    for one, other in zip(pieces(tokenizer, first), pieces(tokenizer, second), strict=True):
        sizes = _shares(len(one), len(other), room)
        one, other = (_cut(ids, size, tokenizer.truncation_side) for ids, size in zip((one, other), sizes, strict=True))
        ids = [*before, *one, *between, *other, *after]
        row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if "token_type_ids" in tokenizer.model_input_names:
            behind = len(other) + len(after)
            row["token_type_ids"] = [0] * (len(ids) - behind) + [1] * behind
        rows.append(row)
    return rows


def _shares(one: int, other: int, room: int) -> tuple[int, int]:
    """How much of each of two texts is kept: the longer one is cut first."""
    if one + other <= room:
        return one, other
    less = min(one, other, room // 2)
    return (less, room - less) if one <= other else (room - less, less)


def _cut(ids: list[int], size: int, side: str) -> list[int]:
    return ids[len(ids) - size :] if side == "left" and len(ids) > size else ids[:size]


def _check_room(room: int, max_length: int) -> None:
    if room < 0:
        raise RecipeError(
            f"texts are cut to {max_length} tokens, and the tokenizer adds {max_length - room} to each",
            expected=f"{max_length - room} or more",
            change="--train.max_length",
        )
