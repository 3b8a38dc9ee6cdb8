"""From an image file to stored pixels: upright, RGB, 8 bits, with a limited shorter side.

Upright: the EXIF orientation is applied. RGB: Pillow converts grey, palette and CMYK images; transparency is laid over
white, as most viewers show it. Grey values of 16 bits are scaled by their real range. Of an animation, only the first
frame is read. An image is made smaller, never larger.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import IO, cast

import numpy as np
from PIL import Image, ImageFile, ImageOps

from data.windows import resized_size
from utils.command import MOST_PIXELS

try:
    import pillow_heif  # optional: HEIC and HEIF, the photos of telephones
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()

# The version of the rules from a file to its pixels. Caches and indexes keep it, and are not used with other rules.
DECODING = 3
_JPEG_TIMES = 4  # the pixels of a JPEG that is decoded at half its width and height, over those of other images
# A limit is divided by this: the decoder's memory for each pixel, over the 6 bytes that keep the limit below 300 MB.
_MEMORY = defaultdict(lambda: 1.0, {"progressive": 1.25, "TIFF": 1.5, "AVIF": 2.0, "WEBP": 3.0, "JPEG2000": 4.0})
MOST_RATIO = 200  # of the longer side to the shorter one
MOST_SIDE = 50_000  # pixels of the longer side: a thin image needs much memory while it is resized
# Larger images are not turned or converted as a whole before they are resized, or there would be two copies in memory.
_WHOLE_PIXELS = 32_000_000
_BLOCK_PIXELS = 1_000_000

# Pillow's warnings and log name no file. What makes pixels unreadable is also an exception; the rest is metadata.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

Image.init()
# EPS runs another program; the other readers only recognise the file and cannot decode it.
_NOT_READ = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "FITS"}
FORMATS = tuple(sorted(set(Image.OPEN) - _NOT_READ, key=lambda name: (name != "JPEG", name != "PNG", name)))
_SIXTEEN_BITS = re.compile(r"\b(RGB[AXa]?|LA);16")  # per colour, in the raw mode of a tile
# The reader of JPEG reads MPO, too.
EXTENSIONS = frozenset(ext for ext, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))


class BadImage(Exception):
    """A file that cannot be read as an image; the message says why."""


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF does not make the pixels unreadable
        return


def _require_eight_bits(image: Image.Image) -> None:
    """Refuse colours of 12 bits in 16: Pillow keeps the upper 8 of 16 bits, which leaves next to nothing of them."""
    extrema = cast(tuple[tuple[int, int], ...], image.getextrema())
    high = max(highest for _, highest in extrema[:3])
    if 0 < high < 16:
        raise BadImage("nearly black: its colours use 12 of 16 bits, and the upper 8 are kept; save it with 8 bits")


def _blocks(image: Image.Image, multiple: int) -> Iterator[tuple[int, Image.Image]]:
    """Blocks of whole rows, a multiple of `multiple` but for the last, each with the number of its first row."""
    rows = max(_BLOCK_PIXELS // (image.width * multiple), 1) * multiple
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, scaled by its real range: the upper 8 of the 8, 10, 12, 14 or 16 bits that it uses."""
    bits = max(int(np.asarray(block).max()) for _, block in _blocks(image, 1)).bit_length()
    shift = max(bits + bits % 2 - 8, 0)
    levels = np.empty((image.height, image.width), dtype=np.uint8)
    for top, block in _blocks(image, 1):
        values = np.asarray(block).clip(0)
        levels[top : top + block.height] = values >> shift
        if "transparency" in image.info:
            levels[top : top + block.height][values == image.info["transparency"]] = 255
    return Image.fromarray(levels)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(with_alpha, mask=with_alpha)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """RGB, resized (bilinear, antialiased) to `size`, width and height."""
    if image.mode == "L" and not image.has_transparency_data:  # the same as from RGB, with a quarter of the memory
        return image.resize(size, Image.Resampling.BILINEAR).convert("RGB")
    factor = min(image.width // size[0], image.height // size[1])
    plain = image.mode == "RGB" and not image.has_transparency_data
    if plain or factor < 2 or image.width * image.height <= _WHOLE_PIXELS:
        return _to_rgb(image).resize(size, Image.Resampling.BILINEAR)
    means = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top, block in _blocks(image, factor):
        means.paste(_to_rgb(block).reduce(factor), (0, top // factor))
    return means.resize(size, Image.Resampling.BILINEAR, box=(0, 0, image.width / factor, image.height / factor))


def _require_readable(image: Image.Image, shorter_side: int, most_pixels: int) -> None:
    """Look at the header: BadImage for too many pixels or too thin an image; a large JPEG is read at a smaller size."""
    width, height = image.size
    if max(width, height) > MOST_RATIO * min(width, height):
        raise BadImage(f"{width:,} × {height:,} pixels: one side is more than {MOST_RATIO} times the other; crop it")
    if max(width, height) > MOST_SIDE:
        raise BadImage(f"{width:,} × {height:,} pixels: one side has more than {MOST_SIDE:,}; crop it")
    kind = image.format or ""
    progressive = kind in ("JPEG", "MPO") and bool(image.info.get("progressive"))
    limit = int(most_pixels / _MEMORY["progressive" if progressive else kind])
    if kind in ("JPEG", "MPO"):
        # The decoder halves the size up to three times while it stays at least this: twice what is wanted, so that the
        # resize after it still averages, or half of an image with very many pixels.
        least_height, least_width = (2 * side for side in resized_size(height, width, shorter_side))
        if width * height > most_pixels / (2 if progressive else 1):
            least_height, least_width = min(least_height, height // 2), min(least_width, width // 2)
        image.draft(None, (least_width, least_height))
    # The decoder of a progressive JPEG holds the whole image, whatever the size of its output.
    if (width * height if progressive else image.width * image.height) > limit:
        raise _too_large(f"{width:,} × {height:,} pixels are", limit, kind if limit < most_pixels else "")


def _too_large(pixels: str, limit: int, kind: str = "") -> BadImage:
    of_kind = f", the limit for {kind}" if kind else ""
    return BadImage(f"{pixels} more than {limit:,}{of_kind}; make it smaller, or raise --max-pixels")


def open_image(
    path: str | os.PathLike[str] | IO[bytes], *, formats: tuple[str, ...] = FORMATS, most_pixels: int = MOST_PIXELS
) -> ImageFile.ImageFile:
    """Open an image to read its header; Pillow raises almost any exception for a damaged one.

    Raises:
        BadImage: not a file; opening a pipe would wait for a writer for ever.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have set it: half an image is not an image
    Image.MAX_IMAGE_PIXELS = _JPEG_TIMES * most_pixels // 2  # Pillow refuses images of more than twice that
    if isinstance(path, (str, os.PathLike)) and not stat.S_ISREG(os.stat(path).st_mode):
        raise BadImage("not a file, but a folder, a pipe or a device")
    return Image.open(path, formats=formats)


def decode(
    path: str | os.PathLike[str] | IO[bytes],
    shorter_side: int,
    *,
    formats: tuple[str, ...] = FORMATS,
    most_pixels: int = MOST_PIXELS,
) -> np.ndarray:
    """Read an image: uint8 [height, width, 3], with a shorter side of at most `shorter_side` pixels.

    It is resized like torchvision's Resize of a Pillow image (bilinear, antialiased); a JPEG of four times that side or
    more is first decoded at a half, a quarter or an eighth of its size. Images of more than `most_pixels` and thin
    images (`MOST_RATIO`, `MOST_SIDE`) are refused after a look at their header.

    Raises:
        BadImage: missing, damaged, cut short, too large, too thin, not an image, or not a file (a pipe, a device).
    """
    try:
        with open_image(path, formats=formats, most_pixels=most_pixels) as opened:
            _require_readable(opened, shorter_side, most_pixels)
            colours = any(_SIXTEEN_BITS.search(str(tile[3])) for tile in opened.tile)
            opened.load()
            if opened.mode == "F":
                raise BadImage("its pixels are floating-point numbers of unknown range")
            if colours:
                _require_eight_bits(opened)
            large = opened.width * opened.height > _WHOLE_PIXELS
            if not large:
                _turn_upright(opened)
            image = _eight_bits(opened) if opened.mode.startswith("I") else opened
            if min(image.size) > shorter_side:
                height, width = resized_size(image.height, image.width, shorter_side)
                image = _resized(image, (width, height))
            else:
                image = _to_rgb(image)
            if large:
                image.info = opened.info  # with the orientation
                _turn_upright(image)
            return np.array(image)
    except (BadImage, MemoryError):
        raise
    except FileNotFoundError:
        raise BadImage("missing") from None
    except Image.DecompressionBombError:
        raise _too_large("it has too many pixels,", most_pixels) from None
    except Exception as error:  # a damaged image may raise almost any exception
        raise BadImage(str(error) or type(error).__name__) from error
