"""ResNet: convolutions and batch norms, in layers of two or three and in stages of different widths. For the classic
methods (full and partial fine-tuning, biases and norms); running statistics of the batch norms stay as they are.
"""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import CONVOLUTIONS


def _convolution(name: str, path: str, *, required: bool = True) -> dict[str, Entry]:
    return {
        f"{name}.convolution": Entry("convolution", f"{path}.convolution", required=required),
        f"{name}.norm": Entry("norm", f"{path}.normalization", required=required, rowwise=False),
    }


NO_TRANSFORMER = "a convolutional network has none; fine-tuning of some or all weights acts at convolutions and norms"

RESNET = Family(
    name="resnet",
    model_types=frozenset({"resnet"}),
    symmetries=CONVOLUTIONS,
    refusals={
        "linear": NO_TRANSFORMER,
        "result": NO_TRANSFORMER,
        "attention": NO_TRANSFORMER,
        "stack": NO_TRANSFORMER,
    },
    stacks=(
        Stack(
            layers="encoder.stages.*.layers.*",
            before=_convolution("embeddings", "embedder.embedder"),
            layer={
                **_convolution("block.0", "layer.0"),
                **_convolution("block.1", "layer.1"),
                **_convolution("block.2", "layer.2", required=False),
                **_convolution("shortcut", "shortcut", required=False),
            },
            # It has no parameters: it averages over places.
            after={"pooler": Entry("module", "pooler")},
            prompts=False,
        ),
    ),
)
