"""Gemma 2 and 3: Llama's sub-layers with a norm before and another behind each. The norm behind stands before the
residual is added, so that what is added is that norm's output.
"""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import ROTARY

GEMMA = Family(
    name="gemma",
    model_types=frozenset({"gemma2", "gemma3_text"}),
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
                "attention.output_norm": Entry("norm", "post_attention_layernorm"),
                "attention.result": Entry("result", "post_attention_layernorm"),
                "ffn.norm": Entry("norm", "pre_feedforward_layernorm"),
                "ffn.gate": Entry("linear", "mlp.gate_proj"),
                "ffn.up": Entry("linear", "mlp.up_proj"),
                "ffn.down": Entry("linear", "mlp.down_proj"),
                "ffn.output_norm": Entry("norm", "post_feedforward_layernorm"),
                "ffn.result": Entry("result", "post_feedforward_layernorm"),
            },
            after={"norm": Entry("norm", "norm")},
        ),
    ),
)
