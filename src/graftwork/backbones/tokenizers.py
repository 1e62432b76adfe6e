"""What tokenizers are asked, by one thread at a time.

A tokenizer keeps what it was last asked for as state of its own: a fast one the length at which it cuts, one of a
translation model whether it reads sources or targets. Two threads that ask at once would be given each other's; so
whatever asks a backbone's tokenizer does it here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

_locks: "WeakKeyDictionary[PreTrainedTokenizerBase, Any]" = WeakKeyDictionary()
"""A lock for each tokenizer, and not for each backbone: two backbones may have the same one."""

_looking = Lock()


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
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def parts_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it puts something between the two texts of a pair."""
    [bare] = pieces(tokenizer, ["a"])
    with asking(tokenizer):
        [whole] = tokenizer(["a"], ["a"], verbose=False)["input_ids"]
    return not any(whole[i : i + 2 * len(bare)] == bare * 2 for i in range(len(whole)))


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
