"""BERT and the models with its layout: two sub-layers, each followed by the norm of its sum with its input."""

from graftwork.backbones.families.family import Entry, Family, Stack
from graftwork.backbones.families.symmetries import DISTILLED, TRANSFORMER

BERT = Family(
    name="bert-like",
    model_types=frozenset({"bert", "roberta", "xlm-roberta", "camembert", "electra"}),
    symmetries=TRANSFORMER,
    stacks=(
        Stack(
            layers="encoder.layer.*",
            before={
                "embeddings.word": Entry("embedding", "embeddings.word_embeddings"),
                "embeddings.position": Entry(
                    "embedding", "embeddings.position_embeddings", required=False, rowwise=False
                ),
                "embeddings.token_type": Entry("embedding", "embeddings.token_type_embeddings", required=False),
                "embeddings.norm": Entry("norm", "embeddings.LayerNorm"),
                "embeddings.projection": Entry("linear", "embeddings_project", required=False),
            },
            layer={
                "attention.query": Entry("linear", "attention.self.query"),
                "attention.key": Entry("linear", "attention.self.key"),
                "attention.value": Entry("linear", "attention.self.value"),
                "attention.kv": Entry("attention", "attention.self"),
                "attention.output": Entry("linear", "attention.output.dense"),
                "attention.result": Entry("result", "attention.output.dropout"),
                "attention.norm": Entry("norm", "attention.output.LayerNorm", follows_residual=True),
                "ffn.up": Entry("linear", "intermediate.dense"),
                "ffn.down": Entry("linear", "output.dense"),
                "ffn.result": Entry("result", "output.dropout"),
                "ffn.norm": Entry("norm", "output.LayerNorm", follows_residual=True),
            },
            after={"pooler": Entry("linear", "pooler.dense", required=False)},
        ),
    ),
)

DISTILBERT = Family(
    name="distilbert",
    model_types=frozenset({"distilbert"}),
    symmetries=DISTILLED,
    stacks=(
        Stack(
            layers="transformer.layer.*",
            before={
                "embeddings.word": Entry("embedding", "embeddings.word_embeddings"),
                "embeddings.position": Entry("embedding", "embeddings.position_embeddings", rowwise=False),
                "embeddings.norm": Entry("norm", "embeddings.LayerNorm"),
            },
            layer={
                "attention.query": Entry("linear", "attention.q_lin"),
                "attention.key": Entry("linear", "attention.k_lin"),
                "attention.value": Entry("linear", "attention.v_lin"),
                "attention.kv": Entry("attention", "attention"),
                "attention.output": Entry("linear", "attention.out_lin"),
                # No dropout follows the output projection here: the result is that module's own output.
                "attention.result": Entry("result", "attention.out_lin"),
                "attention.norm": Entry("norm", "sa_layer_norm", follows_residual=True),
                "ffn.up": Entry("linear", "ffn.lin1"),
                "ffn.down": Entry("linear", "ffn.lin2"),
                "ffn.result": Entry("result", "ffn.dropout"),
                "ffn.norm": Entry("norm", "output_layer_norm", follows_residual=True),
            },
        ),
    ),
)
