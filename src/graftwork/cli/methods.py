"""`graftwork methods`: every method, and what it would train on a backbone."""

from textwrap import indent
from typing import Annotated

from graftwork.cli.settings import Switch


def methods(*, backbone: str | None = None, json: Annotated[bool, Switch] = False) -> None:
    """List every method: where it is from, what it lowers to, what it trains, and whether it can be merged.

    Parameters
    ----------
    backbone
        minilm, a folder with config.json, or a hub id: also say where each method acts on it and how many parameters it
        trains, or why it cannot act. No weights are loaded.
    json
        Print JSON.
    """
    from json import dumps

    from graftwork.cli.table import print_table
    from graftwork.training.planning import survey

    rows = survey(backbone)
    if json:
        print(dumps([row.as_dict() for row in rows]))
        return
    table = []
    for row in rows:
        line = {"method": row.name, "ops": ", ".join(row.ops) or "none", "merges": "no" if row.unmergeable else "yes"}
        if backbone is not None:
            line["trained"] = "refused" if row.trained is None else f"{row.trained:,}"
        line["paper"] = row.paper
        if backbone is not None:
            line["sites"] = ", ".join(row.sites) or "none"
        table.append(line)
    print_table(table)
    refused = [f"{row.name}: {row.refused}" for row in rows if row.refused]
    if refused:
        print("\nrefused on this backbone:\n" + indent("\n".join(refused), "  "))
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.unmergeable:
            reasons.setdefault(row.unmergeable, []).append(row.name)
    lines = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    print("\nnot merged into weights, because:\n" + indent("\n".join(lines), "  "))
