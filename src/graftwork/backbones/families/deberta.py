"""DeBERTa v2 and v3: BERT's sub-layers with disentangled attention, which reads a table of relative positions beside
the tokens and is computed without transformers' attention interface.

Where a checkpoint shares the projections (`share_att_key`, as v3 does), the queries' and keys' linear maps run twice a
pass: over the tokens, and over the table, which all rows of a batch share. What acts there changes both.
"""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import DISENTANGLED

DEBERTA = Family(
    name="deberta-v2",
    model_types=frozenset({"deberta-v2"}),
    symmetries=DISENTANGLED,
    refusals={
        "attention": "transformers' DeBERTa computes its attention in its own code, so key-value rows cannot be added "
        "(prefix tuning)"
    },
    note=(
        "the linear maps of queries and keys also project the relative positions, which all rows of a batch share:"
        " what acts there must be the same for all rows of one pass"
    ),
    stacks=(
        Stack(
            layers="encoder.layer.*",
            before={
                "embeddings.word": Entry("embedding", "embeddings.word_embeddings"),
                "embeddings.position": Entry(
                    "embedding", "embeddings.position_embeddings", required=False, rowwise=False
                ),
                "embeddings.token_type": Entry("embedding", "embeddings.token_type_embeddings", required=False),
                "embeddings.projection": Entry("linear", "embeddings.embed_proj", required=False),
                "embeddings.norm": Entry("norm", "embeddings.LayerNorm"),
                # The encoder reads the table's weight as it is, without looking anything up in it.
                "embeddings.relative": Entry(
                    "module", "encoder", required=False, reads=("rel_embeddings.weight",), rowwise=False
                ),
                "embeddings.relative_norm": Entry("norm", "encoder.LayerNorm", required=False, rowwise=False),
                # It runs beside the first layer and is added to what that layer gives.
                "convolution": Entry("convolution", "encoder.conv.conv", required=False),
                "convolution_norm": Entry("norm", "encoder.conv.LayerNorm", required=False, follows_residual=True),
            },
            layer={
                "attention.query": Entry("linear", "attention.self.query_proj", rowwise=False),
                "attention.key": Entry("linear", "attention.self.key_proj", rowwise=False),
                "attention.value": Entry("linear", "attention.self.value_proj"),
                "attention.position_key": Entry("linear", "attention.self.pos_key_proj", required=False, rowwise=False),
                "attention.position_query": Entry(
                    "linear", "attention.self.pos_query_proj", required=False, rowwise=False
                ),
                "attention.output": Entry("linear", "attention.output.dense"),
                "attention.result": Entry("result", "attention.output.dropout", source="attention.value"),
                "attention.norm": Entry("norm", "attention.output.LayerNorm", follows_residual=True),
                "ffn.up": Entry("linear", "intermediate.dense"),
                "ffn.down": Entry("linear", "output.dense"),
                "ffn.result": Entry("result", "output.dropout"),
                "ffn.norm": Entry("norm", "output.LayerNorm", follows_residual=True),
            },
        ),
    ),
)
