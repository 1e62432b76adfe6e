"""`graftwork methods`: every method and when to use it; and all that there is to say of one."""

from importlib.util import find_spec
from textwrap import indent
from typing import TYPE_CHECKING, Annotated

from graftwork.cli.settings import Switch

if TYPE_CHECKING:
    from graftwork.methods import Method
    from graftwork.training.planning import Surveyed


def methods(name: str | None = None, /, *, backbone: str | None = None, json: Annotated[bool, Switch] = False) -> None:
    """List every method: the parameters it trains, whether it merges into the weights, and when to use it.

    Parameters
    ----------
    name
        A method: show its paper, training defaults, settings, ops and sites, and why it does not merge.
    backbone
        minilm, a folder with config.json, or a hub id: the backbone on which parameters are counted. No weights are
        loaded. Default: minilm, where its package is installed.
    json
        Print JSON.
    """
    from json import dumps

    from graftwork.backbones.checkpoints import EMBEDDED
    from graftwork.cli.table import print_pairs
    from graftwork.methods import make_method
    from graftwork.training.planning import survey, survey_one

    if backbone is None and find_spec(EMBEDDED["minilm"][0]):
        backbone = "minilm"
    if name is None:
        rows = survey(backbone)
        if json:
            print(dumps([row.as_dict() for row in rows]))
        else:
            _print_all(rows, backbone)
        return
    row, method = survey_one(name, backbone), make_method(name)
    if json:
        print(dumps({**row.as_dict(), "defaults": method.model_dump(mode="json"), **_training(method)}))
    else:
        print_pairs(_pairs(row, method, backbone))


def _print_all(rows: "list[Surveyed]", backbone: str | None) -> None:
    from graftwork.cli.table import print_table

    table = []
    for row in rows:
        line = {"method": row.name}
        if backbone is not None:
            line["trained"] = "refused" if row.trained is None else f"{row.trained:,}"
        table.append(line | {"merges": "no" if row.unmergeable else "yes", "when to use it": row.when})
    print_table(table)
    refused = [f"{row.name}: {row.refused}" for row in rows if row.refused]
    if refused:
        print("\nrefused on this backbone:\n" + indent("\n".join(refused), "  "))
    counted = "--backbone NAME counts the trained parameters on a backbone."
    if backbone is not None:
        counted = f"trained: number of trained parameters on {backbone}, without the head. --backbone NAME: on another."
    print(f"\n{counted}\ngraftwork methods NAME: paper, defaults, settings, sites, and why it does not merge.")


def _pairs(row: "Surveyed", method: "Method", backbone: str | None) -> dict[str, object]:
    """What is shown of one method."""
    from json import dumps

    known: dict[str, object] = {"method": row.name, "when to use it": row.when, "paper": row.paper}
    if row.settings:
        known["the same as"] = f"{row.method} with other defaults of {', '.join(row.settings)}"
    if backbone is not None:
        known["trained"] = f"refused on {backbone}: {row.refused}" if row.refused else f"{row.trained:,} on {backbone}"
        known["acts at"] = ", ".join(row.sites) or "no site: only the head is trained"
    known["ops"] = ", ".join(row.ops) or "none"
    known["merges"] = f"no: {row.unmergeable}" if row.unmergeable else "yes"
    known |= {f"--train.{key}": value for key, value in _training(method).items()}
    settings = method.model_dump(mode="json").items()
    return known | {
        f"--method.{key}": value if isinstance(value, str) else dumps(value, ensure_ascii=False)
        for key, value in settings
    }


def _training(method: "Method") -> dict[str, object]:
    """The defaults that it is trained with."""
    names = ("learning_rate", "num_train_epochs", "optim", "lr_scheduler_type")
    return {name: getattr(method, name) for name in names}
