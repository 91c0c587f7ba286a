"""Decode one picture file to RGB without losing its values, or refuse it by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from resilient_heads.checks import printable
from resilient_heads.errors import DataError
from resilient_heads.extras import require
from resilient_heads.inputs.error_context import error_context

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
)
"""Endings of file names that count as pictures, in lower case."""

_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF")  # EPS, for one, would start another program
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_WAY_OUT = "save it with 8 or 16 bits a channel, or pass an .npz file"
_MOST_ELONGATED = 100


def read_picture(path: Path) -> Any:
    """Decode a picture to a PIL image in mode RGB, with the values that the file stores.

    The values are those of torchvision's ``ImageFolder``: palettes are resolved, alpha, EXIF orientation and colour
    profiles are ignored. The exception is grey with 16 bits, which torchvision clips: here 65,535 becomes 255, and
    values between are divided by 257 and rounded. Colours with 16 bits a channel lose their lower byte.

    Raises:
        DataError: The file cannot be decoded completely, holds several pictures, or holds values whose range is
            unknown: floating-point numbers, integers of 32 bits, or 16-bit grey that uses 12 bits or fewer.
        MissingExtraError: Pillow is not installed.
    """
    pillow = require("PIL.Image", extra="vision", purpose="folders of images")
    pillow.init()
    formats = [name for name in _FORMATS if name in pillow.OPEN]  # Pillow may be built without one
    context = error_context(DataError, f"{printable(path)} cannot be decoded as a picture")
    with context, _complete_files(), pillow.open(path, formats=formats) as picture:
        if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
            raise DataError(f"{printable(path)} holds {picture.n_frames} pictures; expected one. Save one of them.")
        if max(picture.size) > _MOST_ELONGATED * min(picture.size):
            raise DataError(
                f"{printable(path)} has {picture.width} x {picture.height} pixels; expected sides that differ by at "
                f"most a factor of {_MOST_ELONGATED}."
            )
        picture.load()
        picture.info.pop("transparency", None)  # alpha is ignored; some kinds of it make Pillow warn
        return picture.convert("RGB") if picture.mode in _EIGHT_BITS else _from_grey(picture, path, pillow)


def _from_grey(picture: Any, path: Path, pillow: Any) -> Any:
    """Return a 16-bit grey picture in mode RGB; refuse other modes."""
    sixteen_bits = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM"))
    if not sixteen_bits:
        raise DataError(f"{printable(path)} has values of unknown range (Pillow's mode {picture.mode}); {_WAY_OUT}.")
    values = np.asarray(picture).astype(np.int64)
    if 0 < values.max() < 4096:
        raise DataError(
            f"{printable(path)} has 16 bits a pixel, but no value above {values.max()}, so its brightness is unclear; "
            "scale it to the range 0 to 65535, or save it with 8 bits."
        )
    return pillow.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


@contextmanager
def _complete_files() -> Iterator[None]:
    """Refuse truncated files in the block, even if another library made Pillow fill them with grey."""
    settings: Any = require("PIL.ImageFile", extra="vision", purpose="folders of images")
    before = settings.LOAD_TRUNCATED_IMAGES
    settings.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        settings.LOAD_TRUNCATED_IMAGES = before
