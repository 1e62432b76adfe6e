"""What tokenizers are asked, by one thread at a time.

A tokenizer keeps what it was last asked for as state of its own: a fast one the length at which it cuts, one of a
translation model whether it reads sources or targets. Two threads that ask at once would be given each other's; so
whatever asks a backbone's tokenizer does it here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from transformers import AddedToken, PreTrainedTokenizerBase

from graftwork.errors import RecipeError

_locks: "WeakKeyDictionary[PreTrainedTokenizerBase, Any]" = WeakKeyDictionary()
"""A lock for each tokenizer, and not for each backbone: two backbones may have the same one."""

_looking = Lock()

_extended: "WeakKeyDictionary[PreTrainedTokenizerBase, WeakValueDictionary[Any, PreTrainedTokenizerBase]]"
_extended = WeakKeyDictionary()
"""Of each tokenizer, those with tokens of adapters that somebody holds: adapters with the same tokens share one."""


@contextmanager
def asking(tokenizer: PreTrainedTokenizerBase) -> Iterator[PreTrainedTokenizerBase]:
    """Inside, no other thread asks this tokenizer anything."""
    with _looking:
        lock = _locks.setdefault(tokenizer, RLock())
    with lock:
        yield tokenizer


def pieces(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
    """The ids of each text's tokens, all of them.

    Args:
        special: whether with those that begin and end a text.
    """
    if not texts:
        return []
    with asking(tokenizer):
        found: list[list[int]] = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    return found


def ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that begin a text, and those that end it."""
    [[*bare], [*whole]] = (pieces(tokenizer, ["a"], special=special)[0] for special in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
    return ([], []) if start is None else (whole[:start], whole[start + len(bare) :])


def parts_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it puts something between the two texts of a pair."""
    [bare] = pieces(tokenizer, ["a"])
    with asking(tokenizer):
        [whole] = tokenizer(["a"], ["a"], verbose=False)["input_ids"]
    return not any(whole[i : i + 2 * len(bare)] == bare * 2 for i in range(len(whole)))


def pair_separator(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What has to stand between the texts of a pair: nothing where the tokenizer parts them itself; else the token that
    separates or ends texts, which no text has in it unless it spells it, or a line break where there is none.
    """
    if parts_pairs(tokenizer):
        return None
    return str(tokenizer.sep_token or tokenizer.eos_token or "\n")


def beyond(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, int]:
    """The tokens that a table of so many rows has no row for, and that can come up: those of the vocabulary, the
    tokenizer's own (the one that pads among them), and those that a text can spell.
    """
    outside = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    if not outside:
        return {}
    own = set(tokenizer.all_special_ids)
    spelt = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    return {
        token: i
        for token, i in sorted(outside.items(), key=lambda item: item[1])
        if i in own or i not in spelt or i in pieces(tokenizer, [spelt[i]])[0]
    }


def with_tokens(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...], first: int) -> PreTrainedTokenizerBase:
    """A tokenizer that knows these tokens in addition; the given one stays as it is. They are found in a text wherever
    they stand, also within words, as tokens are that transformers adds.

    Args:
        first: the id of the first; the others' follow.

    Raises:
        RecipeError: a token is empty, is there twice, is one already, or cannot be told from another.
    """
    with asking(tokenizer):
        made = _extended.setdefault(tokenizer, WeakValueDictionary())
        longer = made.get((tokens, first))
        if longer is None:
            made[tokens, first] = longer = _extend(tokenizer, tokens, first)
        return longer


def _extend(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...], first: int) -> PreTrainedTokenizerBase:
    problems = [*_faults(tokenizer, tokens)]
    if not problems:
        longer = deepcopy(tokenizer)
        # A table may have more rows than there are tokens: no text has what takes their ids.
        room = first - 1 - max(tokenizer.get_vocab().values())
        longer.add_tokens([AddedToken(f"\ufdd0{i}\ufdd1", normalized=False) for i in range(room)])
        longer.add_tokens(list(tokens))
        ids = [[first + i] for i in range(len(tokens))]
        problems = [
            f"token {token!r} is read as {longer.convert_ids_to_tokens(found)}"
            for token, own, found in zip(tokens, ids, pieces(longer, tokens), strict=True)
            if found != own
        ]
        if not problems:
            return longer
    raise RecipeError(
        "tokens cannot be added: " + "; ".join(problems[:5]),
        expected="different tokens that the tokenizer does not have",
        change="--add-tokens",
    )


def _faults(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> Iterator[str]:
    known = tokenizer.get_vocab()
    spelt = [_normalised(tokenizer, token) for token in tokens]
    for i, (token, ids) in enumerate(zip(tokens, pieces(tokenizer, tokens), strict=True)):
        if not token.strip():
            yield f"token {i + 1} is empty"
        elif token != token.strip():
            yield f"token {token!r} begins or ends with white space"
        elif token in tokens[:i]:
            yield f"token {token!r} is there twice"
        elif spelt[i] in spelt[:i]:
            yield f"token {token!r} is the same to the tokenizer as {tokens[spelt.index(spelt[i])]!r}"
        elif token in known or (len(ids) == 1 and ids[0] != tokenizer.unk_token_id):
            yield f"token {token!r} is one of the tokenizer's already"


def _normalised(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text as the tokenizer reads it: in small letters, for one."""
    normaliser = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return text if normaliser is None else str(normaliser.normalize_str(text))
