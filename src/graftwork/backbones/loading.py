"""What a backbone is made of, read from a checkpoint: with its weights, or in outline."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from graftwork.backbones.checkpoints import (
    EMBEDDED,
    UNREADABLE,
    as_folder,
    auto_class,
    lacks_pooler,
    load_model,
    source_of,
)
from graftwork.backbones.devices import DTYPES, best_dtype, device_of
from graftwork.backbones.fingerprint import cached_fingerprint, fingerprint_of, remember_fingerprint
from graftwork.backbones.pooling import (
    declared_pooling,
)
from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import BackboneError, first_line


def load_parts(name: str, *, dtype: str, device: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """What `Backbone` takes, of a checkpoint with its weights. See `Backbone.load`."""
    if dtype != "auto" and dtype not in DTYPES:
        raise BackboneError(f"unknown dtype {dtype!r}", expected="auto, " + ", ".join(DTYPES), change="--dtype")
    source = source_of(name)
    place = device_of(device)
    target = best_dtype(place) if dtype == "auto" else DTYPES[dtype]
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet_transformers():
        try:
            source = as_folder(source)
            config = AutoConfig.from_pretrained(source, **options)
            commit = getattr(config, "_commit_hash", None)
            fingerprint = cached_fingerprint(source, commit)
            if fingerprint is None:
                # It is over the weights as stored.
                fingerprint = fingerprint_of(load_model(name, source, config, "auto", options))
                remember_fingerprint(source, fingerprint, commit)
            model = load_model(name, source, config, target, options)
            images = model.main_input_name == "pixel_values"
            tokenizer: Any = None if images else AutoTokenizer.from_pretrained(source, **options)
            processor: Any = AutoImageProcessor.from_pretrained(source, **options) if images else None  # type: ignore[no-untyped-call]
            declared = declared_pooling(source, options)
        except UNREADABLE as error:
            raise BackboneError(
                f"backbone {name!r} cannot be loaded: {first_line(error)}",
                expected=f"{', '.join(EMBEDDED)}, a folder with config.json and weights, or a hub id",
                change="--backbone",
            ) from error
    if tokenizer is not None and not _has_words(tokenizer):
        tokenizer = None
    model.to(device=place)  # type: ignore[call-arg]
    return {
        "model": model,
        "tokenizer": tokenizer,
        "image_processor": processor,
        "name": name,
        "declared": declared,
        "fingerprint": fingerprint,
    }


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, without its weights.

    Args:
        name: as for `Backbone.load`.

    Raises:
        BackboneError: the checkpoint cannot be found, or has no tokenizer.
    """
    with quiet_transformers():
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(as_folder(source_of(name)))
        except UNREADABLE as error:
            raise BackboneError(
                f"the tokenizer of backbone {name!r} cannot be loaded: {first_line(error)}",
                expected=f"{', '.join(EMBEDDED)}, a folder with a tokenizer, or a hub id",
                change="--backbone",
            ) from error
    if not _has_words(tokenizer):
        raise BackboneError(
            f"backbone {name!r} has no tokenizer", expected="a folder or hub id with one", change="--backbone"
        )
    return tokenizer


def _has_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is more than the one, without words, that transformers makes up where the files are missing."""
    return len(tokenizer) > len(set(tokenizer.all_special_tokens))


def outline_parts(name: str, *, trust_remote_code: bool) -> dict[str, Any]:
    """What `Backbone` takes, of a checkpoint's shape alone. See `Backbone.outline`."""
    source = source_of(name)
    with quiet_transformers():
        try:
            options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
            source = as_folder(source)
            config = AutoConfig.from_pretrained(source, **options)
            with torch.device("meta"):
                model = auto_class(config).from_config(config, **options)
            declared = declared_pooling(source, options)
            without_pooler = lacks_pooler(source)
        except UNREADABLE as error:
            raise BackboneError(
                f"backbone {name!r} cannot be read: {first_line(error)}",
                expected=f"{', '.join(EMBEDDED)}, a folder with config.json, or a hub id",
                change="--backbone",
            ) from error
    # A pooling layer that averages (ResNet's) has no weights to be lacked.
    pooler = model._modules.get("pooler")
    if without_pooler and pooler is not None and any(True for _ in pooler.parameters()):
        model._modules["pooler"] = None
    return {"model": model, "name": name, "declared": declared}
