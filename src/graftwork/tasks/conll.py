"""Files of a word and its tag a line, with a blank line after each sentence, as the CoNLL shared tasks use them.

Tjong Kim Sang and De Meulder (2003), "Introduction to the CoNLL-2003 Shared Task: Language-Independent Named Entity
Recognition". Fields are parted by tabs or, in a line without a tab, by spaces; lines of -DOCSTART- are left out.
"""

import re
from pathlib import Path

from graftwork.data.table import Table, read_text
from graftwork.errors import DataError
from graftwork.tasks.task import Task

DOCUMENT_START = "-DOCSTART-"


def read_conll(path: Path, task: Task) -> Table:
    """A row for each sentence: its words in column `task.text`, their tags in column `task.label`.

    Raises:
        DataError: the file cannot be read, or a line has too few fields or another number of them than the first.
    """
    sentences: list[list[list[str]]] = [[]]
    numbers: list[int] = [1]
    seen: list[tuple[int, list[str]]] = []
    for number, line in enumerate(read_text(path, task.decoding).split("\n"), 1):
        line = line.strip(" \r")
        fields = line.split("\t") if "\t" in line else re.split(" +", line)
        if not line.strip("\t") or fields[0] == DOCUMENT_START:
            if sentences[-1]:
                sentences.append([])
                numbers.append(0)
            continue
        if not sentences[-1]:
            numbers[-1] = number
        sentences[-1].append(fields)
        seen.append((number, fields))
    if not sentences[-1]:
        del sentences[-1], numbers[-1]
    _refuse_malformed(path, task, seen)
    word = task.header.index(str(task.text)) if task.header is not None else 0
    tag = task.header.index(task.label) if task.header is not None else -1
    columns = {
        str(task.text): [[fields[word] for fields in sentence] for sentence in sentences],
        task.label: [[fields[tag] for fields in sentence] for sentence in sentences],
    }
    return Table(str(path), task.header or tuple(columns), columns, numbers, "line")


def _refuse_malformed(path: Path, task: Task, lines: list[tuple[int, list[str]]]) -> None:
    # The first line is as good as any other to say how many fields there are, unless it lacks its tag.
    wanted = len(task.header) if task.header is not None else max(2, len(lines[0][1]) if lines else 0)
    bad = [i for i, (_, fields) in enumerate(lines) if len(fields) != wanted or not all(map(str.strip, fields))]
    if bad:
        places = Table(str(path), (), {}, [number for number, _ in lines], "line").places(bad)
        raise DataError(
            f"{path} is malformed at {places}: {' '.join(lines[bad[0]][1])!r}",
            expected=f"{wanted} fields in each line ({', '.join(task.header or ('the word', '…', 'its tag'))}), parted "
            "by tabs or spaces, and a blank line after each sentence",
            change=f"{path}, or the task's header",
        )
