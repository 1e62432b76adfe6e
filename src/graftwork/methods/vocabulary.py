"""A backbone's words as starting points: which tokens they are, and what the backbone makes of them.

Tensors are float32 on the CPU, as a new adapter's are.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from graftwork.backbones import Backbone, Site
from graftwork.backbones.tokenizers import pieces
from graftwork.errors import MethodError
from graftwork.ops.prompt import embedded

MOST_FREQUENT = 5000
"""Size of the pool of words that vocabulary is drawn from (Lester et al. 2021, section 3.2)."""

SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def draw_words(backbone: Backbone, count: int, generator: Generator) -> list[int]:
    """Tokens drawn from the backbone's most frequent words, none twice while there are others.

    How frequent a word is, no tokenizer says; vocabularies are made in order of frequency or of merging, so the lowest
    ids stand for it. Words are tokens of two letters or more; without a tokenizer, all that the configuration does not
    name as special.
    """
    pool = _frequent_words(backbone)
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += [pool[i] for i in torch.randperm(len(pool), generator=generator).tolist()]
    return drawn[:count]


def tokens_of(backbone: Backbone, text: str, count: int) -> list[int]:
    """A text's tokens, over again until there are so many.

    Raises:
        BackboneError: the backbone has no tokenizer.
        MethodError: the text has no tokens.
    """
    [ids] = pieces(backbone.require_tokenizer(), [text])
    if not ids:
        raise MethodError(f"the text {text!r} has no tokens", expected="some words", change="--method.text")
    return (ids * -(-count // len(ids)))[:count]


def embeddings(backbone: Backbone, ids: Sequence[int]) -> Float[Tensor, "n d"]:
    """The input embeddings of tokens, as they enter the first stack."""
    stack = backbone.base.get_encoder() if backbone.is_encoder_decoder else backbone.base
    with torch.no_grad():
        return embedded(stack, torch.tensor(ids, device=backbone.device)).float().cpu()


def label_embeddings(backbone: Backbone, labels: Sequence[str]) -> Float[Tensor, "C d"]:
    """For each label the mean of its tokens' input embeddings.

    Raises:
        BackboneError: the backbone has no tokenizer.
        MethodError: the labels have no tokens.
    """
    ids = pieces(backbone.require_tokenizer(), labels)
    if not any(ids):
        raise MethodError(
            f"the labels {', '.join(map(repr, labels))} have no tokens", expected="another init", change="--method.init"
        )
    return torch.stack([embeddings(backbone, one).mean(dim=0) for one in ids if one])


def activations(
    backbone: Backbone, ids: Sequence[int], sites: Sequence[Site]
) -> dict[str, tuple[Float[Tensor, "g l e"], Float[Tensor, "g l e"]]]:
    """What attentions make of a text: its keys and values, by the attention's site.

    Keys are taken before any rotation, as if each token stood at the first position. In an encoder-decoder both read
    the text.

    Raises:
        MethodError: the text is longer than the backbone has positions for.
    """
    if backbone.max_length is not None and len(ids) > backbone.max_length:
        raise MethodError(
            f"{len(ids)} words are more than backbone {backbone.name!r} has positions for",
            expected=f"at most {backbone.max_length}",
            change="--method.num_virtual_tokens",
        )
    found: dict[str, Tensor] = {}
    hooks = []
    for site in sites:
        for part in ("key", "value"):
            name = site.name.removesuffix("kv") + part
            source = backbone.sites[f"{name}_norm" if f"{name}_norm" in backbone.sites else name]

            def keep(module: object, inputs: object, output: Tensor, name: str = name, source: Site = source) -> None:
                found[name] = output if source.columns is None else output[..., slice(*source.columns)]

            hooks.append(backbone.modules[source.path].register_forward_hook(keep))
    text = torch.tensor([list(ids)], device=backbone.device)
    inputs = {"input_ids": text, **({"decoder_input_ids": text} if backbone.is_encoder_decoder else {})}
    try:
        with torch.no_grad():
            backbone.base(**inputs)
    finally:
        for hook in hooks:
            hook.remove()

    def rows(site: Site, part: str) -> Tensor:
        flat = found[site.name.removesuffix("kv") + part]
        return flat.reshape(len(ids), site.heads, site.head_dim).transpose(0, 1).float().cpu().contiguous()

    return {site.name: (rows(site, "key"), rows(site, "value")) for site in sites}


def _frequent_words(backbone: Backbone) -> list[int]:
    rows = backbone.base.get_input_embeddings().weight.shape[0]  # type: ignore[index]
    tokenizer = backbone.tokenizer
    if tokenizer is None:
        special = {getattr(backbone.config, name, None) for name in SPECIAL}
        return [i for i in range(rows) if i not in special][:MOST_FREQUENT]
    special = set(tokenizer.all_special_ids)
    words: list[int] = []
    for i in range(min(rows, len(tokenizer))):
        text = str(tokenizer.decode([i])).strip()
        if i not in special and len(text) > 1 and text.isalpha():
            words.append(i)
        if len(words) == MOST_FREQUENT:
            break
    return words or [i for i in range(rows) if i not in special]
