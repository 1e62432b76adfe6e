"""The model card that is saved with every adapter."""

from graftwork.adapters.record import Record
from graftwork.kinds import KINDS

FEW = 100
"""Of so many rows on, a score is shown without their number."""


def readable_score(value: float, rows: int | None) -> str:
    """A score, and of how many rows it is where they are few."""
    few = rows is not None and rows < FEW
    return f"{value:.4f}" + (f" ({rows} row{'' if rows == 1 else 's'})" if few else "")


def model_card(adapter: Record) -> str:
    """A README for the adapter's folder, with the front matter that model hubs read. The same adapter gives the same
    text.
    """
    settings = adapter.method.settings_text
    given = '("first text", "second text")' if adapter.task.pairs else KINDS[adapter.kind].example
    scores = "\n".join(
        f"| {split} | {metric} | {readable_score(value, adapter.rows.get(split))} |"
        + (f" {_baseline(adapter, split, metric)} |" if adapter.baseline else "")
        for split, values in adapter.metrics.items()
        for metric, value in values.items()
    )
    header, rule = "| split | metric | value |", "|---|---|---|"
    if adapter.baseline:
        header, rule = f"{header} a linear model on the frozen embeddings |", f"{rule}---|"
    table = f"## Scores\n\n{header}\n{rule}\n{scores}\n" if scores else ""
    pooling = f"- Pooling: {adapter.pooling}\n" if adapter.pooling else ""
    others = ", ".join(adapter.consolidated_with)
    shared = (
        f"- Consolidated with: {others} (in a pool; a run by `recipe.yaml` would make another one)\n" if others else ""
    )
    tokens = adapter.task.added_tokens
    added = f"- Added tokens: {', '.join(f'`{token}`' for token in tokens)}\n" if tokens else ""
    return f"""---
library_name: graftwork
base_model: {adapter.backbone.name}
tags:
- graftwork
- adapter
- {adapter.method.name}
---

# {adapter.task.name}: {adapter.method.name} on {adapter.backbone.name}

An adapter made with graftwork. It holds {adapter.num_parameters:,} parameters and runs on the frozen backbone
`{adapter.backbone.name}` (fingerprint `{adapter.backbone.fingerprint[:12]}`).

- Method: `{adapter.method.name}` ({adapter.method.paper}){": " + settings if settings else ""}
- Input: {adapter.describe()[0]}
- Output: {adapter.describe()[1]}
{pooling}{added}{shared}- Seed: {adapter.seed}

{table}
## Use

```python
import graftwork as gw

backbone = gw.Backbone.load("{adapter.backbone.name}")
model = gw.AdaptedModel(backbone, {{"{adapter.task.name}": gw.Adapter.load("PATH")}})
print(model.predict([{given}]))
```
"""


def _baseline(adapter: Record, split: str, metric: str) -> str:
    value = adapter.baseline.get(split, {}).get(metric)
    return "" if value is None else f"{value:.4f}"
