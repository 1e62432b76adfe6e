"""`graftwork extract`: a small LoRA adapter out of a fully fine-tuned model, or out of a larger adapter."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from graftwork.cli.flags import PLAIN, Written
from graftwork.cli.settings import Switch
from graftwork.cli.starting import say_start
from graftwork.errors import RecipeError

if TYPE_CHECKING:
    from graftwork.arithmetic import Extracted


def extract(
    source: Path,
    /,
    *,
    output: Path,
    rank: int = 16,
    backbone: str | None = None,
    targets: str | None = None,
    rest: Literal["keep", "drop"] = "keep",
    task: str | None = None,
    pairs: Annotated[bool, Switch] = False,
    max_length: int | None = None,
    written: Written = PLAIN,
) -> None:
    """Extract the best LoRA adapter of a rank from what a fine-tuned model, or an adapter, changes in the weights.

    Parameters
    ----------
    source
        A Hugging Face model's folder, or an adapter's, such as one of full fine-tuning.
    output
        Folder for the adapter. It must not exist.
    rank
        Rank of the products.
    backbone
        The model that it was tuned from: minilm, smollm2, a folder or a hub id. Of an adapter: if it has moved.
    targets
        Patterns of the linear maps that LoRA is to adapt, separated by commas. Default: all whose weights are changed.
    rest
        keep: what is changed in biases and norms is kept exactly (by BitFit and layer-norm tuning). drop: it is left
        out. What is changed in embeddings is left out, and told.
    task
        For a model: name of its task. Default: the folder's.
    pairs
        For a model: its inputs are pairs of texts.
    max_length
        For a model: maximum number of tokens of a text. Default: 128.
    """
    say_start(quiet=written.quiet)
    from graftwork.adapters import Adapter
    from graftwork.adapters.folder import refuse_existing
    from graftwork.arithmetic import extract_lora, finetuned_adapter
    from graftwork.arithmetic.adapters.finetuned import is_model_folder
    from graftwork.backbones import Backbone

    refuse_existing(output, overwrite=written.overwrite)
    patterns = None if targets is None else tuple(part.strip() for part in targets.split(","))
    if is_model_folder(source):
        if backbone is None:
            raise RecipeError(
                f"{str(source)!r} is a model, and the one that it was tuned from is not given",
                expected="its folder or name",
                change="--backbone",
            )
        frozen = Backbone.load(backbone, dtype="float32")
        adapter = finetuned_adapter(source, frozen, name=task, pairs=pairs, max_length=max_length or 128)
    else:
        given = {"--task": task, "--pairs": pairs or None, "--max-length": max_length}
        idle = [flag for flag, value in given.items() if value is not None]
        adapter = Adapter.load(source)
        if idle:
            raise RecipeError(
                f"{', '.join(idle)} would do nothing: the adapter says it",
                expected="a model's folder",
                change=", ".join(idle),
            )
        frozen = Backbone.load(backbone or adapter.backbone.name, dtype="float32")
    found = extract_lora(adapter, frozen, rank, targets=patterns, rest=rest)
    found.adapter.save(output, overwrite=written.overwrite)
    _report(found, output, rank, as_json=written.json)


def _report(found: "Extracted", output: Path, rank: int, *, as_json: bool) -> None:
    from dataclasses import asdict
    from json import dumps

    from graftwork.cli.table import print_pairs, print_table, readable_bytes

    adapter = found.adapter
    if as_json:
        result = {
            "method": adapter.method.name,
            "rank": rank,
            "kept": found.kept,
            "bytes": adapter.num_bytes,
            "tensors": [asdict(one) for one in found.tensors],
            "output": str(output),
        }
        print(dumps(result))
        return
    largest = sorted(found.tensors, key=lambda one: -(1.0 - one.kept) * one.squared)[:10]
    print("what is lost most, of all that is changed:")
    print_table(
        [
            {
                "tensor": one.name,
                "change, relative": f"{one.relative:.4f}",
                "as": one.how,
                "kept": f"{one.kept:.1%}",
            }
            for one in largest
        ]
    )
    print()
    print_pairs(
        {
            "method": f"{adapter.method.name}, rank {rank}, {readable_bytes(adapter.num_bytes)}",
            "kept": f"{found.kept:.1%} of the squared changes of {len(found.tensors)} tensors",
            "left out": f"{len(found.left_out)} tensors"
            + (f", such as {found.left_out[0].name}" if found.left_out else ""),
        }
    )
    print(f"saved in {output}")
