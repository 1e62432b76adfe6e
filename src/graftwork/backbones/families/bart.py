"""BART, whose norms follow its sub-layers, and mBART and Pegasus, whose norms stand before them. Their dropout is a
function, not a module: each result is the output of the sub-layer's last linear map. Pegasus computes its positions.
"""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import TRANSFORMER


def _attention(name: str, module: str, *, post: bool) -> dict[str, Entry]:
    norm = {f"{name}.norm": Entry("norm", f"{module}_layer_norm", follows_residual=post)}
    sublayer = {
        f"{name}.query": Entry("linear", f"{module}.q_proj"),
        f"{name}.key": Entry("linear", f"{module}.k_proj"),
        f"{name}.value": Entry("linear", f"{module}.v_proj"),
        f"{name}.kv": Entry("attention", module),
        f"{name}.output": Entry("linear", f"{module}.out_proj"),
        f"{name}.result": Entry("result", f"{module}.out_proj"),
    }
    return {**sublayer, **norm} if post else {**norm, **sublayer}


def _ffn(*, post: bool) -> dict[str, Entry]:
    norm = {"ffn.norm": Entry("norm", "final_layer_norm", follows_residual=post)}
    sublayer = {
        "ffn.up": Entry("linear", "fc1"),
        "ffn.down": Entry("linear", "fc2"),
        "ffn.result": Entry("result", "fc2"),
    }
    return {**sublayer, **norm} if post else {**norm, **sublayer}


def _stack(name: str, *, post: bool) -> Stack:
    layer = _attention("attention", "self_attn", post=post)
    if name == "decoder":
        layer |= _attention("cross_attention", "encoder_attn", post=post)
    return Stack(
        name=name,
        path=name,
        layers=f"{name}.layers.*",
        before={
            "embeddings.word": Entry("embedding", f"{name}.embed_tokens"),
            "embeddings.position": Entry("embedding", f"{name}.embed_positions", rowwise=False),
            "embeddings.norm": Entry("norm", f"{name}.layernorm_embedding", required=False),
        },
        layer={**layer, **_ffn(post=post)},
        after={} if post else {"norm": Entry("norm", f"{name}.layer_norm")},
    )


def _family(name: str, *model_types: str, post: bool) -> Family:
    return Family(
        name=name,
        model_types=frozenset(model_types),
        symmetries=TRANSFORMER,
        before={"embeddings.word": Entry("embedding", "shared")},
        stacks=tuple(_stack(stack, post=post) for stack in ("encoder", "decoder")),
    )


BART = _family("bart", "bart", post=True)
MBART = _family("mbart", "mbart", "pegasus", post=False)
