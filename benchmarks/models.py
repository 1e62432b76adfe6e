"""The backbone that benchmarks measure: MiniLM, or a tiny random one that tells whether a benchmark runs."""

import argparse
import string

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from graftwork import Backbone
from graftwork.backbones.devices import DTYPES, best_dtype, device_of

TINY = {
    **{"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 256},
    **{"vocab_size": 20_000, "max_position_embeddings": 160},
}
"""As many layers as MiniLM has, the words that benchmarks draw, and just wide enough for Compacter's default size."""


def load(options: argparse.Namespace, dtype: str | None = None) -> Backbone:
    """Return the backbone of that size, on that device and in that precision; or in `dtype`, where it is given."""
    dtype = dtype or options.dtype
    if options.size != "tiny":
        return Backbone.load("minilm", device=options.device, dtype=dtype)
    device = device_of(options.device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(**TINY))
    model.to(device=device, dtype=best_dtype(device) if dtype == "auto" else DTYPES[dtype])
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    pieces += [f"##{letter}" for letter in string.ascii_lowercase]
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=128)
    return Backbone(model, tokenizer, name="tiny")
