"""Folders of images, columns of images, and scikit-learn's digits."""

from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from graftwork.errors import DataError
from graftwork.tasks import Task, find_task, load, load_split


def task(data, **fields):
    return Task(**{"name": "t", "kind": "image-classification", "data": str(data), **fields})


def image(shade):
    return Image.fromarray(np.full((3, 4), shade, dtype=np.uint8))


def write_classes(folder, count=5, classes=("cat", "dog")):
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for j in range(count):
            image(10 * i + j).save(folder / name / f"{j}.png")
    return folder


def shades(dataset):
    return {(np.asarray(row["image"]).mean(), row["label"]) for row in dataset}


EXPECTED = {(10.0 * i + j, i) for i in range(2) for j in range(5)}


def test_folder_of_classes(tmp_path):
    data = load(task(write_classes(tmp_path), validation_fraction=0.2))
    assert data.task.labels == ("cat", "dog")
    assert data.train.column_names == ["image", "label"]
    assert data.train[0]["image"].size == (4, 3)
    assert shades(data.train) | shades(data.validation) == EXPECTED
    assert Counter(data.validation["label"]) == {0: 1, 1: 1}, "stratified"
    assert data.test is None
    assert load_split(data.task, "validation")["label"][:] == data.validation["label"][:]


def test_folder_of_splits(tmp_path):
    for name in ("train", "val", "test"):
        write_classes(tmp_path / name)
    (tmp_path / "README.md").touch()
    (tmp_path / "train" / "cat" / ".hidden").touch()
    data = load(task(tmp_path))
    assert all(shades(split) == EXPECTED for split in (data.train, data.validation, data.test))
    (tmp_path / "val").rename(tmp_path / "held")
    with pytest.raises(DataError, match=r"has folders of splits, and beside them held"):
        load(task(tmp_path))
    assert len(load(task(tmp_path, splits={"validation": "held"})).validation) == 10
    with pytest.raises(DataError, match=r"no folder 'gone' for validation(.|\n)*splits.validation"):
        load(task(tmp_path, splits={"validation": "gone"}))
    write_classes(tmp_path / "training")
    with pytest.raises(DataError, match=r"more than one folder for train, train, training"):
        load(task(tmp_path))


def test_wrong_folders(tmp_path):
    with pytest.raises(DataError, match=r"has no folders of classes(.|\n)*--data"):
        load(task(tmp_path))
    write_classes(tmp_path)
    (tmp_path / "bird").mkdir()
    (tmp_path / "cat" / "notes.doc").touch()
    image(0).save(tmp_path / "loose.png")
    with pytest.raises(DataError) as caught:
        load(task(tmp_path))
    for message in ("in no class: loose.png", "among the images: cat/notes.doc", "classes without images: bird"):
        assert message in str(caught.value)


def test_damaged_images_are_named(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "dog" / "3.png").write_bytes(b"no image")
    (tmp_path / "dog" / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"in column 'image', which is not an image .*: files dog/3.png, dog/4.png"):
        load(task(tmp_path))


@pytest.mark.parametrize("form", ["parquet", "saved", "hub"])
def test_columns_of_images(tmp_path, form, monkeypatch):
    names = ["cat", "dog"]
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"photo": [image(shade) for shade, _ in sorted(EXPECTED)], "label": [label for _, label in sorted(EXPECTED)]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    data = tmp_path
    if form == "parquet":
        dataset.to_parquet(tmp_path / "train.parquet")
    elif form == "saved":
        dataset.save_to_disk(tmp_path / "saved")
        data = tmp_path / "saved"
    else:
        monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"train": dataset})
        data = "org/pets"
    loaded = load(task(data, image="photo", validation_fraction=0.2))
    assert loaded.task.labels == ("cat", "dog")
    assert shades(loaded.train) | shades(loaded.validation) == EXPECTED


def test_a_column_of_something_else(tmp_path):
    (tmp_path / "rows.csv").write_text("image,label\na.png,x\nb.png,y\n")
    with pytest.raises(DataError, match=r"'a.png' in column 'image', which is not an image .*: lines 2, 3"):
        load(task(tmp_path / "rows.csv"))


def test_digits():
    data, again = load(find_task("digits")), load(find_task("digits"))
    splits = (data.train, data.validation, data.test)
    assert [len(split) for split in splits] == [1258, 180, 359]
    for split, same in zip(splits, (again.train, again.validation, again.test), strict=True):
        assert split["label"][:] == same["label"][:]
        assert min(Counter(split["label"]).values()) >= 0.09 * len(split), "stratified"
    digits = load_digits()
    pixels = {
        np.round(digit * 255 / 16).astype(np.uint8).tobytes(): int(label)
        for digit, label in zip(digits.images, digits.target, strict=True)
    }
    seen = [(np.asarray(row["image"]).tobytes(), row["label"]) for split in splits for row in split]
    assert all(pixels[content] == label for content, label in seen)
    assert len(seen) == 1797
    assert data.train[0]["image"].mode == "L"


def test_the_digits_task_over_images_of_ones_own(tmp_path):
    write_classes(tmp_path, count=3, classes=tuple("0123456789"))
    data = load(find_task("digits").override(data=str(tmp_path)))
    assert len(data.train) + len(data.validation) + len(data.test) == 30
