"""Calls of tokenizers, by one thread at a time.

A tokenizer keeps what it was last asked for as state of its own: a fast one the length at which it cuts, one of a
translation model whether it reads sources or targets. Two threads that ask at once would be given each other's; so
whatever asks a backbone's tokenizer does it here.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from graftwork.backbones.sites import WORD, Sites
from graftwork.errors import BackboneError, RecipeError

_locks: "WeakKeyDictionary[PreTrainedTokenizerBase, Any]" = WeakKeyDictionary()
"""A lock for each tokenizer, and not for each backbone: two backbones may have the same one."""

_looking = Lock()

_extended: "WeakKeyDictionary[PreTrainedTokenizerBase, WeakValueDictionary[Any, PreTrainedTokenizerBase]]"
_extended = WeakKeyDictionary()
"""Of each tokenizer, those with tokens of adapters that somebody holds: adapters with the same tokens share one."""


@contextmanager
def locked(tokenizer: PreTrainedTokenizerBase) -> Iterator[PreTrainedTokenizerBase]:
    """Inside, no other thread uses this tokenizer."""
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
    with locked(tokenizer):
        found: list[list[int]] = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    return found


def ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that begin a text, and those that end it."""
    [[*bare], [*whole]] = (pieces(tokenizer, ["a"], special=special)[0] for special in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
    return ([], []) if start is None else (whole[:start], whole[start + len(bare) :])


def separates_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it puts something between the two texts of a pair."""
    [bare] = pieces(tokenizer, ["a"])
    with locked(tokenizer):
        [whole] = tokenizer(["a"], ["a"], verbose=False)["input_ids"]
    return not any(whole[i : i + 2 * len(bare)] == bare * 2 for i in range(len(whole)))


def pair_separator(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What has to stand between the texts of a pair: nothing where the tokenizer parts them itself; else the token that
    separates or ends texts, which no text has in it unless it spells it, or a line break where there is none.
    """
    if separates_pairs(tokenizer):
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
        RecipeError: a token is empty, is given twice, is one already, or cannot be told from another.
    """
    with locked(tokenizer):
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
            yield f"token {token!r} is given twice"
        elif spelt[i] in spelt[:i]:
            yield f"token {token!r} is the same for the tokenizer as {tokens[spelt.index(spelt[i])]!r}"
        elif token in known or (len(ids) == 1 and ids[0] != tokenizer.unk_token_id):
            yield f"token {token!r} is already in the tokenizer"


def _normalised(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text as the tokenizer reads it: in small letters, for one."""
    normaliser = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return text if normaliser is None else str(normaliser.normalize_str(text))


def refuse_tokens_without_rows(tokenizer: PreTrainedTokenizerBase, sites: Sites, name: str) -> None:
    """Refuse a tokenizer that gives tokens for which the embedding table has no row: in a pass they are an index
    out of range. A table with more rows than there are tokens is padded, and fine.

    Raises:
        BackboneError: the two sizes, and the tokens.
    """
    tables = [site.in_features for site in sites.of_kind("embedding") if site.name.endswith(WORD)]
    if not tables:
        return
    rows = min(tables)
    outside = beyond(tokenizer, rows)
    if outside:
        named = ", ".join(f"{token!r} ({i})" for token, i in list(outside.items())[:3])
        raise BackboneError(
            f"the tokenizer of backbone {name!r} has {len(tokenizer)} tokens and its embedding table {rows} "
            f"rows: none for {named}{' and others' if len(outside) > 3 else ''}",
            expected="the tokenizer that the model was trained with, or a model with a larger embedding table",
            change="the tokenizer; or model.resize_token_embeddings(len(tokenizer)); or --add-tokens, for tokens "
            "that only the adapter needs",
        )


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Have a tokenizer make the inputs that a model takes, and pad them."""
    # DistilBERT's tokenizer, for one, makes inputs that its model does not take.
    accepted = inspect.signature(model.forward).parameters
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in accepted]
    # Positions are counted from the left, also where a tokenizer was made for generating only.
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        # Padding is masked and has no labels, so that any token will do.
        known = (getattr(tokenizer, f"{name}_token") for name in ("eos", "unk", "bos", "sep", "cls"))
        first = tokenizer.convert_ids_to_tokens(0)
        tokenizer.pad_token = next((token for token in known if token is not None), first)
