"""From image files of every kind to stored pixels."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

import data.decode
from data.decode import EXTENSIONS, BadImage, decode
from tests.image_trees import photo, save_photo


def test_small_images_are_kept_and_large_ones_resized_as_torchvision_does(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", 256), np.asarray(photo(1)))
    want = photo(1).resize((26, 20), Image.Resampling.BILINEAR)  # 60 x 45: the longer side is int(20 * 60 / 45)
    assert np.array_equal(decode(tmp_path / "a.png", 20), np.asarray(want))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    kind = {"CMYK": "jpg", "YCbCr": "jpg", "LAB": "tiff"}.get(mode, "png")
    image = photo(2).convert(mode) if mode != "LAB" else Image.merge("LAB", photo(2).split())
    image.save(tmp_path / f"a.{kind}")
    with Image.open(tmp_path / f"a.{kind}") as opened:
        want = np.asarray(opened.convert("RGB"))
    got = decode(tmp_path / f"a.{kind}", 256)
    assert got.shape == (45, 60, 3) and np.array_equal(got, want)


def test_grey_has_three_equal_channels(tmp_path: Path) -> None:
    photo(3).convert("L").save(tmp_path / "a.png")
    got = decode(tmp_path / "a.png", 256)
    assert np.array_equal(got[..., 0], got[..., 1]) and np.array_equal(got[..., 0], np.asarray(photo(3).convert("L")))


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours [h, w, 3] with their opacity 0..255 [h, w], laid over white."""
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(tmp_path: Path, mode: str) -> None:
    """Two cut-outs that look equal are equal, whatever colour lies below what cannot be seen."""
    alpha = np.linspace(0, 255, 45 * 60).round().astype(np.uint8).reshape(45, 60)
    alpha[:20] = 0
    kind = "tiff" if mode == "PA" else "png"
    read = []
    for seed in (2, 3):
        colours = np.asarray(photo(2).convert("L" if mode == "LA" else "RGB")).copy()
        colours[:20] = np.asarray(photo(seed).convert("L" if mode == "LA" else "RGB"))[:20]
        image = Image.fromarray(colours) if mode != "PA" else Image.fromarray(colours).quantize(64)
        image.putalpha(Image.fromarray(alpha))
        image.convert("RGBA" if mode == "PA" else mode).save(tmp_path / f"a.{kind}")
        read.append(decode(tmp_path / f"a.{kind}", 256))
        with Image.open(tmp_path / f"a.{kind}") as opened:
            want = on_white(np.asarray(opened.convert("RGBA"))[..., :3].astype(float), alpha)
        assert np.abs(read[-1] - want).max() <= 1
    assert (read[0][:20] == 255).all() and (mode == "PA" or np.array_equal(*read))


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "I;16"])
def test_one_transparent_colour(tmp_path: Path, mode: str) -> None:
    transparent = {"RGB": (9, 8, 7), "I;16": 300}.get(mode, 3)
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 4), 60_000, dtype=np.uint16))
    else:
        image = Image.new(mode, (4, 4), (200, 100, 50) if mode == "RGB" else 1)
        if mode == "P":
            image.putpalette([0, 0, 0, 200, 100, 50, 0, 0, 0, 1, 2, 3])
    opaque = {"L": [1] * 3, "I;16": [60_000 >> 8] * 3}.get(mode, [200, 100, 50])
    image.putpixel((2, 1), transparent)
    image.save(tmp_path / "a.png", transparency=transparent)
    got = decode(tmp_path / "a.png", 256)
    assert got[1, 2].tolist() == [255, 255, 255] and got[0, 0].tolist() == opaque


@pytest.mark.parametrize(("most", "shift"), [(200, 0), (1000, 2), (4095, 4), (15_000, 6), (32_768, 8), (65_535, 8)])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_are_scaled_by_their_real_range(tmp_path: Path, most: int, shift: int, kind: str) -> None:
    """A camera's 12 bits in a 16-bit file are not black."""
    values = np.linspace(0, most, 45 * 60).astype(np.uint16).reshape(45, 60)
    Image.fromarray(values).save(tmp_path / f"a.{kind}")
    got = decode(tmp_path / f"a.{kind}", 256)
    assert np.array_equal(got, np.repeat((values >> shift)[..., None], 3, axis=2)) and got.max() == most >> shift


def test_thirty_two_bits_of_grey(tmp_path: Path) -> None:
    values = np.array([[-5, 0, 255], [256, 100_000, 2**17 - 1]], dtype=np.int32)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert decode(tmp_path / "a.tiff", 256)[..., 0].tolist() == [[0, 0, 0], [0, 97, 127]]


def write_png(path: Path, width: int, height: int, bits: int, kind: int, value: int) -> None:
    """A PNG (https://www.w3.org/TR/png/) of one value, written row by row; `kind` 2 is RGB, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" + value.to_bytes(bits // 8, "big") * ({2: 3, 6: 4}[kind] * width)
    packed = zlib.compressobj(1)
    content = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


def test_colours_of_12_bits_in_16_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", 3, 2, 16, 2, 4095)
    with pytest.raises(BadImage) as caught:
        decode(tmp_path / "a.png", 256)
    assert str(caught.value) == (
        "nearly black: its colours use 12 of 16 bits, and the upper 8 are kept; save it with 8 bits"
    )
    for value in (0, 4096, 65_535):
        write_png(tmp_path / "a.png", 3, 2, 16, 2, value)
        assert (decode(tmp_path / "a.png", 256) == value >> 8).all()


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(BadImage, match="floating-point"):
        decode(tmp_path / "a.tiff", 256)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_images_upright(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(5).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "a.jpg") as opened:
        want = np.asarray(ImageOps.exif_transpose(opened))
        unturned = np.asarray(opened)
    got = decode(tmp_path / "a.jpg", 256)
    assert np.array_equal(got, want) and got.shape == ((60, 45, 3) if orientation >= 5 else (45, 60, 3))
    assert np.array_equal(got, unturned) == (orientation == 1)


def test_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    photo(6).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(20), quality=95)
    assert decode(tmp_path / "a.jpg", 256).shape == (45, 60, 3)


def test_exif_of_which_only_the_orientation_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(5).save(tmp_path / "a.jpg", exif=exif, quality=95)
    want = decode(tmp_path / "a.jpg", 256)

    def fail(_: Image.Exif, offset: int = 8) -> bytes:
        raise ValueError("damaged")

    monkeypatch.setattr(Image.Exif, "tobytes", fail)
    got = decode(tmp_path / "a.jpg", 256)
    assert got.shape == (60, 45, 3) and np.array_equal(got, want)


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "webp"])
def test_half_an_image_is_no_image(tmp_path: Path, kind: str, tolerant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where another library has told Pillow to fill up what is missing with grey."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    path = tmp_path / f"a.{kind}"
    save_photo(path, 7, 300, 200)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadImage):
        decode(path, 256)


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("text.jpg", "empty.jpg", "folder.jpg"):
        with pytest.raises(BadImage):
            decode(tmp_path / name, 256)
    with pytest.raises(BadImage, match="missing"):
        decode(tmp_path / "none.jpg", 256)


def test_a_postscript_file_is_never_run(tmp_path: Path) -> None:
    photo(8).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(BadImage):
        decode(tmp_path / "a.jpg", 256)
    assert ".eps" not in EXTENSIONS and {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif"} <= EXTENSIONS


def test_an_image_with_many_pixels_is_refused(tmp_path: Path) -> None:
    for size, height in (
        ((60, 45), 45),
        ((60, 181), 181),
    ):  # above four times as many, Pillow itself refuses to open it
        save_photo(tmp_path / "a.png", 9, *size)
        pixels = "it has too many pixels," if height == 181 else "60 × 45 pixels are"
        with pytest.raises(BadImage) as caught:
            decode(tmp_path / "a.png", 256, most_pixels=2699)
        assert str(caught.value) == f"{pixels} more than 2,699; make it smaller, or raise --max-pixels"
    save_photo(tmp_path / "a.png", 9)
    assert decode(tmp_path / "a.png", 256, most_pixels=2700).shape == (45, 60, 3)


def test_a_very_large_jpeg_is_read_at_half_its_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(5, 600, 450).save(tmp_path / "a.jpg", exif=exif, quality=95)
    whole, half = (decode(tmp_path / "a.jpg", 150, most_pixels=most) for most in (270_000, 269_999))
    assert whole.shape == half.shape == (200, 150, 3)
    assert 0 < np.abs(whole.astype(int) - half).max() < 12 and np.abs(whole.astype(int) - half).mean() < 1
    assert decode(tmp_path / "a.jpg", 150, most_pixels=67_500).shape == (200, 150, 3)
    with pytest.raises(
        BadImage, match=r"it has too many pixels, more than 67,499; make it smaller, or raise --max-pixels"
    ):
        decode(tmp_path / "a.jpg", 150, most_pixels=67_499)


@pytest.mark.parametrize(("side", "scale"), [(120, 2), (121, 1), (61, 2), (60, 4), (30, 8), (15, 8)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"exif": 6}, {"mode": "L"}, {"mode": "CMYK"}])
def test_a_jpeg_is_decoded_at_twice_the_wanted_size_or_more(
    tmp_path: Path, side: int, scale: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has four times that size; the pixels are nearly those of the whole image."""
    exif = Image.Exif()
    exif[0x0112] = options.get("exif", 1)
    image = photo(5, 640, 480).convert(options.get("mode", "RGB"))
    image.save(tmp_path / "a.jpg", exif=exif, quality=95, progressive="progressive" in options)
    decoded: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load

    def note(opened: ImageFile.ImageFile) -> object:
        decoded.append(opened.size)
        return load(opened)

    monkeypatch.setattr(ImageFile.ImageFile, "load", note)
    got = decode(tmp_path / "a.jpg", side)
    assert decoded[0] == (640 // scale, 480 // scale)
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *_: None)
    want = decode(tmp_path / "a.jpg", side)
    difference = np.abs(got.astype(int) - want)
    assert got.shape == want.shape and difference.max() <= 12 and difference.mean() < 1
    assert (scale == 1) == bool((difference == 0).all())


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((20_000, 1), "20,000 × 1 pixels: one side is more than 200 times the other; crop it"),
        ((1, 300_000), "1 × 300,000 pixels: one side is more than 200 times the other; crop it"),
        ((50_001, 251), "50,001 × 251 pixels: one side has more than 50,000; crop it"),
    ],
)
def test_absurdly_thin_images_are_refused(tmp_path: Path, size: tuple[int, int], reason: str) -> None:
    write_png(tmp_path / "a.png", *size, 8, 2, 0)
    with pytest.raises(BadImage) as caught:
        decode(tmp_path / "a.png", 256)
    assert str(caught.value) == reason
    write_png(tmp_path / "a.png", 2000, 10, 8, 2, 0)
    assert decode(tmp_path / "a.png", 256).shape == (10, 2000, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16"])
def test_large_images_are_converted_in_blocks(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turned after they are resized, too. The pixels differ by rounding, and those in colour by a coarser average."""
    image = photo(5, 803, 601)
    if mode == "RGBA":
        image.putalpha(photo(6, 803, 601).convert("L"))
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 4)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 8
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path, exif=exif)
    whole = decode(path, 50).astype(int)
    monkeypatch.setattr(data.decode, "_WHOLE_PIXELS", 1000)
    monkeypatch.setattr(data.decode, "_BLOCK_PIXELS", 5000)
    blocks = decode(path, 50).astype(int)
    assert blocks.shape == whole.shape == (66, 50, 3)
    assert np.abs(blocks - whole).max() <= (1 if mode in ("RGB", "L", "I;16") else 6)
    assert np.abs(blocks - whole).mean() < 1


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from data.decode import decode
from data.transform import make_image
from data.windows import eval_windows
def peak():  # of this process alone; getrusage would count the process that started it
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
out, line = np.empty((3, 224, 224), dtype=np.float32), np.zeros((1, 20_000, 3), dtype=np.uint8)
decode(sys.argv[1], 256)
before = peak()
make_image(line, eval_windows(np.array([[1, 20_000]]), 224, 256)[0], out)
print(peak() - before)
for path in sys.argv[2:]:
    decode(path, 256)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks the system for the memory of the process")
def test_memory_and_warnings(tmp_path: Path) -> None:
    """A line of pixels, and the largest image of the most extreme shape; and what reaches stderr."""
    photo(6).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(20))
    write_png(tmp_path / "tall.png", 1000, 50_000, 8, 2, 85)
    photo(6, 4080, 4080).save(tmp_path / "large.webp", method=0)
    paths = [str(tmp_path / name) for name in ("a.jpg", "tall.png", "large.webp")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    line, images = map(int, done.stdout.split())
    assert line < 20e6 and 150e6 < images < 300e6
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "options", "limit"),
    [("a.webp", {}, 900), ("a.jp2", {}, 675), ("a.tif", {}, 1800), ("a.jpg", {"progressive": True}, 2160)],
)
def test_formats_whose_decoders_need_more_memory_have_a_lower_limit(tmp_path, name, options, limit) -> None:
    """An image of 60 × 45 pixels, and the limits of formats that are below --max-pixels 2700."""
    path = tmp_path / name
    photo(1).save(path, **options)
    with pytest.raises(BadImage, match=rf"60 × 45 pixels are more than {limit:,}, the limit for \w+; make it smaller"):
        decode(path, 20, most_pixels=2700)
    assert decode(path, 20, most_pixels=4 * 2700).shape == (20, 26, 3)


def test_pillow_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its lines do not name the file; `BadImage` ends up in a message that does."""
    photo(1).save(tmp_path / "a.tiff")
    three, eight = (struct.pack("<HHIH", 277, 3, 1, samples) for samples in (3, 8))  # the tag SamplesPerPixel
    content = (tmp_path / "a.tiff").read_bytes()
    assert three in content
    (tmp_path / "a.tiff").write_bytes(content.replace(three, eight))
    with pytest.raises(BadImage):
        decode(tmp_path / "a.tiff", 256)
    assert not caplog.records


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadImage, match="not a file, but a folder, a pipe or a device"):
        decode(tmp_path / "pipe.jpg", 256)
