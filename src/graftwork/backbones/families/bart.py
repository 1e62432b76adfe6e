"""BART, whose norms follow its sub-layers, and mBART and Pegasus, whose norms stand before them. Their dropout is a
function, not a module: each result is the output of the sub-layer's last linear map.
"""

from graftwork.backbones.families.family import Entry, Family, Stack


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


def _stack(name: str, position: Entry, *, post: bool) -> Stack:
    layer = _attention("attention", "self_attn", post=post)
    if name == "decoder":
        layer |= _attention("cross_attention", "encoder_attn", post=post)
    return Stack(
        name=name,
        path=name,
        layers=f"{name}.layers.*",
        before={
            "embeddings.word": Entry("embedding", f"{name}.embed_tokens"),
            "embeddings.position": position,
            "embeddings.norm": Entry("norm", f"{name}.layernorm_embedding", required=False),
        },
        layer={**layer, **_ffn(post=post)},
        after={} if post else {"norm": Entry("norm", f"{name}.layer_norm")},
    )


def _family(name: str, model_type: str, *, post: bool, sinusoids: bool = False) -> Family:
    def position(stack: str) -> Entry:
        return Entry("embedding", f"{stack}.embed_positions", constant=sinusoids, rowwise=False)

    return Family(
        name=name,
        model_types=frozenset({model_type}),
        before={"embeddings.word": Entry("embedding", "shared")},
        stacks=tuple(_stack(stack, position(stack), post=post) for stack in ("encoder", "decoder")),
    )


BART = _family("bart", "bart", post=True)
MBART = _family("mbart", "mbart", post=False)
PEGASUS = _family("pegasus", "pegasus", post=False, sinusoids=True)
