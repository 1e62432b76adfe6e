"""Phi-3: Llama's layout with one product for queries, keys and values, one for gate and up, and dropout behind each
sub-layer.
"""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import ROTARY

PHI3 = Family(
    name="phi3",
    model_types=frozenset({"phi3"}),
    symmetries=ROTARY,
    causal=True,
    stacks=(
        Stack(
            layers="layers.*",
            before={"embeddings.word": Entry("embedding", "embed_tokens")},
            layer={
                "attention.norm": Entry("norm", "input_layernorm"),
                "attention.fused": Entry("fused", "self_attn.qkv_proj"),
                "attention.query": Entry("linear", "self_attn.qkv_proj", part="query"),
                "attention.key": Entry("linear", "self_attn.qkv_proj", part="key"),
                "attention.value": Entry("linear", "self_attn.qkv_proj", part="value"),
                "attention.kv": Entry("attention", "self_attn"),
                "attention.output": Entry("linear", "self_attn.o_proj"),
                "attention.result": Entry("result", "resid_attn_dropout"),
                "ffn.norm": Entry("norm", "post_attention_layernorm"),
                "ffn.fused": Entry("fused", "mlp.gate_up_proj"),
                "ffn.gate": Entry("linear", "mlp.gate_up_proj", part="first"),
                "ffn.up": Entry("linear", "mlp.gate_up_proj", part="second"),
                "ffn.down": Entry("linear", "mlp.down_proj"),
                "ffn.result": Entry("result", "resid_mlp_dropout"),
            },
            after={"norm": Entry("norm", "norm")},
        ),
    ),
)
