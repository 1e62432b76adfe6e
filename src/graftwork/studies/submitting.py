"""A submission to GLUE's leaderboard out of the adapters of a study, or of a folder."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftwork.adapters import Adapter
from graftwork.backbones import Backbone
from graftwork.errors import AdapterError
from graftwork.kinds import KINDS
from graftwork.model import AdaptedModel
from graftwork.studies.outputs import CHOSEN, read_results
from graftwork.studies.results import ADAPTER
from graftwork.studies.submission import TEST_SETS, Answered, Submission, TestSet
from graftwork.tasks.builtin import BUILTIN, GLUE_FOLDERS
from graftwork.training.display import SILENT, Display, shown_on_stderr
from graftwork.training.run_summary import of_loading

ROWS_AT_ONCE = 1024
"""Rows between two steps of a bar; those of like length among them share passes."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An adapter of one of GLUE's tasks.

    Attributes:
        folder: where it is.
        task: the built-in task's name.
        adapter: the adapter.
        score: on the validation split, by the task's main metric; None where it was not measured.
    """

    folder: Path
    task: str
    adapter: Adapter
    score: float | None


def glue_submission(
    source: str | Path,
    *,
    data: str | Path,
    method: str | None = None,
    backbone: Backbone | None = None,
    dtype: str = "auto",
    batch_size: int = 64,
    progress: bool = False,
) -> Submission:
    """Predict GLUE's test sets by adapters, in the form that the leaderboard takes.

    Of several adapters of one task, the one with the best validation score answers. MNLI's answers AX as well. Test
    sets without an adapter get the most frequent class.

    Args:
        source: the folder of a study that `compare` has written, or one with adapters' folders in it.
        data: the folder that holds GLUE's folders, with the test set of each task that has an adapter.
        method: consider adapters of this method only: by its name in the study, or else in the library. None: all.
        backbone: the backbone of all of them. None: each is loaded by the name stored in its adapters.
        dtype: precision of those that are loaded.
        batch_size: number of rows in a forward pass.
        progress: report progress on standard error.

    Raises:
        AdapterError: there is no adapter of a GLUE task; one has other labels than its task; it is not known which of
            several is better; or one was made for another backbone.
        DataError: a test set is missing, malformed or not whole.
    """
    chosen = choose(candidates(Path(source), method=method))
    asked = {own.table: own.inputs(Path(data)) for own in TEST_SETS if own.task in chosen}
    found: dict[str, list[str]] = {}
    with shown_on_stderr(shown=progress) as display:
        for group in _by_backbone(chosen.values()):
            if backbone is None:
                display.say(of_loading(group[0].adapter.backbone.name))
            frozen = backbone or Backbone.load(group[0].adapter.backbone.name, dtype=dtype)
            model = AdaptedModel(frozen, {own.task: own.adapter for own in group})
            try:
                for own in TEST_SETS:
                    if own.task in {one.task for one in group}:
                        found[own.table] = _predict(model, own, asked[own.table], batch_size, display)
            finally:
                model.detach()
    return Submission(tuple(_answered(own, chosen.get(own.task), found) for own in TEST_SETS))


def candidates(source: Path, *, method: str | None = None) -> list[Candidate]:
    """The adapters of GLUE's tasks in a folder.

    Args:
        source: of a study, or with adapters' folders in it.
        method: of this method only, by its name in the study; where it has none of that name, in the library.

    Raises:
        AdapterError: there are none, or one has other labels than its task.
    """
    found, others = [], 0
    folders = _folders(source)
    in_study = any(method in names for names in folders.values())
    for folder, names in folders.items():
        adapter = Adapter.load(folder)
        task = glue_task(adapter)
        own = names if in_study else (adapter.method.name,)
        if task is None or method not in (None, *own):
            others += 1
            continue
        _refuse_other_labels(adapter, task, folder)
        score = adapter.metrics.get("validation", {}).get(BUILTIN[task].main_metric)
        found.append(Candidate(folder=folder, task=task, adapter=adapter, score=score))
    if not found:
        only = "" if method is None else f" of method {method}"
        raise AdapterError(
            f"{str(source)!r} has no adapter{only} of a GLUE task" + (f", and {others} others" if others else ""),
            expected=f"a study, or a folder of adapters, of {', '.join(GLUE_FOLDERS)}",
            change="the folder" + ("" if method is None else ", or --method"),
        )
    return found


def choose(candidates: Iterable[Candidate]) -> dict[str, Candidate]:
    """Of each task the adapter with the best validation score; of equal ones the first.

    Raises:
        AdapterError: a task has several, and the score of one is not known.
    """
    of_task: dict[str, list[Candidate]] = {}
    for own in candidates:
        of_task.setdefault(own.task, []).append(own)
    chosen = {}
    for task, several in of_task.items():
        main = BUILTIN[task].main_metric
        unknown = [own for own in several if own.score is None]
        if unknown and len(several) > 1:
            raise AdapterError(
                f"{len(several)} adapters are of {task}, and {str(unknown[0].folder)!r} has no validation {main}",
                expected="one adapter of each task, or a score of each",
                change="the folder, or --method",
            )
        sign = 1 if KINDS[BUILTIN[task].kind].metrics[main].greater_is_better else -1
        chosen[task] = max(several, key=lambda own, sign=sign: sign * (own.score or 0.0))  # type: ignore[misc]
    return chosen


def glue_task(adapter: Adapter) -> str | None:
    """The name of the GLUE task of an adapter; None where it has another one."""
    declared = adapter.recipe.get("task", {})
    name = declared.get("subset") if declared.get("layout") == "glue" else adapter.task.name
    return name if name in GLUE_FOLDERS else None


def _folders(source: Path) -> dict[Path, tuple[str, ...]]:
    """The folders of a study's adapters, with what the study calls their methods; or of those in a folder."""
    if (source / CHOSEN).is_file():
        return {own.folder / ADAPTER: (own.method, own.label) for own in read_results(source)}
    if not source.is_dir():
        raise AdapterError(f"there is no folder {str(source)!r}", expected="a study, or a folder of adapters")
    if (source / "adapter.json").is_file():
        return {source: ()}
    found = sorted(path.parent for path in source.glob("*/adapter.json") if not path.parent.name.startswith("."))
    return dict.fromkeys(found, ())


def _refuse_other_labels(adapter: Adapter, task: str, folder: Path) -> None:
    expected = BUILTIN[task].labels
    if {*(adapter.task.labels or ())} != {*(expected or ())} or adapter.kind != BUILTIN[task].kind:
        own = adapter.kind if adapter.task.labels is None else ", ".join(adapter.task.labels)
        raise AdapterError(
            f"{str(folder)!r} is of {task}, and predicts {own}",
            expected="a number" if expected is None else ", ".join(expected),
            change="tune it on the built-in task, or leave it out",
        )


def _by_backbone(chosen: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """Those that run on one backbone together."""
    groups: dict[str, list[Candidate]] = {}
    for own in chosen:
        groups.setdefault(own.adapter.backbone.fingerprint, []).append(own)
    yield from groups.values()


def _predict(
    model: AdaptedModel, test_set: TestSet, inputs: Sequence[object], batch_size: int, display: Display = SILENT
) -> list[str]:
    found: list[str] = []
    with display.bar(test_set.table, len(inputs), "rows") as bar:
        for start in range(0, len(inputs), ROWS_AT_ONCE):
            given = inputs[start : start + ROWS_AT_ONCE]
            said = model.predict(given, adapters=test_set.task, batch_size=batch_size)  # type: ignore[arg-type]
            found += [test_set.write(own) for own in said]
            bar.advance(len(given))
    return found


def _answered(test_set: TestSet, chosen: Candidate | None, found: dict[str, list[str]]) -> Answered:
    if chosen is None:
        return Answered(test_set=test_set, predictions=[test_set.usual] * test_set.rows)
    predictions = found[test_set.table]
    return Answered(test_set=test_set, predictions=predictions, adapter=chosen.folder, score=chosen.score)
