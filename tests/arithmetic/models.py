"""Small models of one start, and their folders."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny import make_config, make_tokenizer
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel


def make_classifier(seed: int, kind: str = "bert", **fields: object) -> PreTrainedModel:
    """A classifier of which nothing is as another seed has it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(make_config(kind, **fields))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape))
    return model.eval()


def save_classifier(folder: Path, seed: int, kind: str = "bert", **fields: object) -> Path:
    """Its folder, with a tokenizer."""
    make_classifier(seed, kind, **fields).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's files."""
    return {name: own for file in sorted(folder.glob("*.safetensors")) for name, own in load_file(file).items()}


def save_tensors(file: Path, tensors: dict[str, Tensor]) -> Path:
    """A file of tensors as safetensors writes it."""
    save_file({name: own.contiguous() for name, own in tensors.items()}, file, metadata={"format": "pt"})
    return file


def random_tensors(seed: int, *, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> dict[str, Tensor]:
    """Tensors of several shapes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "layers.0.weight": (5, 7),
        "layers.1.weight": (6, 4),
        "layers.1.bias": (6,),
        "norm": (),
        "last": (3, 2, 2),
    }
    return {name: (torch.randn(shape, generator=generator) * scale).to(dtype) for name, shape in shapes.items()}
