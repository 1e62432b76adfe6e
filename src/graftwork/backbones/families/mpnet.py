"""MPNet: BERT's sub-layers under other names, with relative positions as a bias of the scores. It computes its
attention itself, without transformers' attention interface.
"""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import RELATIVE

MPNET = Family(
    name="mpnet",
    model_types=frozenset({"mpnet"}),
    symmetries=RELATIVE,
    refusals={
        "attention": "transformers' MPNet computes its attention in its own code, so key-value rows cannot be added "
        "(prefix tuning)"
    },
    stacks=(
        Stack(
            layers="encoder.layer.*",
            before={
                "embeddings.word": Entry("embedding", "embeddings.word_embeddings"),
                "embeddings.position": Entry("embedding", "embeddings.position_embeddings"),
                "embeddings.norm": Entry("norm", "embeddings.LayerNorm"),
                "embeddings.relative": Entry("embedding", "encoder.relative_attention_bias", rowwise=False),
            },
            layer={
                "attention.query": Entry("linear", "attention.attn.q"),
                "attention.key": Entry("linear", "attention.attn.k"),
                "attention.value": Entry("linear", "attention.attn.v"),
                "attention.output": Entry("linear", "attention.attn.o"),
                "attention.result": Entry("result", "attention.dropout"),
                "attention.norm": Entry("norm", "attention.LayerNorm", follows_residual=True),
                "ffn.up": Entry("linear", "intermediate.dense"),
                "ffn.down": Entry("linear", "output.dense"),
                "ffn.result": Entry("result", "output.dropout"),
                "ffn.norm": Entry("norm", "output.LayerNorm", follows_residual=True),
            },
            after={"pooler": Entry("linear", "pooler.dense", required=False)},
        ),
    ),
)
