"""GPT-2: norms before the sub-layers, and one product for queries, keys and values, whose weight is (in, out)."""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import CAUSAL

GPT2 = Family(
    name="gpt2",
    model_types=frozenset({"gpt2"}),
    symmetries=CAUSAL,
    causal=True,
    stacks=(
        Stack(
            layers="h.*",
            before={
                "embeddings.word": Entry("embedding", "wte"),
                "embeddings.position": Entry("embedding", "wpe", rowwise=False),
            },
            layer={
                "attention.norm": Entry("norm", "ln_1"),
                "attention.fused": Entry("fused", "attn.c_attn"),
                "attention.query": Entry("linear", "attn.c_attn", part="query"),
                "attention.key": Entry("linear", "attn.c_attn", part="key"),
                "attention.value": Entry("linear", "attn.c_attn", part="value"),
                "attention.kv": Entry("attention", "attn"),
                "attention.output": Entry("linear", "attn.c_proj"),
                "attention.result": Entry("result", "attn.resid_dropout"),
                "ffn.norm": Entry("norm", "ln_2"),
                "ffn.up": Entry("linear", "mlp.c_fc"),
                "ffn.down": Entry("linear", "mlp.c_proj"),
                "ffn.result": Entry("result", "mlp.dropout"),
            },
            after={"norm": Entry("norm", "ln_f")},
        ),
    ),
)
