"""Which images a command line names."""

from pathlib import Path

import pytest

from data.image_paths import find_images, without_labels
from tests.image_trees import save_photo


def test_files_folders_and_lists(tmp_path):
    save_photo(tmp_path / "one" / "deep" / "er" / "日本 ü.png", 1)
    save_photo(tmp_path / "one" / "b.JPG", 2)
    save_photo(tmp_path / "one" / "a.webp", 3)
    (tmp_path / "one" / "notes.md").write_text("no image")
    (tmp_path / "one" / ".hidden.png").write_bytes(b"")
    lines = [
        "one\\b.JPG",
        "one/deep/er/日本 ü.png  ",
        str(tmp_path / "one" / "a.webp"),
        "one/b.JPG 0 1 0",
        "gone.png 4",
    ]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\r\n")
    one = str(tmp_path / "one")
    below = [f"{one}/a.webp", f"{one}/b.JPG", f"{one}/deep/er/日本 ü.png"]
    assert find_images([one]) == below
    assert find_images([f"{one}/b.JPG", one, f"{one}/b.JPG"]) == [below[1], *below, below[1]]
    assert find_images([str(tmp_path / "list.txt")]) == [
        below[1], below[2], below[0], below[1], str(tmp_path / "gone.png")
    ]  # fmt: skip


def test_a_list_beside_the_command_keeps_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("a.png\nb c.png\n")
    assert find_images(["list.txt"]) == ["a.png", "b c.png"]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("a.jpg 0 1 0", "a.jpg"),
        ("a b.jpg\t3", "a b.jpg"),
        ("photo 1.jpg", "photo 1.jpg"),
        ("scan 12", "scan 12"),  # nothing says that the number is a label
        ("a.jpg x 1", "a.jpg x 1"),
        ("7.png", "7.png"),
    ],
)
def test_label_columns(line, name):
    assert without_labels(line) == name
