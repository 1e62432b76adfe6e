"""Llama and the models with its layout: norms without bias before the sub-layers, a gated feed-forward, and fewer
key-value heads than query heads in many.
"""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import ROTARY

LLAMA = Family(
    name="llama-like",
    model_types=frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"}),
    symmetries=ROTARY,
    causal=True,
    stacks=(
        Stack(
            layers="layers.*",
            before={"embeddings.word": Entry("embedding", "embed_tokens")},
            layer={
                "attention.norm": Entry("norm", "input_layernorm"),
                "attention.query": Entry("linear", "self_attn.q_proj"),
                "attention.key": Entry("linear", "self_attn.k_proj"),
                "attention.value": Entry("linear", "self_attn.v_proj"),
                "attention.query_norm": Entry("norm", "self_attn.q_norm", required=False),
                "attention.key_norm": Entry("norm", "self_attn.k_norm", required=False),
                "attention.kv": Entry("attention", "self_attn"),
                "attention.output": Entry("linear", "self_attn.o_proj"),
                # No dropout follows the projections here: the results are their own outputs.
                "attention.result": Entry("result", "self_attn.o_proj"),
                "ffn.norm": Entry("norm", "post_attention_layernorm"),
                "ffn.gate": Entry("linear", "mlp.gate_proj"),
                "ffn.up": Entry("linear", "mlp.up_proj"),
                "ffn.down": Entry("linear", "mlp.down_proj"),
                "ffn.result": Entry("result", "mlp.down_proj"),
            },
            after={"norm": Entry("norm", "norm")},
        ),
    ),
)
