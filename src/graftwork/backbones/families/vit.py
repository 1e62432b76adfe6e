"""Vision transformers: norms before the sub-layers, over the patches of an image.

ViT and DeiT have one dropout module for both sub-layers of a layer, so that it cannot tell them apart: their results
are the outputs of the last linear maps. DINOv2 scales each sub-layer's output before it is added, and its results are
what is scaled. There are no input embeddings of tokens before which prompts could stand.
"""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import DINO, VISION
from graftwork.backbones.sites import SiteKind

NO_PROMPTS: dict[SiteKind, str] = {"stack": "an image model has no token embeddings before which rows could be added"}

EMBEDDINGS = {
    "embeddings.patch": Entry("convolution", "embeddings.patch_embeddings.projection"),
    # The class token (and mask and distillation tokens) and the positions.
    "embeddings.tokens": Entry("module", "embeddings"),
}

ATTENTION = {
    "attention.query": Entry("linear", "attention.q_proj"),
    "attention.key": Entry("linear", "attention.k_proj"),
    "attention.value": Entry("linear", "attention.v_proj"),
    "attention.kv": Entry("attention", "attention"),
    "attention.output": Entry("linear", "attention.o_proj"),
}

VIT = Family(
    name="vit",
    model_types=frozenset({"vit", "deit"}),
    symmetries=VISION,
    refusals=NO_PROMPTS,
    stacks=(
        Stack(
            layers="layers.*",
            before=EMBEDDINGS,
            layer={
                "attention.norm": Entry("norm", "layernorm_before"),
                **ATTENTION,
                "attention.result": Entry("result", "attention.o_proj"),
                "ffn.norm": Entry("norm", "layernorm_after"),
                "ffn.up": Entry("linear", "mlp.fc1"),
                "ffn.down": Entry("linear", "mlp.fc2"),
                "ffn.result": Entry("result", "mlp.fc2"),
            },
            after={"norm": Entry("norm", "layernorm"), "pooler": Entry("linear", "pooler.dense", required=False)},
            prompts=False,
        ),
    ),
)

DINOV2 = Family(
    name="dinov2",
    model_types=frozenset({"dinov2"}),
    symmetries=DINO,
    refusals=NO_PROMPTS,
    stacks=(
        Stack(
            layers="encoder.layer.*",
            before=EMBEDDINGS,
            layer={
                "attention.norm": Entry("norm", "norm1"),
                **ATTENTION,
                "attention.scale": Entry("module", "layer_scale1"),
                "attention.result": Entry("result", "layer_scale1"),
                "ffn.norm": Entry("norm", "norm2"),
                "ffn.gate": Entry("linear", "mlp.gate_proj", required=False),
                "ffn.up": Entry("linear", ("mlp.fc1", "mlp.up_proj")),
                "ffn.down": Entry("linear", ("mlp.fc2", "mlp.down_proj")),
                "ffn.scale": Entry("module", "layer_scale2"),
                "ffn.result": Entry("result", "layer_scale2"),
            },
            after={"norm": Entry("norm", "layernorm")},
            prompts=False,
        ),
    ),
)
