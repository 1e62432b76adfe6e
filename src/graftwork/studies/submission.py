"""What GLUE's leaderboard takes (gluebenchmark.com): a zip file with a table for each test set, in its own labels.

The tables are named below; each has the header `index<TAB>prediction`, a line for each row of the test set, in order,
and ends lines with LF. The nine test sets are eleven tables: MNLI has a matched and a mismatched one, and the
diagnostic set AX is answered by the adapter of MNLI.
"""

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.combine.reports import refuse_other_contents
from graftwork.data.table import Table, read_text
from graftwork.errors import DataError
from graftwork.folders import replacing_folder
from graftwork.kinds.prediction import Prediction
from graftwork.tasks.builtin import BUILTIN, GLUE_FOLDERS

ZIP = "submission.zip"


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A test set and its table.

    Attributes:
        table: the table's name, without its end.
        task: the built-in task whose adapter answers it.
        rows: how many there are.
        files: where GLUE's folder has it: the first of these that is there.
        usual: the prediction where no adapter answers it: the most frequent class of training; of STS-B, the middle
            of the scale, since no number is more right than another where all are the same.
    """

    table: str
    task: str
    rows: int
    files: tuple[str, ...]
    usual: str

    # It is no class of tests, as pytest would have it.
    __test__ = False

    def inputs(self, data: Path) -> list[Any]:
        """Its texts, or pairs of texts, in order, from the folder that holds GLUE's folders.

        Raises:
            DataError: it is not there, malformed, or not the whole test set in its order.
        """
        path = next((data / name for name in self.files if (data / name).is_file()), None)
        if path is None:
            raise DataError(
                f"{data} has no test set of {self.table}: {' or '.join(self.files)}",
                expected="the folder that holds GLUE's folders, with the test set of each task that has an adapter",
                change="--data",
            )
        # Quotes are text here: they come unpaired, and at the beginning of fields.
        lines = [line.removesuffix("\r").split("\t") for line in read_text(path).removesuffix("\n").split("\n")]
        header, *rows = lines
        names = [GLUE_FOLDERS[self.task].columns.get(name, name) for name in header]
        task = BUILTIN[self.task]
        wanted = [name for name in (task.text, task.text_pair) if name is not None]
        lacking = [name for name in wanted if name not in names]
        if lacking:
            raise DataError(f"{path} has no column {', '.join(lacking)}", expected="GLUE's test set", change="--data")
        bad = [i for i, row in enumerate(rows) if len(row) != len(header)]
        if bad:
            places = Table(str(path), (), {}, range(2, len(lines) + 1), "line").places(bad)
            raise DataError(
                f"{path} is malformed at {places}: {len(rows[bad[0]])} fields instead of the header's {len(header)}",
                expected="as many fields in each row as in the header",
                change=str(path),
            )
        if len(rows) != self.rows:
            raise DataError(
                f"{path} has {len(rows):,} rows",
                expected=f"the whole test set of {self.table}, {self.rows:,} rows",
                change="--data",
            )
        # Quora's table calls it id; Microsoft's of paraphrases has none.
        number = next((names.index(name) for name in ("index", "id") if name in names), None)
        moved = [i for i, row in enumerate(rows) if number is not None and row[number] != str(i)]
        if moved:
            raise DataError(
                f"{path} has row {rows[moved[0]][number or 0]} in the place of row {moved[0]}",
                expected="the test set in its order, numbered from 0",
                change=str(path),
            )
        texts = [[row[names.index(name)] for name in wanted] for row in rows]
        return [tuple(own) if len(wanted) > 1 else own[0] for own in texts]

    def write(self, found: Prediction) -> str:
        """A prediction as the leaderboard writes it."""
        if self.task == "stsb":
            low, high = SCALE
            return f"{max(low, min(high, float(found.label or 0.0))):.3f}"
        labels = BUILTIN[self.task].labels or ()
        return str(labels.index(str(found.label))) if self.task in NUMBERED else str(found.label)


TEST_SETS = (
    TestSet(table="CoLA", task="cola", rows=1063, files=("CoLA/test.tsv",), usual="1"),
    TestSet(table="SST-2", task="sst2", rows=1821, files=("SST-2/test.tsv",), usual="1"),
    TestSet(table="MRPC", task="mrpc", rows=1725, files=("MRPC/test.tsv", "MRPC/msr_paraphrase_test.txt"), usual="1"),
    TestSet(table="STS-B", task="stsb", rows=1379, files=("STS-B/test.tsv",), usual="2.500"),
    TestSet(table="MNLI-m", task="mnli", rows=9796, files=("MNLI/test_matched.tsv",), usual="contradiction"),
    TestSet(table="MNLI-mm", task="mnli", rows=9847, files=("MNLI/test_mismatched.tsv",), usual="contradiction"),
    TestSet(table="QNLI", task="qnli", rows=5463, files=("QNLI/test.tsv",), usual="not_entailment"),
    TestSet(table="QQP", task="qqp", rows=390965, files=("QQP/test.tsv",), usual="0"),
    TestSet(table="RTE", task="rte", rows=3000, files=("RTE/test.tsv",), usual="entailment"),
    TestSet(table="WNLI", task="wnli", rows=146, files=("WNLI/test.tsv",), usual="0"),
    TestSet(
        table="AX",
        task="mnli",
        rows=1104,
        files=("AX/diagnostic.tsv", "diagnostic/diagnostic.tsv", "AX/test.tsv"),
        usual="contradiction",
    ),
)
"""All of them. The classes of MNLI and of QNLI are nearly as frequent as each other."""

NUMBERED = ("cola", "sst2", "mrpc", "qqp", "wnli")
"""The tasks whose classes are numbers to the leaderboard; those of the others go by their names."""

SCALE = (0.0, 5.0)
"""Of STS-B: predictions beyond it are put at its ends."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A table of a submission.

    Attributes:
        test_set: the test set.
        predictions: one for each row, as the leaderboard writes them.
        adapter: the folder of the adapter that made them; None: every row has the most frequent class.
        score: the adapter's, on validation, by its task's main metric; None where it is not known.
    """

    test_set: TestSet
    predictions: Sequence[str]
    adapter: Path | None = None
    score: float | None = None

    @property
    def text(self) -> str:
        """The table."""
        return "index\tprediction\n" + "".join(f"{i}\t{own}\n" for i, own in enumerate(self.predictions))


@dataclass(frozen=True)
class Submission:
    """The tables of a submission, in the leaderboard's order."""

    tables: tuple[Answered, ...]

    @property
    def missing(self) -> list[str]:
        """The names of the tables in which every row has the most frequent class."""
        return [own.test_set.table for own in self.tables if own.adapter is None]

    def zip(self) -> bytes:
        """The zip file, the same bytes for the same predictions."""
        written = io.BytesIO()
        with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
            for own in self.tables:
                # The earliest time that a zip file can have.
                archive.writestr(zipfile.ZipInfo(f"{own.test_set.table}.tsv", (1980, 1, 1, 0, 0, 0)), own.text)
        return written.getvalue()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the zip file and the tables that are in it to a folder, completely or not at all.

        Args:
            folder: the folder.
            overwrite: replace an existing submission.

        Raises:
            OutputError: the folder exists and `overwrite` is off, it holds something else, or it cannot be written.
        """
        refuse(folder, overwrite=overwrite)
        with replacing_folder(Path(folder), overwrite=overwrite) as temporary:
            for own in self.tables:
                (temporary / f"{own.test_set.table}.tsv").write_bytes(own.text.encode())
            (temporary / ZIP).write_bytes(self.zip())

    def record(self) -> list[dict[str, Any]]:
        """Of each table its rows, and the adapter that made it with its score."""
        return [
            {
                "file": f"{own.test_set.table}.tsv",
                "rows": len(own.predictions),
                "adapter": None if own.adapter is None else str(own.adapter),
                "validation": own.score,
            }
            for own in self.tables
        ]


def refuse(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder to which a submission cannot be written, before anything is predicted.

    Raises:
        OutputError: it exists, and `overwrite` is off or it holds something else.
    """
    files = (ZIP, *(f"{own.table}.tsv" for own in TEST_SETS))
    refuse_other_contents(Path(folder), files, overwrite=overwrite)
