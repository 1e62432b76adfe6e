"""ALBERT: one layer, run once for each depth, and embeddings narrower than it.

The sites of the layer stand once, as layer 0: what acts there acts at every depth with the same tensors and is counted
once. A checkpoint with several groups of layers has one set of sites for each of them. Heights therefore say nothing
of depth here, and "the top n layers" cannot be told from all.
"""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import TRANSFORMER

ALBERT = Family(
    name="albert",
    model_types=frozenset({"albert"}),
    symmetries=TRANSFORMER,
    note=(
        "one layer serves every depth: what acts in it acts at all depths with the same tensors, is counted once, and"
        " cannot be limited to the top layers"
    ),
    stacks=(
        Stack(
            layers="encoder.albert_layer_groups.*.albert_layers.*",
            before={
                "embeddings.word": Entry("embedding", "embeddings.word_embeddings"),
                "embeddings.position": Entry("embedding", "embeddings.position_embeddings", rowwise=False),
                "embeddings.token_type": Entry("embedding", "embeddings.token_type_embeddings"),
                "embeddings.norm": Entry("norm", "embeddings.LayerNorm"),
                "embeddings.projection": Entry("linear", "encoder.embedding_hidden_mapping_in"),
            },
            layer={
                "attention.query": Entry("linear", "attention.query"),
                "attention.key": Entry("linear", "attention.key"),
                "attention.value": Entry("linear", "attention.value"),
                "attention.kv": Entry("attention", "attention"),
                "attention.output": Entry("linear", "attention.dense"),
                "attention.result": Entry("result", "attention.output_dropout"),
                "attention.norm": Entry("norm", "attention.LayerNorm", follows_residual=True),
                "ffn.up": Entry("linear", "ffn"),
                "ffn.down": Entry("linear", "ffn_output"),
                # No dropout follows the output projection here: the result is that module's own output.
                "ffn.result": Entry("result", "ffn_output"),
                "ffn.norm": Entry("norm", "full_layer_layer_norm", follows_residual=True),
            },
            after={"pooler": Entry("linear", "pooler", required=False)},
        ),
    ),
)
