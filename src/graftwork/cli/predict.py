"""`graftwork predict`: what a saved adapter says of texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts.types import PositiveInt

from graftwork.cli.settings import Switch
from graftwork.errors import DataError

if TYPE_CHECKING:
    from graftwork.prediction import Text


def predict(
    adapter: Path,
    /,
    *texts: str,
    file: Path | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    backbone: str | None = None,
    dtype: str = "auto",
    batch_size: PositiveInt = 32,
    allow_backbone_mismatch: Annotated[bool, Switch] = False,
    json: Annotated[bool, Switch] = False,
) -> None:
    """Predict with a saved adapter: texts as arguments, from a file, or from standard input (one text a line).

    For a task over pairs the arguments are taken two by two, and a line holds two texts with a tab between them.

    Parameters
    ----------
    adapter
        The adapter's folder.
    texts
        The texts; after -- one may begin with a dash. Without any and without --file they are read from standard
        input.
    file
        A file of texts, one a line; or a table (.csv, .tsv, .jsonl, .json, .parquet) with --text.
    text
        Column of the text in the table.
    text_pair
        Column of the second text in the table.
    backbone
        Where the backbone is, when not where it was.
    dtype
        Precision of the frozen backbone: auto, float32, bfloat16, float16, float64.
    batch_size
        Texts in one forward pass.
    allow_backbone_mismatch
        Run an adapter on other weights of the same shape than those it was made for.
    json
        Print one JSON object a line, with every class's probability.
    """
    from json import dumps

    from graftwork.adapters import Adapter
    from graftwork.backbones import Backbone
    from graftwork.model import AdaptedModel

    loaded = Adapter.load(adapter)
    rows = _texts(texts, file, text, text_pair, pairs=loaded.task.pairs)
    frozen = Backbone.load(backbone or loaded.backbone.name, dtype=dtype)
    model = AdaptedModel(frozen, {loaded.task.name: loaded}, allow_backbone_mismatch=allow_backbone_mismatch)
    for given, found in zip(rows, model.predict(rows, batch_size=batch_size), strict=True):
        if json:
            print(dumps({"text": given, **found.as_dict()}, ensure_ascii=False))
        else:
            shown = given if isinstance(given, str) else "\t".join(given)
            value = f"{found.label:.4f}" if isinstance(found.label, float) else f"{found.label}\t{found.score:.4f}"
            print(f"{value}\t{shown}")


def _texts(
    given: tuple[str, ...], file: Path | None, text: str | None, text_pair: str | None, *, pairs: bool
) -> "list[Text]":
    """The texts or pairs, from wherever they are.

    Raises:
        DataError: they come from two places at once, or are not pairs where the task is over pairs.
    """
    from graftwork.tasks.texts import read_lines, read_stream, read_table

    if given and file is not None:
        raise DataError("texts are given both as arguments and as a file", expected="one of the two", change="--file")
    if (text or text_pair) and (file is None or not text):
        raise DataError("--text and --text-pair name columns of a table", expected="--file TABLE --text COLUMN")
    if given:
        if not pairs:
            return list(given)
        if len(given) % 2:
            raise DataError(f"{len(given)} texts are no pairs", expected="two texts for each prediction")
        return list(zip(given[::2], given[1::2], strict=True))
    if file is not None and text:
        if pairs != (text_pair is not None):
            problem = "the task is over pairs" if pairs else "the task is over single texts"
            raise DataError(problem, expected="--text and --text-pair" if pairs else "--text only")
        return read_table(file, text, text_pair)
    return read_lines(file, pairs=pairs) if file is not None else read_stream(pairs=pairs)
