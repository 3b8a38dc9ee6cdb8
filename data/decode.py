"""From an image file to stored pixels: upright, RGB, 8 bits, shorter side at most so long.

Upright: the EXIF orientation is applied, as every viewer does. RGB: grey, palette and CMYK images by Pillow's
conversion; transparency is dropped, the colour below it stays; of 16 bits a channel the upper 8 are kept. Only the
first frame of an animation counts. An image is made smaller, never larger.
"""

from __future__ import annotations

import os
from typing import IO

import numpy as np
from PIL import Image, ImageFile

from data.transform import resized_size

Image.init()
# EPS runs an outside program, the others only say that a file of that kind is there.
_NOT_READ = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "FITS"}
_FORMATS = tuple(sorted(set(Image.OPEN) - _NOT_READ, key=lambda name: (name != "JPEG", name != "PNG", name)))
EXTENSIONS = frozenset(ext for ext, name in Image.registered_extensions().items() if name in _FORMATS)

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(Exception):
    """A file that cannot be read as an image; the message says why."""


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("its pixels are floating-point numbers, whose range nothing tells")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode(
    path: str | os.PathLike[str] | IO[bytes],
    shorter_side: int,
    *,
    formats: tuple[str, ...] = _FORMATS,
    most_pixels: int | None = None,
) -> np.ndarray:
    """Read an image: uint8 [height, width, 3], the shorter side at most `shorter_side` pixels.

    Resized as torchvision's Resize does with a Pillow image (bilinear, antialiased).

    Args:
        path: a file's name, or a file open for reading.
        formats: names of Pillow's readers that may look at it.
        most_pixels: of an image that is decoded at all, by its header; None: Pillow's own limit.

    Raises:
        BadImage: missing, damaged, cut short, too large, or no image.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have set it: half an image is not an image
    try:
        with Image.open(path, formats=formats) as opened:
            if most_pixels is not None and opened.width * opened.height > most_pixels:
                raise BadImage(f"{opened.width:,} × {opened.height:,} pixels are more than {most_pixels:,}")
            opened.load()
            method = _UPRIGHT.get(_orientation(opened))
            image = _to_rgb(opened if method is None else opened.transpose(method))
            if min(image.size) > shorter_side:
                height, width = resized_size(image.height, image.width, shorter_side)
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            return np.array(image)
    except (BadImage, MemoryError):
        raise
    except FileNotFoundError:
        raise BadImage("missing") from None
    except Exception as error:  # a damaged image may raise nearly anything
        raise BadImage(str(error) or type(error).__name__) from error
