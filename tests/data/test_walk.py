"""The one walk over folders: links, hidden and foreign files, and a line about what is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image, features

from data import Options, load_data
from data.decode import decode
from data.image_paths import find_images, labelled_images
from data.walk import images_below
from tests.image_trees import ids, photo, save_photo
from utils.errors import UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two class folders, one of them a link, with links to images and a link back to the root."""
    root = tmp_path / "photos"
    for number in range(3):
        save_photo(root / "cat" / f"{number}.png", number)
        save_photo(tmp_path / "elsewhere" / "more" / f"{number}.jpg", 10 + number)
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "more" / "0.jpg")
    (root / "cat" / "back").symlink_to(root)
    return root


NAMES = ["cat/0.png", "cat/1.png", "cat/2.png", "cat/linked.jpg", "dog/more/0.jpg", "dog/more/1.jpg", "dog/more/2.jpg"]


def test_links_are_followed_in_training_encoding_and_indexing(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert images_below(tree) == NAMES
    split = load_data("folder", tree, Options(image_size=32, cache="off"))
    assert split.class_names == ["cat", "dog"] and ids(split) == set(NAMES)
    assert find_images([str(tree)]) == [str(tree / name) for name in NAMES]
    assert labelled_images([str(tree)]) == {str(tree / name): name[:3] for name in NAMES}
    assert not caplog.text


def test_a_link_to_nothing_is_a_missing_image(tree: Path) -> None:
    (tree / "cat" / "gone.png").symlink_to(tree / "nowhere.png")
    (tree / "cat" / "loop.png").symlink_to(tree / "cat" / "loop.png")
    (tree / "cat" / "loop").symlink_to(tree / "cat" / "loop")
    with pytest.raises(UserError, match=r"2 of 9 images .*cat/gone\.png \(missing\), cat/loop\.png \(missing\)"):
        load_data("folder", tree, Options(image_size=32))


def test_what_is_left_out_is_counted_by_extension(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.heic", "b.HEIC", "c.jpg_large", "noname", "cat/notes.txt", "cat/1.txt", "cat/2.txt"):
        (tree / name).write_bytes(b"x")
    os.mkfifo(tree / "cat" / "pipe.jpg")
    assert images_below(tree) == NAMES
    assert (
        caplog.messages
        == [
            f"{tree}: 8 files that are no images are passed over: 3 .txt, 2 .heic, 1 .jpg_large, 1 without extension, "
            "1 pipes or devices; to read HEIC, install pillow-heif"
        ]
        or ".heic" not in caplog.text
    )  # where pillow-heif is installed


def test_hidden_files_and_the_folders_of_a_nas_are_passed_over(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("@eaDir", ".thumbnails", "#recycle", "__MACOSX"):
        for place in (tree / folder, tree / "cat" / folder):
            save_photo(place / "thumb.jpg", 1)
    (tree / "cat" / "._0.png").write_bytes(b"of another system")
    load_data("folder", tree, Options(image_size=32))
    assert (tree / "folder-37.pixels").is_file()
    split = load_data("folder", tree, Options(image_size=32))
    assert ids(split) == set(NAMES) and not caplog.text


def test_images_beside_the_class_folders(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        save_photo(tree / f"{number}.png", number)
    split = load_data("folder", tree, Options(image_size=32))
    assert ids(split) == set(NAMES)
    assert caplog.messages == [f"{tree}: 4 images beside the class folders are left out (0.png, 1.png, 2.png, ...)"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every folder")
def test_a_folder_that_cannot_be_read(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "locked").mkdir(mode=0)
    assert images_below(tree) == NAMES
    assert f"{tree}/locked cannot be read (Permission denied); it is left out" in caplog.text


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none cannot be read: No such file or directory\."):
        images_below(tmp_path / "none")


@pytest.mark.parametrize("extension", ["mpo", "avif", "jfif", "apng"])
def test_formats_that_used_to_be_left_out(tmp_path: Path, extension: str) -> None:
    if extension == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    photo(3).save(tmp_path / f"a.{extension}", quality=95)
    assert images_below(tmp_path) == [f"a.{extension}"]
    with Image.open(tmp_path / f"a.{extension}") as opened:
        want = opened.convert("RGB")
    assert decode(tmp_path / f"a.{extension}", 256).tobytes() == want.tobytes()
