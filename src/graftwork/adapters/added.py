"""Added tokens: the rows that an adapter of any method adds to the backbone's embedding table."""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from graftwork.backbones import Backbone
from graftwork.backbones.tokenizers import pieces
from graftwork.errors import AdapterError
from graftwork.methods.parameters import Parameter, zeros
from graftwork.ops.added import Added
from graftwork.ops.op import Ops

ADDED = "embeddings.word.added"
"""The name of the rows, (n, d), in every family."""


def declare_added(backbone: Backbone, count: int) -> dict[str, Parameter]:
    """The embedding rows of added tokens. They have no weight decay: embeddings do not lie around zero.

    Raises:
        AdapterError: the backbone takes no tokens.
    """
    if not count:
        return {}
    if backbone.word_site is None:
        raise AdapterError(
            f"backbone {backbone.name!r} takes no tokens, so none can be added",
            expected="a backbone for texts",
            change="--add-tokens",
        )
    return {ADDED: Parameter(shape=(count, backbone.word_site.out_features), init=zeros, decay=False)}


def first_rows(backbone: Backbone, tokens: Sequence[str], generator: Generator) -> dict[str, Tensor]:
    """How the rows of new tokens start: each as the mean of the rows of the tokens of which its text was made until
    then, unknown ones left out. Where there are none it is drawn as the table's rows lie, N(mean, std²) in each
    dimension: at the mean itself all of them would be one word.

    Args:
        generator: the source of randomness.

    Raises:
        BackboneError: the backbone has no tokenizer.
        RecipeError: a token cannot be added.
    """
    if not tokens:
        return {}
    declare_added(backbone, len(tokens))
    backbone.require_tokenizer(tokens)
    tokenizer = backbone.require_tokenizer()
    assert backbone.word_site is not None  # its rows have been declared
    table = backbone.frozen(backbone.word_site)["weight"].detach()
    std, mean = (t.float().cpu() for t in torch.std_mean(table, dim=0))
    rows = []
    for ids in pieces(tokenizer, tokens):
        known = [i for i in ids if i != tokenizer.unk_token_id]
        drawn = mean + std * torch.randn(mean.shape, generator=generator)
        rows.append(table[known].float().mean(dim=0).cpu() if known else drawn)
    return {ADDED: torch.stack(rows)}


def with_added(ops: Ops, backbone: Backbone, parameters: Mapping[str, Tensor]) -> Ops:
    """An adapter's ops with that of its own tokens, where it has some."""
    if ADDED not in parameters:
        return ops
    assert backbone.word_site is not None  # its rows have been declared
    name = backbone.word_site.name
    return {**ops, name: [*ops.get(name, ()), Added(rows=parameters[ADDED])]}
