"""Images as a backbone's image processor takes them: opened, upright, and of its number of channels."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from graftwork.errors import DataError


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
            f"input {place + 1} is an image of mode {image.mode}, whose brightest value is not known",
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
