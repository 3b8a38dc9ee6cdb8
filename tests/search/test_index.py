"""The folder of an index: written whole or not at all, and refused if damaged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import search.index
import search.index_files
from search.__main__ import main
from search.index import Index
from tests.search.small_index import BITS, files_below, flip, make_index, random_bits
from utils.errors import UserError


def test_an_index_comes_back_as_it_was_saved(tmp_path):
    names = ["a/ä.png", "b/new\nline.png", "c/\udcff.png", "/abs/d.png"]  # \udcff: a byte that is no UTF-8
    index = make_index(random_bits(4, 20), names=names, labels=["a", "", "c", "日本"], images=tmp_path / "photos")
    index.save(tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]  # nothing temporary stays
    loaded = Index.load(str(tmp_path / "index"))
    assert isinstance(loaded.codes, np.memmap) and np.array_equal(loaded.codes, index.codes)
    for name in ("names", "labels", "code_length", "settings", "fingerprint", "images"):
        assert getattr(loaded, name) == getattr(index, name)
    assert loaded.folder == index.folder == tmp_path / "index"
    assert loaded.path_of(0) == tmp_path / "photos" / "a/ä.png" and loaded.path_of(3) == Path("/abs/d.png")
    loaded.labels, loaded.images = None, None
    loaded.save(tmp_path / "index")  # over itself, from codes that lie in it
    again = Index.load(tmp_path / "index")
    assert again.labels is None and again.path_of(0) == Path("a/ä.png") and np.array_equal(again.codes, index.codes)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_failed_save_leaves_the_index_that_was_there(tmp_path, monkeypatch):
    make_index(random_bits(4, BITS)).save(tmp_path / "index")
    before = files_below(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    for module, name in ((search.index, "write_strings"), (search.index_files.os, "fsync")):
        with monkeypatch.context() as patches:
            patches.setattr(module, name, full)
            with pytest.raises(UserError, match=r"index: could not be written .*No space left"):
                make_index(random_bits(9, BITS)).save(tmp_path / "index")
        assert files_below(tmp_path) == before
    rename = search.index_files.os.rename

    def refuse(source, target):  # the new folder's rename, the second of three
        if "old" not in Path(source).name and Path(source).name.startswith("."):
            full()
        rename(source, target)

    monkeypatch.setattr(search.index_files.os, "rename", refuse)
    with pytest.raises(UserError, match="could not be written"):
        make_index(random_bits(9, BITS)).save(tmp_path / "index")
    assert files_below(tmp_path) == before


def test_an_index_of_images_that_were_decoded_in_another_way_is_refused(tmp_path, monkeypatch):
    """As by an older version, which showed the colour below transparent pixels to the network."""
    monkeypatch.setattr(search.index, "DECODING", 1)
    make_index(random_bits(4, BITS)).save(tmp_path / "index")
    with pytest.raises(UserError) as caught:
        Index.load(tmp_path / "index")
    assert str(caught.value) == (
        f"{tmp_path}/index: its images were decoded in another way (transparent ones, for example); "
        "build the index again."
    )


def test_a_folder_that_is_no_index_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, sentence in (
        ("photos", "exists and is not an index"),
        ("file", "exists and is not an index"),
        ("no/where", "there is no folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_index(random_bits(4, BITS)).save(tmp_path / name)
    assert files_below(tmp_path) == {Path("photos/a.txt"): b"mine", Path("file"): b"mine"}
    (tmp_path / "empty").mkdir()
    make_index(random_bits(4, BITS)).save(tmp_path / "empty")
    assert len(Index.load(tmp_path / "empty")) == 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"names": ["a"]}, "4 codes but 1 names"),
        ({"labels": ["a"]}, "4 codes but 1 labels"),
        ({"code_length": 17}, r"must be uint8 \[n, 3\]"),
        ({"code_length": 9}, "bits set after the 9"),
        ({"codes": np.zeros((0, 2), np.uint8), "names": [], "labels": None}, "at least one"),
        ({"names": ["a", "b\0", "c", "d"]}, "zero byte"),
    ],
)
def test_parts_that_do_not_fit_together_are_not_saved(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        make_index(np.ones((4, BITS), np.uint8), **changes).save(tmp_path / "index")
    assert not list(tmp_path.iterdir())


def change_description(folder, seal=True, **changes):
    """Change index.json, with a checksum that fits or without."""
    path = folder / "index.json"
    description = json.loads(path.read_text()) | changes
    if seal:
        del description["sha256"]
        description["sha256"] = search.index_files.sha256_of_description(description)
    path.write_text(json.dumps(description))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "truncated codes": (lambda folder: cut(folder / "codes.npy"), "codes.npy: has .* truncated"),
    "truncated names": (lambda folder: cut(folder / "names.bin"), "names.bin: has .* truncated"),
    "changed codes": (lambda folder: flip(folder / "codes.npy"), "codes.npy: has changed"),
    "changed labels": (lambda folder: flip(folder / "labels.bin"), "labels.bin: has changed"),
    "no codes": (lambda folder: (folder / "codes.npy").unlink(), "codes.npy: is missing"),
    "no description": (lambda folder: (folder / "index.json").unlink(), "is not an index"),
    "truncated description": (lambda folder: cut(cut(folder / "index.json") or folder / "index.json"), "truncated or"),
    "a list": (lambda folder: (folder / "index.json").write_text("[]"), "is not an index"),
    "another file": (lambda folder: (folder / "index.json").write_text("{}"), "is not an index"),
    "a later version": (lambda folder: change_description(folder, format="schn-index-9"), "version schn-index-9"),
    "another code length": (
        lambda folder: change_description(folder, False, code_length=11),
        "index.json: has changed",
    ),
    "sealed code length": (lambda folder: change_description(folder, code_length=30), r"must be uint8 \[n, 4\]"),
    "another count": (lambda folder: change_description(folder, count=3), "says 3 codes, codes.npy has 5"),
    "a wrong kind": (lambda folder: change_description(folder, count="5"), "count '5'"),
    "no files": (lambda folder: change_description(folder, files={}), "describes no codes"),
    "no folder": (shutil.rmtree, "no such folder"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_index_is_refused_in_one_line(tmp_path, name, capsys):
    make_index(random_bits(5, BITS)).save(tmp_path / "index")
    Index.load(tmp_path / "index")
    harm, sentence = DAMAGE[name]
    harm(tmp_path / "index")
    with pytest.raises(UserError, match=sentence):
        Index.load(tmp_path / "index")
    assert main(["query", str(tmp_path / "index"), "x.png"]) == 2
    assert capsys.readouterr().err.startswith("python -m search query: ")
