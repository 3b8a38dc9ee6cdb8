"""`python -m search query`: tables, JSON and figures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.__main__ import main
from search.exact import Neighbours
from search.query import as_text
from search.store import Store
from utils.log import printable

ROOT = Path(__file__).parents[2]


def query_json(capsys, *line):
    assert main(["query", *map(str, line), "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def listed(neighbours):
    """(row, distance) of each."""
    return list(zip(neighbours.rows.tolist(), neighbours.distances.tolist(), strict=True))


def test_a_query_needs_nothing_but_the_store(store, model_file, tmp_path, capsys):
    collection = store.collection()
    _, name, _ = collection.item(17)
    query = tmp_path / f"query{Path(name).suffix}"
    shutil.copy(store.path_of(name), query)
    model_file.unlink()
    answer = query_json(capsys, store.uri, query, "-k", 4)
    [expected] = store.search(collection.codes[17:18], k=4)
    [result] = answer["queries"]
    assert result["image"] == str(query) and answer["unreadable"] == [] and answer["exact"] is True
    assert (answer["store"], answer["images"], answer["code_length"]) == (store.uri, 30, store.code_length)
    assert answer["fingerprint"] == store.fingerprint
    assert [(found["row"], found["distance"]) for found in result["neighbours"]] == listed(expected)
    assert result["neighbours"][0]["distance"] == 0
    for found, name, label in zip(result["neighbours"], expected.names, expected.labels, strict=True):
        assert (found["name"], found["label"], found["path"]) == (name, label, str(store.path_of(name)))
    [within] = query_json(capsys, store.uri, query, "--radius", 2)["queries"]
    [expected] = store.search(collection.codes[17:18], radius=2)
    assert [(found["row"], found["distance"]) for found in within["neighbours"]] == listed(expected)
    [labelled] = query_json(capsys, store.uri, query, "--label", "日本", "-k", 30)["queries"]
    assert [found["label"] for found in labelled["neighbours"]] == ["日本"] * 10


def test_an_index_says_that_it_may_miss_neighbours(store, photos, capsys):
    query = photos / "日本" / "Bild 00.jpg"
    store.optimize(index=True, lists=10)
    line = ["query", store.uri, str(query), "-k", "2", "--device", "cpu"]
    for flags, is_exact in (([], False), (["--exact"], True), (["--probes", "10"], True), (["--probes", "1"], False)):
        assert main([*line, *flags]) == 0
        assert ("with an index, which may miss neighbours" in capsys.readouterr().out) != is_exact
        assert query_json(capsys, store.uri, query, *flags)["exact"] is is_exact


def test_the_table_names_distance_label_and_file(store, photos, capsys):
    query = photos / "日本" / "Bild 00.jpg"
    assert main(["query", store.uri, str(query), "-k", "2", "--device", "cpu"]) == 0
    first, header, line, *rest = capsys.readouterr().out.splitlines()
    assert first == str(query) and header.split() == ["rank", "distance", "label", "name"]
    collection = store.collection()
    code = collection.codes[collection.names.to_pylist().index("日本/Bild 00.jpg")]
    [found] = store.search(code[None], k=1)
    assert line.split(maxsplit=2)[:2] == ["1", "0"] and line.endswith(f"  {found.names[0]}") and len(rest) == 1
    empty = np.zeros(0, np.int64)
    assert as_text([("a.png", Neighbours(empty, empty, [], []))]) == "a.png\n  nothing found"
    row = np.array([3])
    assert as_text([("a.png", Neighbours(row, row, ["b\n.png"], [""]))]) == (
        "a.png\n  rank    distance    label    name\n  1       3                    b�.png"
    )


def test_damaged_queries_are_named_and_the_others_searched(store, photos, tmp_path, capsys):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no image")
    good = photos / "Äpfel" / "Bild 01.png"
    assert main(["query", store.uri, str(bad), str(good), "-k", "1", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert f"{bad}: skipped (" in printed.err and printed.out.startswith(f"{good}\n")
    answer = query_json(capsys, store.uri, bad, good)
    assert [one["image"] for one in answer["queries"]] == [str(good)]
    assert [one["image"] for one in answer["unreadable"]] == [str(bad)]
    assert main(["query", store.uri, str(bad), "--device", "cpu"]) == 2
    assert "None of the 1 images could be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["-k", "0"], "argument -k: '0' must be a whole number, 1 or more"),
        (["--radius", "-1"], "argument --radius: '-1' must be a whole number, 0 or more"),
        (["--batch-size", "0"], "argument --batch-size: '0' must be a whole number, 1 or more"),
        (["--probes", "0"], "argument --probes: '0' must be a whole number, 1 or more"),
        (["--probes", "1", "--exact"], "--exact, --probes: give only one of them."),
        (["--label", "cat"], "--label cat: no image has this label; they are große Hunde, Äpfel, 日本."),
        (["--figure", "a.jpg"], "--figure a.jpg: figures are written as png or pdf"),
        (["--figure", "no/where/a.png"], "there is no folder"),
        (["--device", "abacus"], "--device abacus"),
        (["--images-folder", "no/where"], "--images-folder no/where: there is no such folder"),
    ],
)
def test_bad_flags(store, flags, sentence, capsys):
    assert main(["query", store.uri, "x.png", *flags]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed and printed.startswith("python -m search query: ") and printed.count("\n") == 1


def test_names_are_printed_for_any_terminal():
    assert printable("a/ä 1.png") == "a/ä 1.png"
    assert printable("\udcff\x1b[2J\n") == "��[2J�"


def test_the_figure_shows_queries_and_neighbours_or_grey_for_missing_files(store, photos, tmp_path, capsys):
    query = str(photos / "Äpfel" / "Bild 01.png")
    assert main(["query", store.uri, query, "--figure", str(tmp_path / "out.png"), "--device", "cpu"]) == 0
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 500
    moved = tmp_path / "moved"
    photos.rename(moved)
    line = ["query", store.uri, str(moved / "Äpfel" / "Bild 01.png"), "--device", "cpu", "--figure"]
    capsys.readouterr()
    assert main([*line, str(tmp_path / "grey.png")]) == 0
    error = capsys.readouterr().err.splitlines()
    assert any(line.startswith(f"{photos}/") and ": drawn as a grey square: " in line for line in error)
    assert error[-2] == "10 images are missing; name their folder with --images-folder."
    assert main([*line, str(tmp_path / "again.png"), "--images-folder", str(moved)]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()
    assert (tmp_path / "grey.png").read_bytes() != (tmp_path / "out.png").read_bytes()


def test_the_commands_of_a_store_need_no_torch(store, photos):
    """It takes seconds to import; matplotlib, for the figure alone, one more."""
    script = (
        "import sys; from search.__main__ import main\n"
        "uri, photo = sys.argv[1:]\n"
        "for line in (['query', uri, photo], ['add', uri, photo], ['remove', uri, 'x'], ['optimize', uri]):\n"
        "    assert main(line) == 0\n"
        "print(sorted({'torch', 'matplotlib', 'numba', 'sklearn'} & sys.modules.keys()))"
    )
    line = [sys.executable, "-c", script, store.uri, str(photos / "日本" / "Bild 00.jpg")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(Store(store.uri)) == 30
