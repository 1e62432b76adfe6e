"""The trainer: transformers' own, saving adapters in the place of models."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.nn as nn
from safetensors.torch import load_file
from transformers import Trainer, TrainerState

from graftwork.adapters import Adapter
from graftwork.adapters.adapter import declare
from graftwork.adapters.folder import TENSORS, write_files
from graftwork.model import AdaptedModel

STATE = "trainer_state.json"


class AdapterTrainer(Trainer):
    """Trains the one trainable adapter of an `AdaptedModel`.

    Checkpoints hold the adapter, the optimizer's state and the random states; never the backbone. `judge` gives the
    scores that choose among them.
    """

    def __init__(
        self, *args: Any, adapter_name: str, judge: Callable[[], dict[str, float]] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.adapter_name = adapter_name
        self.judge = judge

    @property
    def adapted(self) -> AdaptedModel:
        """The model, out of any wrapping for several devices."""
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, AdaptedModel)
        return model

    @property
    def adapter(self) -> Adapter:
        """The adapter as it is now."""
        return self.adapted.adapter(self.adapter_name)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The judge's scores, logged."""
        assert self.judge is not None
        scores = {f"{metric_key_prefix}_{name}": value for name, value in self.judge().items()}
        self.log(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def take_up(self, checkpoint: Path) -> None:
        """Stand where a run stood that was killed after its last step."""
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self._load_best_model()

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """What the method and head declare to decay; transformers would guess by name."""
        adapter = self.adapted.residents[self.adapter_name].adapter
        declared = declare(self.adapted.backbone, adapter.method, adapter.head)
        decaying = [name for name, parameter in declared.items() if parameter.decay]
        return [name for name, p in model.named_parameters() if p.requires_grad and _ends_with(name, decaying)]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_files(self.adapter, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._assign(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        # By its step and not by the path that the state notes: the folder may have been moved since.
        self._assign(str(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.best_global_step}"))

    def _assign(self, checkpoint: str) -> None:
        self.adapted.residents[self.adapter_name].assign(load_file(Path(checkpoint) / TENSORS))


def _step_of(checkpoint: Path) -> int:
    """How many steps had been done when the checkpoint was saved."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end; None when there is none.

    A process killed while saving leaves a checkpoint without its state file, which is written last, or with half of
    one.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True):
        if _state(checkpoint).get("global_step") == _step_of(checkpoint):
            return checkpoint
    return None


def has_ended(checkpoint: Path) -> bool:
    """Whether training ended with that checkpoint: at its last step, or because it was stopped early."""
    return bool(_state(checkpoint)["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"])


def _state(checkpoint: Path) -> Mapping[str, Any]:
    """The trainer's saved state; empty when it was not written, or not to its end."""
    try:
        state: Mapping[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state


def _ends_with(name: str, endings: list[str]) -> bool:
    return any(name.endswith(f".parameters_by_name.{ending}") for ending in endings)
