"""The readers of image lists and label rows: what they accept; every error message names the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.list_files import read_class_names, read_labels, read_pairs, with_prefix
from data.name_lists import read_names
from utils.errors import UserError

fuzz = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LISTS = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from([b"0", b"1", b" ", b"\t", b"\r\n", b"\n", b"2", b"\xff", b"\0", b"a"])).map(b"".join),
)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [b"a.jpg\nb c.jpg", b"a.jpg\nb c.jpg\n", b"a.jpg\r\nb c.jpg\r\n", b"\xef\xbb\xbfa.jpg  \n\tb c.jpg\t\n\n \n"],
)
def test_names_with_any_line_end_and_blanks_behind(tmp_path: Path, content: bytes) -> None:
    assert read_names(write(tmp_path / "list.txt", content)) == ["a.jpg", "b c.jpg"]


def test_names_keep_what_belongs_to_them(tmp_path: Path) -> None:
    names = ["große/日本 1.jpg", "a\x85b.jpg", "a\u2028b.jpg", "x\x0by.png"]  # none of these ends a line
    assert read_names(write(tmp_path / "list.txt", "\n".join(names).encode())) == names
    assert read_names(write(tmp_path / "list.txt", b"actor\\0001_21.jpg\n")) == ["actor/0001_21.jpg"]


def test_prefix_or_not() -> None:
    for name in ("im1.jpg", "mirflickr/im1.jpg", "./im1.jpg", "./mirflickr/im1.jpg"):
        assert with_prefix(name, "mirflickr") == "mirflickr/im1.jpg"
    assert with_prefix("images2/a.jpg", "images") == "images/images2/a.jpg"


@pytest.mark.parametrize("content", [b"0 1 0\n1 0 0\n", b"0\t1  0\r\n 1 0 0 \r\n\r\n", b"0 1 0\n1 0 0"])
def test_label_rows(tmp_path: Path, content: bytes) -> None:
    labels = read_labels(write(tmp_path / "labels.txt", content))
    assert labels.dtype == torch.float32 and labels.tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\r\n \n", "is empty"),
        (b"0 1\n\n1 0\n", "line 2 is blank"),
        (b"0 1\n0 2\n", "line 2 has '2'"),
        (b"0 1\n0 1.0\n", "line 2 has '1.0'"),
        (b"01 1\n", "line 1 has '01'"),
        (b"0 1\n1 0 0\n", "line 2 has 3 labels, line 1 has 2"),
        (b"0 \xff\n", r"line 1 has '\\xff'"),
        (b"-1 1\n", "line 1 has '-1'"),
    ],
)
def test_bad_label_rows(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_labels(write(tmp_path / "labels.txt", content))
    assert message.replace("\\\\", "\\") in str(caught.value).replace("\\\\", "\\")
    assert str(tmp_path / "labels.txt") in str(caught.value)


def test_widths(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.txt", b"0 1 1\n")
    assert read_labels(path, {3, 5}).shape == (1, 3)
    with pytest.raises(UserError, match="line 1 has 3 labels; this dataset has 24 or 38"):
        read_labels(path, {38, 24})


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a\n\nb\n", "line 2 is blank"), (b"a\nb\xff\n", "line 2 is not UTF-8"), (b"a\0.jpg\n", "line 1 has a NUL")],
)
def test_bad_names(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_names(write(tmp_path / "list.txt", content))


def test_missing_and_unequal_files(tmp_path: Path) -> None:
    names = write(tmp_path / "names.txt", b"a\nb\n")
    with pytest.raises(UserError, match=r"labels\.txt cannot be read"):
        read_pairs([(names, tmp_path / "labels.txt")])
    with pytest.raises(UserError, match=r"has 2 images, .*labels\.txt has 1 label rows"):
        read_pairs([(names, write(tmp_path / "labels.txt", b"0 1\n"))])
    with pytest.raises(UserError, match="cannot be read"):
        read_names(tmp_path)


def test_class_names(tmp_path: Path) -> None:
    path = tmp_path / "concepts.txt"
    assert read_class_names(path, 2) is None
    write(path, b"cat\nplant life\n")
    assert read_class_names(path, 2) == ["cat", "plant life"]
    with pytest.raises(UserError, match="names 2 classes, the labels have 3 columns"):
        read_class_names(path, 3)


@fuzz
@given(LISTS)
def test_any_bytes_as_labels(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "labels.txt", content)
    try:
        labels = read_labels(path)
    except UserError as error:
        assert str(path) in str(error) and ("line" in str(error) or "empty" in str(error))
    else:
        rows = [line.split() for line in content.removeprefix(b"\xef\xbb\xbf").strip().split(b"\n")]
        assert labels.tolist() == [[float(entry) for entry in row] for row in rows]


@fuzz
@given(LISTS)
def test_any_bytes_as_names(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "list.txt", content)
    try:
        names = read_names(path)
    except UserError as error:
        assert str(path) in str(error) and ("line" in str(error) or "empty" in str(error))
    else:
        assert names and all(name and "\n" not in name and "\0" not in name for name in names)
        for name in names:
            assert not (tmp_path / "no" / name).is_file()  # whatever it is, the system can be asked for it


@fuzz
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=1), st.sampled_from(["\n", "\r\n", " \n"])
)
def test_what_is_written_is_read(tmp_path: Path, rows: list[list[int]], end: str) -> None:
    content = "".join(" ".join(map(str, row)) + end for row in rows).encode()
    assert read_labels(write(tmp_path / "labels.txt", content), {3}).tolist() == rows
