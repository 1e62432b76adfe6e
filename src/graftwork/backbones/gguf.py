"""Checkpoints in the GGUF format, turned once into transformers' own.

Reading one takes a minute, because its weights are dequantised, and its vocabulary is gone through anew for the
configuration, the weights and the tokenizer. What comes of it is kept, in float32, in graftwork's cache folder.
"""

import hashlib
import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftwork.backbones.fingerprint import cache_folder
from graftwork.errors import OutputError
from graftwork.folders import replacing_folder


def gguf_file(source: str) -> Path | None:
    """The file of a folder that holds its model in the GGUF format; None for any other folder, and for a hub id."""
    folder = Path(source)
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() and not (folder / "config.json").is_file() else []
    return files[0] if len(files) == 1 else None


def converted(file: Path) -> str:
    """The folder with the model of a GGUF file and its tokenizer, which is made when it is not there.

    Raises:
        OSError, ValueError, ImportError: the file cannot be read, or lacks weights.
    """
    stat = file.stat()
    content = json.dumps([transformers.__version__, str(file), stat.st_size, stat.st_mtime_ns])
    folder = cache_folder() / "converted" / hashlib.sha256(content.encode()).hexdigest()
    if not folder.is_dir():
        model, tokenizer = _read(file)
        try:
            with replacing_folder(folder) as new:
                model.save_pretrained(new)
                tokenizer.save_pretrained(new)
        except OutputError as error:
            if not folder.is_dir():  # else another process was faster
                raise OSError(error.problem) from error
    return str(folder)


def _read(file: Path) -> tuple[Any, Any]:
    """The model of a GGUF file with plain weights, and its tokenizer."""
    options: dict[str, Any] = {"gguf_file": file.name}
    # It shows a bar of its own, which transformers' switch for bars does not reach.
    with redirect_stderr(StringIO()):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent), dtype="float32", output_loading_info=True, **options
        )
        model, report = loaded
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **options)
    model, report = loaded
    if report["missing_keys"]:
        raise ValueError(f"{file.name} lacks weights: {', '.join(sorted(report['missing_keys'])[:5])}")
    # They are plain weights by now, which transformers would not save as what it takes for quantised ones.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer
