"""The largest numbers of a tensor or of all tensors, exactly so many, found without sorting and without holding them.

Of many numbers, a sample says between which two the k-th largest is; one pass counts those above and collects those
between, of which the k-th is found. Where there are few, or where it is not between them, it is found digit by digit.

A float's bits without its sign, read as a whole number, are ordered as magnitudes are. The k-th largest is found digit
by digit: a pass counts how often each value of the first 15 bits occurs, which says in which of them the k-th lies; the
next passes count the next 16 bits of the numbers there. Two passes find it among float32 numbers, four among float64.
Where more numbers than wanted have the k-th's very magnitude, those in the first places are taken.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import hardshrink

from graftwork.arithmetic.values.running import Piece

DIGIT = 16
"""Bits that are counted in one pass; one less in the first, which has no sign."""

SAMPLED = 2**19
"""So many numbers are too few to be sampled."""

SHARE = 64
"""One number of so many is in a sample."""

WIDE = 6.0
"""How far the two numbers are from the sample's own k-th, in standard deviations of its rank among as many numbers that
are drawn by themselves; those that lie beside each other are more alike, so that it is not a little."""

Keys = np.ndarray[Any, np.dtype[Any]]
"""Whole numbers, one for each number. numpy finds a few among many several times as fast as torch."""


class Cut(NamedTuple):
    """Where the largest magnitudes of a tensor end.

    Attributes:
        key: of the smallest that is among them; see `keys_of`. Below 0: none is.
        last: place of the last number of that very magnitude that is among them; None: all are.
    """

    key: int
    last: int | None

    def above(self, numbers: Float[Tensor, "n"], start: int = 0) -> Bool[Tensor, "n"]:
        """Which numbers of a piece are among the largest.

        Args:
            numbers: of the piece.
            start: place of the first of them in the tensor.
        """
        if self.key < 0:
            return torch.zeros_like(numbers, dtype=torch.bool)
        keys = keys_of(numbers)
        if self.last is None:
            return torch.from_numpy(keys >= self.key)
        first = max(0, min(len(keys), self.last + 1 - start))
        found = keys > self.key
        found[:first] |= keys[:first] == self.key
        return torch.from_numpy(found)

    def kept(self, numbers: Float[Tensor, "n"], start: int = 0) -> Float[Tensor, "n"]:
        """The largest numbers of a piece, and 0 in the place of all others.

        Args:
            numbers: of the piece.
            start: place of the first of them in the tensor.
        """
        if self.key <= 0:
            return torch.zeros_like(numbers) if self.key < 0 else numbers
        least, below = _magnitudes((self.key, self.key - 1), numbers.dtype)
        if self.last is None:
            return hardshrink(numbers, below)
        first = max(0, min(len(numbers), self.last + 1 - start))
        parts = [part for part in ((numbers[:first], below), (numbers[first:], least)) if len(part[0])]
        return torch.cat([hardshrink(own, bound) for own, bound in parts])


NONE = Cut(-1, None)
"""No number is among them."""

ALL = Cut(0, None)
"""Every number is."""


def keys_of(numbers: Float[Tensor, "n"]) -> Keys:
    """Whole numbers that are ordered as magnitudes are."""
    wide = numbers.dtype == torch.float64
    whole: Keys = numbers.numpy().view(np.int64 if wide else np.int32)
    found: Keys = whole & (np.int64(2**63 - 1) if wide else np.int32(2**31 - 1))
    return found


def _magnitudes(keys: Sequence[int], dtype: torch.dtype) -> list[float]:
    """The magnitudes of which keys are."""
    whole = torch.int32 if dtype == torch.float32 else torch.int64
    found: list[float] = torch.tensor(keys, dtype=whole).view(dtype).tolist()
    return found


def how_many(share: float, of: int) -> int:
    """A share of so many numbers, rounded; a half is rounded up."""
    return int(share * of + 0.5)


def cut_of(numbers: Float[Tensor, "n"], count: int) -> Cut:
    """Where the so many largest of a tensor in memory end."""
    size = len(numbers)
    if count <= 0 or count >= size:
        return NONE if count <= 0 else ALL
    keys = keys_of(numbers)
    key = int(np.partition(keys, size - count)[size - count])
    left = count - int(np.count_nonzero(keys > key))
    places = np.flatnonzero(keys == key)
    return Cut(key, None if key == 0 or len(places) == left else int(places[left - 1]))


@dataclass(eq=False)
class Search:
    """The search for one k-th largest, digit by digit.

    Attributes:
        vector: number of the vector among which it is searched.
        left: how many of the numbers that begin with the digits found so far are still wanted.
        key: the digits found so far.
        equal: how many numbers have all of them.
    """

    vector: int
    left: int
    key: int = 0
    equal: int = 0

    def digits(self, keys: Keys, shift: int, bits: int) -> Int[Tensor, "n"]:
        """The next digit of the keys that begin with those found so far."""
        if shift + bits < _bits(keys):
            keys = keys[np.flatnonzero(keys >> (shift + bits) == self.key)]
            return torch.from_numpy((keys >> shift) & ((1 << bits) - 1))
        return torch.from_numpy(keys >> shift)

    def settle(self, counts: Int[Tensor, "bins"], bits: int) -> None:
        """Take the next digit."""
        from_top = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_top, self.left))
        digit = len(counts) - 1 - place
        self.equal = int(counts[digit])
        self.left -= int(from_top[place]) - self.equal
        self.key = (self.key << bits) | digit


Read = Callable[[Piece], Sequence[Tensor]]
"""Gives the numbers of several vectors in a piece."""

Run = Callable[[Callable[[Piece], Any]], Iterable[Any]]
"""Has a function called with each piece, and gives what comes of each, in their order."""


def cuts_of(
    read: Read,
    run: Run,
    pieces: Sequence[Piece],
    counts: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    *,
    sampled: bool = False,
) -> list[dict[str, Cut]]:
    """Where the largest numbers of vectors end that are not held, in each tensor.

    Args:
        read: reads a piece.
        run: goes through all pieces.
        pieces: the same ones, in their order.
        counts: for each cut, the number of a vector, and how many numbers are wanted of it.
        dtype: of the numbers, float32 or float64.
        sampled: whether a part of a piece can be read by itself, so that many numbers can be sampled.
    """
    names = [*dict.fromkeys(piece.name for piece in pieces)]
    total = sum(piece.stop - piece.start for piece in pieces)
    searches = [Search(vector, count) for vector, count in counts]
    going = [search for search in searches if 0 < search.left < total]
    lost = going
    if sampled and total >= SAMPLED and going:
        lost = _between(read, run, going, total)
    for shift, bits in _digits(dtype) if lost else ():
        for search, own in zip(lost, _counted(read, run, lost, shift, bits), strict=True):
            search.settle(own, bits)
    ends = _ends(read, run, pieces, [search for search in going if search.key != 0 and search.left < search.equal])
    found = []
    for search in searches:
        cut = Cut(search.key, None) if search in going else NONE if search.left <= 0 else ALL
        cuts = dict.fromkeys(names, cut)
        if search in ends:
            name, last = ends[search]
            cuts |= {name: Cut(search.key, last)}
            cuts |= dict.fromkeys(names[names.index(name) + 1 :], Cut(search.key, -1))
        found.append(cuts)
    return found


def _between(read: Read, run: Run, searches: Sequence[Search], total: int) -> list[Search]:
    """Settle searches in one pass, between bounds that a sample says; gives those whose number is not between them."""
    vectors = sorted({search.vector for search in searches})
    samples: dict[int, list[Keys]] = {vector: [] for vector in vectors}
    for found in run(lambda piece: _keys(read, _part(piece), vectors)):
        for vector, keys in found.items():
            samples[vector].append(keys)
    whole = {vector: np.sort(np.concatenate(own)) for vector, own in samples.items()}
    bounds = {search: _bounds(whole[search.vector], search.left / total) for search in searches}

    def look(piece: Piece) -> list[tuple[int, Keys]]:
        keys = _keys(read, piece, vectors)
        return [_seen(keys[search.vector], *bounds[search]) for search in searches]

    above = dict.fromkeys(searches, 0)
    inside: dict[Search, list[Keys]] = {search: [] for search in searches}
    for seen in run(look):
        for search, (count, keys) in zip(searches, seen, strict=True):
            above[search] += count
            inside[search].append(keys)
    return [search for search in searches if not _settled(search, above[search], np.concatenate(inside[search]))]


def _keys(read: Read, piece: Piece, vectors: Sequence[int]) -> dict[int, Keys]:
    rows = read(piece)
    return {vector: keys_of(rows[vector]) for vector in vectors}


def _part(piece: Piece) -> Piece:
    """A part of a piece for the sample; where it is differs from piece to piece, and is always the same."""
    size = piece.stop - piece.start
    length = -(-size // SHARE)
    place = blake2b(f"{piece.name} {piece.start}".encode(), digest_size=8).digest()
    start = piece.start + int.from_bytes(place, "little") % (size - length + 1)
    return Piece(piece.name, start, start + length)


def _bounds(sample: Keys, share: float) -> tuple[int, int]:
    """Between which keys that lies of which that share of all is larger, as far as a sorted sample says it."""
    size = len(sample)
    apart = 1 + WIDE * (size * share * (1 - share)) ** 0.5
    low, high = int(size * (1 - share) - apart), int(size * (1 - share) + apart) + 1
    top = np.iinfo(sample.dtype).max
    return (int(sample[low]) if low >= 0 else 0, int(sample[high]) if high < size else int(top))


def _seen(keys: Keys, low: int, high: int) -> tuple[int, Keys]:
    """How many keys are above the bounds, and those between them."""
    near = np.flatnonzero((keys >= low) & (keys <= high)) if high > low else np.flatnonzero(keys == low)
    return int(np.count_nonzero(keys > high)), keys[near]


def _settled(search: Search, above: int, inside: Keys) -> bool:
    """Find a search's number among the keys between the bounds; false where it is not there."""
    wanted = search.left - above
    if not 0 < wanted <= len(inside):
        return False
    search.key = int(np.partition(inside, len(inside) - wanted)[len(inside) - wanted])
    search.equal = int(np.count_nonzero(inside == search.key))
    search.left = wanted - int(np.count_nonzero(inside > search.key))
    return True


class _Counter:
    """Counts digits: few at a time are put by, until they are worth a count.

    They are copied to a place of their own: what is kept among the large arrays of each piece would leave gaps in the
    process's memory that no other one of these fits.
    """

    def __init__(self, bits: int) -> None:
        self._bins = 1 << bits
        self._total = torch.zeros(self._bins, dtype=torch.int64)
        self._waiting = torch.empty(self._bins, dtype=torch.int32)
        self._size = 0

    def add(self, digits: Int[Tensor, "n"], *, counted: bool) -> None:
        """Take digits, fewer than there are values, or how often each value of them occurs."""
        if counted:
            self._total += digits
            return
        if self._size + len(digits) > self._bins:
            self.total()
        self._waiting[self._size : self._size + len(digits)] = digits
        self._size += len(digits)

    def total(self) -> Int[Tensor, "bins"]:
        """How often each value has come."""
        if self._size:
            self._total += torch.bincount(self._waiting[: self._size], minlength=self._bins)
            self._size = 0
        return self._total


def _counted(read: Read, run: Run, searches: Sequence[Search], shift: int, bits: int) -> list[Tensor]:
    """How often each value of the next digit occurs, for each search."""

    def count(piece: Piece) -> list[tuple[Tensor, bool]]:
        rows = read(piece)
        keys = {vector: keys_of(rows[vector]) for vector in {search.vector for search in searches}}
        found = [search.digits(keys[search.vector], shift, bits) for search in searches]
        # Many are counted here, by one of several threads; few are counted together with those of other pieces.
        return [(torch.bincount(own, minlength=1 << bits), True) if len(own) > few else (own, False) for own in found]

    few = (1 << bits) // 4
    counters = [_Counter(bits) for _ in searches]
    for found in run(count):
        for counter, (own, counted) in zip(counters, found, strict=True):
            counter.add(own, counted=counted)
    return [counter.total() for counter in counters]


def _ends(read: Read, run: Run, pieces: Sequence[Piece], searches: Sequence[Search]) -> dict[Search, tuple[str, int]]:
    """For searches of fewer numbers than have the magnitude that was found: the tensor with the last one that is
    wanted, and its place there."""
    if not searches:
        return {}

    def count(piece: Piece) -> list[int]:
        rows = read(piece)
        return [int(np.count_nonzero(keys_of(rows[search.vector]) == search.key)) for search in searches]

    counts = [*zip(pieces, run(count), strict=True)]
    ends = {}
    for number, search in enumerate(searches):
        left = search.left
        for piece, found in counts:
            if left <= found[number]:
                places = np.flatnonzero(keys_of(read(piece)[search.vector]) == search.key)
                ends[search] = (piece.name, piece.start + int(places[left - 1]))
                break
            left -= found[number]
    return ends


def _digits(dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """The digits of keys from the first on: the bits behind each, and its own."""
    bits = 31 if dtype == torch.float32 else 63
    while bits:
        own = bits % DIGIT or DIGIT
        bits -= own
        yield bits, own


def _bits(keys: Keys) -> int:
    return 31 if keys.dtype == np.int32 else 63
