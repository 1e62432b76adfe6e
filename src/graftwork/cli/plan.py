"""`graftwork plan`: what a method would train on a backbone, before any weights are loaded."""

from typing import Annotated, Literal

from cyclopts.types import PositiveInt

from graftwork.cli.settings import Settings, Switch, parse_settings
from graftwork.errors import RecipeError
from graftwork.kinds import KindName


def plan(
    *,
    backbone: str = "minilm",
    method: str = "houlsby",
    kind: KindName | None = None,
    labels: PositiveInt = 2,
    pooling: Literal["auto", "pooler", "first", "last", "mean"] = "auto",
    json: Annotated[bool, Switch] = False,
    settings: Settings = [],  # noqa: B006 (cyclopts makes a new list for each call)
) -> None:
    """Count what would be trained. No weights are loaded: a folder with only config.json is enough.

    Parameters
    ----------
    backbone
        minilm, smollm2, a folder with config.json, or a hub id. Default: minilm.
    method
        A method that `graftwork methods` lists. Default: houlsby. Its settings: --method.KEY VALUE.
    kind
        The kind of task, which decides the head. Default: classification, or regression with --labels 1.
    labels
        Number of classes or tags; 1 for regression.
    pooling
        How a text becomes one vector: auto (the backbone's own way), pooler, first, last, mean.
    json
        Print JSON.
    """
    from json import dumps

    from graftwork.cli.table import print_pairs, readable_bytes
    from graftwork.training.planning import count

    values = parse_settings(settings)
    foreign = [key for key in values if not key.startswith("method.")]
    if foreign:
        raise RecipeError(
            f"plan takes no {', '.join(foreign)}",
            expected="settings of the method",
            change=", ".join(f"--{key}" for key in foreign),
        )
    found = count(
        backbone,
        method,
        {key.removeprefix("method."): value for key, value in values.items()},
        kind=kind,
        num_labels=labels,
        pooling=pooling,
    )
    if json:
        print(dumps(found))
        return
    trained = found["trained"]
    print_pairs(
        {
            "adapter": f"{trained['adapter']:,}",
            "norms": f"{trained['norms']:,}",
            "head": f"{trained['head']:,}",
            "total": f"{trained['total']:,} ({found['percent']:.2f} % of the backbone)",
            "without the classifier": f"{trained['without_classifier']:,}",
            "backbone": f"{found['backbone']:,}",
            "weights": f"{readable_bytes(found['bytes'])} (adapter.safetensors)",
        }
    )
