"""Random numbers of one's own, where several that draw take turns."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class RandomSource:
    """torch's random source as one of several sees it: what others draw in between moves it by nothing.

    Args:
        device: where is drawn, besides the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        self._states: list[Tensor] | None = None

    @contextmanager
    def own(self) -> Iterator[None]:
        """Inside, numbers are drawn from where this source stood when it was last left; at first, from where torch's
        stands. Afterwards torch's is what it was, also after an exception.
        """
        with torch.random.fork_rng(self._cuda):
            if self._states is not None:
                cpu, *cuda = self._states
                torch.set_rng_state(cpu)
                for device, state in zip(self._cuda, cuda, strict=True):
                    torch.cuda.set_rng_state(state, device)
            try:
                yield
            finally:
                self._states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._cuda)]
