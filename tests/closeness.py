"""How close two results must be that only rounding sets apart, whatever the processor.

A processor adds a sum's terms in an order of its own: by how many of them its vectors hold, by how its library cuts a
product of matrices into blocks, and with a product and a sum rounded together or apart. So two ways to the same number
end some roundings apart, and a bound is a number of them: `units` of eps times the largest number expected, where eps
is that of the coarsest precision on the way (2^-52 of float64, 2^-23 of float32, 2^-7 of bfloat16). A sum of n terms in
two orders is n/2 units apart at worst and about √n as a rule.

The numbers here are about eight times what any of the arithmetics of `make test-machines` needs. In float64 they are
below 1e-12 of the largest number, in float32 mostly below 1e-4, while a term that is missing, doubled or of another row
makes 0.01 and more of it in these models, whose weights are all random and none of them small. Tried: attention's
position bias 0.1 % too large is found in float32, LoRA's scale 0.1 % too large and a GELU by tanh in float64.
"""

import torch
from torch import Tensor

SUM = 32
"""Units of one product of matrices, or of a few one after another, over up to 64 terms: at most 4 were seen."""

PASS = 128
"""Units of a pass through two layers of width 32, each with six products, a softmax and two norms: at most 17 were
seen.
"""

T5 = 4 * PASS
"""The same of T5, which does not divide its attention scores by √d, so that rounding grows with them: 39 were seen."""

HALF = 16
"""Units of such a pass in bfloat16, of which PASS would be all of a number: at most 3 were seen."""


def close(
    found: Tensor,
    expected: Tensor,
    units: float = SUM,
    *,
    precision: torch.dtype | None = None,
    scale: float | None = None,
    what: str = "",
) -> None:
    """Assert that two tensors are equal but for so many roundings.

    Args:
        units: of eps times the scale.
        precision: the coarsest on the way, where it is coarser than the tensors' own.
        scale: the largest number of what was summed, where it is not the largest that is expected.
        what: is compared, for the message.
    """
    largest = float(expected.detach().abs().nan_to_num(posinf=0.0).max()) if scale is None else scale
    bound = units * torch.finfo(precision or expected.dtype).eps * largest
    torch.testing.assert_close(found, expected, rtol=0, atol=bound, msg=lambda said: f"{what} {said}".strip())
