"""How many tokens a text can have: as many as a table of position embeddings has positions for."""

from typing import Any

from torch import nn

TABLES = ("position_embeddings", "embed_positions", "wpe")
"""What models call theirs."""


def longest_by(table: Any) -> int:
    """The largest number of tokens, given by a table of position embeddings."""
    # RoBERTa counts positions from the one after its padding; BART from its table's `offset` on.
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    return int(table.num_embeddings - getattr(table, "offset", first))


def longest_of(model: nn.Module) -> int | None:
    """The largest number of tokens, given by the tables of any model; None if it has none."""
    tables = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in TABLES and isinstance(module, nn.Embedding)
    ]
    return min(map(longest_by, tables), default=None)
