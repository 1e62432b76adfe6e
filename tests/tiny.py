"""Tiny random models of every model type, and what tests make with them."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.backbones import Backbone
from graftwork.heads import PooledHead
from graftwork.methods import METHODS, Houlsby, LoRA, Method, PrefixTuning, PromptTuning, PTuning, Union

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
MODELS = {
    "bert": lambda **c: BertModel(BertConfig(**{**SIZES, **c})),
    "roberta": lambda **c: RobertaModel(RobertaConfig(**{**SIZES, **c})),
    "xlm-roberta": lambda **c: XLMRobertaModel(XLMRobertaConfig(**{**SIZES, **c})),
    "electra": lambda **c: ElectraModel(ElectraConfig(**{**SIZES, "embedding_size": 16, **c})),
    "distilbert": lambda **c: DistilBertModel(
        DistilBertConfig(dim=WIDTH, n_layers=LAYERS, n_heads=4, hidden_dim=INNER, vocab_size=100, **c)
    ),
}
"""By model type. The ELECTRA one has embeddings narrower than its layers, so that it projects them."""

SAMPLES: dict[str, Method] = {
    "houlsby": Houlsby(bottleneck=6),
    "houlsby-shared": Houlsby(bottleneck=6, share_positions=True, share_layers=2, norms="none"),
    "houlsby-not-shared": Houlsby(bottleneck=6, norms="layers", extra_classifier=True, activation="relu"),
    "lora": LoRA(rank=3),
    "lora-query-value": LoRA(rank=3, alpha=6, targets="query,value"),
    "prompt-tuning": PromptTuning(num_virtual_tokens=3, init="uniform"),
    "p-tuning": PTuning(num_virtual_tokens=3),
    "p-tuning-mlp": PTuning(num_virtual_tokens=3, encoder="mlp", encoder_hidden_size=5),
    "prefix-tuning": PrefixTuning(num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix-tuning-direct": PrefixTuning(num_virtual_tokens=3, reparametrise=False),
    "union": Union(methods=[LoRA(rank=3), PrefixTuning(num_virtual_tokens=3, reparametrise=False)]),
    "union-gated": Union(methods=[LoRA(rank=3), Houlsby(bottleneck=6, norms="none")], gated=True),
    **{name: method() for name, method in METHODS.items() if name in ("full-fine-tuning", "head-only")},
}
"""Every registered method, small; some of them in several variants."""

MATRIX = [(name, kind) for name in SAMPLES for kind in MODELS if name in METHODS or kind in ("bert", "distilbert")]
"""Every method on every model type; the variants on two."""


def randomised(model: PreTrainedModel, *, seed: int = 0) -> PreTrainedModel:
    """The model with every parameter random and none of them small, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


def make_model(kind: str = "bert", *, seed: int = 0, dtype: torch.dtype = torch.float32, **config) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomised(MODELS[kind](**config), seed=seed).to(dtype).eval()


def make_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab=dict(VOCABULARY), model_max_length=40)


def make_backbone(kind: str = "bert", *, tokenizer: bool = False, **options) -> Backbone:
    return Backbone(make_model(kind, **options), make_tokenizer() if tokenizer else None, name=f"tiny-{kind}")


def save_model(folder: Path, model: PreTrainedModel) -> Path:
    """A model's folder as users have it: weights, configuration, tokenizer."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_batch(*lengths: int, seed: int = 0, pad: int = 0) -> dict[str, Tensor]:
    """Random texts of the given lengths, padded at the end to the longest."""
    ids = torch.randint(5, 100, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}


def batch_for(backbone: Backbone, *lengths: int, seed: int = 0) -> dict[str, Tensor]:
    return make_batch(*lengths, seed=seed, pad=backbone.config.pad_token_id)


def make_head(pooling: str = "first", **fields) -> PooledHead:
    return PooledHead(**{"kind": "classification", "num_outputs": 3, "pooling": pooling, "dropout": 0.0, **fields})


def make_adapter(backbone: Backbone, method: Method, *, seed: int = 0, trained: bool = False, **head) -> Adapter:
    """A new adapter; with `trained`, every parameter is moved so that nothing about it is as initialised."""
    chosen = make_head(**{"pooling": backbone.pooling, **method.head_fields, **head})
    labels = None if chosen.kind == "regression" else tuple("abcdefgh"[: chosen.num_outputs])
    adapter = Adapter.create(backbone, method, chosen, TaskIdentity(name="t", labels=labels), seed=seed)
    if trained:
        generator = torch.Generator().manual_seed(seed + 1)
        for tensor in adapter.tensors.values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return adapter


def bits(model: torch.nn.Module) -> dict[str, bytes]:
    """Every tensor of the state dict as bytes, in order."""
    return {name: t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in model.state_dict().items()}
