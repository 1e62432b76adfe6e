"""An adapted model as Hugging Face's tools take it: its configuration, its state dict, and copies of it."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.bank import Resident, Trained
from graftwork.errors import AdapterError
from graftwork.kinds import KINDS


def labelled(config: PretrainedConfig, adapters: Sequence[Adapter]) -> PretrainedConfig:
    """A backbone's configuration with the labels of the adapters, where these have the same ones."""
    found = deepcopy(config)
    kinds = {(adapter.kind, adapter.task.labels) for adapter in adapters}
    if len(kinds) != 1:
        return found
    [(kind, labels)] = kinds
    if labels is not None:
        found.id2label, found.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    elif KINDS[kind].problem_type == "regression":
        found.id2label, found.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}
    found.problem_type = KINDS[kind].problem_type or found.problem_type
    return found


def state_of(trained: Mapping[str, Trained]) -> dict[str, Tensor]:
    """The tensors of adapters that are trained, each under the adapter's name and its own."""
    return {f"{name}.{key}": t for name, resident in trained.items() for key, t in resident.tensors().items()}


def state_in_training(residents: Mapping[str, Resident]) -> dict[str, Tensor]:
    """The tensors of those that are trained, each under the adapter's name and its own.

    Raises:
        AdapterError: there are some, and none of them is trained.
    """
    trained = trained_of(residents)
    if residents and not trained:
        raise AdapterError(
            f"none of the adapters {', '.join(residents)} is trained, and a model's state dict has only those that are",
            expected="an adapter that was added with trainable=True",
            change=f"model.adapter({next(iter(residents))!r}).save(FOLDER) saves an adapter, and "
            "backbone.model.state_dict() is the backbone's state dict",
        )
    return state_of(trained)


def save_only_one(adapters: Mapping[str, Adapter], folder: Path, *, overwrite: bool) -> None:
    """Write the folder of an adapter, if it is the only one.

    Raises:
        AdapterError: there is none, or there are several.
    """
    if len(adapters) != 1:
        raise AdapterError(
            f"{len(adapters)} adapters are on the model ({', '.join(adapters)}), and a folder holds one"
            if adapters
            else "no adapter is on the model, and the folder is that of one",
            expected="a model with one adapter",
            change="model.adapter(NAME).save(FOLDER) saves each; the backbone is saved by "
            "backbone.model.save_pretrained(FOLDER)",
        )
    [adapter] = adapters.values()
    adapter.save(folder, overwrite=overwrite)


def load_state(
    residents: Mapping[str, Resident], state: Mapping[str, Tensor], *, strict: bool
) -> tuple[list[str], list[str]]:
    """Overwrite the tensors of adapters that are trained.

    Returns:
        The names that are missing in the state, and those in it that no adapter has.

    Raises:
        AdapterError: names are missing or unknown, or none of the adapters is trained, and `strict` is on; or a shape
            is another one.
    """
    trained = trained_of(residents)
    own = state_in_training(residents) if strict else state_of(trained)
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if strict and (missing or unknown):
        what = [*(f"lacks {name}" for name in missing), *(f"has unknown {name}" for name in unknown)]
        raise AdapterError(
            f"the state dict does not match the adapters in training: it {'; '.join(what[:3])}",
            expected="the state_dict() of a model with the same adapters",
        )
    for name, resident in trained.items():
        mine = {key: state.get(f"{name}.{key}", tensor) for key, tensor in resident.tensors().items()}
        resident.assign(mine)
    return missing, unknown


def rebuilt(
    make: Callable[..., Any],
    backbone: Backbone,
    adapters: Mapping[str, tuple[Adapter, bool, bool]],
    options: Mapping[str, Any],
    merged: str | None,
    recomputed: bool,
    training: bool,
) -> Any:
    """An adapted model out of what it was made of.

    Args:
        adapters: by name, each with whether it is trained and whether it is pinned.
        options: of the model.
        recomputed: whether layers are recomputed in the backward pass.
    """
    model = make(backbone, **options)
    for name, (adapter, trainable, pinned) in adapters.items():
        model.add(name, adapter, trainable=trainable, pinned=pinned)
    if merged is not None:
        model.merge(merged)
    if recomputed:
        model.activation_checkpointing_enable()
    return model.train(training)


def trained_of(residents: Mapping[str, Resident]) -> dict[str, Trained]:
    """Those that are being trained, by name."""
    return {name: resident for name, resident in residents.items() if isinstance(resident, Trained)}
