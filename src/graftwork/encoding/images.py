"""Images as a backbone's image processor takes them: opened, upright, and of its number of channels."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from graftwork.backbones import Backbone
from graftwork.encoding.encoder import Encoder, Rows, with_labels
from graftwork.encoding.tokens import Row
from graftwork.errors import DataError


class ImageEncoder(Encoder):
    """Images, as the backbone's image processor makes them. A file is read when its row is asked for."""

    def encode(self, inputs: Sequence[Any], labels: Sequence[int] | None = None) -> Rows:
        return _Images(self.backbone, inputs, labels)

    def labels(self, rows: Rows) -> Iterator[dict[str, Tensor]]:
        """As of all encoders; no image is read."""
        assert isinstance(rows, _Images)
        if rows.labels is not None:
            yield {"labels": torch.tensor(rows.labels)}

    def lengths(self, rows: Rows) -> list[int]:
        return [1] * len(rows)

    def collate(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return with_labels({"pixel_values": torch.stack([row["pixel_values"] for row in rows])}, rows)


class _Images(Sequence[Any]):
    """Rows of images that are read when they are asked for."""

    def __init__(self, backbone: Backbone, images: Sequence[Any], labels: Sequence[int] | None) -> None:
        self.processor = backbone.require_image_processor()
        self.mode = "L" if getattr(backbone.config, "num_channels", 3) == 1 else "RGB"
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: Any) -> Any:
        image = open_image(self.images[i], self.mode, place=i)
        pixels = self.processor(images=[image], return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, **({} if self.labels is None else {"labels": self.labels[i]})}


def open_image(given: Any, mode: str, *, place: int) -> Image.Image:
    """An image, or that of a file, in mode `RGB` or `L`; a grey one gets three channels that are alike.

    Args:
        place: which of the inputs it is, from 0, for the error.

    Raises:
        DataError: it is none, or cannot be read; or its mode cannot be turned into the other.
    """
    image = given if isinstance(given, Image.Image) else _read(given, place)
    # As `datasets` turns those that it reads.
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"input {place + 1} is an image of mode {image.mode}, whose maximum value is not known",
            expected="8 or 16 bits a channel",
        )
    return image.convert(mode)


def _read(given: Any, place: int) -> Image.Image:
    if not isinstance(given, str | Path):
        raise DataError(f"input {place + 1} is {given!r:.80}", expected="an image, or the path of one")
    try:
        with Image.open(given) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {str(given)!r} cannot be read: {error}", expected="an image file") from None
