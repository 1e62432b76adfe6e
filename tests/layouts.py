"""Tiny random models of layouts that differ in what matters to ops: fused and transposed products, gated feed-forwards,
grouped queries, an encoder with a decoder, tied embeddings.
"""

import torch
from tiny import randomised
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    T5Model,
)

from graftwork.backbones import Backbone
from graftwork.model import AdaptedModel

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "vocab_size": 100, "n_positions": 48}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA |= {"num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
T5 |= {"decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu"}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BERT |= {"vocab_size": 100, "max_position_embeddings": 48}

LAYOUTS = {
    "bert": lambda: BertModel(BertConfig(**BERT)),
    "gpt2": lambda: GPT2Model(GPT2Config(**GPT2)),
    "llama": lambda: LlamaModel(LlamaConfig(**LLAMA)),
    "t5": lambda: T5Model(T5Config(**T5)),
    "gpt2-lm": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "t5-lm": lambda: T5ForConditionalGeneration(T5Config(**T5)),
}
BASES = ("bert", "gpt2", "llama", "t5")


def make_layout(kind: str, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomised(LAYOUTS[kind](), seed=seed).to(dtype).eval()


def backbone_of(kind: str, dtype: torch.dtype = torch.float32) -> Backbone:
    return Backbone(make_layout(kind, dtype), name=f"tiny-{kind}")


def texts(kind: str, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two rows without padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 100, (2, 7), generator=generator)
    decoder = {"decoder_input_ids": torch.randint(5, 100, (2, 5), generator=generator)} if "t5" in kind else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **decoder}


@torch.no_grad()
def run(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Every hidden state of a pass, and the scores where there are any."""
    output = model(**batch, output_hidden_states=True)
    names = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
    states = [state for name in names for state in (output.get(name) or ())]
    return states + ([output.logits] if "logits" in output else [])


@torch.no_grad()
def run_adapted(model: AdaptedModel, name: str, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The same with an adapter beside the weights."""
    with model.graft.run(model.residents[name].ops()):
        return run(model.backbone.model, batch)
