"""From image files of every kind to stored pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from data.decode import EXTENSIONS, BadImage, decode
from tests.image_trees import photo, save_photo


def test_small_images_are_kept_and_large_ones_resized_as_torchvision_does(tmp_path: Path) -> None:
    photo(1).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", 256), np.asarray(photo(1)))
    want = photo(1).resize((26, 20), Image.Resampling.BILINEAR)  # 60 x 45: the longer side is int(20 * 60 / 45)
    assert np.array_equal(decode(tmp_path / "a.png", 20), np.asarray(want))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    kind = {"CMYK": "jpg", "YCbCr": "jpg", "LAB": "tiff"}.get(mode, "png")
    image = photo(2) if mode != "LAB" else Image.merge("LAB", photo(2).split())
    image = image if mode == "LAB" else image.convert("L").convert("LA") if mode == "LA" else image.convert(mode)
    image.save(tmp_path / f"a.{kind}")
    with Image.open(tmp_path / f"a.{kind}") as opened:
        want = np.asarray(opened.convert("RGB"))
    got = decode(tmp_path / f"a.{kind}", 256)
    assert got.shape == (45, 60, 3) and np.array_equal(got, want)


def test_grey_has_three_equal_channels(tmp_path: Path) -> None:
    photo(3).convert("L").save(tmp_path / "a.png")
    got = decode(tmp_path / "a.png", 256)
    assert np.array_equal(got[..., 0], got[..., 1]) and np.array_equal(got[..., 0], np.asarray(photo(3).convert("L")))


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    image = photo(4).quantize(16)
    image.save(tmp_path / "a.png", transparency=bytes(range(0, 160, 10)))
    assert np.array_equal(decode(tmp_path / "a.png", 256), np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    values = (np.arange(45 * 60).reshape(45, 60) * 24).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    got = decode(tmp_path / "a.png", 256)
    assert np.array_equal(got, np.repeat((values >> 8)[..., None], 3, axis=2))


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


def test_a_huge_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_photo(tmp_path / "a.png", 9)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(tmp_path / "a.png", 256)
