"""The lengths at which texts are truncated, from the backbone's positions and the kind of task."""

from typing import Protocol, runtime_checkable

from graftwork.backbones import Backbone
from graftwork.errors import RecipeError
from graftwork.kinds import KINDS

MAX_LENGTH = 128
"""Of a text, and of a target, unless more or less is asked for."""

GENERATING = ("max_new_tokens", "num_beams", "generation_examples")
"""Settings of generation only."""


@runtime_checkable
class Lengths(Protocol):
    """The settings that are looked at; see `TrainingSettings`."""

    @property
    def max_length(self) -> int | None: ...
    @property
    def max_target_length(self) -> int | None: ...
    @property
    def max_new_tokens(self) -> int | None: ...
    @property
    def num_beams(self) -> int: ...
    @property
    def generation_examples(self) -> int | None: ...


def lengths(settings: Lengths, backbone: Backbone, kind: str, prompt_tokens: int = 0) -> dict[str, int | None]:
    """The length settings with all defaults filled in.

    Args:
        prompt_tokens: how many positions the method takes.

    Raises:
        RecipeError: texts are longer than the backbone has positions for, less those that the method takes; or a
            setting is not for the kind.
    """
    prompted, generates = KINDS[kind].prompted(backbone), KINDS[kind].generates
    foreign = [name for name in GENERATING if not generates and getattr(settings, name) not in (None, 1)]
    if settings.max_target_length is not None and not prompted:
        foreign.append("max_target_length")
    if foreign:
        raise RecipeError(
            f"the task's kind is {kind}, which has no {', '.join(foreign)} on backbone {backbone.name!r}",
            change=", ".join(f"--train.{name}" for name in foreign),
        )
    check_prompt(backbone, prompt_tokens)
    longest = backbone.max_length
    # Of an encoder-decoder the prompt is the encoder's.
    targets = longest if longest is None or backbone.is_encoder_decoder else longest - prompt_tokens
    longest = longest if longest is None else longest - prompt_tokens
    beside = f" beside {prompt_tokens} prompt tokens" if prompt_tokens else ""
    if not prompted:
        return {"max_length": _at_most(settings.max_length, longest, backbone, beside)}
    # In a causal model source and target share the positions.
    shared = longest is not None and not backbone.is_encoder_decoder
    half = longest // 2 if longest is not None and shared else longest
    target = settings.max_target_length or min(MAX_LENGTH, half or MAX_LENGTH)
    new = settings.max_new_tokens or target
    rest = longest - max(target, new) if longest is not None and shared else longest
    if rest is not None and rest < 1:
        raise RecipeError(
            f"targets of {max(target, new)} tokens leave no position of backbone {backbone.name!r} for the source",
            expected=f"fewer than {longest}",
            change="--train.max_target_length, or --train.max_new_tokens",
        )
    return {
        "max_length": _at_most(settings.max_length, rest, backbone, beside),
        "max_target_length": _at_most(target, targets, backbone, "", "max_target_length"),
        **({"max_new_tokens": _at_most(new, targets, backbone, "", "max_new_tokens")} if generates else {}),
    }


def check_prompt(backbone: Backbone, prompt_tokens: int) -> None:
    """Refuse a prompt that leaves a backbone no position.

    Raises:
        RecipeError: it does.
    """
    if backbone.max_length is not None and backbone.max_length <= prompt_tokens:
        raise RecipeError(
            f"{prompt_tokens} prompt tokens leave no positions for texts on backbone {backbone.name!r}",
            expected=f"fewer than {backbone.max_length}",
            change="--method.num_virtual_tokens",
        )


def _at_most(
    given: int | None, longest: int | None, backbone: Backbone, beside: str, setting: str = "max_length"
) -> int:
    if given and longest and given > longest:
        raise RecipeError(
            f"texts of {given} tokens{beside} are too long for backbone {backbone.name!r}",
            expected=f"at most {longest}",
            change=f"--train.{setting}",
        )
    return given or min(MAX_LENGTH, longest or MAX_LENGTH)
