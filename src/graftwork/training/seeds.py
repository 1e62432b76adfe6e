"""Seeds that follow from other numbers: of an epoch of a run, of a step of several runs."""

from hashlib import blake2b


def seed_of(purpose: str, *numbers: int) -> int:
    """A seed for one purpose, from 0 to 2⁶³ - 1.

    It is a hash of all that it is given, the same on every machine and in every version of Python. Sums would give
    seed 0's second epoch and seed 1's first one number, and with it one order of the rows.

    Args:
        purpose: what is drawn. Two purposes share no stream.
        numbers: what tells one draw from the others, as the run's seed and the epoch.
    """
    text = " ".join([purpose, *map(str, numbers)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
