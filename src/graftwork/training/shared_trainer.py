"""The trainer of an adapter that several processes tune together: a step is one process's with the whole batch."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from graftwork.training.processes import Processes
from graftwork.training.seeds import seed_of
from graftwork.training.trainer import AdapterTrainer


class SharedTrainer(AdapterTrainer):
    """Trains an adapter together with the same trainer of other processes.

    Each collates the whole batch and runs its share of the rows. Their losses are sums over rows, divided by counts of
    the whole step, so that the gradients of all processes add up to those of one with the whole batch. All draw the
    random numbers that one would draw; see `WholeDraws`.

    Args:
        processes: these.
        apart: whether each draws random numbers of its own, from the seed, the step and the process: where attention
            drops weights, what is drawn depends on the rows of a pass.
        sharded: whether each holds a part of the backbone's layers, so that all take part in each pass: one without
            rows in a batch runs another's, which counts as nothing.
    """

    def __init__(self, *args: Any, processes: Processes, apart: bool, sharded: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.processes = processes
        self.apart = apart
        self.sharded = sharded
        self._counts = True

    def create_accelerator_and_postprocess(self) -> None:
        """accelerate does not wrap the model, which would have its gradients averaged over the processes."""
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

    def prepared(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """The loader as it is: accelerate would deal whole batches out to the processes."""
        found: DataLoader[Any] = prepare_data_loader(loader, num_processes=1, process_index=0, put_on_device=False)
        return found

    def _step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        step, times = self._moment
        self._moment = (self.state.global_step, times + 1 if step == self.state.global_step else 0)
        rows = len(next(iter(inputs.values())))
        own = {name: self.processes.share(values) for name, values in inputs.items()}
        count = len(self.processes.share(range(rows)))
        self._counts = count > 0
        if self.sharded and not self._counts:
            own, count = {name: values[:1] for name, values in inputs.items()}, 1
        if self.apart:
            torch.manual_seed(seed_of("share", self.args.seed, *self._moment, self.processes.index))
        draws = nullcontext() if self.apart else WholeDraws(rows, count, self.processes)
        loss = torch.zeros((), device=self.args.device)
        with draws:
            if count:
                loss = super()._step(model, own, num_items_in_batch)
        if rows < self.processes.count:  # those without a row have drawn nothing
            self.processes.share_randomness()
        if self.accelerator.sync_gradients:
            self.processes.sum_gradients([tensor for tensor, _ in self.declared() if tensor.requires_grad])
        return self.processes.sum(loss)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss: Any = super().compute_loss(*args, **kwargs)
        return loss if self._counts else loss * 0.0

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The first process's scores, logged by all."""
        scorer = self.scorer
        assert scorer is not None
        self.scorer = partial(self.processes.by_all if self.sharded else self.processes.by_first, scorer)
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self.scorer = scorer
            self.processes.share_randomness()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        ended = super().train(*args, **kwargs)
        self._share_best()
        return ended

    def resume_from(self, checkpoint: Path) -> None:
        super().resume_from(checkpoint)
        self._share_best()

    def _share_best(self) -> None:
        """The first process alone knows the best checkpoint. Where the backbone is in parts, all finish the adapter."""
        if self.sharded:
            best = self.processes.of_first(self.adapter.tensors)
            self.adapted.in_training(self.adapter_name).assign(best)

    def _load_best_model(self) -> None:
        # It is the first process's, which finishes the adapter.
        if self.processes.first:
            super()._load_best_model()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.processes.by_first(partial(super()._save_checkpoint, model, trial))


class WholeDraws(TorchFunctionMode):
    """Inside, dropout of this process's rows is that of the whole batch at these rows, of which all that is random is
    drawn: all processes then stand at the same place in the same stream of random numbers as one process would. That is
    `F.dropout`; what all rows share, such as a prefix, is dropped by `torch.dropout`, which stays as it is.

    Args:
        rows: of the whole batch.
        own: of this process; 1 also where it has none, and runs the first of all.
        processes: these.
    """

    def __init__(self, rows: int, own: int, processes: Processes) -> None:
        super().__init__()
        self.rows = rows
        self.own = own
        self.processes = processes

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.dropout:
            return func(*args, **(kwargs or {}))
        return self._dropout(*args, **(kwargs or {}))

    def _dropout(self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return F.dropout(values, p, training, inplace)
        each, rest = divmod(len(values), self.own)
        # Anything else would be dropped otherwise by each process, and none would say so.
        assert not rest, f"dropout of {tuple(values.shape)}, which has no part for each of {self.own} rows"
        # Where a row has several places in the first dimension, such as its choices, they stand together.
        whole = F.dropout(values.new_ones(self.rows, each, *values.shape[1:]), p)
        own = self.processes.share(whole)
        return values * (own if len(own) else whole[:1]).flatten(0, 1)
