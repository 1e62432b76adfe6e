"""The model card that is saved with every merged model."""

from graftwork.arithmetic.merging.method import ChosenMethod
from graftwork.arithmetic.merging.plan import Plan
from graftwork.arithmetic.merging.recipe import MergeRecipe


def merge_card(recipe: MergeRecipe, plan: Plan, chosen: ChosenMethod) -> str:
    """A README for the folder, with the front matter that model hubs read. The same merge gives the same text."""
    operands = "\n".join(f"- {operand.path}" for operand in plan.operands)
    models = "\n".join(
        f"| `{checkpoint.name}` | {'-' if one.weight is None else one.weight} |"
        for checkpoint, one in zip(plan.models, recipe.models, strict=True)
    )
    base = "" if plan.base is None else f"- What they come from: `{plan.base.name}`\n"
    counts = {action: len(plan.named(action)) for action in ("merged", "averaged", "kept")}
    done = ", ".join(f"{count} {action}" for action, count in counts.items() if count)
    return f"""---
library_name: transformers
base_model:
{operands}
tags:
- merge
- graftwork
- {chosen.name}
---

# A merge of {len(plan.models)} model{"" if len(plan.models) == 1 else "s"}: {chosen.name}

| model | weight |
|---|---|
{models}

{base}- Method: {chosen.name} ({chosen.method.paper})
- Heads: {recipe.heads}
- Tensors: {done}

`graftwork merge recipe.yaml --output FOLDER` makes it again:

```yaml
{recipe.as_text().rstrip()}
```
"""
