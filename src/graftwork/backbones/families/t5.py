"""T5: an encoder and a decoder with norms without bias before the sub-layers, and positions as a bias of the scores."""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import RELATIVE


def _attention(name: str, path: str, module: str) -> dict[str, Entry]:
    return {
        f"{name}.norm": Entry("norm", f"{path}.layer_norm"),
        f"{name}.query": Entry("linear", f"{path}.{module}.q"),
        f"{name}.key": Entry("linear", f"{path}.{module}.k"),
        f"{name}.value": Entry("linear", f"{path}.{module}.v"),
        # The first layer's is every layer's.
        f"{name}.position": Entry(
            "embedding", f"{path}.{module}.relative_attention_bias", required=False, rowwise=False
        ),
        f"{name}.kv": Entry("attention", f"{path}.{module}"),
        f"{name}.output": Entry("linear", f"{path}.{module}.o"),
        f"{name}.result": Entry("result", f"{path}.dropout"),
    }


def _ffn(path: str) -> dict[str, Entry]:
    return {
        "ffn.norm": Entry("norm", f"{path}.layer_norm"),
        "ffn.gate": Entry("linear", f"{path}.DenseReluDense.wi_0", required=False),
        "ffn.up": Entry("linear", (f"{path}.DenseReluDense.wi_1", f"{path}.DenseReluDense.wi")),
        "ffn.down": Entry("linear", f"{path}.DenseReluDense.wo"),
        "ffn.result": Entry("result", f"{path}.dropout"),
    }


T5 = Family(
    name="t5",
    model_types=frozenset({"t5", "mt5"}),
    symmetries=RELATIVE,
    before={"embeddings.word": Entry("embedding", "shared")},
    stacks=(
        Stack(
            name="encoder",
            path="encoder",
            layers="encoder.block.*",
            before={"embeddings.word": Entry("embedding", "encoder.embed_tokens")},
            layer={**_attention("attention", "layer.0", "SelfAttention"), **_ffn("layer.1")},
            after={"norm": Entry("norm", "encoder.final_layer_norm")},
        ),
        Stack(
            name="decoder",
            path="decoder",
            layers="decoder.block.*",
            before={"embeddings.word": Entry("embedding", "decoder.embed_tokens")},
            layer={
                **_attention("attention", "layer.0", "SelfAttention"),
                **_attention("cross_attention", "layer.1", "EncDecAttention"),
                **_ffn("layer.2"),
            },
            after={"norm": Entry("norm", "decoder.final_layer_norm")},
        ),
    ),
)
