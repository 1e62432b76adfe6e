"""Images with classes: folders of image files in one folder a class, and the digits that scikit-learn carries.

Image files are named, not read, until a row is asked for; that each can be opened is checked beforehand.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from graftwork.data.table import SPLIT_NAMES, Splits, Table
from graftwork.errors import DataError
from graftwork.tasks.task import Task

IMAGE_FILES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def _has_split_folders(folder: Path, task: Task) -> bool:
    """Whether the folder's own folders are splits, by the names that the task or usage gives them."""
    named = {*task.splits.values(), *(name for names in SPLIT_NAMES.values() for name in names)}
    return any(path.name in named for path in _subfolders(folder))


def image_splits(folder: Path, task: Task) -> Splits:
    """A folder of one folder a split, each with one folder a class; or without splits.

    Raises:
        DataError: a split is missing or there twice, or a folder beside the splits is none.
    """
    if not _has_split_folders(folder, task):
        if task.splits:
            raise DataError(
                f"{folder} has no folder {', '.join(task.splits.values())}",
                expected="a folder for each split that is named",
                change="the task's splits",
            )
        return {"train": partial(_read_classes, folder, task)}
    subfolders = {path.name: path for path in _subfolders(folder)}
    splits: Splits = {}
    for split, usual in SPLIT_NAMES.items():
        names: Sequence[str] = [task.splits[split]] if split in task.splits else usual
        found = [subfolders.pop(name) for name in names if name in subfolders]
        if len(found) != 1 and (found or split in task.splits):
            raise DataError(
                f"{folder} has {'more than one folder' if found else f'no folder {names[0]!r}'} for {split}"
                + "".join(f", {path.name}" for path in found),
                expected="one",
                change=f"the task's splits.{split}",
            )
        if found:
            splits[split] = partial(_read_classes, found[0], task)
    if subfolders:
        raise DataError(
            f"{folder} has folders of splits, and beside them {', '.join(subfolders)}",
            expected="only folders of splits, or only folders of classes",
            change="--data, or the task's splits",
        )
    return splits


def _read_classes(folder: Path, task: Task) -> Table:
    classes = _subfolders(folder)
    loose = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_FILES)
    files = {path: sorted(file for file in path.iterdir() if not file.name.startswith(".")) for path in classes}
    foreign = [
        str(file.relative_to(folder))
        for found in files.values()
        for file in found
        if file.is_dir() or file.suffix.lower() not in IMAGE_FILES
    ]
    problems = [
        *([f"images that are in no class: {', '.join(loose[:5])}"] if loose else []),
        *([f"other things among the images: {', '.join(foreign[:5])}"] if foreign else []),
        *(
            [f"classes without images: {', '.join(path.name for path in classes if not files[path])}"]
            if not all(files.values())
            else []
        ),
        *(["no folders of classes"] if not classes and not loose else []),
    ]
    if problems:
        raise DataError(
            f"{folder} has {'; '.join(problems)}",
            expected=f"one folder a class, in each its images ({', '.join(IMAGE_FILES)})",
            change="--data",
        )
    paths = [file for found in files.values() for file in found]
    columns: dict[str, list[Any]] = {
        str(task.image): [{"bytes": None, "path": str(path)} for path in paths],
        task.label: [path.parent.name for path in paths],
    }
    names = [str(path.relative_to(folder)) for path in paths]
    return Table(str(folder), tuple(columns), columns, names, "file")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_digits(task: Task) -> Table:
    """1,797 handwritten digits, 8 × 8 pixels, grey: the test part of Alpaydin and Kaynak (1998), "Cascading
    classifiers", as scikit-learn's `load_digits` has them."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 0 to 16 there, 0 to 255 here.
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    columns: dict[str, list[Any]] = {
        str(task.image): [Image.fromarray(image) for image in pixels],
        task.label: [str(label) for label in digits.target],
    }
    return Table("scikit-learn's digits", tuple(columns), columns, range(1, len(pixels) + 1), "image")
