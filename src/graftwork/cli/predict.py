"""`graftwork predict`: the predictions of a saved adapter for texts, words, questions or images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts.types import PositiveInt

from graftwork.cli.settings import Switch
from graftwork.errors import DataError
from graftwork.kinds import KINDS


def predict(
    adapter: Path,
    /,
    *inputs: str,
    file: Path | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    image: str | None = None,
    choices: str | None = None,
    backbone: str | None = None,
    dtype: str = "auto",
    batch_size: PositiveInt = 32,
    max_new_tokens: PositiveInt | None = None,
    num_beams: PositiveInt | None = None,
    without_parts: str | None = None,
    allow_backbone_mismatch: Annotated[bool, Switch] = False,
    json: Annotated[bool, Switch] = False,
) -> None:
    """Predict with a saved adapter: inputs as arguments, from a file, or from standard input (one per line).

    An input is a text or an image's path; for tagging, a text is split into words at white space. For tasks over
    pairs, each two arguments are one input, and a line of a file is two texts separated by a tab. For multiple choice,
    the arguments are one question and its choices, and a line of a file is the same, separated by tabs.

    A class or choice is printed with its probability before the input, a number before the input, tags one per line
    after their words with a blank line after each text, and a generated text by itself.

    Parameters
    ----------
    adapter
        The adapter's folder.
    inputs
        The inputs; put -- before one that begins with a dash. Without inputs and --file, standard input is read.
    file
        A file of inputs, one per line; or a table (.csv, .tsv, .jsonl, .json, .parquet) with --text or --image.
    text
        Column of the text in the table; for tagging it may hold lists of words.
    text_pair
        Column of the second text in the table.
    image
        Column of the images' paths in the table.
    choices
        Columns of the choices in the table, separated by commas; or the one column of lists of choices.
    backbone
        Folder or hub id of the backbone, if it has moved.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16, float64.
    batch_size
        Inputs in one forward pass.
    max_new_tokens
        For generation: most tokens to generate per source. Default: as in tuning.
    num_beams
        For generation: number of beams. Default: as in tuning.
    without_parts
        Of a fusion: names of parts to leave out, separated by commas.
    allow_backbone_mismatch
        Run the adapter on weights other than those it was made for, if their shapes are the same.
    json
        Print one JSON object per line, with every class's probability.
    """
    from json import dumps

    from graftwork.adapters import Adapter
    from graftwork.backbones import Backbone
    from graftwork.model import AdaptedModel

    loaded = Adapter.load(adapter)
    if without_parts is not None:
        loaded = loaded.without_parts([name.strip() for name in without_parts.split(",")])
    columns = {"--text": text, "--text-pair": text_pair, "--image": image, "--choices": choices}
    rows = _inputs(inputs, file, {flag: column for flag, column in columns.items() if column}, loaded)
    frozen = Backbone.load(backbone or loaded.backbone.name, dtype=dtype)
    model = AdaptedModel(frozen, {loaded.task.name: loaded}, allow_backbone_mismatch=allow_backbone_mismatch)
    said = model.predict(rows, batch_size=batch_size, max_new_tokens=max_new_tokens, num_beams=num_beams)
    for given, found in zip(rows, said, strict=True):
        if json:
            print(dumps({**_named(given, loaded.kind), **found.as_dict()}, ensure_ascii=False, allow_nan=False))
        else:
            print(KINDS[loaded.kind].shown_answer(found, given))


def _named(given: Any, kind: str) -> dict[str, Any]:
    """An input for JSON."""
    inputs = KINDS[kind].inputs
    if "choices" in inputs:
        return {"text": given[0], "choices": list(given[1])}
    return {"image" if "image" in inputs else "text": given}


def _inputs(given: tuple[str, ...], file: Path | None, columns: dict[str, str], adapter: Any) -> list[Any]:
    """The inputs, from wherever they are.

    Raises:
        DataError: they come from two places at once, or are not what the task takes.
    """
    from graftwork.tasks.texts import read_choices, read_lines, read_stream, read_table

    pairs, kind = adapter.task.pairs, KINDS[adapter.kind]
    usual = ["--text", "--text-pair"] if pairs else [f"--{field}" for field in kind.needed]
    if given and file is not None:
        raise DataError("texts are given both as arguments and as a file", expected="one of the two", change="--file")
    if columns and (file is None or usual[0] not in columns):
        raise DataError(f"{' and '.join(columns)} name columns of a table", expected=f"--file TABLE {usual[0]} COLUMN")
    if columns and list(columns) != usual:
        problem = f"the task is over {'pairs' if pairs else kind.shown}"
        raise DataError(problem, expected=" and ".join(usual) + ("" if len(usual) > 1 else " only"))
    if "choices" in kind.inputs:
        if columns and file is not None:
            return list(
                read_choices(file, columns["--text"], [name.strip() for name in columns["--choices"].split(",")])
            )
        lines = [list(given)] if given else [line.split("\t") for line in _lines(file, read_lines, read_stream)]
        return [_question(line, i) for i, line in enumerate(lines, 1)]
    if given:
        return list(given) if not pairs else _two_by_two(given)
    if file is not None and columns:
        return list(read_table(file, columns[usual[0]], columns.get("--text-pair")))
    return list(read_lines(file, pairs=pairs) if file is not None else read_stream(pairs=pairs))


def _lines(file: Path | None, read_lines: Any, read_stream: Any) -> list[str]:
    return list(read_lines(file, pairs=False) if file is not None else read_stream(pairs=False))


def _question(line: Sequence[str], number: int) -> tuple[str, list[str]]:
    if len(line) < 3:
        raise DataError(
            f"question {number} has {len(line) - 1} choices",
            expected="a question and two choices or more, as arguments, or in a line with tabs between them",
        )
    return line[0], list(line[1:])


def _two_by_two(given: Sequence[str]) -> list[tuple[str, str]]:
    if len(given) % 2:
        raise DataError(f"{len(given)} texts cannot be split into pairs", expected="two texts for each prediction")
    return list(zip(given[::2], given[1::2], strict=True))
