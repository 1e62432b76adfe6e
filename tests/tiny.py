"""Tiny random models of every model type, and what tests make with them."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.backbones import Backbone, Pooling
from graftwork.heads import FeatureHead, Head, PooledHead
from graftwork.kinds.heads import head_for
from graftwork.methods import (
    IA3,
    METHODS,
    AdaMix,
    Average,
    BiHNet,
    Compacter,
    DoRA,
    FeatureExtraction,
    FullFineTuning,
    Fuse,
    Gate,
    Houlsby,
    HyperFormer,
    HyperGrid,
    LayerNormTuning,
    LoRA,
    Method,
    Parallel,
    Pfeiffer,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Stack,
    Union,
    VeRA,
)

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the a film book man woman sleeps rests is was not very good bad gripping dull"
VOCABULARY = {token: i for i, token in enumerate(WORDS.split(" "))}

LAYERS, WIDTH, INNER = 2, 32, 64
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": INNER,
    "vocab_size": 100,
    "max_position_embeddings": 48,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LOCAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
T5 = {
    **{"d_model": WIDTH, "d_kv": 8, "d_ff": INNER, "num_layers": LAYERS, "num_heads": 4, "vocab_size": 100},
    **{"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
}
BART = {
    **{"d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "vocab_size": 100},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER},
    **{"max_position_embeddings": 48, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    **{"decoder_start_token_id": 2, "forced_eos_token_id": None, "scale_embedding": True},
}
IMAGES = {"image_size": 16, "patch_size": 8}
CONFIGS: dict[str, dict[str, object]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "camembert": SIZES,
    "electra": {**SIZES, "embedding_size": 16},
    "distilbert": {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": INNER, "vocab_size": 100},
    "albert": {**SIZES, "embedding_size": 16},
    "mpnet": SIZES,
    "deberta-v2": {
        **{**SIZES, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
        **{"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_biased_input": False},
        **{"type_vocab_size": 0, "conv_kernel_size": 3, "conv_act": "gelu"},
    },
    "modernbert": {**SIZES, **LOCAL, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "norm_bias": True}
    | {"cls_token_id": 1, "sep_token_id": 2},
    "gpt2": {
        **{"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 48, "n_inner": INNER},
        **{"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2},
    },
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 4},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "smollm3": {**GROUPED, "no_rope_layers": [1, 0]},
    "gemma2": {**GROUPED, **LOCAL, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**GROUPED, **LOCAL, "query_pre_attn_scalar": 8},
    "phi3": {key: value for key, value in GROUPED.items() if key != "head_dim"},
    "t5": {**T5, "feed_forward_proj": "relu"},
    "mt5": {**T5, "feed_forward_proj": "gated-gelu"},
    "bart": BART,
    "mbart": BART,
    "pegasus": BART,
    "vit": {**SIZES, **IMAGES},
    "deit": {**SIZES, **IMAGES},
    "dinov2": {**SIZES, **IMAGES, "mlp_ratio": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, WIDTH], "depths": [1, 1], "layer_type": "bottleneck"},
}
"""What each model type's configuration is made of."""


def make_config(kind: str, **fields: object) -> PretrainedConfig:
    return AutoConfig.for_model(kind, **{**CONFIGS[kind], **fields})


MODELS = {kind: lambda kind=kind, **c: AutoModel.from_config(make_config(kind, **c)) for kind in CONFIGS}
"""By model type. Some have embeddings narrower than their layers, so that they project them; each decoder that can
have them has fewer key-value heads than query heads; Gemma's and ModernBERT's first layer looks back four tokens.
"""

GENERATORS = {
    **{
        kind: lambda kind=kind, **c: AutoModelForCausalLM.from_config(make_config(kind, **c))
        for kind in ("gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "phi3")
    },
    **{
        kind: lambda kind=kind, **c: AutoModelForSeq2SeqLM.from_config(make_config(kind, **c))
        for kind in ("t5", "mt5", "bart", "mbart", "pegasus")
    },
}
"""Those that generate text, with their language-model head."""

ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "distilbert")
"""Those of BERT's shape, which tests of whole adapted models use."""

SAMPLES: dict[str, Method] = {
    "houlsby": Houlsby(bottleneck=6),
    "houlsby-shared": Houlsby(bottleneck=6, share_positions=True, share_layers=2, norms="none"),
    "houlsby-not-shared": Houlsby(bottleneck=6, norms="layers", extra_classifier=True, activation="relu"),
    "lora": LoRA(rank=3),
    "lora-query-value": LoRA(rank=3, alpha=6, targets="query,value"),
    "pfeiffer": Pfeiffer(bottleneck=6),
    "pfeiffer-deep": Pfeiffer(bottleneck=6, depth=3, layer_norm="input", scale="learned", norms="all", init_std=None),
    "parallel": Parallel(bottleneck=6, scale=4.0),
    "parallel-multiplying": Parallel(
        bottleneck=6, sublayers="attention,ffn", interaction="multiply", layer_norm="output", skip_layers=1
    ),
    "compacter": Compacter(bottleneck=8),
    "phm": Compacter(bottleneck=8, phm_rank=None, share_rule=False, sublayers="ffn", norms="none"),
    "adamix": AdaMix(bottleneck=6),
    "hyperformer": HyperFormer(bottleneck=6, code_size=8, hidden_size=5),
    "hyperformer-stack": HyperFormer(bottleneck=6, code_size=8, hidden_size=5, generators="stack", norms="none"),
    "hypergrid": HyperGrid(grid_rows=4, grid_columns=2, code_size=5),
    "hypergrid-free": HyperGrid(grid_rows=4, grid_columns=2, grids="free"),
    "bihnet": BiHNet(bottleneck=6, code_size=8, hidden_size=5),
    "lora-pissa": LoRA(rank=3, init="pissa"),
    "lora-stabilised": LoRA(rank=3, rank_stabilised=True, b_rate=16, targets="ffn.*"),
    "dora": DoRA(rank=3),
    "vera": VeRA(rank=5),
    "ia3-attention": IA3(outputs="attention.output,value", inputs="attention.output"),
    "layer-norm-tuning-ffn": LayerNormTuning(targets="ffn.norm"),
    "full-fine-tuning-top": FullFineTuning(top_layers=1),
    "full-fine-tuning-subset": FullFineTuning(random_subset=0.2, layer_decay=2.6),
    "feature-extraction": FeatureExtraction(dropout=0.0),
    "feature-extraction-bilstm": FeatureExtraction(model="bilstm", hidden_size=5, dropout=0.0),
    "prompt-tuning": PromptTuning(num_virtual_tokens=3, init="uniform"),
    "p-tuning": PTuning(num_virtual_tokens=3),
    "p-tuning-mlp": PTuning(num_virtual_tokens=3, encoder="mlp", encoder_hidden_size=5),
    "prefix-tuning": PrefixTuning(num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix-tuning-direct": PrefixTuning(num_virtual_tokens=3, reparametrise=False),
    "union": Union(methods=[LoRA(rank=3), PrefixTuning(num_virtual_tokens=3, reparametrise=False)]),
    "fuse": Fuse(parts=[Pfeiffer(bottleneck=6), Pfeiffer(bottleneck=4, activation="gelu")], attention_dropout=0.0),
    "fuse-lora": Fuse(parts=[LoRA(rank=3, targets="value"), LoRA(rank=2, targets="value")], attention_dropout=0.0),
    "gate": Gate(parts=[Houlsby(bottleneck=6, norms="none"), Houlsby(bottleneck=4, norms="none")]),
    "gate-lora": Gate(parts=[LoRA(rank=3), LoRA(rank=2)], normalise="softmax"),
    "average": Average(parts=[Parallel(bottleneck=6), Parallel(bottleneck=4)], weights="learned"),
    "average-ia3": Average(parts=[IA3(), IA3()], weights=(0.7, 0.5)),
    "average-norms": Average(parts=[Houlsby(bottleneck=6), Houlsby(bottleneck=4)]),
    "stack": Stack(parts=[LoRA(rank=3), Pfeiffer(bottleneck=6)]),
    "union-gated": Union(methods=[LoRA(rank=3), Houlsby(bottleneck=6, norms="none")], gated=True),
}
SAMPLES |= {name: method() for name, method in METHODS.items() if name not in SAMPLES}
"""Every registered method, small; some of them in several variants."""


def randomised(model: PreTrainedModel, *, seed: int = 0) -> PreTrainedModel:
    """The model with every parameter random and none of them small, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


@cache
def original(kind: str, seed: int, dtype: torch.dtype, head: bool, config: tuple[tuple[str, object], ...]):
    """The model that every test's own is a copy of: a copy is made faster than a model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomised((GENERATORS if head else MODELS)[kind](**dict(config)), seed=seed).to(dtype).eval()


def make_model(
    kind: str = "bert", *, seed: int = 0, dtype: torch.dtype = torch.float32, head: bool = False, **config
) -> PreTrainedModel:
    """A model of that type; with `head`, with its language-model head."""
    if all(value.__hash__ for value in config.values()):
        return deepcopy(original(kind, seed, dtype, head, tuple(sorted(config.items()))))
    return original.__wrapped__(kind, seed, dtype, head, tuple(config.items()))


def make_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab=dict(VOCABULARY), model_max_length=40)


def make_backbone(kind: str = "bert", *, tokenizer: bool = False, **options) -> Backbone:
    return Backbone(make_model(kind, **options), make_tokenizer() if tokenizer else None, name=f"tiny-{kind}")


def save_model(folder: Path, model: PreTrainedModel) -> Path:
    """A model's folder as users have it: weights, configuration, tokenizer."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def outdate(adapter: Path) -> None:
    """Make of an adapter's folder what an older graftwork would have written: without checksums."""
    file = adapter / "adapter.json"
    content = json.loads(file.read_text())
    content.pop("checksums", None)
    file.write_text(json.dumps({**content, "schema_version": 1}))


def make_batch(*lengths: int, seed: int = 0, pad: int = 0) -> dict[str, Tensor]:
    """Random texts of the given lengths, padded at the end to the longest."""
    ids = torch.randint(5, 100, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


def inputs_for(model: PreTrainedModel, *lengths: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of the kind that the model takes: texts of the given lengths, or as many images."""
    if model.main_input_name == "pixel_values":
        shape = (len(lengths), 3, 16, 16)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return {"pixel_values": images.to(model.dtype)}
    batch = make_batch(*lengths, seed=seed, pad=model.config.pad_token_id or 0)
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = make_batch(*[4] * len(lengths), seed=seed + 1)["input_ids"]
    return batch


def batch_for(backbone: Backbone, *lengths: int, seed: int = 0) -> dict[str, Tensor]:
    return make_batch(*lengths, seed=seed, pad=backbone.config.pad_token_id)


def make_head(pooling: str = "first", **fields) -> Head:
    if "model" in fields:
        mixed = "mean" if pooling == "pooler" else pooling
        return FeatureHead(**{"task": "classification", "num_outputs": 3, "pooling": mixed, **fields, "dropout": 0.0})
    return PooledHead(**{"kind": "classification", "num_outputs": 3, "pooling": pooling, "dropout": 0.0, **fields})


def make_adapter(
    backbone: Backbone,
    method: Method,
    *,
    seed: int = 0,
    trained: bool = False,
    head: Head | None = None,
    kind: str = "classification",
    pooling: Pooling | None = None,
    num_labels: int = 3,
    **fields,
) -> Adapter:
    """A new adapter with a head for that kind of task, or with the given head.

    With `trained`, every parameter is moved so that nothing about it is as initialised.
    """
    if head is None:
        given = {"dropout": 0.0, **method.head_fields, **fields}
        head = head_for(kind, backbone, num_labels=num_labels, pooling=pooling or backbone.pooling, **given)
    labels = None if head.num_labels is None else tuple("abcdefgh"[: head.num_labels])
    adapter = Adapter.create(backbone, method, head, TaskIdentity(name="t", labels=labels), seed=seed)
    if trained:
        generator = torch.Generator().manual_seed(seed + 1)
        for name, tensor in adapter.tensors.items():
            if name not in adapter.fixed:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return adapter


def bits(model: torch.nn.Module) -> dict[str, bytes]:
    """Every tensor of the state dict as bytes, in order."""
    return {name: t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in model.state_dict().items()}
