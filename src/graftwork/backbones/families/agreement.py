"""The proof that our attention function computes what a model's own does: the model is run on a tiny input with both,
with the mask function that is used later, with padding on each side and without.

Nothing else of a model says for sure what a missing mask means to it. Of an unknown model type this decides, beside the
proof of its layout; tests prove every type that a table was made for.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from graftwork.backbones.attention import ATTENTION
from graftwork.backbones.families.proof import FAILURES, tiny_input, undone

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""How far the two may be apart, relative to the length of a token's state: kernels round otherwise, and in every layer
anew, and some softmaxes are in float32. A mask that is another moves states by a third of their length or more."""


def disagreement(model: PreTrainedModel) -> str:
    """How the model's output changes with our attention function, in a clause; empty when it does not. The model is
    left as it was. On the meta device, which has no values, nothing is seen.
    """
    if model.device.type == "meta":
        return ""
    own = model.config._attn_implementation
    # Eager is what a model's own code does; what it was loaded with is what its users know. Of a model that has our
    # function already only the first is left.
    references = dict.fromkeys(name for name in (own, "eager") if name != ATTENTION)
    with undone(model), torch.no_grad():
        for padding, inputs in _paddings(tiny_input(model)):
            outputs: dict[str, Tensor] = {}
            for name in (ATTENTION, *references):
                try:
                    model.set_attn_implementation(name)
                    outputs[name] = model(**inputs)[0]
                except FAILURES as error:
                    return f"it cannot be run on a tiny input {padding} ({type(error).__name__}: {error})"
            for name in references:
                off = _distance(outputs[ATTENTION], outputs[name], inputs.get("attention_mask"))
                if off > TOLERANCES.get(model.dtype, 1e-3):
                    return (
                        f"its outputs {padding} change by {off:.1%} with graftwork's attention function in the place of"
                        f" {name!r}"
                    )
    return ""


def _paddings(inputs: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The inputs as texts of one length, without a mask and with one, and of two lengths; images as they are."""
    yield "without a mask", inputs
    ids = inputs.get("input_ids")
    if ids is not None:
        whole = torch.ones_like(ids)
        padded = whole.clone()
        padded[-1, ids.shape[1] // 2 :] = 0
        yield "without padding", {**inputs, "attention_mask": whole}
        yield "with padding on the right", {**inputs, "attention_mask": padded}
        yield "with padding on the left", {**inputs, "attention_mask": padded.flip(1)}


def _distance(found: Tensor, expected: Tensor, mask: Tensor | None) -> float:
    """The largest distance between two states of a real token, relative to the length of what is expected. Where the
    model's own attention gives NaN (eager's softmax of padding, in float64) there is nothing to compare.
    """
    if mask is not None and mask.shape == expected.shape[: mask.dim()]:
        found, expected = found[mask.bool()], expected[mask.bool()]
    if not expected.isfinite().all():
        return 0.0
    apart, length = ((t.double().norm(dim=-1)) for t in (found.double() - expected.double(), expected))
    return float((apart / length.clamp(min=torch.finfo(torch.float32).tiny)).max().nan_to_num(torch.inf))
