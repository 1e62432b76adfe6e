"""`graftwork inspect`: what is in an adapter's folder."""

from pathlib import Path
from typing import Annotated

from graftwork.cli.settings import Switch


def inspect(adapter: Path, /, *, json: Annotated[bool, Switch] = False) -> None:
    """Show an adapter's method, task, scores, size and backbone. The backbone is not loaded.

    Parameters
    ----------
    adapter
        The adapter's folder.
    json
        Print it as JSON, with every tensor's shape.
    """
    from json import dumps

    from graftwork.adapters import Adapter
    from graftwork.adapters.card import readable_score
    from graftwork.cli.table import print_pairs, readable_bytes

    loaded = Adapter.load(adapter)
    if json:
        content = {
            "method": {"name": loaded.method.name, **loaded.method.model_dump(mode="json")},
            "task": loaded.task.model_dump(mode="json"),
            "head": loaded.head.model_dump(mode="json"),
            "backbone": loaded.backbone.model_dump(mode="json"),
            "pooling": loaded.head.pooled_by,
            "pooling_source": loaded.recipe.get("pooling_source"),
            "consolidated_with": list(loaded.consolidated_with),
            "metrics": {split: dict(scores) for split, scores in loaded.metrics.items()},
            "baseline": {split: dict(scores) for split, scores in loaded.baseline.items()},
            "rows": dict(loaded.rows),
            "seed": loaded.seed,
            "versions": dict(loaded.versions),
            "parameters": loaded.num_parameters,
            "bytes": loaded.num_bytes,
            "tensors": {name: list(tensor.shape) for name, tensor in loaded.tensors.items()},
        }
        print(dumps(content, indent=2))
        return
    made_for = f"{loaded.backbone.name} ({loaded.backbone.model_type}, {loaded.backbone.num_layers} layers x "
    scores = {
        f"{whose}{split} {metric}": readable_score(value, loaded.rows.get(split))
        for whose, of_splits in (("", loaded.metrics), ("baseline ", loaded.baseline))
        for split, found in of_splits.items()
        for metric, value in found.items()
    }
    print_pairs(
        {
            "task": f"{loaded.task.name} ({' -> '.join(loaded.describe())})",
            "method": f"{loaded.method.name} ({loaded.method.paper})",
            "settings": loaded.method.settings_text or "none",
            **({"pooling": loaded.pooling} if loaded.pooling else {}),
            **({"added tokens": ", ".join(loaded.task.added_tokens)} if loaded.task.added_tokens else {}),
            **({"consolidated with": ", ".join(loaded.consolidated_with)} if loaded.consolidated_with else {}),
            "parameters": f"{loaded.num_parameters:,} in {len(loaded.tensors)} tensors",
            "weights": f"{readable_bytes(loaded.num_bytes)} (adapter.safetensors)",
            "backbone": f"{made_for}{loaded.backbone.hidden_size}, fingerprint {loaded.backbone.fingerprint[:12]})",
            "seed": loaded.seed,
            **scores,
            "made with": ", ".join(f"{name} {version}" for name, version in loaded.versions.items()),
        }
    )
