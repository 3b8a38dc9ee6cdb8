"""`python -m search`, the index it writes, and the ways to search it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from search.query.backends import (
    FaissBackend,
    NumpyBackend,
    build_structure,
    default_backend,
    default_nlist,
    default_tables,
    open_backend,
)
from search.query.build import find_sources
from search.query.encode import prepare_image
from search.query.exact import as_words, ones_by_table
from search.query.index import Index
from search.query.model import load_model
from search.query.query import printable

import search.backends
import search.encode
import search.encode_command
import search.index
import search.model
import search.query
from data import Options, load_data
from dataset import export_digits
from plots import gallery
from search.__main__ import main
from tests.image_trees import save_photo
from tests.search.encode_small import make_run, use_small_parts
from utils.errors import UserError

BITS = 12

needs_faiss = pytest.mark.skipif(not search.query.backends.faiss_is_there(), reason="faiss is not installed")


def random_bits(count, bits, seed=0, distinct=6, flipped=0.1):
    """uint8 [count, bits] of 0 and 1 around few centres: many ties, at distance 0 too."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 2, (distinct, bits), dtype=np.uint8)
    return centres[random.integers(0, distinct, count)] ^ (random.random((count, bits)) < flipped).astype(np.uint8)


def make_index(bits, **changes):
    """An index of the rows `bits`, with names and labels."""
    count, code_length = bits.shape
    values = {
        "codes": np.packbits(bits, axis=1),
        "names": [f"c/{row}.png" for row in range(count)],
        "labels": ["c"] * count,
        "code_length": code_length,
        "settings": {"backbone": "alexnet"},
        "fingerprint": "0" * 64,
    }
    return Index(**(values | changes))


def by_a_loop(bits, query, k=None, radius=None):
    """(row, distance) of the neighbours of one row of bits, from the definition."""
    found = [(sum(a != b for a, b in zip(row, query, strict=True)), place) for place, row in enumerate(bits.tolist())]
    found = sorted(pair for pair in found if radius is None or pair[0] <= radius)
    if k is None and radius is None:
        k = 10
    return [(place, distance) for distance, place in found[:k]]


def pairs(result):
    rows, distances = result
    assert rows.dtype == np.int64 and distances.dtype == np.int64
    return list(zip(rows.tolist(), distances.tolist(), strict=True))


def files_below(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- Exact search ----


@given(
    count=st.integers(1, 60),
    code_length=st.sampled_from([1, 7, 8, 12, 16, 24, 32, 48, 64, 65, 100, 128, 300]),
    block=st.sampled_from([1, 3, 16, 1 << 16]),
    k=st.none() | st.integers(1, 70),
    radius=st.none() | st.integers(0, 40),
    seed=st.integers(0, 999),
)
def test_search_is_a_sort_by_distance_then_row(count, code_length, block, k, radius, seed):
    bits = random_bits(count + 3, code_length, seed)
    queries, bits = bits[:3], bits[3:]
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(search.query.index, "_ROWS_AT_ONCE", block)
        found = make_index(bits).search(np.packbits(queries, axis=1), k=k, radius=radius)
    assert [pairs(result) for result in found] == [by_a_loop(bits, query, k, radius) for query in queries.tolist()]


def test_a_block_with_far_more_ties_than_k_keeps_the_first_rows():
    bits = np.zeros((5000, 64), np.uint8)
    bits[1000:, 0] = 1
    index = make_index(bits)
    (rows, distances), (far, _) = index.search(np.packbits(np.array([bits[0], bits[-1]]), axis=1), k=3)
    assert rows.tolist() == [0, 1, 2] and distances.tolist() == [0, 0, 0]
    assert far.tolist() == [1000, 1001, 1002]
    assert index.search(index.codes[:1], k=1002)[0][0].tolist() == list(range(1002))


def test_a_search_without_bitwise_count_counts_the_same(monkeypatch):
    index = make_index(random_bits(200, 100))
    expected = index.search(index.codes[:5], k=20)
    words = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert ones_by_table(words).tolist() == [0, 1, 1, 64]
    monkeypatch.setattr(search.query.index, "_count_ones", ones_by_table)
    for one, other in zip(expected, index.search(index.codes[:5], k=20), strict=True):
        assert pairs(one) == pairs(other)


def test_words_are_the_codes_themselves_where_a_word_holds_one():
    codes = np.arange(32, dtype=np.uint8).reshape(4, 8)
    (word,) = as_words(codes)
    assert word.dtype == np.uint64 and np.shares_memory(word, codes)
    assert [word.dtype for word in as_words(codes[:, :3])] == [np.uint32]
    assert len(as_words(np.zeros((4, 13), np.uint8))) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"query_codes": np.zeros((1, 3), np.uint8)}, r"uint8 \[q, 2\] for 12 bits, not uint8 \[1, 3\]"),
        ({"query_codes": np.zeros((1, 2), np.int64)}, "not int64"),
        ({"query_codes": np.zeros(2, np.uint8)}, r"not uint8 \[2\]"),
        ({"k": 0}, "-k 0"),
        ({"radius": -1}, "--radius -1"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        make_index(random_bits(5, BITS)).search(**({"query_codes": np.zeros((1, 2), np.uint8)} | arguments))


# ---- The folder ----


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

    for module, name in ((search.query.index, "_write_strings"), (search.query.index.os, "fsync")):
        with monkeypatch.context() as patches:
            patches.setattr(module, name, full)
            with pytest.raises(UserError, match=r"index: could not be written .*No space left"):
                make_index(random_bits(9, BITS)).save(tmp_path / "index")
        assert files_below(tmp_path) == before
    rename = search.query.index.os.rename

    def refuse(source, target):  # the new folder's rename, the second of three
        if "old" not in Path(source).name and Path(source).name.startswith("."):
            full()
        rename(source, target)

    monkeypatch.setattr(search.query.index.os, "rename", refuse)
    with pytest.raises(UserError, match="could not be written"):
        make_index(random_bits(9, BITS)).save(tmp_path / "index")
    assert files_below(tmp_path) == before


def test_a_folder_that_is_no_index_is_not_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, sentence in (("photos", "is no index"), ("file", "is no index"), ("no/where", "there is no folder")):
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
        ({"code_length": 9}, "bits set behind the 9"),
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
        description["sha256"] = search.query.index._sha256_of_description(description)
    path.write_text(json.dumps(description))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated codes": (lambda folder: cut(folder / "codes.npy"), "codes.npy: has .* truncated"),
    "truncated names": (lambda folder: cut(folder / "names.bin"), "names.bin: has .* truncated"),
    "changed codes": (lambda folder: flip(folder / "codes.npy"), "codes.npy: has changed"),
    "changed labels": (lambda folder: flip(folder / "labels.bin"), "labels.bin: has changed"),
    "no codes": (lambda folder: (folder / "codes.npy").unlink(), "codes.npy: is missing"),
    "no description": (lambda folder: (folder / "index.json").unlink(), "is no index"),
    "truncated description": (lambda folder: cut(cut(folder / "index.json") or folder / "index.json"), "truncated or"),
    "a list": (lambda folder: (folder / "index.json").write_text("[]"), "is no index"),
    "another file": (lambda folder: (folder / "index.json").write_text("{}"), "is no index"),
    "a later version": (lambda folder: change_description(folder, format="schn-index-9"), "version schn-index-9"),
    "another code length": (
        lambda folder: change_description(folder, False, code_length=11),
        "index.json: has changed",
    ),
    "sealed code length": (lambda folder: change_description(folder, code_length=30), r"must be uint8 \[n, 4\]"),
    "another count": (lambda folder: change_description(folder, count=3), "promises 3 codes, codes.npy holds 5"),
    "a wrong kind": (lambda folder: change_description(folder, count="5"), "count '5'"),
    "no files": (lambda folder: change_description(folder, files={}), "describes no codes"),
    "no folder": (shutil.rmtree, "no such folder"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_index_is_refused_with_a_sentence(tmp_path, name, capsys):
    make_index(random_bits(5, BITS)).save(tmp_path / "index")
    Index.load(tmp_path / "index")
    harm, sentence = DAMAGE[name]
    harm(tmp_path / "index")
    with pytest.raises(UserError, match=sentence):
        Index.load(tmp_path / "index")
    assert main(["query", str(tmp_path / "index"), "x.png"]) == 2
    assert capsys.readouterr().err.startswith("python -m search: ")


# ---- build and query ----


@pytest.fixture
def index(run_folder, photos, tmp_path, capsys):
    assert main(["build", str(run_folder), str(photos), "-o", str(tmp_path / "index"), "--device", "cpu"]) == 0
    assert "30 images in 12 bits: index written to" in capsys.readouterr().out
    return tmp_path / "index"


def query_json(capsys, *line):
    assert main(["query", *map(str, line), "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def test_build_keeps_the_codes_that_encode_makes(index, run_folder, photos, tmp_path):
    loaded = Index.load(index)
    assert (
        search.encode_command.main([str(run_folder), str(photos), "-o", str(tmp_path / "codes.npz"), "--device", "cpu"])
        == 0
    )
    with np.load(tmp_path / "codes.npz") as content:
        assert np.array_equal(loaded.codes, content["codes"]) and len(np.unique(content["codes"], axis=0)) > 3
        assert [str(photos / name) for name in loaded.names] == content["names"].tolist()
        assert loaded.fingerprint == str(content["fingerprint"])
        assert loaded.settings == json.loads(str(content["settings"]))
    assert loaded.labels == [name.split("/")[0] for name in loaded.names] and len(set(loaded.labels)) == 3
    assert all(loaded.path_of(row).is_file() for row in range(30))
    loaded.matches(load_model(run_folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npz", "index", "photos", "run"]


def test_a_query_needs_nothing_but_the_index(index, run_folder, photos, tmp_path, capsys):
    loaded = Index.load(index)
    row = 17
    shutil.copy(loaded.path_of(row), tmp_path / f"query{loaded.path_of(row).suffix}")
    query = next(tmp_path.glob("query.*"))
    shutil.rmtree(run_folder)
    answer = query_json(capsys, index, query, "-k", 4)
    expected = loaded.search(loaded.codes[row : row + 1], k=4)[0]
    (result,) = answer["queries"]
    assert result["image"] == str(query) and answer["unreadable"] == [] and answer["backend"] == "numpy"
    assert [(found["row"], found["distance"]) for found in result["neighbours"]] == pairs(expected)
    assert result["neighbours"][0]["distance"] == 0
    for found in result["neighbours"]:
        assert found["name"] == loaded.names[found["row"]] and found["label"] == loaded.labels[found["row"]]
        assert Path(found["path"]) == loaded.path_of(found["row"])
    within = query_json(capsys, index, query, "--radius", 2)["queries"][0]["neighbours"]
    assert [(found["row"], found["distance"]) for found in within] == pairs(
        loaded.search(loaded.codes[row : row + 1], radius=2)[0]
    )


def test_the_table_names_distance_label_and_file(index, photos, capsys):
    query = photos / "日本" / "Bild 00.jpg"
    assert main(["query", str(index), str(query), "-k", "2", "--device", "cpu"]) == 0
    first, header, line, *rest = capsys.readouterr().out.splitlines()
    assert first == str(query) and header.split() == ["rank", "distance", "label", "name"]
    loaded = Index.load(index)
    row = int(loaded.search(loaded.codes[loaded.names.index("日本/Bild 00.jpg")][None], k=1)[0][0][0])
    assert line.split(maxsplit=2)[:2] == ["1", "0"] and line.endswith(f"  {loaded.names[row]}")
    assert len(rest) == 1


def test_an_index_of_another_model_or_code_length_is_refused(index, photos, tmp_path, capsys):
    query = str(photos / "日本" / "Bild 00.jpg")
    other = make_run(tmp_path / "other", seed=1)
    assert main(["query", str(index), query, "--run", str(other), "--device", "cpu"]) == 2
    assert "was built with another model" in capsys.readouterr().err
    assert main(["query", str(index), query, "--run", str(make_run(tmp_path / "wide", 16)), "--device", "cpu"]) == 2
    assert "12" in capsys.readouterr().err
    with pytest.raises(UserError, match="codes of 12 bits, the model makes 16"):
        Index.load(index).matches(load_model(tmp_path / "wide"))
    shutil.copy(index / "model.pt", tmp_path / "model.pt")
    main(["build", str(other), str(photos), "-o", str(tmp_path / "second"), "--device", "cpu"])
    shutil.copy(tmp_path / "second" / "model.pt", index / "model.pt")  # of one index into the other
    capsys.readouterr()
    assert main(["query", str(index), query, "--device", "cpu"]) == 2
    assert "was built with another model" in capsys.readouterr().err
    (index / "model.pt").unlink()
    assert main(["query", str(index), query, "--device", "cpu"]) == 2
    assert "name the run's folder with --run" in capsys.readouterr().err
    assert query_json(capsys, index, query, "--run", tmp_path / "run")["queries"][0]["neighbours"][0]["distance"] == 0


def test_the_stored_model_is_the_run_s_to_the_last_bit_and_small_where_it_loses_nothing(
    index, run_folder, photos, tmp_path
):
    model = load_model(run_folder)
    stored = torch.load(index / "model.pt", weights_only=True)["state"]
    assert {value.dtype for value in stored.values()} == {torch.float32}
    assert Index.load(index).model().fingerprint == model.fingerprint
    search.model.export_model(model, tmp_path / "half.pt")
    main(["build", str(tmp_path / "half.pt"), str(photos), "-o", str(tmp_path / "small"), "--device", "cpu"])
    stored = torch.load(tmp_path / "small" / "model.pt", weights_only=True)["state"]
    assert {value.dtype for value in stored.values()} == {torch.float16}
    small = Index.load(tmp_path / "small")
    assert small.model().fingerprint == load_model(tmp_path / "half.pt").fingerprint != model.fingerprint


def test_damaged_queries_are_named_and_the_others_answered(index, photos, tmp_path, capsys):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no image")
    good = photos / "Äpfel" / "Bild 01.png"
    assert main(["query", str(index), str(bad), str(good), "-k", "1", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert f"{bad}: skipped (" in printed.err and printed.out.startswith(f"{good}\n")
    answer = query_json(capsys, index, bad, good)
    assert [one["image"] for one in answer["queries"]] == [str(good)]
    assert [one["image"] for one in answer["unreadable"]] == [str(bad)]
    assert main(["query", str(index), str(bad), "--device", "cpu"]) == 2
    assert "None of the 1 query images could be read" in capsys.readouterr().err


def test_unreadable_images_are_left_out_of_an_index_with_their_names(run_folder, photos, tmp_path, capsys):
    (photos / "Äpfel" / "Bild 00.jpg").write_bytes(b"no image")
    assert main(["build", str(run_folder), str(photos), "-o", str(tmp_path / "index"), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "29 images in 12 bits, 1 skipped" in printed.out and "Bild 00.jpg: skipped" in printed.err
    loaded = Index.load(tmp_path / "index")
    assert "Äpfel/Bild 00.jpg" not in loaded.names and len(loaded.names) == len(loaded.labels) == 29
    for name, label in zip(loaded.names, loaded.labels, strict=True):
        assert name.startswith(f"{label}/")
    for path in photos.rglob("*.*"):
        path.write_bytes(b"no image")
    assert main(["build", str(run_folder), str(photos), "-o", str(tmp_path / "none"), "--device", "cpu"]) == 2
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".none*"))


def test_a_broken_off_build_goes_on(run_folder, photos, tmp_path, capsys, monkeypatch):
    use_small_parts(monkeypatch, 16)
    line = ["build", str(run_folder), str(photos), "--device", "cpu", "--num-workers", "1"]
    assert main([*line, "-o", str(tmp_path / "whole")]) == 0
    prepare, seen = search.query.encode.prepare_image, []

    def stop_at(limit):
        def prepare_some(path, *arguments):
            seen.append(path)
            if len(seen) == limit:
                raise KeyboardInterrupt
            return prepare(path, *arguments)

        return prepare_some

    monkeypatch.setattr(search.query.encode, "prepare_image", stop_at(25))
    assert main([*line, "-o", str(tmp_path / "index")]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err and not (tmp_path / "index").exists()
    seen.clear()
    monkeypatch.setattr(search.query.encode, "prepare_image", stop_at(0))
    assert main([*line, "-o", str(tmp_path / "index")]) == 0
    assert len(seen) == 30 - 16
    assert files_below(tmp_path / "index") == files_below(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "photos", "run", "whole"]


def test_names_and_labels_follow_what_was_given(photos, tmp_path, monkeypatch):
    sources, base = find_sources([str(photos)])
    assert base == photos and ("日本/Bild 00.jpg", "日本") in {(name, label) for _, name, label in sources}
    save_photo(photos / "top.png", 1)
    save_photo(photos / "日本" / "deep" / "er.png", 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("photos/top.png\nphotos/日本/deep/er.png\n")
    sources, base = find_sources(["photos", "photos/top.png", "list.txt"])
    assert base == tmp_path and all((base / name).is_file() for _, name, _ in sources)
    found = [(name, label) for _, name, label in sources]
    assert ("photos/top.png", "") in found and ("photos/日本/deep/er.png", "日本") in found
    assert found[-3:] == [("photos/top.png", ""), ("photos/top.png", ""), ("photos/日本/deep/er.png", "")]


def test_an_index_without_class_folders_has_no_labels(run_folder, tmp_path, capsys):
    for number in range(3):
        save_photo(tmp_path / "flat" / f"{number}.png", number)
    assert (
        main(["build", str(run_folder), str(tmp_path / "flat"), "-o", str(tmp_path / "index"), "--device", "cpu"]) == 0
    )
    assert Index.load(tmp_path / "index").labels is None
    capsys.readouterr()
    assert main(["query", str(tmp_path / "index"), str(tmp_path / "flat" / "1.png"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["rank", "distance", "name"]


def test_nothing_within_the_radius_is_said(tmp_path, capsys):
    index = make_index(np.zeros((2, BITS), np.uint8))
    none = index.search(np.packbits(np.ones((1, BITS), np.uint8), axis=1), radius=3)[0]
    assert "nothing within the radius" in search.query.table(index, [("a.png", *none)])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-k", "0"], "-k 0"),
        (["--radius", "-1"], "--radius -1"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--nprobe", "0"], "--nprobe 0"),
        (["--figure", "a.jpg"], "png or pdf"),
        (["--figure", "no/where/a.png"], "there is no folder"),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_flags_that_cannot_be_are_refused(tmp_path, flags, sentence, capsys):
    assert main(["query", str(tmp_path), "x.png", *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_names_are_shown_as_a_terminal_can_show_them():
    assert printable("a/ä 1.png") == "a/ä 1.png"
    assert printable("\udcff\x1b[2J\n") == "��[2J�"


# ---- The picture ----


def test_the_picture_shows_queries_neighbours_and_lost_files(index, photos, tmp_path, capsys):
    loaded = Index.load(index)
    query = str(photos / "Äpfel" / "Bild 01.png")
    lost = loaded.path_of(20)
    lost.unlink()
    rows, near = loaded.search(loaded.codes[loaded.names.index("Äpfel/Bild 01.png")][None], radius=BITS)[0]
    content = search.query.gallery_of_files(loaded, [(query, rows, near), (query, rows[:2], near[:2])])
    assert content.images.shape == (2, 10, 3, gallery.THUMBNAIL, gallery.THUMBNAIL)
    assert content.texts[0] == ["Bild 01.png"] * 2
    assert content.texts[1][0] == [loaded.labels[row] for row in rows[:10]] and len(content.texts[1][1]) == 2
    assert np.array_equal(content.images[0, 0], search.query.file_thumbnail(loaded.path_of(rows[0])))
    assert len(np.unique(search.query.file_thumbnail(lost))) == 1 < len(np.unique(search.query.file_thumbnail(query)))
    axes = Figure().add_subplot()
    gallery.draw_gallery(axes, content)
    frames = {patch.get_gid() for patch in axes.patches}
    assert len(frames) == 2 + 10 + 2 and {"query-2", "neighbour-1-10", "neighbour-2-2"} <= frames
    shown = [text.get_text() for text in axes.texts if text.get_gid() == "neighbour-1-1"]
    assert shown == ["d = 0", loaded.labels[rows[0]]]
    assert not any(mark in text.get_text() for text in axes.texts for mark in "✓✗")
    assert main(["query", str(index), query, "--figure", str(tmp_path / "out.png"), "--device", "cpu"]) == 0
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 500
    moved = tmp_path / "moved"
    photos.rename(moved)
    line = ["query", str(index), str(moved / "Äpfel" / "Bild 01.png"), "--device", "cpu", "--figure"]
    assert main([*line, str(tmp_path / "grey.png")]) == 0
    assert main([*line, str(tmp_path / "again.png"), "--images-folder", str(moved)]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()
    assert (tmp_path / "grey.png").read_bytes() != (tmp_path / "out.png").read_bytes()


# ---- faiss ----


def faiss_backend(index, name):
    return FaissBackend(index, name, build_structure(name, index.codes))


def make_index_and_queries(count, code_length, distinct=6):
    """An index and 40 packed queries around the same centres."""
    bits = random_bits(count + 40, code_length, code_length, distinct, flipped=min(0.1, 4 / code_length))
    return make_index(bits[40:]), np.packbits(bits[:40], axis=1)


@needs_faiss
@pytest.mark.parametrize("code_length", [12, 32, 64, 100])
def test_flat_gives_our_rows_and_distances(code_length):
    # At 12 bits hundreds tie at a cut, more than are fetched at first.
    index, queries = make_index_and_queries(3000, code_length)
    backend = faiss_backend(index, "flat")
    for k, radius in ((1, None), (10, None), (3000, None), (5000, None), (None, 5), (3, 5), (None, 0), (None, 9999)):
        ours = index.search(queries, k, radius)
        theirs = backend.search(queries, k, radius)
        assert [pairs(one) for one in theirs] == [pairs(one) for one in ours]
    raw, _ = backend.structure.search(queries, 10)
    assert np.array_equal(raw, [distances for _, distances in index.search(queries, 10)])


@needs_faiss
def test_ivf_that_looks_at_every_list_is_exact_and_one_list_is_not():
    index, queries = make_index_and_queries(2000, 32, distinct=200)
    structure = build_structure("ivf", index.codes, nlist=16)
    exact = [pairs(one) for one in index.search(queries, 10)]
    every = FaissBackend(index, "ivf", structure, nprobe=16)
    assert every.is_exact(None) and [pairs(one) for one in every.search(queries, 10)] == exact
    one_list = FaissBackend(index, "ivf", structure, nprobe=1)
    some = [pairs(one) for one in one_list.search(queries, 10)]
    assert not one_list.is_exact(None) and some != exact
    assert_true_distances(index, queries, some)
    again = FaissBackend(index, "ivf", build_structure("ivf", index.codes, nlist=16), nprobe=1).search(queries, 10)
    assert [pairs(one) for one in again] == some  # the centres are learnt the same each time


def assert_true_distances(index, queries, found):
    """In order, without repetition, each at the distance that it is said to have."""
    for query, result in zip(queries, found, strict=True):
        assert [(row, int(np.unpackbits(index.codes[row] ^ query).sum())) for row, _ in result] == result
        assert sorted(result, key=lambda pair: pair[::-1]) == result
        assert len({row for row, _ in result}) == len(result)


@needs_faiss
def test_hundreds_of_ties_at_the_cut_are_put_in_order():
    """Lists are read by their centres, so that faiss meets later rows first and keeps those."""
    index, queries = make_index_and_queries(20_000, 12)
    structure = build_structure("ivf", index.codes, nlist=16)
    backend = FaissBackend(index, "ivf", structure, nprobe=16)
    exact = index.search(queries, 3)
    assert [pairs(one) for one in backend.search(queries, 3)] == [pairs(one) for one in exact]
    distances, rows = structure.search(queries, 3)
    assert np.array_equal(distances, [near for _, near in exact])
    assert not np.array_equal(np.sort(rows, axis=1), [np.sort(where) for where, _ in exact])


@needs_faiss
@pytest.mark.parametrize("code_length", [12, 32, 64, 100])
def test_multihash_finds_all_within_a_radius(code_length):
    index, queries = make_index_and_queries(2000, code_length)
    backend = faiss_backend(index, "multihash")
    for radius in (0, 2, 5, 7):
        found = [pairs(one) for one in backend.search(queries, radius=radius)]
        assert found == [pairs(one) for one in index.search(queries, radius=radius)]
        assert any(found) or radius == 0
    assert_true_distances(index, queries, [pairs(one) for one in backend.search(queries, 10)])
    if code_length == 64:
        narrow = FaissBackend(index, "multihash", backend.structure, nflip=0)
        assert [pairs(one) for one in narrow.search(queries, radius=7)] != found
        assert backend.is_exact(7) and narrow.is_exact(3) and not narrow.is_exact(4) and not backend.is_exact(None)


@needs_faiss
@pytest.mark.parametrize("kind", ["ivf", "multihash"])
def test_a_stored_structure_is_used_and_checked(kind, run_folder, photos, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "index"
    line = ["build", str(run_folder), str(photos), "-o", str(folder), "--device", "cpu", "--backend", kind]
    assert main(line) == 0
    query = str(photos / "Äpfel" / "Bild 01.png")
    index = Index.load(folder)
    with monkeypatch.context() as patches:
        patches.setattr(search.query.backends, "build_structure", None)  # would fail if it were called
        backend = open_backend(index)
        assert backend.name == kind
    capsys.readouterr()
    assert main(["query", str(folder), query, "--device", "cpu", "--nprobe", "1"]) == 0
    assert f"Searched by {kind}, which may miss neighbours" in capsys.readouterr().out
    for other in ("numpy", "flat"):
        answer = query_json(capsys, folder, query, "--backend", other)
        assert answer["backend"] == other and answer["exact"] and answer["queries"][0]["neighbours"][0]["distance"] == 0
    flip(folder / "faiss.bin")
    assert main(["query", str(folder), query, "--device", "cpu"]) == 2
    assert "faiss.bin: has changed" in capsys.readouterr().err
    monkeypatch.setattr(search.query.backends, "faiss_is_there", lambda: False)
    assert query_json(capsys, folder, query)["backend"] == "numpy"


def test_without_faiss_numpy_searches_and_the_others_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(search.query.backends, "faiss_is_there", lambda: False)
    index = make_index(random_bits(5, BITS))
    assert isinstance(open_backend(index), NumpyBackend) and default_backend(10**9) == "numpy"
    with pytest.raises(UserError, match=r"--backend flat: needs faiss \(pip install -r requirements-search.txt\)"):
        open_backend(index, "flat")
    with pytest.raises(UserError, match="--backend annoy: must be one of"):
        open_backend(index, "annoy")


def test_the_backend_follows_the_number_of_codes(monkeypatch):
    monkeypatch.setattr(search.query.backends, "faiss_is_there", lambda: True)
    most = search.query.backends.MOST_FOR_EXACT
    assert [default_backend(count) for count in (1, most, most + 1)] == ["numpy", "numpy", "ivf"]
    assert default_tables(1000, 64) == (4, 16) and default_tables(10**7, 64) == (3, 21)
    assert default_tables(1, 8) == (1, 8) and default_tables(1000, 104) == (6, 17)
    assert [default_nlist(count) for count in (1, 3, 4, 10**6, 10**7)] == [1, 1, 2, 512, 2048]


# ---- Digits as files ----


def test_exported_digits_are_what_a_run_sees(tmp_path, capsys):
    assert export_digits.main([str(tmp_path / "all")]) == 0
    assert "1,797 images of 10 classes" in capsys.readouterr().out
    split = load_data("digits", tmp_path, Options(seed=5))
    halves = {}
    for part, half in (("query", split.query), ("database", split.database)):
        assert export_digits.main([str(tmp_path / part), "--part", part, "--seed", "5"]) == 0
        halves[part] = {path.relative_to(tmp_path / part) for path in (tmp_path / part).rglob("*.png")}
        for place in (0, 7, len(half) - 1):
            label = int(half.labels[place].argmax())
            path = tmp_path / "all" / str(label) / f"{half.rows[place]:04d}.png"
            assert path.relative_to(tmp_path / "all") in halves[part]
            assert torch.equal(torch.from_numpy(prepare_image(path, 64, 64)), half[place][0])
    assert len(halves["query"]) == 300 and len(halves["database"]) == 1497
    assert halves["query"] | halves["database"] == set(files_below(tmp_path / "all"))
    (tmp_path / "file").write_text("")
    assert export_digits.main([str(tmp_path / "file")]) == 2
    assert "cannot be written to" in capsys.readouterr().err
