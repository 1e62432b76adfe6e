"""Pooling: how an input becomes one vector, and what a checkpoint declares about it.

A sentence-transformers repository lists its modules in `modules.json`; the folder of its Pooling module has a
`config.json`, with one key a mode set to true (before version 6) or with the modes by name under `pooling_mode`. Some
configurations of transformers' own name the pooling of their classifier.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from graftwork.errors import BackboneError

Pooling = Literal["pooler", "first", "last", "mean"]
"""How a text becomes one vector: the backbone's pooling layer, the first token, the last token that is not padding, or
the mean over tokens that are not padding."""

PoolingSource = Literal["declared", "default", "given"]
"""Where a pooling setting came from: the checkpoint, graftwork's defaults, or the caller."""

SOURCES: Mapping[PoolingSource, str] = {
    "declared": "declared by the checkpoint",
    "default": "default",
    "given": "given",
}
"""The same in words."""

MODES: Mapping[str, Pooling | None] = {
    "cls": "first",
    "mean": "mean",
    "lasttoken": "last",
    "max": None,
    "mean_sqrt_len_tokens": None,
    "weightedmean": None,
}
"""The modes of sentence-transformers 6.2; None: graftwork has no such pooling."""

OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The keys of its versions before 6, which each switch a mode on."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DeclaredPooling:
    """What a checkpoint declares.

    Attributes:
        modes: by sentence-transformers' names; several are put beside each other.
        file: the file that says so.
    """

    modes: tuple[str, ...]
    file: str

    @property
    def pooling(self) -> Pooling | None:
        """The same as graftwork does it; None where it cannot."""
        return MODES.get(self.modes[0]) if len(self.modes) == 1 else None


def describe_pooling(pooling: Pooling, source: PoolingSource | None) -> str:
    """How inputs are pooled, and who chose it where that is known, in words."""
    return pooling if source is None else f"{pooling} ({SOURCES[source]})"


def declared_pooling(source: str, options: Mapping[str, Any]) -> DeclaredPooling | None:
    """What a folder or hub repository declares as sentence-transformers does; None when it declares nothing.

    Args:
        options: those of loading, of which the revision is used.

    Raises:
        BackboneError: a file of the declaration is not what sentence-transformers writes.
    """
    for folder in _pooling_folders(source, options):
        name = f"{folder}/config.json"
        declared = _read(source, name, options)
        if declared is not None:
            return _of_config(declared, name)
    return None


def declared_by_config(config: PretrainedConfig) -> DeclaredPooling | None:
    """What transformers' own classifiers of a model do (ModernBERT's `classifier_pooling`); None where the
    configuration says nothing of it."""
    mode = getattr(config, "classifier_pooling", None)
    return DeclaredPooling((mode,), "config.json") if isinstance(mode, str) else None


def warn_of_unknown(declared: DeclaredPooling, name: str, pooling: Pooling) -> None:
    """Warn that a checkpoint's declaration is not followed.

    Args:
        pooling: what is done instead.
    """
    logger.warning(
        "backbone %r declares pooling by %s (%s), which graftwork does not support: the default, %s, is used instead "
        "(--pooling)",
        name,
        " and ".join(declared.modes),
        declared.file,
        pooling,
    )


def _pooling_folders(source: str, options: Mapping[str, Any]) -> Sequence[str]:
    """Where the declaration stands: in the folder of the first Pooling module, or, without a list of modules, where
    the oldest repositories have it."""
    modules = _read(source, "modules.json", options)
    if modules is None:
        return ("1_Pooling",)
    if not isinstance(modules, list) or not all(isinstance(module, Mapping) for module in modules):
        raise _misread("modules.json", "a list of modules")
    kinds = [(str(module.get("type", "")).rpartition(".")[2], str(module.get("path", ""))) for module in modules]
    return [path for kind, path in kinds if kind == "Pooling" and path][:1]


def _of_config(declared: Any, name: str) -> DeclaredPooling:
    """What the configuration of a Pooling module says: of none of its keys, the mean, as sentence-transformers has
    it."""
    if not isinstance(declared, Mapping):
        raise _misread(name, "keys with values")
    modes = declared.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in OLD_KEYS.items() if declared.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(isinstance(mode, str) for mode in modes):
        raise _misread(name, f"pooling_mode: one or more of {', '.join(MODES)}")
    return DeclaredPooling(tuple(modes), name)


def _read(source: str, name: str, options: Mapping[str, Any]) -> Any:
    """A JSON file of the repository; None where it has none."""
    file = cached_file(
        source,
        name,
        revision=options.get("revision"),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise _misread(name, f"JSON ({error})") from error


def _misread(name: str, expected: str) -> BackboneError:
    return BackboneError(
        f"the backbone's file {name} cannot be read",
        expected=expected,
        change="--backbone",
    )
