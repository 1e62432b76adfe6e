"""How text is generated: transformers' settings for it, made of an adapter's."""

from copy import deepcopy

from transformers import GenerationConfig

from graftwork.encoding import GenerationEncoder
from graftwork.errors import RecipeError
from graftwork.settings.checked import require_count

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
"""Settings that a checkpoint may bring, and that mean nothing where the likeliest text is looked for."""

LOOKING_BACK = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""Settings that change the scores of tokens that are in a text already, and what each is where it changes none."""


def generation_config(encoder: GenerationEncoder, *, max_new_tokens: int, num_beams: int) -> GenerationConfig:
    """The backbone's own settings for generation, with ours in their place; nothing is sampled.

    Raises:
        RecipeError: no whole number of 1 or more, or more tokens than the backbone has positions for behind the
            adapter's prompt and the longest source; or settings of the backbone's own that added tokens in a source
            cannot have.
    """
    backbone, tokenizer = encoder.backbone, encoder.tokenizer
    for name, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
        require_count(name, value)
    # Of an encoder-decoder prompt and source are the encoder's.
    prompt, before = (encoder.prompt_tokens, encoder.max_length) if encoder.causal else (0, 0)
    longest = None if backbone.max_length is None else backbone.max_length - prompt
    if longest is not None and before + max_new_tokens > longest:
        raise RecipeError(
            f"{max_new_tokens} new tokens are too many for backbone {backbone.name!r}"
            + (f" after a source of {before}" if before else "")
            + (f" and {prompt} prompt tokens" if prompt else ""),
            expected=f"at most {longest - before}",
            change="--max-new-tokens, or --train.max_length when tuning",
        )
    config = deepcopy(backbone.model.generation_config)
    assert isinstance(config, GenerationConfig)  # the head has been checked
    looking_back = [name for name, none in LOOKING_BACK.items() if getattr(config, name, None) not in (None, none)]
    if encoder.task.added_tokens and looking_back and encoder.causal:
        raise RecipeError(
            f"backbone {backbone.name!r} generates with {' and '.join(looking_back)}, which looks up the scores of the "
            "source's tokens, and added tokens have none",
            expected="generation without",
            change=f"backbone.model.generation_config.{looking_back[0]}, or --add-tokens",
        )
    config.update(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        max_length=None,
        eos_token_id=encoder.end,
        pad_token_id=tokenizer.pad_token_id,
        **dict.fromkeys(SAMPLING),
    )
    return config
