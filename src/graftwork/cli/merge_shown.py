"""What `graftwork merge` prints: the plan of a dry run, and the result."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftwork.arithmetic.merging.adapterplan import AdapterPlan
    from graftwork.arithmetic.merging.plan import Plan
    from graftwork.arithmetic.merging.recipe import MergeRecipe
    from graftwork.arithmetic.merging.result import MergeResult

ACTIONS = ("merged", "averaged", "kept", "unchanged")


def plan_of(recipe: "MergeRecipe", *, as_json: bool) -> None:
    """Print what a merge does with each tensor and head."""
    if recipe.of_adapters:
        from graftwork.arithmetic.merging.adapterplan import plan_adapters

        _show_adapters(plan_adapters(recipe), as_json=as_json)
    else:
        _show_models(recipe.plan(), as_json=as_json)


def show_result(result: "MergeResult", *, as_json: bool) -> None:
    """Print what a merge made."""
    from json import dumps

    from graftwork.cli.table import print_table

    if as_json:
        print(dumps(_as_json(result)))
        return
    for line in result.said:
        print(line)
    if result.swept:
        print_table([{"value": str(value), **_cells(scores)} for value, scores in result.swept])
    if result.scores:
        columns = dict.fromkeys(key for scores in result.scores.values() for key in scores)
        what = "model" if result.merged is None else "adapter"
        print_table(
            [
                {what: name, **{key: f"{scores[key]:.4f}" if key in scores else "-" for key in columns}}
                for name, scores in result.scores.items()
            ]
        )
    print(f"saved in {result.output} ({_saved(result)})")


def _saved(result: "MergeResult") -> str:
    from graftwork.cli.table import readable_bytes

    if result.merged is not None:
        adapters = result.merged.adapters
        heads = f"{len(adapters)} heads: {', '.join(adapters)}" if len(adapters) > 1 else "1 head"
        return f"{next(iter(adapters.values())).method.name}, {heads}"
    assert result.plan is not None
    return f"{len(result.plan.tensors)} tensors, {readable_bytes(result.plan.nbytes)}"


def _as_json(result: "MergeResult") -> dict[str, Any]:
    content: dict[str, Any] = {"output": str(result.output), "method": result.method.described()}
    if result.merged is not None:
        adapters = result.merged.adapters
        content["heads"] = {n: {"method": own.method.name, "bytes": own.num_bytes} for n, own in adapters.items()}
    else:
        assert result.plan is not None
        content |= {"tensors": len(result.plan.tensors), "bytes": result.plan.nbytes}
    return {
        **content,
        "scores": {name: dict(scores) for name, scores in result.scores.items()},
        "sweep": [{"value": value, **scores} for value, scores in result.swept],
        **result.details,
    }


def _show_models(plan: "Plan", *, as_json: bool) -> None:
    from dataclasses import asdict
    from json import dumps

    left_out = {plan.operands[i].name: [*names] for i, names in plan.left_out.items()}
    if as_json:
        content = {
            "tensors": [asdict(tensor) for tensor in plan.tensors],
            "left_out": left_out,
            "bytes_read": plan.bytes_read,
            "bytes": plan.nbytes,
        }
        print(dumps(content))
        return
    _print_tensors(plan)
    for name, names in left_out.items():
        print(f"left out of {name}: {', '.join(names)}")
    print(_sum(plan))


def _show_adapters(plan: "AdapterPlan", *, as_json: bool) -> None:
    from dataclasses import asdict
    from json import dumps

    from graftwork.cli.table import print_table

    if as_json:
        content = {
            "adapters": {name: {"method": method, "folder": str(p)} for name, (method, p) in plan.adapters.items()},
            "method": plan.method,
            "at_most": plan.at_most,
            "chosen": plan.chosen,
            "heads": [asdict(head) for head in plan.heads],
            "tensors": [asdict(tensor) for tensor in plan.tensors],
            "reads": list(plan.reads),
            "bytes_read": plan.bytes_read,
            "bytes": plan.nbytes,
        }
        print(dumps(content))
        return
    print_table([{"adapter": n, "method": method, "folder": str(p)} for n, (method, p) in plan.adapters.items()])
    print()
    _print_tensors(plan)
    print()
    print_table(
        [
            {
                "head": head.name,
                "is": f"the mean of {len(head.of)}" if len(head.of) > 1 else f"kept of {head.of[0]}",
                "labels": _few(head.labels),
            }
            for head in plan.heads
        ]
    )
    for line in plan.reads:
        print(f"reads {line}")
    rank = "; its rank is at most that of the shapes" if plan.at_most else ""
    print(f"gives {plan.method}{rank}")
    if plan.chosen:
        print("scores decide which of the adapters it is of; this is that of all of them")
    print(_sum(plan))


def _print_tensors(plan: "Plan | AdapterPlan") -> None:
    from graftwork.cli.table import print_table

    print_table(
        [
            {
                "tensor": tensor.name,
                "role": tensor.role,
                "shape": "x".join(map(str, tensor.shape)) or "-",
                "type": tensor.dtype,
                "bytes": f"{tensor.nbytes:,}",
                "is": tensor.action + (f" from {tensor.source}" if tensor.source else ""),
            }
            for tensor in plan.tensors
        ]
    )


def _sum(plan: "Plan | AdapterPlan") -> str:
    from graftwork.cli.table import readable_bytes

    counts = {action: len(plan.named(action)) for action in ACTIONS}
    return (
        f"{len(plan.tensors)} tensors ({', '.join(f'{count} {action}' for action, count in counts.items() if count)}), "
        f"{readable_bytes(plan.nbytes)}; {readable_bytes(plan.bytes_read)} are read"
    )


def _cells(scores: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in scores.items()}


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels[:4]) + (" …" if len(labels) > 4 else "") or "-"
