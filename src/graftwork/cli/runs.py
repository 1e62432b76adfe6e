"""`graftwork runs`: the runs of a study: listed, filtered, shown, compared, exported."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from graftwork.cli.settings import Switch
from graftwork.errors import RecipeError

if TYPE_CHECKING:
    from graftwork.studies import Difference
    from graftwork.studies.index import Index
    from graftwork.studies.records import Record


def runs(
    folder: Path,
    /,
    *,
    task: str | None = None,
    method: str | None = None,
    state: Literal["done", "failed"] | None = None,
    where: Annotated[list[str], Parameter(negative=())] = [],  # noqa: B006 (cyclopts makes a new list for each call)
    show: str | None = None,
    compare: tuple[str, str] | None = None,
    export: Path | None = None,
    rebuild: Annotated[bool, Switch] = False,
    json: Annotated[bool, Switch] = False,
) -> None:
    """List the runs of a study, or some of them; show one, compare two, or export them. No backbone is loaded.

    Parameters
    ----------
    folder
        The folder of a study, as compare makes it.
    task
        Only runs of this task.
    method
        Only runs of this method.
    state
        Only runs in this state: done or failed.
    where
        Only runs for which this holds: KEY=VALUE, with =, !=, <, <=, > or >=. Keys are what --json prints, scores
        (test.accuracy), and settings (train.num_train_epochs, method.bottleneck). May be repeated.
    show
        Show one run: scores, settings, and the error of a failed one. The first digits of its name are enough.
    compare
        Compare two runs by their names: the settings that differ, the scores, and whether the difference is one.
    export
        Write the runs with all their scores to a file: .csv or .parquet.
    rebuild
        Make the index anew from the run folders.
    json
        Print JSON.
    """
    from json import dumps

    from graftwork.cli.table import print_table
    from graftwork.studies.index import Index

    if show is not None and compare is not None:
        raise RecipeError("--show and --compare are given", expected="one of the two")
    index = Index(folder, rebuild=rebuild)
    if show is not None:
        _show(index, show, as_json=json)
        return
    if compare is not None:
        _compare(index, *compare, as_json=json)
        return
    given = {"task": task, "method": method, "state": state}
    found = index.find({key: value for key, value in given.items() if value is not None}, where)
    if export is not None:
        from graftwork.studies.exporting import export as write

        write(index.export(found), export)
        print(f"{len(found)} runs in {export}")
        return
    if json:
        print(dumps(index.export(found)))
    elif found:
        print_table([_line(row) for row in found])
    else:
        print("no runs")


def _line(row: Mapping[str, Any]) -> dict[str, str]:
    method = row["method"] + (f" ({row['setting']})" if row["setting"] else "")
    facts = {"run": row["hash"], "state": row["state"], "task": row["task"], "method": method}
    return {
        **facts,
        "rate": f"{row['learning_rate']:g}",
        "seed": str(row["seed"]),
        "metric": row["main_metric"],
        **{split: "" if row[split] is None else f"{row[split]:.4f}" for split in ("validation", "test")},
        "seconds": f"{row['seconds']:.0f}",
    }


def _show(index: "Index", name: str, *, as_json: bool) -> None:
    from json import dumps

    from graftwork.cli.table import print_pairs, readable_bytes
    from graftwork.settings.yamlfile import RECIPE, dump_yaml, read_yaml
    from graftwork.studies.records import read_record

    place = index.place(name)
    record, recipe = read_record(place), read_yaml(place / RECIPE)
    if as_json:
        print(dumps({**vars(record), "recipe": recipe, "folder": str(place)}))
        return
    scores = {
        split: ", ".join(f"{metric} {value:.4f}" for metric, value in own.items())
        for split, own in record.scores.items()
    }
    percent = 100 * record.trained_parameters / record.backbone_parameters if record.backbone_parameters else 0.0
    memory = {} if record.peak_memory is None else {"peak memory": readable_bytes(record.peak_memory)}
    sizes = {
        "trained": f"{record.trained_parameters:,} ({percent:.2f} %), {record.head_parameters:,} of them in the head",
        "weights": readable_bytes(record.nbytes),
    }
    print_pairs(
        {
            **{"run": record.hash, "state": record.state, "task": record.task, "method": _method(record)},
            "seed": record.seed,
            **scores,
            **(sizes if record.scores else {}),
            "time": f"{record.seconds:.0f} s, ended {record.ended}",
            **memory,
            "folder": place,
        }
    )
    print("\n" + dump_yaml({key: recipe[key] for key in ("method", "train")}).rstrip())
    errors = [*record.earlier_errors, *([record.error] if record.error else [])]
    for number, error in enumerate(errors, start=1):
        print(f"\nerror {number} of {len(errors)}: {error['message']}\n{error['traceback'].rstrip()}")


def _compare(index: "Index", first: str, second: str, *, as_json: bool) -> None:
    from json import dumps

    from graftwork.cli.table import print_pairs, print_table
    from graftwork.errors import DataError, first_line
    from graftwork.settings.yamlfile import RECIPE, read_yaml
    from graftwork.studies.index import flat
    from graftwork.studies.pairing import pair_up
    from graftwork.studies.records import DONE, read_record

    places = [index.place(first), index.place(second)]
    records = [read_record(place) for place in places]
    settings = [flat(read_yaml(place / RECIPE)) for place in places]
    differing = {
        key: [own.get(key) for own in settings]
        for key in dict.fromkeys([*settings[0], *settings[1]])
        if settings[0].get(key) != settings[1].get(key)
    }
    names = dict.fromkeys((split, metric) for own in records for split in own.scores for metric in own.scores[split])
    scores = {
        f"{split} {metric}": [own.scores.get(split, {}).get(metric) for own in records] for split, metric in names
    }
    pair, reason = None, "they are not two finished runs of one task with a test split"
    comparable = records[0].task == records[1].task and all(
        own.state == DONE and "test" in own.scores for own in records
    )
    if comparable:
        one, other = (own.result(place) for own, place in zip(records, places, strict=True))
        try:
            pair = pair_up([(one, other)])
        except DataError as error:
            reason = first_line(error)
    if as_json:
        rows = None if pair is None or pair.by_rows is None else vars(pair.by_rows)
        statistics = None if pair is None else {"by_rows": rows, "mcnemar_p": pair.mcnemar}
        print(dumps({"settings": differing, "scores": scores, "statistics": statistics}))
        return
    heads = [own.hash for own in records]
    print_table(
        [
            {"": key, **{head: str(value) for head, value in zip(heads, values, strict=True)}}
            for key, values in {
                "state": [own.state for own in records],
                "method": [_method(own) for own in records],
                **differing,
                **{key: [_number(value) for value in values] for key, values in scores.items()},
            }.items()
        ]
        if heads[0] != heads[1]
        else [{"": "run", heads[0]: "the same run twice"}]
    )
    if pair is None:
        print(f"\nno comparison by rows: {reason}")
        return
    lines = {} if pair.by_rows is None else {"test, first less second": _difference(pair.by_rows)}
    if pair.mcnemar is not None:
        lines["McNemar's exact test"] = f"p = {pair.mcnemar:.3g}"
    if lines:
        print()
        print_pairs(lines)


def _difference(own: "Difference") -> str:
    return f"{own.mean:+.4f} (95 %: {own.low:+.4f} to {own.high:+.4f}; p = {own.p:.3g}, {own.test})"


def _method(record: "Record") -> str:
    return record.method + (f" ({record.setting})" if record.setting else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
