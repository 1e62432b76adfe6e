"""A backbone's fingerprint: what an adapter is checked against before it is put on a model.

It covers what decides the backbone's outputs: the configuration as far as it differs from its class's defaults, and
each tensor's name, shape, type and bytes as stored. It does not depend on the folder's name, on the library's
version, or on the precision the weights are later held in.
"""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

SCHEME = 2
"""Part of the key under which fingerprints are remembered: a new number when what they cover changes."""

DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "dropout", "attention_dropout")
"""Configuration keys that act in training alone, where the backbone's dropout is kept."""

VOLATILE = {
    *("_name_or_path", "_attn_implementation", "architectures", "dtype", "torch_dtype", "transformers_version"),
    *("id2label", "label2id", "num_labels", "problem_type", "use_cache", "gradient_checkpointing"),
    *DROPOUT,
}
"""Configuration keys that do not change what the frozen backbone computes."""


def fingerprint_of(model: PreTrainedModel) -> str:
    """SHA-256 over configuration and weights, as 64 hexadecimal digits. Reads every weight once."""
    defaults = type(model.config)().to_dict()
    config = {
        key: value
        for key, value in model.config.to_dict().items()
        if key == "model_type" or (key not in VOLATILE and (key not in defaults or value != defaults[key]))
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cached_fingerprint(source: str, commit: str | None = None) -> str | None:
    """The fingerprint remembered for a folder whose files have not changed since, or for a commit of a hub repository.

    None when there is none, or when the file does not hold what was written.
    """
    file = _cache_file(source, commit)
    try:
        text = "" if file is None else file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    fingerprint = text.partition(" ")[0]
    return fingerprint if file is not None and text == _sealed(fingerprint, file.name) else None


def remember_fingerprint(source: str, fingerprint: str, commit: str | None = None) -> None:
    """Keep a fingerprint in graftwork's own cache folder. If it cannot be written, loading is only slower."""
    file = _cache_file(source, commit)
    if file is None:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(number, "w", encoding="ascii") as temporary:
                temporary.write(_sealed(fingerprint, file.name))
            os.replace(name, file)
        finally:
            Path(name).unlink(missing_ok=True)


def _sealed(fingerprint: str, key: str) -> str:
    """What a file holds: a fingerprint, and a checksum of it and of what it is the fingerprint of."""
    return f"{fingerprint} {hashlib.sha256(f'{key} {fingerprint}'.encode()).hexdigest()}\n"


def _cache_file(source: str, commit: str | None) -> Path | None:
    """Where a fingerprint is kept; None when nothing says whether the weights are still the same.

    For a local folder the file is named by the path, size and time of each file in it, for a hub repository by its
    commit.
    """
    folder = Path(source)
    if folder.is_dir():
        stats = [
            (str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and file.suffix in {".json", ".safetensors", ".bin"}
        ]
        content = json.dumps([SCHEME, transformers.__version__, str(folder), stats])
    elif commit is not None:
        content = json.dumps([SCHEME, transformers.__version__, source, commit])
    else:
        return None
    return cache_folder() / "fingerprints" / hashlib.sha256(content.encode()).hexdigest()


def cache_folder() -> Path:
    """Graftwork's own cache folder: $GRAFTWORK_CACHE, else `graftwork` in the user's cache folder."""
    root = os.environ.get("GRAFTWORK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "graftwork"
    return Path(root).expanduser()
