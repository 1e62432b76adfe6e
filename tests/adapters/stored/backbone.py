"""The backbone of the stored adapters: a tiny BERT whose weights are given by a formula, the same in every version."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer

WORDS = ["good", "bad", "one", "two", "three"]


def make(folder: Path) -> Path:
    """A folder with the model and its tokenizer."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=10,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    model = BertModel(config)
    start = 0
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            numbers = torch.arange(start, start + tensor.numel(), dtype=torch.float64)
            tensor.copy_((numbers.sin() / 2 + ("LayerNorm.weight" in name)).view(tensor.shape))
            start += tensor.numel()
    model.save_pretrained(folder)
    return folder
