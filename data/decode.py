"""From an image file to stored pixels: upright, RGB, 8 bits, with a limited shorter side.

Upright: the EXIF orientation is applied. RGB: Pillow converts grey, palette and CMYK images; transparency is dropped
and the colour below it stays; of 16 bits per channel the upper 8 are kept. Of an animation, only the first frame is
read. An image is made smaller, never larger.
"""

from __future__ import annotations

import os
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps

from data.transform import resized_size

Image.init()
# EPS runs another program; the other readers only recognise the file and cannot decode it.
_NOT_READ = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "FITS"}
_FORMATS = tuple(sorted(set(Image.OPEN) - _NOT_READ, key=lambda name: (name != "JPEG", name != "PNG", name)))
EXTENSIONS = frozenset(ext for ext, name in Image.registered_extensions().items() if name in _FORMATS)


class BadImage(Exception):
    """A file that cannot be read as an image; the message says why."""


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF does not make the pixels unreadable
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("its pixels are floating-point numbers of unknown range")
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
    """Read an image: uint8 [height, width, 3], with a shorter side of at most `shorter_side` pixels.

    It is resized like torchvision's Resize of a Pillow image (bilinear, antialiased). Images of more than `most_pixels`
    (None: Pillow's own limit) are refused after a look at their header.

    Raises:
        BadImage: missing, damaged, cut short, too large, or not an image.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have set it: half an image is not an image
    try:
        with Image.open(path, formats=formats) as opened:
            if most_pixels is not None and opened.width * opened.height > most_pixels:
                raise BadImage(f"{opened.width:,} × {opened.height:,} pixels are more than {most_pixels:,}")
            opened.load()
            _turn_upright(opened)
            image = _to_rgb(opened)
            if min(image.size) > shorter_side:
                height, width = resized_size(image.height, image.width, shorter_side)
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            return np.array(image)
    except (BadImage, MemoryError):
        raise
    except FileNotFoundError:
        raise BadImage("missing") from None
    except Exception as error:  # a damaged image may raise almost any exception
        raise BadImage(str(error) or type(error).__name__) from error
