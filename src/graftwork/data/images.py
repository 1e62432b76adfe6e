"""An image, as a column of a file has it."""

from io import BytesIO
from typing import Any


def is_image(value: Any) -> bool:
    """Whether a value is an image, or its bytes or file as an image column has them, and can be opened."""
    from PIL import Image

    if isinstance(value, Image.Image):
        return True
    if not isinstance(value, dict) or not {"bytes", "path"} <= value.keys():
        return False
    file = value["path"] if value["bytes"] is None else BytesIO(value["bytes"])
    try:
        with Image.open(file):
            return True
    except (AttributeError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
