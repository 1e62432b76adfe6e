"""Generation with adapters: the backbone's own `generate`, once for all rows, or once for those that can share it."""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.utils.generic import ModelOutput

from graftwork.bank import Lease
from graftwork.errors import AdapterError
from graftwork.grafting.stepwise import stepwise
from graftwork.ops.prompt import as_of_text
from graftwork.passes.running import Runner
from graftwork.passes.sharing import RowGroup, for_each_row

MAIN = ("inputs", "input_ids", "inputs_embeds", "encoder_outputs")
"""Arguments of `generate` that tell how many rows there are."""

OF_ROWS = (*MAIN, "negative_prompt_ids", "negative_prompt_attention_mask")
"""Arguments of `generate` that have something of each row, beside those of the model's forward."""


START = "decoder_start_token_id"
"""An argument of `generate` that is one token of all rows, or several, one of each row."""

OF_ALL = {"past_key_values", "cache_position", "logits_to_keep"}
"""Arguments of a model's forward that have nothing of single rows."""


def rows_of(args: Sequence[Any], options: Mapping[str, Any]) -> int:
    """How many rows `generate` is given."""
    given = [*args[:1], *(options.get(name) for name in MAIN)]
    known = next((value for value in given if value is not None), None)
    if isinstance(known, ModelOutput):
        known = known[0]
    return 1 if known is None else len(known)


def generate(
    runner: Runner, lease: Lease, names: Sequence[str | None], args: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    """What transformers' `generate` gives, of rows with these adapters.

    Each of its forward passes waits for those of other threads, and other threads' passes run in between.

    Raises:
        AdapterError: adapters that cannot share a search are asked for what cannot be joined.
    """
    per_row = {*OF_ROWS, *runner.forward_arguments} - OF_ALL
    known = {name: options[name] for name in per_row & options.keys() if isinstance(options[name], Tensor)}
    options = {**options, **for_each_row(known, len(names))}
    # What is read of the model is the same for all, whatever their heads read.
    groups = runner.row_groups(lease, names, "root")
    if len(groups) == 1:
        return _search(runner, lease, groups[0], args, options)
    if isinstance(options.get("past_key_values"), Cache):
        raise AdapterError(
            "these adapters cannot share one generate(), and one cache was given for all rows",
            expected="a separate generate() for each of them, each with its own cache",
        )
    if options.get("return_dict_in_generate"):
        raise AdapterError(
            "these adapters cannot share one generate(), whose results beside the tokens cannot be joined",
            expected="generate() for each of them, or no return_dict_in_generate",
        )
    made, places = [], []
    for group in groups:
        own = [_of_rows(value, group) for value in args[:1]] + list(args[1:])
        rest = {name: _of_rows(value, group) if name in per_row else value for name, value in options.items()}
        rest |= _starts_of_rows(options, group)
        if callable(allowed := options.get("prefix_allowed_tokens_fn")):
            rest["prefix_allowed_tokens_fn"] = lambda row, ids, rows=group.rows, allowed=allowed: allowed(
                rows[row], ids
            )
        found = _search(runner, lease, group, own, rest, in_order=False)
        if not isinstance(found, Tensor):
            raise AdapterError(
                "these adapters cannot share one generate(), whose results beside the tokens cannot be joined",
                expected="generate() for each of them, or no return_dict_in_generate",
            )
        several = len(found) // len(group.rows)
        made.append(found)
        places += [row * several + i for row in group.rows for i in range(several)]
    longest, padding = max(found.shape[1] for found in made), _padding(runner, options)
    joined = torch.cat([F.pad(found, (0, longest - found.shape[1]), value=padding) for found in made])
    return joined[torch.tensor(places, device=joined.device).argsort()]


def _search(
    runner: Runner,
    lease: Lease,
    group: RowGroup,
    args: Sequence[Any],
    options: Mapping[str, Any],
    *,
    in_order: bool = True,
) -> Any:
    """One search of a group's rows.

    Args:
        in_order: the rows stand as in the batch, and not sorted by slot.
    """
    modules = lease.modules(group.residents[0]) if len(group.residents) == 1 else None
    with runner.bank.use(group.present):
        with runner.graft.lock, torch.no_grad():
            ops = {} if modules is not None else group.ops(runner.backbone, runner.bank, in_order=in_order)
        if runner.backbone.weights.in_parts:  # who is done takes part in the others' passes until they are
            options = {"synced_gpus": True, **options}
        model: Any = stepwise(runner.backbone.model, lambda: runner.acting(lambda: ops, modules=modules))
        return model.generate(*args, **as_of_text(options, ops))


def _of_rows(value: Any, group: RowGroup) -> Any:
    """What of an argument is of a group's rows."""
    if isinstance(value, Tensor):
        return value if len(value) == 1 else value[torch.tensor(group.rows, device=value.device)]
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _of_rows(own, group) for name, own in value.items()})
    if isinstance(value, tuple):
        return tuple(_of_rows(own, group) for own in value)
    return value


def _starts_of_rows(options: Mapping[str, Any], group: RowGroup) -> dict[str, Any]:
    """The tokens with which the decoder begins for a group's rows, where each row has its own: an argument, or in a
    configuration."""
    changed: dict[str, Any] = {}
    if (starts := _of_each(options.get(START), group)) is not None:
        changed[START] = starts
    config = options.get("generation_config")
    if (starts := _of_each(getattr(config, START, None), group)) is not None:
        changed["generation_config"] = config = copy(config)
        setattr(config, START, starts)
    return changed


def _of_each(value: Any, group: RowGroup) -> Any:
    """What of several numbers is of a group's rows; None where there is one of all, or none."""
    if isinstance(value, Tensor) and value.dim() and len(value) > 1:
        return value[torch.tensor(group.rows, device=value.device)]
    if isinstance(value, list | tuple) and len(value) > 1:
        return [value[row] for row in group.rows]
    return None


def _padding(runner: Runner, options: Mapping[str, Any]) -> int:
    """The token with which generation pads. It shows only where texts are of different lengths: an end token is known
    then.
    """
    config = options.get("generation_config") or runner.backbone.model.generation_config
    own = (config.pad_token_id, config.eos_token_id, runner.backbone.config.pad_token_id)
    known = (options.get("pad_token_id"), *own)
    found = next((token for token in known if token is not None), 0)
    return int(torch.as_tensor(found).flatten()[0])
