"""`python -m search query`: tables, JSON and figures."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import search.query
from plots import gallery
from search.__main__ import main
from search.index import Index
from search.model import load_model
from search.query import printable
from tests.search.encode_small import make_run
from tests.search.small_index import BITS, make_index, pairs, query_json
from utils.errors import UserError


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
    assert "name the folder of the run with --run" in capsys.readouterr().err
    assert query_json(capsys, index, query, "--run", tmp_path / "run")["queries"][0]["neighbours"][0]["distance"] == 0


def test_damaged_queries_are_named_and_the_others_searched(index, photos, tmp_path, capsys):
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


def test_an_empty_result_is_printed(tmp_path, capsys):
    index = make_index(np.zeros((2, BITS), np.uint8))
    none = index.search(np.packbits(np.ones((1, BITS), np.uint8), axis=1), radius=3)[0]
    assert "nothing within the radius" in search.query.table(index, [("a.png", *none)])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-k", "0"], "argument -k: '0' must be a whole number, 1 or more"),
        (["--radius", "-1"], "argument --radius: '-1' must be a whole number, 0 or more"),
        (["--batch-size", "0"], "argument --batch-size: '0' must be a whole number, 1 or more"),
        (["--nprobe", "0"], "argument --nprobe: '0' must be a whole number, 1 or more"),
        (["--backend", "annoy"], "argument --backend: invalid choice: 'annoy'"),
        (["--figure", "a.jpg"], "png or pdf"),
        (["--figure", "no/where/a.png"], "there is no folder"),
        (["--device", "abacus"], "--device abacus"),
    ],
)
def test_bad_flags(tmp_path, flags, sentence, capsys):
    assert main(["query", str(tmp_path), "x.png", *flags]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed and printed.startswith("python -m search query: ") and printed.count("\n") == 1


def test_names_are_printed_for_any_terminal():
    assert printable("a/ä 1.png") == "a/ä 1.png"
    assert printable("\udcff\x1b[2J\n") == "��[2J�"


def test_the_figure_shows_queries_neighbours_and_missing_files(index, photos, tmp_path, capsys):
    loaded = Index.load(index)
    query = str(photos / "Äpfel" / "Bild 01.png")
    lost = loaded.path_of(20)
    lost.unlink()
    rows, near = loaded.search(loaded.codes[loaded.names.index("Äpfel/Bild 01.png")][None], radius=BITS)[0]
    content, missing = search.query.gallery_of_files(loaded, [(query, rows, near), (query, rows[:2], near[:2])])
    assert missing == ([(str(lost), "No such file or directory")] if 20 in rows[:10] else [])
    assert content.images.shape == (2, 10, 3, gallery.THUMBNAIL, gallery.THUMBNAIL)
    assert content.texts[0] == ["Bild 01.png"] * 2
    assert content.texts[1][0] == [loaded.labels[row] for row in rows[:10]] and len(content.texts[1][1]) == 2
    assert np.array_equal(content.images[0, 0], search.query.file_thumbnail(loaded.path_of(rows[0])))
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
    capsys.readouterr()
    assert main([*line, str(tmp_path / "grey.png")]) == 0
    error = capsys.readouterr().err.splitlines()
    assert f"{loaded.path_of(rows[0])}: drawn as a grey square: " in error[0]
    assert error[-2] == "10 images are missing; name their folder with --images-folder."
    assert main([*line, str(tmp_path / "again.png"), "--images-folder", str(moved)]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()
    assert (tmp_path / "grey.png").read_bytes() != (tmp_path / "out.png").read_bytes()
