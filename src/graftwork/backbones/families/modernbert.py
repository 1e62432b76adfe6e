"""ModernBERT: norms before the sub-layers, rotary positions, local attention in most layers, a gated feed-forward; one
product for queries, keys and values, and one for gate and up. The first layer has no norm before its attention.
"""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import ROTARY

MODERNBERT = Family(
    name="modernbert",
    model_types=frozenset({"modernbert"}),
    symmetries=ROTARY,
    stacks=(
        Stack(
            layers="layers.*",
            before={
                "embeddings.word": Entry("embedding", "embeddings.tok_embeddings"),
                "embeddings.norm": Entry("norm", "embeddings.norm"),
            },
            layer={
                "attention.norm": Entry("norm", "attn_norm", required=False),
                "attention.fused": Entry("fused", "attn.Wqkv"),
                "attention.query": Entry("linear", "attn.Wqkv", part="query"),
                "attention.key": Entry("linear", "attn.Wqkv", part="key"),
                "attention.value": Entry("linear", "attn.Wqkv", part="value"),
                "attention.kv": Entry("attention", "attn"),
                "attention.output": Entry("linear", "attn.Wo"),
                "attention.result": Entry("result", "attn.out_drop"),
                "ffn.norm": Entry("norm", "mlp_norm"),
                "ffn.fused": Entry("fused", "mlp.Wi"),
                "ffn.gate": Entry("linear", "mlp.Wi", part="first"),
                "ffn.up": Entry("linear", "mlp.Wi", part="second"),
                "ffn.down": Entry("linear", "mlp.Wo"),
                "ffn.result": Entry("result", "mlp.Wo"),
            },
            after={"norm": Entry("norm", "final_norm")},
        ),
    ),
)
