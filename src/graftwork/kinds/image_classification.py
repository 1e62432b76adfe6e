"""Image classification: one of C classes of an image."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from graftwork.data.columns import IMAGE, Columns, Content
from graftwork.kinds.classification import Classification
from graftwork.kinds.kind import TaskLike

if TYPE_CHECKING:
    import datasets

    from graftwork.data.table import Table
    from graftwork.encoding import Encoder
    from graftwork.heads import Head


class ImageClassification(Classification):
    """One of C classes of images.

    Columns of its datasets: `image` (a PIL image, of the mode and size it has in the data), `label` (int).
    """

    name = "image-classification"
    inputs: ClassVar[Mapping[str, Content]] = {"image": IMAGE}
    needed = ("image",)
    options = ("labels", "label_ids")
    layouts = ("digits",)
    class_folders = True
    baseline = None
    takes = "images"
    example = '"image.png"'
    shown = "images"

    def input_keys(self, columns: Sequence[Sequence[Any]]) -> list[Any]:
        # Their bytes, wherever they lie. Only those are read of whose size there are several.
        [images] = columns
        sizes = [_size(image) for image in images]
        several = {size for size, count in Counter(sizes).items() if count > 1}
        return [(size, _digest(image)) if size in several else size for size, image in zip(sizes, images, strict=True)]

    def columns(self, task: TaskLike, table: "Table", *, grouped: bool) -> Columns:
        from datasets import Image, Value

        images = table.columns[task.inputs["image"][0]]
        return {"image": (Image(), images), "label": (Value("int64"), self.ids(task, table))}

    def inputs_of(self, rows: "datasets.Dataset") -> Sequence[Any]:
        # Images are read when they are asked for.
        images: Sequence[Any] = rows["image"]
        return images

    def encoder_class(self, head: "Head") -> "type[Encoder]":
        from graftwork.encoding import ImageEncoder

        return ImageEncoder


def _size(image: Any) -> Hashable:
    if not isinstance(image, dict):
        return (image.mode, *image.size)
    return Path(image["path"]).stat().st_size if image["bytes"] is None else len(image["bytes"])


def _digest(image: Any) -> bytes:
    """Of a file's bytes; of an image that is open already, of its pixels."""
    if not isinstance(image, dict):
        content = image.tobytes()
    else:
        content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    return blake2b(content, digest_size=16).digest()
